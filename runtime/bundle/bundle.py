"""The bundle: a folder with everything needed to run one checkpoint, and with the hashes of its files.

`engines/README.md` is the specification. Knows the manifest and the hashes; knows nothing about running graphs.
"""

import stat
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentrt.runtime.errors import BundleError, shown
from latentrt.runtime.files import read_json, sha256_of_file

from .checks import faults
from .control_checks import control_faults
from .control_manifest import CONTROL_FORMAT, ControlManifest
from .manifest import FORMATS, MANIFEST, SECOND_KEYS, Contents, File, Graph, Manifest
from .strict_json import StrictJSONError, decode


@dataclass(frozen=True, slots=True, eq=False)
class AnyBundle:
    """An opened folder with a manifest, of any kind.

    Files may be links, as in the cache of a model hub, where all of them lead out of the folder: the manifest has their
    hashes. Names in the manifest may not leave the folder.
    """

    path: Path
    manifest: Contents

    def file(self, name: str) -> Path:
        """Path of a file listed in the manifest. Raises `BundleError` for other files.

        No name in the manifest leads out of the folder: that is checked when the bundle is opened.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path / MANIFEST} does not list the file {name[:80]!r}")
        return self.path / name

    def read_json(self, name: str) -> dict[str, Any]:
        """Parse a JSON file of the bundle."""
        try:
            data = read_json(self.file(name))
        except (OSError, ValueError) as error:
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
        return [n for n, e in wanted.items() if self._hash(n, progress) != e.sha256]

    def _hash(self, name: str, progress: Callable[[int], object]) -> str:
        try:
            return sha256_of_file(self.file(name), progress)
        except OSError as error:
            raise BundleError(f"{self.path / name} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Bundle(AnyBundle):
    """An opened bundle of a checkpoint."""

    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> "Bundle":
        """Read `bundle.json` strictly; check that every file exists and has its size. `altered_files` checks hashes."""
        bundle = open_bundle(path)
        if not isinstance(bundle, Bundle):
            raise BundleError(
                f"{path} is a control bundle, which draws nothing by itself: load it beside the bundle of a checkpoint"
            )
        return bundle


@dataclass(frozen=True, slots=True, eq=False)
class ControlBundle(AnyBundle):
    """An opened bundle of what steers a checkpoint: a ControlNet, an adapter, or an image encoder."""

    manifest: ControlManifest

    @classmethod
    def open(cls, path: Path | str) -> "ControlBundle":
        """See `Bundle.open`."""
        bundle = open_bundle(path)
        if not isinstance(bundle, ControlBundle):
            raise BundleError(f"{path} is the bundle of a checkpoint: expected one from latentrt export-control")
        return bundle


def open_bundle(path: Path | str) -> Bundle | ControlBundle:
    """Open a bundle of either kind, see `Bundle.open`."""
    path = Path(path)
    manifest = _read_manifest(path)
    bundle = Bundle(path, manifest) if isinstance(manifest, Manifest) else ControlBundle(path, manifest)
    for name, entry in manifest.files.items():
        size = _size(bundle.file(name))
        if size is None:
            raise BundleError(f"{path} is incomplete: {name} is missing. Copy or export the bundle again")
        if size != entry.size:
            raise BundleError(
                f"{path} is damaged: {name} has {size:,} bytes instead of {entry.size:,}. "
                "Copy or export the bundle again"
            )
    return bundle


def hashed_files(folder: Path) -> dict[str, File]:
    """All files of a folder as a manifest lists them, by name."""
    return {
        file.relative_to(folder).as_posix(): File(file.stat().st_size, sha256_of_file(file))
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _read_manifest(path: Path) -> Manifest | ControlManifest:
    file = path / MANIFEST
    if not _is_folder(path):
        raise BundleError(f"{path} is not a folder. Create a bundle with: latentrt export CHECKPOINT {path}")
    try:
        data = read_json(file, unique=True)
    except FileNotFoundError:
        hint = "this is a checkpoint; export it first" if (path / "model_index.json").exists() else "create one with"
        raise BundleError(f"{path} has no {MANIFEST}: {hint}: latentrt export CHECKPOINT OUT") from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error}") from error
    except ValueError as error:
        raise BundleError(f"{file} is not valid JSON ({error}); copy or export the bundle again") from error
    version = data.get("format") if isinstance(data, dict) else None
    if version not in (*FORMATS, CONTROL_FORMAT):
        known = f"{', '.join(map(repr, FORMATS))} and {CONTROL_FORMAT!r}"
        raise BundleError(f"{file} has format {shown(version)}, but this version of latentrt reads only {known}")
    if version == FORMATS[0] and (newer := [key for key in SECOND_KEYS if _has(data, key)]):
        raise BundleError(f"{file} has the key {newer[0]!r}, which the format {version!r} has not")
    manifest: Manifest | ControlManifest
    try:
        if version == CONTROL_FORMAT:
            manifest = decode(ControlManifest, data, MANIFEST)
            fault = next(control_faults(manifest), None)
        else:
            manifest = decode(Manifest, data, MANIFEST)
            fault = next(faults(manifest), None)
    except StrictJSONError as error:
        raise BundleError(f"{file} cannot be read: {error}") from error
    if fault is not None:
        raise BundleError(f"{file} cannot be used: {fault}. Copy or export the bundle again")
    return manifest


def _has(data: object, key: str) -> bool:
    """Whether a JSON object has a key, given as a path such as "recipe.quantization"."""
    first, _, rest = key.partition(".")
    return isinstance(data, dict) and first in data and (not rest or _has(data[first], rest))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # no permission, or a name that is too long
        return False


def _size(file: Path) -> int | None:
    """Size of a regular file, or of the one that a link leads to; None if there is none."""
    try:
        status = file.stat()
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
