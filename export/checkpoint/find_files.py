"""Find the files of a checkpoint: a folder in the diffusers format, a single file, or a Hub id.

Knows file names and components. All forms of checkpoints give the same `Contents`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentrt.runtime.errors import CheckpointError

from .families import PIPELINES
from .hub import folder_from_hub, is_hub_id
from .single_file import Weights, configs_of_file, weights_of_part
from .source import Source
from .tokenizer_files import Vocabulary
from .weight_files import TensorFiles, find_weights, read_json, weights_from_file

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
class Contents:
    """The files of a checkpoint.

    Attributes:
        index: content of model_index.json; for single files, only its `_class_name`.
        configs: component, or "scheduler" -> its config.
        weights: component -> function that opens its tensors.
        scheduler: the scheduler's config file, byte for byte.
        vocabularies: "tokenizer" or "tokenizer_2" -> its files.
        files: name -> path of every file that is read; the names enter the checkpoint's hash.
    """

    index: dict[str, Any]
    configs: dict[str, dict[str, Any]]
    weights: dict[str, Callable[[], Weights]]
    scheduler: bytes
    vocabularies: dict[str, Vocabulary]
    files: dict[str, Path]


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
    contents = _configs_of_folder(path, source.prediction_type)
    parts = [part for part in WEIGHTS if part in contents.configs]
    found = {part: find_weights(path / part, WEIGHTS[part], allow_pickle=source.allow_pickle) for part in parts}
    variants = {part: weights.variant for part, weights in found.items()}
    if len(set(variants.values())) > 1:
        raise CheckpointError(f"{path} mixes weight variants: {variants}. Keep the same variant of every component.")
    for weights in found.values():
        for file in weights.all_files:
            contents.files[file.relative_to(path).as_posix()] = file
    contents.weights.update({part: weights.open for part, weights in found.items()})
    return contents


def _configs_of_folder(path: Path, prediction_type: str | None) -> Contents:
    """All contents except the weights."""
    index = read_json(path / "model_index.json", _FOLDER_HINT)
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise CheckpointError(f"{path} has the unsupported class {name!r}; supported are {', '.join(PIPELINES)}")
    scheduler = path / "scheduler" / "scheduler_config.json"
    absent = [part for part in _MAY_BE_ABSENT if not any(index.get(part) or [])]
    files = {part: path / part / "config.json" for part in WEIGHTS if part not in absent} | {"scheduler": scheduler}
    configs = {part: read_json(file, _FOLDER_HINT) for part, file in files.items()}
    vocabularies = {name: Vocabulary(path / name) for name in ("tokenizer", "tokenizer_2") if name not in absent}
    read = [path / "model_index.json", *files.values(), *(file for v in vocabularies.values() for file in v.files())]
    content = scheduler.read_bytes()
    if prediction_type is not None:
        configs["scheduler"] = {**configs["scheduler"], "prediction_type": prediction_type}
        content = _scheduler_json(configs["scheduler"])
    named = {file.relative_to(path).as_posix(): file for file in read}
    return Contents(index, configs, {}, content, vocabularies, named)


def _contents_of_file(path: Path, source: Source) -> Contents:
    tensors = weights_from_file(path, allow_pickle=source.allow_pickle)
    if source.config is not None:
        folder = _configs_of_folder(Path(source.config), source.prediction_type)
        contents = replace(folder, files={path.name: path, **folder.files})
    else:
        metadata = tensors.metadata if isinstance(tensors, TensorFiles) else {}
        try:
            row = configs_of_file(tensors, metadata, source.prediction_type)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        configs = {part: row[part] for part in (*WEIGHTS, "scheduler") if part in row}
        pads = {part: config["pad_token"] for part, config in row.items() if part.startswith("tokenizer")}
        vocabularies = {part: Vocabulary.of_clip(pad) for part, pad in pads.items()}
        scheduler = _scheduler_json(row["scheduler"])
        contents = Contents(row["index"], configs, {}, scheduler, vocabularies, {path.name: path})

    def opener(part: str) -> Callable[[], Weights]:
        return lambda: weights_of_part(part, tensors, contents.configs[part])

    contents.weights.update({part: opener(part) for part in WEIGHTS if part in contents.configs})
    return contents


def _scheduler_json(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2) + "\n").encode()
