"""A copy of a checkpoint that all peers can read.

transformers 5 drops the prefix "text_model." from the names of CLIP's weights. Older versions, which some peers need,
do not find these names: they print a warning and go on with random weights.
"""

import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file

PREFIX = "text_model."


def with_public_names(checkpoint: Path, target: Path) -> Path:
    """Return the checkpoint if its text encoder has the public names, else a copy at `target` that has them."""
    weights = Path("text_encoder", "model.safetensors")
    if not (checkpoint / weights).is_file():
        return checkpoint
    tensors = load_file(checkpoint / weights)
    if all(name.startswith(PREFIX) for name in tensors):
        return checkpoint
    shutil.copytree(checkpoint, target, dirs_exist_ok=True)
    renamed = {PREFIX + name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    save_file(renamed, target / weights, metadata={"format": "pt"})
    return target
