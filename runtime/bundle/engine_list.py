"""Compiled engines of a bundle: where they lie, whether they are whole, and what they are for.

They are listed by the bundle itself, or by `engines.json` in a folder of their own, for bundles that nobody may write
to. Knows nothing of TensorRT.
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
    """Engines and the folder that their file names start from."""

    folder: Path
    engines: tuple[EngineRecord, ...]
    files: dict[str, File]

    @classmethod
    def of_bundle(cls, bundle: Bundle, folder: Path | None = None) -> "EngineList":
        """The engines that a bundle lists, or those in a folder of their own; an empty folder has none."""
        if folder is None:
            return cls(bundle.path, bundle.manifest.engines, bundle.manifest.files)
        file = folder / LIST
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            if data.get("format") != FORMAT:
                raise BundleError(f"{file} has the format {data.get('format')!r}; this version reads {FORMAT!r} only")
            content = decode(EngineListFile, data, LIST)
        except FileNotFoundError:
            return cls(folder, (), {})
        except (StrictJSONError, ValueError, AttributeError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"{file} cannot be read: {error}. Delete the folder, and build again") from error
        return cls(folder, content.engines, content.files)

    def path(self, record: EngineRecord) -> Path:
        """Where an engine lies; refuses names that leave the folder."""
        path = self.folder / record.file
        if record.file not in self.files or not path.resolve().is_relative_to(self.folder.resolve()):
            raise BundleError(f"{self.folder} lists the engine {record.file!r}, but no such file of its own")
        return path

    def intact(self, record: EngineRecord) -> bool:
        """Whether an engine is there with its sha256, remembered by size, time and inode of the file."""
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
    """The file that lists engines, and its new text, for what `EngineList.of_bundle` read."""
    if folder is None:
        manifest = replace(bundle.manifest, engines=engines.engines, files=engines.files)
        return bundle.path / MANIFEST, manifest_json(manifest)
    content = EngineListFile(FORMAT, engines.engines, engines.files)
    return folder / LIST, json.dumps(encode(content), indent=1, ensure_ascii=False) + "\n"


class _HashCache:
    """Hashes of files that did not change, in the user's cache. Losing it costs time only, so nothing here raises."""

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
