"""Compiled engines of a bundle: their paths and hashes.

Engines are listed in the bundle's manifest, or in `engines.json` of a separate folder when the bundle is read-only.
Knows nothing about TensorRT.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from latentrt.runtime.errors import BundleError
from latentrt.runtime.files import cache_folder, sha256_of_file, written_whole

from .bundle import Bundle
from .manifest import MANIFEST, EngineRecord, File, manifest_json
from .strict_json import StrictJSONError, decode, encode

FORMAT = "latentrt.engines/1"
LIST = "engines.json"


@dataclass(frozen=True, slots=True, eq=False)
class EngineListFile:
    """The content of engines.json."""

    format: str
    engines: tuple[EngineRecord, ...]
    files: dict[str, File]


@dataclass(frozen=True, slots=True, eq=False)
class EngineList:
    """Engines, and the folder that their file names are relative to."""

    folder: Path
    engines: tuple[EngineRecord, ...]
    files: dict[str, File]

    @classmethod
    def of_bundle(cls, bundle: Bundle, folder: Path | None = None) -> "EngineList":
        """The engines listed in a bundle, or those in a separate folder, which may be empty."""
        if folder is None:
            return cls(bundle.path, bundle.manifest.engines, bundle.manifest.files)
        file = folder / LIST
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            if data.get("format") != FORMAT:
                raise BundleError(f"{file} has format {data.get('format')!r}; this version reads only {FORMAT!r}")
            content = decode(EngineListFile, data, LIST)
        except FileNotFoundError:
            return cls(folder, (), {})
        except (StrictJSONError, ValueError, AttributeError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"{file} cannot be read: {error}. Delete the folder and build again") from error
        return cls(folder, content.engines, content.files)

    def path(self, record: EngineRecord) -> Path:
        """Path of an engine. Raises `BundleError` for unlisted files and for paths outside the folder."""
        path = self.folder / record.file
        if record.file not in self.files or not path.resolve().is_relative_to(self.folder.resolve()):
            raise BundleError(f"{self.folder} lists the engine {record.file!r}, which is not one of its files")
        return path

    def intact(self, record: EngineRecord) -> bool:
        """Whether an engine exists with its sha256. Hashes are cached by the file's size, mtime and inode."""
        path, expected = self.path(record), self.files[record.file]
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        if status.st_size != expected.size:
            return False
        memory = _HashCache()
        key = [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino]
        if memory.recall(key) != expected.sha256:
            if sha256_of_file(path) != expected.sha256:
                return False
            memory.remember(key, expected.sha256)
        return True


def updated_manifest(bundle: Bundle, folder: Path | None, engines: EngineList) -> tuple[Path, str]:
    """The file that `EngineList.of_bundle` read, and its new text that lists `engines`."""
    if folder is None:
        manifest = replace(bundle.manifest, engines=engines.engines, files=engines.files)
        return bundle.path / MANIFEST, manifest_json(manifest)
    content = EngineListFile(FORMAT, engines.engines, engines.files)
    return folder / LIST, json.dumps(encode(content), indent=1, ensure_ascii=False) + "\n"


class _HashCache:
    """Hashes of unchanged files, in the user's cache folder. Losing them only costs time, so I/O errors are ignored."""

    def __init__(self) -> None:
        self._file = cache_folder() / "hashes.json"
        try:
            self._known: dict[str, str] = json.loads(self._file.read_text())
        except (OSError, ValueError):
            self._known = {}

    def recall(self, key: list[object]) -> str | None:
        return self._known.get(json.dumps(key))

    def remember(self, key: list[object], sha256: str) -> None:
        same_path = json.dumps(key[:1])[:-1]
        self._known = {k: v for k, v in self._known.items() if not k.startswith(same_path + ",")}
        self._known[json.dumps(key)] = sha256
        try:
            with written_whole(self._file) as temporary:
                temporary.write_text(json.dumps(self._known, indent=0))
        except OSError:
            pass
