"""The operator's hand on the models of a device: loads them, and closes them when their work is done.

Knows the shelf, and the lock of the dispatcher.
"""

import threading
import time
from collections.abc import Callable
from functools import partial

from latentrt.serve.messages import RefusedError

from .shelf import Shelf

_LOOK_EVERY = 0.02  # seconds


class ModelSwitch:
    """Of one device. Thread-safe."""

    def __init__(
        self,
        shelf: Shelf,
        changed: threading.Condition,
        *,
        require: Callable[[str], object],
        ended: Callable[[], bool],
    ) -> None:
        """Under the dispatcher's lock, which is that of `changed`.

        Args:
            require: begins to load a model; raises `RefusedError` until it is loaded.
            ended: whether the device does nothing any more.
        """
        self._shelf, self._changed, self._require, self._ended = shelf, changed, require, ended

    def set_loaded(self, model: str, loaded: bool) -> Callable[[], None]:
        """Load a model; or refuse work for it from now on, and free its memory when nothing of it is under way.

        Raises `RefusedError` for an unknown one. The function that is returned waits until it is so, and raises
        `RefusedError` where the model cannot be loaded.
        """
        with self._changed:
            self._shelf.want(model, loaded)
            self._changed.notify()
        return partial(self._wait_for, self._is_loaded if loaded else self._shelf.has_gone, model)

    def _wait_for(self, condition: Callable[[str], bool], model: str) -> None:
        while True:
            with self._changed:
                if self._ended() or condition(model):
                    return
            time.sleep(_LOOK_EVERY)

    def _is_loaded(self, model: str) -> bool:
        try:
            self._require(model)
        except RefusedError:
            if self._shelf.is_loading(model):
                return False
            raise
        return True
