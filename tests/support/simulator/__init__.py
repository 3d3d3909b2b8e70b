"""A GPU and TensorRT for tests, on host memory: work is done only when somebody waits, and misuse is a `Fault`."""

from .cuda import Cuda, Fault
from .machine import Machine, machine
from .tensorrt import simulated_tensorrt

__all__ = ["Cuda", "Fault", "Machine", "machine", "simulated_tensorrt"]
