"""LoRAs that a prompt names, in the form of web UIs. Knows texts alone."""

import math
import re

from latentrt.runtime.errors import InputError

# No alternative can match the end of another one, so that the time is linear.
_TAG = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>", re.IGNORECASE)
_SPACES = re.compile(r"  +")


def without_loras(prompt: str) -> tuple[str, dict[str, float]]:
    """A prompt without `<lora:NAME:WEIGHT>`, and the weights by name; one that stands twice counts twice.

    Raises: InputError: a weight is not a number, or text encoder and UNet have different ones.
    """
    loras: dict[str, float] = {}
    for kind, content in _TAG.findall(prompt):
        tag = f"<{kind}:{content[:80]}>"
        if kind.lower() == "hypernet":
            raise InputError(f"{tag}: there are no hypernetworks here: take it out of the prompt")
        name, *weights = (part.strip() for part in content.split(":"))
        if not name:
            raise InputError(f"{tag}: expected <lora:NAME:WEIGHT>")
        loras[name] = loras.get(name, 0.0) + _weight(tag, weights)
    if not loras:
        return prompt, loras
    return _SPACES.sub(" ", _TAG.sub("", prompt)).strip(), loras


def refuse_loras(negative: str) -> None:
    """Raise `InputError` for a LoRA in a negative prompt, where web UIs take it for text."""
    if found := _TAG.search(negative):
        raise InputError(f"negative_prompt: {found[0][:80]} has no effect there: put it into the prompt")


def _weight(tag: str, given: list[str]) -> float:
    """`1`, `te=1:unet=1`, or nothing, which is 1."""
    numbers = []
    for part in given:
        name, _, text = part.rpartition("=")
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or name not in ("", "te", "unet"):
            raise InputError(f"{tag}: expected a number as weight, as in <lora:NAME:0.8>")
        numbers.append(number)
    if len(set(numbers)) > 1:
        raise InputError(f"{tag}: text encoder and UNet have one weight here: expected <lora:NAME:WEIGHT>")
    return numbers[0] if numbers else 1.0
