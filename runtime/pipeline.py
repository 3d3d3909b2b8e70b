"""Prompt to picture: text encoder, denoising loop, VAE decoder, on any backend. Never imports PyTorch."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from numpy.typing import NDArray

from latentrt.runtime.bundle import Bundle, ControlBundle, ControlManifest
from latentrt.runtime.control.fit import check_fit
from latentrt.runtime.request import OUT_OF_MEMORY, Call, CallOptions, checked_call
from latentrt.runtime.scheduler import REGISTERS
from latentrt.runtime.text import Tokenizer

from .arrays import Layers
from .cpu_hints import cpu_hints
from .drawing import Drawing, Result, Step
from .errors import BundleError, InputError
from .locks import SharedLock
from .protocols import Backend, Bucket, Slots
from .stages import Stages

logger = logging.getLogger(__name__)


class Pipeline:
    """A bundle, loaded on a backend. Thread-safe: each call has buffers of its own. Close it, or use it in `with`."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        controls: Mapping[str, ControlManifest] | None = None,
        refiner: Stages | None = None,
    ) -> None:
        """For backends of your own; otherwise use `Pipeline.load`."""
        self.bundle, self._backend = bundle, backend
        self._stages, self._refiner = Stages(bundle, backend, controls), refiner
        if refiner is not None:
            self._stages.refiner = refiner.bundle.manifest.checkpoint
        self._weights_in_use = SharedLock()
        self._lent = False

    @classmethod
    def load(
        cls,
        path: Path | str | None = None,
        *,
        refiner: Path | str | None = None,
        backend: str = "auto",
        device: str | None = None,
        engines: Path | str | None = None,
        trust_engines: bool = False,
        controls: Mapping[str, Path | str] | None = None,
    ) -> Self:
        """Open a bundle.

        Args:
            path: the bundle's folder; None is the small model that ships with latentrt.
            refiner: folder of a second bundle, which goes on from the option `refiner_start`. Its engines are in it;
                LoRAs change the first bundle alone.
            backend: "tensorrt", "tensorrt_rtx", "openvino" or "onnxruntime"; "auto" takes the best of them that works
                here: TensorRT where there are engines, ONNX Runtime on other GPUs, on CPUs what a bundle was quantized
                for, else OpenVINO where it is installed, else ONNX Runtime. An explicit choice never falls back.
            device: "cpu", "cuda" or "cuda:1"; None is the best that the backend finds.
            engines: folder of compiled engines, where they are not in the bundle.
            trust_engines: also load engines that contain host code (those built as version-compatible).
            controls: folders of control bundles, by the names that calls use, such as {"canny": "controls/canny"}.

        Raises: BundleError: not a complete bundle, or a control bundle that does not fit. BackendError: the backend is
        unknown or cannot run here.
        """
        bundle = _opened(embedded_bundle() if path is None else path)
        second = None if refiner is None else _opened(refiner)
        folder = None if engines is None else Path(engines)
        opened = {name: ControlBundle.open(one) for name, one in (controls or {}).items()}
        check_fit(bundle, opened)
        manifests = {name: one.manifest for name, one in opened.items()}
        loaded = _loaded(bundle, backend, device, folder, trust_engines, opened)
        if second is None:
            return cls(bundle, loaded, controls=manifests)
        try:
            stages = Stages(second, _loaded(second, backend, device, None, trust_engines, {}))
            return cls(bundle, loaded, controls=manifests, refiner=stages)
        except BaseException:
            loaded.close()
            raise

    @property
    def backend(self) -> str:
        """What runs the graphs, such as "onnxruntime-cpu"."""
        return self._backend.name

    @property
    def refiner(self) -> Bundle | None:
        """The bundle that goes on from the option `refiner_start`."""
        return None if self._refiner is None else self._refiner.bundle

    @property
    def loras(self) -> dict[Path, float]:
        """LoRA files in use and their weights."""
        return {lora.path: lora.weight for lora in self._stages.loras}

    def set_loras(self, loras: Mapping[Path | str, float], *, timeout: float = 60.0) -> float:
        """Draw with these LoRAs from now on, and with no others; `{}` goes back to the checkpoint, bit for bit.

        Args:
            loras: safetensors file of any trainer, or folder of PEFT -> weight, mostly 0 to 1; any number is allowed.
            timeout: seconds to wait for pictures that are being drawn, and for streams that are paused.

        Returns the milliseconds that it took. Raises `InputError` for a file that does not fit the bundle, and where
        the pictures are not finished in time; `BackendError` for engines that were built without `--refittable`. Then
        everything stays as it was.
        """
        self._require_own()
        start = time.perf_counter()
        put_in = self._stages.loras_of(loras)
        busy = (
            f"pictures are still being drawn after {timeout:g} s: finish or close all streams before you change LoRAs"
        )
        with self._weights_in_use.alone(busy, timeout):
            count = put_in()
        took = 1000 * (time.perf_counter() - start)
        logger.info("%d LoRAs change %d weights on %s; swapped in %.0f ms", len(loras), count, self.backend, took)
        return took

    def __call__(self, prompt: str | Sequence[str] | None = None, **options: Unpack[CallOptions]) -> Result:
        """Draw pictures.

        Args:
            prompt: a text, or one for each picture.
            **options: see `docs/options.md`, or `latentrt.runtime.request.OPTIONS`.

        Raises: InputError, SchedulerError: wrong arguments. NonFiniteError: the model returned NaN or infinity.
        """
        *_, last = self.stream(prompt, **options)
        assert last.result is not None
        return last.result

    def stream(self, prompt: str | Sequence[str] | None = None, **options: Unpack[CallOptions]) -> Iterator[Step]:
        """The same call as a generator of steps, for progress, previews and cancelling (stop asking for steps)."""
        self._require_own()
        # Checked here, not at the first step, so that the error is raised by the call itself.
        return self._checked_steps(self._checked(prompt, options))

    def png_texts(
        self, prompt: str | Sequence[str] | None = None, **options: Unpack[CallOptions]
    ) -> list[dict[str, str]]:
        """The text chunks that each picture of this call would have in a PNG file. Draws nothing.

        Raises: InputError, SchedulerError: wrong arguments.
        """
        self._require_own()
        return self._stages.png_texts(self._checked(prompt, options).first)

    def _checked(self, prompt: str | Sequence[str] | None, options: CallOptions) -> Call:
        refiner = None if self._refiner is None else self._refiner.facts
        return checked_call(self._stages.facts, prompt, options, refiner=refiner)

    def _checked_steps(self, call: Call) -> Iterator[Step]:
        try:
            yield from self._steps(call)
        except MemoryError:
            raise InputError(OUT_OF_MEMORY) from None

    def _steps(self, call: Call) -> Iterator[Step]:
        self._stages.require_open()
        with self._weights_in_use.shared():
            yield from Drawing(call, self._stages, self._refiner).steps()

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]], layers: Layers = None) -> dict[str, NDArray[Any]]:
        """Run one of the bundle's graphs on host arrays; `bundle.graph(name)` has the inputs and outputs.

        Args:
            layers: return only these of the output `hidden_states`; None is all.
        """
        return self._stages.run(graph, inputs, layers)

    def slots(self, bucket: Bucket, count: int) -> Slots:
        """Slots for a loop of your own, for this many images of these sizes. Close them."""
        return self._stages.slots(bucket, count)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the first text encoder."""
        return self.tokenizers[0]

    @property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """The bundle's tokenizers, one for each text encoder."""
        return self._stages.tokenizers

    def lend(self) -> Stages:
        """Hand the stages to a dispatcher. From now on calls and LoRAs go through it; here they raise `InputError`."""
        self._require_own()
        self._lent = True
        return self._stages

    def lend_refiner(self) -> Stages | None:
        """The stages of the refiner, for who has the others by `lend`; None without one."""
        return self._refiner

    def warm_up(self, **options: Unpack[CallOptions]) -> None:
        """Load everything and draw one step at the given sizes, so that the first real call is as fast as the next."""
        merged: CallOptions = {"num_inference_steps": 1, "seed": 0}
        if self._refiner is not None:
            merged.update({"num_inference_steps": 2, "refiner_start": 0.5})  # a step of each
        merged.update(options)
        self("", **merged)

    def close(self) -> None:
        """Free all memory. The pipeline cannot draw after this; streams that are under way raise at their next step."""
        self._stages.close()
        if self._refiner is not None:
            self._refiner.close()

    def _require_own(self) -> None:
        self._stages.require_open()
        if self._lent:
            raise InputError("this pipeline belongs to a dispatcher: submit calls and LoRAs to it")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def embedded_bundle() -> Path:
    """Folder of the small model that ships with latentrt."""
    from latentrt import engines

    return Path(next(iter(engines.__path__))) / "shapes"


def _opened(path: Path | str) -> Bundle:
    bundle = Bundle.open(path)
    registers = bundle.manifest.model.registers
    if registers != REGISTERS:
        raise BundleError(
            f"{bundle.path} was exported for plans of {registers} registers, and this runtime's have {REGISTERS}: "
            "export the checkpoint again"
        )
    return bundle


def _loaded(
    bundle: Bundle,
    backend: str,
    device: str | None,
    engines: Path | None,
    trust_engines: bool,
    controls: Mapping[str, ControlBundle],
) -> Backend:
    from latentrt.runtime.backends import load_backend  # imported here because plans and bundles need none

    loaded = load_backend(bundle, backend, device, engines=engines, trust_engines=trust_engines, controls=controls)
    logger.info("%s on %s", bundle.path, loaded.name)
    if loaded.name.endswith("-cpu") and logger.isEnabledFor(logging.INFO):
        for hint in cpu_hints(bundle.manifest):
            logger.info("%s", hint)
    return loaded
