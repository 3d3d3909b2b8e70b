"""Pictures to PIL and PNG, with the text that says how they were made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Parameters:
    """What one picture was made from; the second texts are None where they are the first."""

    prompt: str
    negative_prompt: str | None
    prompt_2: str | None
    negative_prompt_2: str | None
    prompt_syntax: str
    long_prompt: str
    seed: int
    rng: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    strength: float | None
    clip_skip: int
    model: str
    model_sha256: str
    version: str
    loras: dict[str, float]

    def web_ui_text(self) -> str:
        """The form that web UIs write and read: prompt, negative prompt, then a line of settings."""
        lines = [" ".join([self.prompt, *(f"<lora:{name}:{weight:g}>" for name, weight in self.loras.items())])]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        settings = {
            "Steps": self.num_inference_steps,
            "Sampler": self.scheduler,
            "CFG scale": f"{self.guidance_scale:g}",
            "Seed": self.seed,
            "RNG": {"cpu": "CPU", "cuda": "NV"}[self.rng],
            "Size": f"{self.width}x{self.height}",
            **({} if self.strength is None else {"Denoising strength": f"{self.strength:g}"}),
            **({"Clip skip": self.clip_skip + 1} if self.clip_skip else {}),
            "Model hash": self.model_sha256[:10],
            "Model": self.model,
            # How web UIs name it: brackets in the prompt are weights, or they are text.
            "Emphasis": {"web-ui": "Original", "plain": "None"}[self.prompt_syntax],
            "Version": f"latentrt {self.version}",
        }
        lines.append(", ".join(f"{key}: {value}" for key, value in settings.items()))
        return "\n".join(lines)

    def png_text(self) -> dict[str, str]:
        """The PNG's text chunks: `parameters` for web UIs, `latentrt` as JSON."""
        return {"parameters": self.web_ui_text(), "latentrt": json.dumps(asdict(self), ensure_ascii=False)}


def pil_from_arrays(images: NDArray[np.uint8], text: Sequence[Mapping[str, str]]) -> list["Image.Image"]:
    """(n, H, W, 3) bytes to PIL images; `text[i]` is in `image.info`, and written by `image.save` to PNG files."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    result = []
    for array, chunks in zip(images, text, strict=True):
        image, info = Image.fromarray(array), PngInfo()
        for key, value in chunks.items():
            info.add_itxt(key, value)
        image.info.update(chunks)
        image.encoderinfo = {"pnginfo": info}
        result.append(image)
    return result


def require_png(path: Path) -> None:
    """Raise `InputError` for a file name that is not a PNG's."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} does not end in .png: pictures are written as PNG, which keeps their text")


def save_png(image: "Image.Image", path: Path) -> None:
    """Save a picture through a temporary file, so that no half picture is left behind."""
    require_png(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.partial.png")
    try:
        image.save(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_npy(array: NDArray[np.float32], path: Path) -> None:
    """Save an array in numpy's format, through a temporary file as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.partial.npy")
    try:
        np.save(temporary, array)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
