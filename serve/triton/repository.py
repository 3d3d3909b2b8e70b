"""Writes a model's folder into a model repository, whole or not at all. Knows nothing of what runs it.

REPOSITORY/NAME/config.pbtxt
REPOSITORY/NAME/1/model.py
REPOSITORY/NAME/1/bundle/      with `copy`
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from latentrt.runtime.errors import InputError
from latentrt.runtime.in_place import clear_leftovers, folder_put_in_place

from .config import model_config
from .parameters import BUNDLE

VERSION = "1"  # a bundle has one
MODEL = '''\
"""Written by `latentrt triton`. latentrt must be installed where Triton's Python backend looks for modules."""

from latentrt.serve.triton.backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a model's folder says.

    Attributes:
        name: of the model at Triton.
        bundle: its folder.
        devices, progress: as for `model_config`.
        settings: of the server, as text by key.
        copy: the bundle is copied into the model's folder, instead of named by its absolute path.
    """

    name: str
    bundle: Path
    devices: Sequence[str] = ()
    progress: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)
    copy: bool = False

    def config(self) -> str:
        """The text of `config.pbtxt`. Raises `InputError`."""
        bundle = BUNDLE if self.copy else str(self.bundle.absolute())
        return model_config(self.devices, {**self.settings, BUNDLE: bundle}, progress=self.progress)


def write_models(models: Sequence[ModelFolder], repository: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the folders of models; returns them.

    Nothing is written where a folder is there already and `overwrite` is not said (`InputError`). A model that cannot
    be written (`OSError`) leaves its old folder as it was, and those before it are written.
    """
    folders = [repository / model.name for model in models]
    configs = [model.config() for model in models]
    for folder in folders:
        clear_leftovers(folder)
        _require_free(folder, overwrite)
    for folder, model, config in zip(folders, models, configs, strict=True):
        with folder_put_in_place(folder) as new:
            (new / "config.pbtxt").write_text(config, encoding="utf-8")
            (new / VERSION).mkdir()
            (new / VERSION / "model.py").write_text(MODEL, encoding="utf-8")
            if model.copy:
                _copy(model.bundle, new / VERSION / BUNDLE)
    return folders


def _copy(bundle: Path, target: Path) -> None:
    def fail(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(bundle, onerror=fail, followlinks=True):
        place = target / Path(folder).relative_to(bundle)
        place.mkdir()
        for name in names:
            shutil.copyfile(Path(folder, name), place / name)


def _require_free(folder: Path, overwrite: bool) -> None:
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise InputError(
            f"{folder} is there already: --overwrite replaces it, NAME=FOLDER gives the model another name"
        )
    if folder.is_symlink() or not (folder / "config.pbtxt").is_file():
        raise InputError(f"{folder} is no model's folder, as it has no config.pbtxt: it is not replaced; remove it")
