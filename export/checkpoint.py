"""Open a checkpoint in the diffusers folder format and load its modules, strictly.

Knows files, configs and families; knows nothing of ONNX. A weight that is missing is an error, never a random number.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from latentrt.runtime.bundle import sha256_of_file
from latentrt.runtime.errors import CheckpointError

from .families import PIPELINES, Family, Preset, TextEncoderRow, check_models, family_of

_WEIGHTS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder whose files have been found: `index` is model_index.json, `configs` holds the components'
    parsed JSON, `variant` is the infix of the weight files (None or "fp16")."""

    path: Path
    index: dict[str, Any]
    configs: dict[str, dict[str, Any]]
    variant: str | None

    @classmethod
    def open(cls, path: Path | str) -> "Checkpoint":
        """Find all files of a diffusers folder; raises `CheckpointError` that names what is missing."""
        path = Path(path)
        if path.is_file():
            raise CheckpointError(
                f"{path} is a file, but a checkpoint folder in the diffusers format is needed. Convert it with: "
                "StableDiffusionPipeline.from_single_file(...).save_pretrained(FOLDER)"
            )
        if not path.is_dir():
            raise CheckpointError(
                f"{path} does not exist. Give a folder in the diffusers format, with model_index.json"
            )
        index = _read_json(path / "model_index.json")
        name = index.get("_class_name")
        if name not in PIPELINES:
            raise CheckpointError(f"{path} is a {name!r}; latentrt exports {', '.join(PIPELINES)}")
        absent = [part for part in ("text_encoder", "text_encoder_2") if not any(index.get(part) or [])]
        weights = {part: stem for part, stem in _WEIGHTS.items() if part not in absent}
        configs = {part: _read_json(path / part / "config.json") for part in weights}
        configs["scheduler"] = _read_json(path / "scheduler" / "scheduler_config.json")
        variants = {part: _variant(path / part, stem) for part, stem in weights.items()}
        if len(set(variants.values())) > 1:
            raise CheckpointError(f"{path} mixes weight variants: {variants}. Keep one variant of every component.")
        check_models(path, configs["unet"], configs["vae"])
        family_of(path, configs)  # refuses what is none
        return cls(path, index, configs, variants["unet"])

    @property
    def family(self) -> Family:
        """The family, told apart by the text encoders."""
        return family_of(self.path, self.configs)

    @property
    def preset(self) -> Preset:
        """What diffusers draws with where a call says nothing."""
        return PIPELINES[self.index["_class_name"]]

    def sha256(self) -> str:
        """One hash over the names and contents of all files that an export reads."""
        digest = hashlib.sha256()
        for file in sorted(f for f in self.path.rglob("*") if f.suffix in (".json", ".txt", ".safetensors")):
            digest.update(f"{file.relative_to(self.path).as_posix()} {sha256_of_file(file)}\n".encode())
        return digest.hexdigest()

    def load_text_encoder(self, row: TextEncoderRow, dtype: torch.dtype) -> torch.nn.Module:
        """A CLIP text model in eval mode."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        kind = CLIPTextModelWithProjection if row.pooled else CLIPTextModel
        return self._load(kind, row.part, dtype, attn_implementation="sdpa")

    def load_unet(self, dtype: torch.dtype) -> torch.nn.Module:
        """The `UNet2DConditionModel` in eval mode."""
        from diffusers import UNet2DConditionModel

        return self._load(UNet2DConditionModel, "unet", dtype)

    def load_vae(self, dtype: torch.dtype) -> torch.nn.Module:
        """The `AutoencoderKL` in eval mode."""
        from diffusers import AutoencoderKL

        return self._load(AutoencoderKL, "vae", dtype)

    def load_tokenizer(self, row: TextEncoderRow) -> Any:
        """The `CLIPTokenizer` of a text encoder."""
        from transformers import CLIPTokenizer

        folder = self.path / row.tokenizer
        if not (folder / "vocab.json").is_file() or not (folder / "merges.txt").is_file():
            raise CheckpointError(f"{folder} needs vocab.json and merges.txt")
        return CLIPTokenizer.from_pretrained(folder)

    def _load(self, cls: Any, part: str, dtype: torch.dtype, **options: Any) -> torch.nn.Module:
        folder = self.path / part
        key = "dtype" if part.startswith("text_encoder") else "torch_dtype"
        try:
            module, report = cls.from_pretrained(
                folder, use_safetensors=True, variant=self.variant, output_loading_info=True, **{key: dtype}, **options
            )
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder} cannot be loaded: {_first_line(error)}") from error
        for problem in ("missing_keys", "mismatched_keys"):
            if keys := [str(k) for k in report.get(problem, [])]:
                raise CheckpointError(
                    f"{folder} does not hold the weights that its config asks for: {len(keys)} {problem[:-5]}, "
                    f"such as {', '.join(sorted(keys)[:3])}"
                )
        result: torch.nn.Module = module.eval()
        return result


def quiet_libraries() -> None:
    """Turn off the progress bars of transformers and diffusers, which would mix with the export's own."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} is missing. A checkpoint folder in the diffusers format has model_index.json, scheduler/, "
            "text_encoder/, tokenizer/, unet/ and vae/."
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} should hold an object, not {type(data).__name__}")
    return data


def _variant(folder: Path, stem: str) -> str | None:
    """None or "fp16", by the weight files that are there (whole or in shards)."""
    for variant in (None, "fp16"):
        infix = f".{variant}" if variant else ""
        if (folder / f"{stem}{infix}.safetensors").is_file():
            return variant
        if (folder / f"{stem}.safetensors.index{infix}.json").is_file():
            return variant
    if list(folder.glob("*.bin")) or list(folder.glob("*.ckpt")):
        raise CheckpointError(
            f"{folder} holds pickled weights only, which can run code when they are opened. Convert them to "
            f"safetensors: load with diffusers and save_pretrained(FOLDER, safe_serialization=True)"
        )
    raise CheckpointError(f"{folder / (stem + '.safetensors')} is missing")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
