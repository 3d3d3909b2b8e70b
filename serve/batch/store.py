"""A store as a place for pictures: whatever fsspec writes to. Knows nothing of Ray."""

import io
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from latentrt.runtime.errors import InputError
from latentrt.runtime.jobs import LocalFiles, Place

if TYPE_CHECKING:
    from PIL import Image

# Their files appear when they are complete. Elsewhere a file is written under another name, and renamed.
_WHOLE_AT_ONCE = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "memory"})


def place_of(out: str) -> tuple[Place, Any]:
    """The place of a path or URL, and its path there; raises `InputError` for URLs that nothing opens."""
    place: Place = Store(out) if "://" in out else LocalFiles()
    return place, place.path(out)


class Store:
    """The files of one file system of fsspec. Paths without a protocol are in the folder of the first one."""

    def __init__(self, url: str) -> None:
        """`url`: of a file in the folder."""
        self._fs, path = _file_system(url)
        self._folder = PurePosixPath(path).parent
        self._protocol = url.partition("://")[0]

    def path(self, text: str) -> PurePosixPath:
        """See `Place`."""
        if "://" not in text:
            return self._folder / text
        protocol = text.partition("://")[0]
        if protocol != self._protocol:
            raise InputError(f"{text} is elsewhere than the other pictures: expected {self._protocol}://… or a name")
        return PurePosixPath(self._fs._strip_protocol(text))

    def shown(self, path: PurePosixPath) -> str:
        """See `Place`."""
        return f"{self._protocol}://{path}"

    def key(self, path: PurePosixPath) -> str:
        """See `Place`."""
        parts: list[str] = []
        for part in path.parts:
            if part != "..":
                parts.append(part)
            elif len(parts) > 1:
                parts.pop()
        return "/".join(parts)

    def require(self, path: PurePosixPath) -> None:
        """See `Place`. A store says whether it takes a file only when it gets one."""

    def save(self, image: "Image.Image", path: PurePosixPath) -> None:
        """See `Place`."""
        data = io.BytesIO()
        image.save(data, "PNG")
        target = self.key(path)
        try:
            if self._protocol in _WHOLE_AT_ONCE:
                self._fs.pipe_file(target, data.getvalue())
                return
            temporary = f"{target.rpartition('/')[0]}/.{path.name}.partial"
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(temporary, data.getvalue())
            self._fs.mv(temporary, target)
        except Exception as error:  # the errors of stores have no common base class
            raise InputError(f"{self.shown(path)} cannot be written: {error or type(error).__name__}") from error

    def open(self, path: PurePosixPath) -> BinaryIO:
        """See `Place`."""
        return cast(BinaryIO, self._fs.open(self.key(path), "rb"))


def _file_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec

        found, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        raise InputError(f"pictures cannot be written to {url}: {error}") from error
    return found, str(path)
