"""The model that Triton's Python backend runs: its requests and responses as `Instance` knows them, and nothing else.

https://github.com/triton-inference-server/python_backend
"""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from latentrt.runtime.errors import InputError, LatentRTError
from latentrt.serve.http.kserve.envelope import Given
from latentrt.serve.http.kserve.signature import inputs
from latentrt.serve.http.kserve.tensors import BYTES, Tensor, checked_shape
from latentrt.serve.logs import configure

from .calls import Received
from .errors import TritonError, triton_error
from .instance import Instance
from .parameters import settings_of


class TritonPythonModel:
    """See https://github.com/triton-inference-server/python_backend#usage."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model of the configuration."""
        config = json.loads(args["model_config"])
        try:
            parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
            folder = Path(args["model_repository"], args["model_version"])
            settings = settings_of(args["model_name"], parameters, folder)
            configure(settings.log_format, prefix=f"[{args['model_name']}] ")
            progress = config.get("model_transaction_policy", {}).get("decoupled", False)
            self._instance = Instance(settings, _device(args), progress=progress)
            self._instance.start()
        except LatentRTError as error:
            raise pb_utils.TritonModelException(str(error)) from error

    def execute(self, requests: Sequence[Any]) -> None:
        """Begin to answer requests; the answers come from other threads."""
        for request in requests:
            sender = _Sender(request.get_response_sender())
            try:
                self._instance.answer(_received(request), sender, sender.fail)
            except InputError as error:
                sender.fail(triton_error(error))

    def finalize(self) -> None:
        """Finish what was accepted, and end the device."""
        self._instance.stop()


class _Sender:
    """See `Sender`. A request that is cancelled just when its last response is sent has only one of the two ends."""

    def __init__(self, sender: Any) -> None:
        self._sender, self._lock, self._ended = sender, threading.Lock(), False

    def send(self, outputs: Sequence[Given], *, final: bool) -> None:
        self._send(pb_utils.InferenceResponse([_tensor(output) for output in outputs]), final=final)

    def fail(self, error: TritonError) -> None:
        code = getattr(pb_utils.TritonError, error.code)
        self._send(pb_utils.InferenceResponse(error=pb_utils.TritonError(error.text, code)), final=True)

    def _send(self, response: Any, *, final: bool) -> None:
        with self._lock:
            if not self._ended:
                self._ended = final
                self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)

    def is_cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())


def _tensor(output: Given) -> Any:
    dtype = object if output.datatype == BYTES else None
    return pb_utils.Tensor(output.name, np.array(output.values, dtype))


def _received(request: Any) -> Received:
    """A request, copied: Triton's memory is its own again when `execute` returns. Raises `InputError`."""
    return Received(
        inputs=[_input(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()],
        outputs=frozenset(request.requested_output_names()),
        parameters=request.parameters(),
        timeout=request.timeout(),
    )


def _input(name: str, array: Any) -> Tensor:
    """Triton has checked names and datatypes."""
    shape = checked_shape(name, [*array.shape])
    return Tensor(name, inputs()[name].datatype, shape, array.ravel().tolist())


def _device(args: Mapping[str, str]) -> str | None:
    """What the instance group says; None leaves it to the model."""
    if args["model_instance_kind"] == "GPU":
        return f"cuda:{args['model_instance_device_id']}"
    return "cpu" if args["model_instance_kind"] == "CPU" else None
