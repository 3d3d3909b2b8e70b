"""Find the files of a checkpoint: a folder in the diffusers format, a single file, or a Hub id.

Knows file names and components. All forms of checkpoints give the same `Contents`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from latentrt.runtime.errors import CheckpointError

from .families import PIPELINES
from .hub import folder_from_hub, is_hub_id
from .marks import Marks, marks_of, with_marks
from .part_configs import check_classes
from .part_weights import traced
from .pipeline_mends import scheduler_of
from .scaled_weights import unscaled
from .single_file import Weights, configs_of_file, weights_of_part
from .source import Source
from .tokenizer_files import Vocabulary
from .weight_files import TensorFiles, consistent, find_variants, read_json, weights_from_file

WEIGHTS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_MAY_BE_ABSENT = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")  # each family requires its own
_FOLDER_HINT = (
    "A checkpoint folder in the diffusers format contains model_index.json, scheduler/, text_encoder/, tokenizer/, "
    "unet/ and vae/."
)


@dataclass(frozen=True, slots=True, eq=False)
class PartWeights:
    """A component's tensors: how to open the stored ones, and how they are renamed for the module."""

    stored: Callable[[], Weights]
    rename: Callable[[Weights], Weights] = lambda tensors: tensors

    def open(self) -> Weights:
        """The tensors under the module's names."""
        return self.rename(unscaled(self.stored()))

    def headers(self) -> Weights:
        """The same on the meta device; each knows which stored tensor it comes from."""
        return self.rename(traced(unscaled(self.stored())))


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """The files of a checkpoint.

    Attributes:
        index: content of model_index.json; for single files, only its `_class_name`.
        configs: component, or "scheduler" -> its config.
        weights: component -> its tensors.
        scheduler: the scheduler's config file, byte for byte.
        vocabularies: "tokenizer" or "tokenizer_2" -> its files.
        files: name -> path of every file that is read; the names enter the checkpoint's hash.
        single: names of all tensors of a single file; empty for a folder.
    """

    index: dict[str, Any]
    configs: dict[str, dict[str, Any]]
    weights: dict[str, PartWeights]
    scheduler: bytes
    vocabularies: dict[str, Vocabulary]
    files: dict[str, Path]
    single: tuple[str, ...] = ()


def resolved(source: Source) -> Source:
    """`source` with absolute paths, and with the folder in the Hub's cache instead of a Hub id.

    Raises `CheckpointError` if the checkpoint does not exist.
    """
    path = Path(source.checkpoint)
    if path.exists():
        name = path.stem if path.is_file() else path.resolve().name
    elif is_hub_id(source.checkpoint):
        name = source.checkpoint.partition("@")[0].partition("/")[2]
        path = folder_from_hub(source.checkpoint, allow_pickle=source.allow_pickle)
    else:
        raise CheckpointError(
            f"{path} does not exist. Expected a folder in the diffusers format (with model_index.json), a single "
            ".safetensors file, or a Hub id such as org/name"
        )
    return replace(
        source,
        checkpoint=str(path.absolute()),
        name=source.name or name,
        config=source.config and _absolute(source.config),
        vae=source.vae and _absolute(source.vae),
        preview_vae=source.preview_vae and _absolute(source.preview_vae),
        loras=tuple(replace(lora, path=_absolute(lora.path)) for lora in source.loras),
        embeddings=tuple(replace(embedding, path=_absolute(embedding.path)) for embedding in source.embeddings),
    )


def _absolute(path: str) -> str:
    """Links are not resolved: those of the Hub's cache point to files without a suffix."""
    return str(Path(path).absolute())


def contents_of(source: Source) -> Contents:
    """Find all files of a resolved source; raises `CheckpointError` for missing and malformed ones."""
    path = Path(source.checkpoint)
    return _contents_of_file(path, source) if path.is_file() else _contents_of_folder(path, source)


def _contents_of_folder(path: Path, source: Source) -> Contents:
    contents = _marked(_configs_of_folder(path), Marks(), source.prediction_type)
    parts = [part for part in WEIGHTS if part in contents.configs]
    pickles = source.allow_pickle
    found = consistent({part: find_variants(path / part, WEIGHTS[part], allow_pickle=pickles) for part in parts})
    for part, weights in found.items():
        for file in weights.all_files:
            contents.files[file.relative_to(path).as_posix()] = file
        contents.weights[part] = PartWeights(weights.open)
    return contents


def _configs_of_folder(path: Path) -> Contents:
    """All contents except the weights."""
    index = read_json(path / "model_index.json", _FOLDER_HINT)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        raise CheckpointError(f"{path} has the unsupported class {name!r}; supported are {', '.join(PIPELINES)}")
    check_classes(path, index)
    scheduler = path / "scheduler" / "scheduler_config.json"
    absent = [part for part in _MAY_BE_ABSENT if not index.get(part) or index[part] == [None, None]]
    files = {part: path / part / "config.json" for part in WEIGHTS if part not in absent} | {"scheduler": scheduler}
    configs = {part: read_json(file, _FOLDER_HINT) for part, file in files.items()}
    vocabularies = {name: Vocabulary(path / name) for name in ("tokenizer", "tokenizer_2") if name not in absent}
    read = [path / "model_index.json", *files.values(), *(file for v in vocabularies.values() for file in v.files())]
    content, given = scheduler.read_bytes(), configs["scheduler"]
    configs["scheduler"] = scheduler_of(index, given)
    if configs["scheduler"] != given:
        content = _scheduler_json(configs["scheduler"])
    named = {file.relative_to(path).as_posix(): file for file in read}
    return Contents(index, configs, {}, content, vocabularies, named)


def _contents_of_file(path: Path, source: Source) -> Contents:
    tensors = weights_from_file(path, allow_pickle=source.allow_pickle)
    metadata = tensors.metadata if isinstance(tensors, TensorFiles) else {}
    if source.config is not None:
        folder = _configs_of_folder(Path(source.config))
        with _named(path):
            folder = _marked(folder, marks_of(tensors, metadata), source.prediction_type)
        contents = replace(folder, files={path.name: path, **folder.files})
    else:
        with _named(path):
            row = configs_of_file(tensors, metadata, source.prediction_type)
        configs = {part: row[part] for part in (*WEIGHTS, "scheduler") if part in row}
        pads = {part: config["pad_token"] for part, config in row.items() if part.startswith("tokenizer")}
        vocabularies = {part: Vocabulary.of_clip(pad) for part, pad in pads.items()}
        scheduler = _scheduler_json(row["scheduler"])
        contents = Contents(row["index"], configs, {}, scheduler, vocabularies, {path.name: path})

    for part in WEIGHTS:
        if part in contents.configs:
            rename = partial(weights_of_part, part, config=contents.configs[part])
            contents.weights[part] = PartWeights(lambda: tensors, rename)
    return replace(contents, single=tuple(unscaled(tensors)))


def _marked(contents: Contents, marks: Marks, prediction_type: str | None) -> Contents:
    """The contents with what marks and the user's `prediction_type` change."""
    configs = with_marks(contents.configs, contents.index, marks, prediction_type)
    same = configs["scheduler"] == contents.configs["scheduler"]
    scheduler = contents.scheduler if same else _scheduler_json(configs["scheduler"])
    return replace(contents, configs=configs, scheduler=scheduler)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _scheduler_json(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2) + "\n").encode()
