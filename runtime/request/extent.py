"""How large a call is: what pictures that steer it, and their weights, have to fit."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extent:
    """How large a call is.

    Attributes:
        size: height and width of its images in pixels.
        prompts: different prompts, each with `per_prompt` images.
        calls: of the UNet, M.
        groups: of guidance, G: [negative, positive] or the positive alone.
    """

    size: tuple[int, int]
    prompts: int
    per_prompt: int
    calls: int
    groups: int

    @property
    def images(self) -> int:
        """Images of all prompts."""
        return self.prompts * self.per_prompt
