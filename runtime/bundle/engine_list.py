"""Compiled engines of a bundle: their paths and hashes.

Engines are listed in the bundle's manifest, or in `engines.json` of a separate folder when the bundle is read-only.
Knows nothing about TensorRT.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from latentrt.runtime.errors import BundleError, shown
from latentrt.runtime.files import cache_folder, read_json, sha256_of_file, written_whole

from .bundle import AnyBundle
from .checks import engine_faults
from .manifest import MANIFEST, EngineRecord, File, manifest_json
from .strict_json import decode, encode

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
    def of_bundle(cls, bundle: AnyBundle, folder: Path | None = None) -> "EngineList":
        """The engines listed in a bundle, or those in a separate folder, which may be empty."""
        if folder is None:
            return cls(bundle.path, bundle.manifest.engines, dict(bundle.manifest.files))
        file = folder / LIST
        try:
            data = read_json(file, unique=True)
            version = data.get("format") if isinstance(data, dict) else None
            if version != FORMAT:
                raise BundleError(f"{file} has format {shown(version)}; this version reads only {FORMAT!r}")
            content = decode(EngineListFile, data, LIST)
        except FileNotFoundError:
            return cls(folder, (), {})
        except BundleError:
            raise
        except (OSError, ValueError) as error:  # StrictJSONError is one, too
            raise BundleError(f"{file} cannot be read: {error}. Delete the folder and build again") from error
        for i, record in enumerate(content.engines):
            for fault in engine_faults(f"engines[{i}]", record.profile, record.compute_capabilities):
                raise BundleError(f"{file} cannot be used: {fault}. Delete the folder and build again")
        return cls(folder, content.engines, content.files)

    def path(self, record: EngineRecord) -> Path:
        """Path of an engine, which may be a link. Raises `BundleError` for unlisted files and names that lead out."""
        return self._path(record.file)

    def layers_path(self, record: EngineRecord) -> Path | None:
        """Path of the file of an engine's layers, as `path`; None if there is none."""
        return None if record.layers is None else self._path(record.layers)

    def _path(self, file: str) -> Path:
        name = PurePosixPath(file)
        if file not in self.files or name.is_absolute() or ".." in name.parts or "\0" in file:
            raise BundleError(f"{self.folder} lists the engine {file[:80]!r}, which is not one of its files")
        return self.folder / name

    def intact(self, record: EngineRecord) -> bool:
        """Whether an engine and its external data exist with their sha256.

        Hashes are cached by the file's size, mtime and inode.
        """
        data = f"{record.file}.data"
        names = (record.file, data) if data in self.files else (record.file,)
        return all(_is_intact(self._path(name), self.files[name]) for name in names)


def _is_intact(path: Path, expected: File) -> bool:
    try:
        status = path.stat()
        if status.st_size != expected.size:
            return False
        memory, key = _HashCache(), _key(path, status)
        if memory.recall(key) != expected.sha256:
            if sha256_of_file(path) != expected.sha256:
                return False
            memory.remember(key, expected.sha256)
    except OSError:
        return False
    return True


def remember_hash(path: Path, sha256: str) -> None:
    """Put the hash of a file that was just written into the cache, so that it is not read again for it."""
    with suppress(OSError):
        _HashCache().remember(_key(path, path.stat()), sha256)


def _key(path: Path, status: os.stat_result) -> list[object]:
    return [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino]


def types_text(record: EngineRecord) -> str:
    """The types that an engine computes in, such as "fp16", or "fp16 with fp8" for a quantized graph."""
    return " with ".join(filter(None, (record.precision, record.options.get("quantization"))))


def updated_manifest(bundle: AnyBundle, folder: Path | None, engines: EngineList) -> tuple[Path, str]:
    """The file that `EngineList.of_bundle` read, and its new text that lists `engines`."""
    if folder is None:
        manifest: Any = bundle.manifest
        return bundle.path / MANIFEST, manifest_json(replace(manifest, engines=engines.engines, files=engines.files))
    content = EngineListFile(FORMAT, engines.engines, engines.files)
    return folder / LIST, json.dumps(encode(content), indent=1, ensure_ascii=False) + "\n"


class _HashCache:
    """Hashes of unchanged files, in the user's cache folder. Losing them only costs time, so I/O errors are ignored."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._known: dict[str, str] = {}
        try:
            self._file = cache_folder() / "hashes.json"
            known = read_json(self._file)
        except (OSError, ValueError):
            return
        if isinstance(known, dict):
            self._known = {key: value for key, value in known.items() if isinstance(value, str)}

    def recall(self, key: list[object]) -> str | None:
        return self._known.get(json.dumps(key))

    def remember(self, key: list[object], sha256: str) -> None:
        same_path = json.dumps(key[:1])[:-1]
        self._known = {k: v for k, v in self._known.items() if not k.startswith(same_path + ",")}
        self._known[json.dumps(key)] = sha256
        if self._file is None:
            return
        try:
            with written_whole(self._file) as temporary:
                temporary.write_text(json.dumps(self._known, indent=0))
        except OSError:
            pass
