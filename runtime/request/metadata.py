"""What a picture was made from, as text in its PNG file."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


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
