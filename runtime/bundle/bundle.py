"""The bundle: a folder with everything needed to run one checkpoint, and with the hashes of its files.

`engines/README.md` is the specification. Knows the manifest and the hashes; knows nothing about running graphs.
"""

import json
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from latentrt.runtime.errors import BundleError
from latentrt.runtime.files import sha256_of_file

from .manifest import FORMAT, MANIFEST, Graph, Manifest
from .strict_json import StrictJSONError, decode


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """An opened bundle: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> "Bundle":
        """Read `bundle.json` strictly; check that every file exists and has its size. `altered_files` checks hashes."""
        path = Path(path)
        manifest = _read_manifest(path)
        bundle = cls(path, manifest)
        for name, entry in manifest.files.items():
            file = bundle.file(name)
            if not file.is_file():
                raise BundleError(f"{path} is incomplete: {name} is missing. Copy or export the bundle again")
            if (size := file.stat().st_size) != entry.size:
                raise BundleError(
                    f"{path} is damaged: {name} has {size:,} bytes instead of {entry.size:,}. "
                    "Copy or export the bundle again"
                )
        return bundle

    def file(self, name: str) -> Path:
        """Path of a file listed in the manifest. Raises `BundleError` for other files and paths outside the bundle."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path / MANIFEST} does not list the file {name!r}")
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise BundleError(f"{self.path / MANIFEST} lists a file outside the bundle: {name!r}")
        return self.path / parts

    def read_json(self, name: str) -> dict[str, Any]:
        """Parse a JSON file of the bundle."""
        try:
            data = json.loads(self.file(name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise BundleError(f"{self.path / name} is not valid JSON: {error}") from error
        if not isinstance(data, dict):
            raise BundleError(f"{self.path / name}: expected a JSON object, got {type(data).__name__}")
        return data

    def graph(self, name: str) -> Graph:
        """The spec of a graph."""
        if name not in self.manifest.graphs:
            raise BundleError(f"{self.path} has no graph {name!r}; it has {', '.join(sorted(self.manifest.graphs))}")
        return self.manifest.graphs[name]

    def altered_files(
        self, progress: Callable[[int], object] = lambda _: None, *, only: Container[str] | None = None
    ) -> list[str]:
        """Names of files whose sha256 differs from the manifest; `progress` gets the size of each block read."""
        wanted = {n: e for n, e in self.manifest.files.items() if only is None or n in only}
        return [n for n, e in wanted.items() if sha256_of_file(self.file(n), progress) != e.sha256]


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if not path.is_dir():
        raise BundleError(f"{path} is not a folder. Create a bundle with: latentrt export CHECKPOINT {path}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "this is a checkpoint; export it first" if (path / "model_index.json").exists() else "create one with"
        raise BundleError(f"{path} has no {MANIFEST}: {hint}: latentrt export CHECKPOINT OUT") from None
    except ValueError as error:
        raise BundleError(f"{file} is not valid JSON ({error}); copy or export the bundle again") from error
    version = data.get("format") if isinstance(data, dict) else None
    if version != FORMAT:
        raise BundleError(f"{file} has format {version!r}, but this version of latentrt reads only {FORMAT!r}")
    try:
        return decode(Manifest, data, MANIFEST)
    except StrictJSONError as error:
        raise BundleError(f"{file} cannot be read: {error}") from error
