"""Where the pictures of jobs are written: on this machine, or wherever else a `Place` writes."""

from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from latentrt.runtime.errors import InputError
from latentrt.runtime.files import open_regular
from latentrt.runtime.image import require_place, save_or_keep

if TYPE_CHECKING:
    from PIL import Image


class Place(Protocol):
    """Files are written whole or not at all; other errors than `InputError` are `OSError`."""

    def path(self, text: str) -> Any:
        """The path that a text names; raises `InputError` where it is not in this place."""

    def shown(self, path: Any) -> str:
        """A path as messages have it."""

    def key(self, path: Any) -> str:
        """The same for two paths of one file."""

    def require(self, path: Any) -> None:
        """Raise `InputError` if no file can be written there; to be called before the work."""

    def save(self, image: "Image.Image", path: Any) -> None:
        """Write a finished picture as PNG."""

    def open(self, path: Any) -> BinaryIO:
        """Open for reading."""


class LocalFiles:
    """Files of this machine."""

    def path(self, text: str) -> Path:
        """See `Place`."""
        if "://" in text:
            raise InputError(f"{text} is not on this machine: name a file, or draw with --ray to write to a store")
        return Path(text)

    def shown(self, path: PurePath) -> str:
        """See `Place`."""
        return str(path)

    def key(self, path: Path) -> str:
        """See `Place`."""
        return str(path.resolve())

    def require(self, path: Path) -> None:
        """See `Place`."""
        require_place(path)

    def save(self, image: "Image.Image", path: Path) -> None:
        """See `Place`; where that fails, the picture is kept in the folder for temporary files."""
        save_or_keep(image, path)

    def open(self, path: Path) -> BinaryIO:
        """See `Place`."""
        return open_regular(path)
