"""Which models are loaded on a device: all of them, or those asked for last where memory holds fewer.

The operator may have some unloaded, which are refused.

Models load in a thread of their own, beside the pictures that are drawn. A model with accepted work is never closed.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

from latentrt.serve.messages import DispatcherOptions, ModelSpec, RefusedError, model_unloaded

from .models import LoadedModel, load_model

logger = logging.getLogger(__name__)
LOADS_IN = 30.0  # seconds, expected until a model has been loaded once
PAUSE = 30.0  # seconds until a model that could not be loaded is tried again


class Shelf:
    """The models of a device. All methods are called under the dispatcher's lock."""

    def __init__(self, specs: Sequence[ModelSpec], options: DispatcherOptions, lock: threading.Condition) -> None:
        """`lock`: the dispatcher's, which the loading threads take when they are done."""
        self._specs = {spec.name: spec for spec in specs}
        self._options, self._lock = options, lock
        self._most = options.loaded or len(specs)
        self._unwanted = set(options.unloaded)  # by the operator
        self.models: OrderedDict[str, LoadedModel] = OrderedDict()  # in order of last use
        self.closing: list[LoadedModel] = []  # for the device's thread
        self._loading: dict[str, float] = {}  # since when
        self._failed: dict[str, tuple[float, str]] = {}  # until when it is not tried again, and why
        self._seconds: dict[str, float] = {}  # that loading has taken
        self._closed = threading.Event()  # nothing is in `closing`
        self._closed.set()

    def first(self) -> list[ModelSpec]:
        """Those that are loaded before the device is ready."""
        return [spec for name, spec in self._specs.items() if name not in self._unwanted][: self._most]

    def want(self, name: str, wanted: bool) -> None:
        """Whether the operator wants this model: where not, it is refused, and closed when it has no work."""
        if name not in self._specs:
            raise RefusedError("unknown_model", f"this device does not serve {name!r}")
        if wanted:
            self._unwanted.discard(name)
            self._failed.pop(name, None)
        else:
            self._unwanted.add(name)

    def is_loading(self, name: str) -> bool:
        """Whether a model is on its way."""
        return name in self._loading

    def has_gone(self, name: str) -> bool:
        """Whether nothing of a model is in memory, or it is wanted again."""
        closing = any(model.name == name for model in self.closing)
        return name not in self._unwanted or not (closing or name in self.models or name in self._loading)

    def require(self, name: str, busy: Callable[[], Collection[str]]) -> LoadedModel:
        """The model; where it is not loaded, raise `RefusedError`, and begin to load it if there is room.

        Args:
            busy: tells the models with accepted work.
        """
        if name in self._unwanted:
            raise model_unloaded(name)
        if name in self.models:
            self.models.move_to_end(name)
            return self.models[name]
        if name not in self._specs:
            raise RefusedError("unknown_model", f"this device does not serve {name!r}")
        until, why = self._failed.get(name, (0.0, ""))
        if (left := until - time.monotonic()) > 0:
            raise RefusedError("starting", f"the model {name} cannot be loaded: {why}", left)
        if name not in self._loading:
            self._make_room(name, busy)
            self._loading[name] = time.monotonic()
            threading.Thread(target=self._load, args=(self._specs[name],), name=f"load {name}", daemon=True).start()
        expected = self._seconds.get(name, LOADS_IN) - (time.monotonic() - self._loading[name])
        raise RefusedError("starting", f"the model {name} is being loaded", max(1.0, expected))

    def _make_room(self, name: str, busy: Callable[[], Collection[str]]) -> None:
        if len(self.models) + len(self._loading) < self._most:
            return
        at_work = busy()
        idle = next((model for model in self.models if model not in at_work), None)
        if idle is None:
            loaded = ", ".join([*self.models, *self._loading])
            raise RefusedError("starting", f"the model {name} waits until one of {loaded} has no work", 5)
        self._take_out(idle)

    def take_out_unwanted(self, busy: Callable[[], Collection[str]]) -> None:
        """Put models into `closing` that the operator does not want and that have no work. `busy`: as for `require`."""
        if unwanted := self._unwanted & self.models.keys():
            for name in unwanted.difference(busy()):
                self._take_out(name)

    def _take_out(self, name: str) -> None:
        self._closed.clear()
        self.closing.append(self.models.pop(name))

    def were_closed(self) -> None:
        """The device's thread has closed what was in `closing`."""
        self.closing.clear()
        self._closed.set()

    def loaded(self, model: LoadedModel) -> None:
        """A model can be used from now on."""
        self._seconds[model.name] = time.monotonic() - self._loading.pop(model.name, time.monotonic())
        self.models[model.name] = model

    def _load(self, spec: ModelSpec) -> None:
        self._closed.wait()  # its memory may be needed
        try:
            model = load_model(spec, self._options)
        except Exception as error:
            logger.exception("the model %s cannot be loaded", spec.name)
            with self._lock:
                self._failed[spec.name] = (time.monotonic() + PAUSE, str(error))
                self._loading.pop(spec.name, None)
            return
        with self._lock:
            self.loaded(model)
