"""A simulated GPU and TensorRT, in host memory: work runs only when the host waits, and misuse raises a `Fault`."""

from .cuda import Cuda
from .machine import Machine, machine
from .tensorrt import simulated_tensorrt
from .work import Fault

__all__ = ["Cuda", "Fault", "Machine", "machine", "simulated_tensorrt"]
