"""Compares the tensors of a file, as a library reads it, with those of the manifest. Knows no library.

A manifest that names others would make the runtime allocate buffers that the library reads or writes beyond.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from latentrt.runtime.bundle import Graph, TensorSpec
from latentrt.runtime.errors import BackendError


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor of a file. Sizes that depend on the call are None, and so are all sizes where the rank is unknown."""

    name: str
    dtype: str
    shape: Sequence[int | None] | None


def require_tensors(spec: Graph, inputs: Iterable[Found], outputs: Iterable[Found]) -> None:
    """Raise `BackendError` where a file has other tensors, dtypes or sizes than the manifest says."""
    for side, specs, founds in (("input", spec.inputs, inputs), ("output", spec.outputs, outputs)):
        known = {found.name: found for found in founds}
        named = {tensor.name for tensor in specs}
        if named != known.keys():
            raise BackendError(
                f"{spec.file} has the {side}s {_listed(known)}, but bundle.json says {_listed(named)}: export the "
                "checkpoint again"
            )
        for tensor in specs:
            if not _fits(tensor, known[tensor.name], fixed_only=side == "output"):
                found = known[tensor.name]
                sizes = "of any rank" if found.shape is None else tuple("?" if s is None else s for s in found.shape)
                raise BackendError(
                    f"{spec.file} has the {side} {tensor.name} {found.dtype} {sizes}, but bundle.json says "
                    f"{tensor.dtype} {tensor.shape}: export the checkpoint again"
                )


def _fits(tensor: TensorSpec, found: Found, *, fixed_only: bool) -> bool:
    if found.dtype != tensor.dtype:
        return False
    if found.shape is None:  # an output whose sizes the library does not infer
        return fixed_only
    if len(found.shape) != len(tensor.shape):
        return False
    pairs = list(zip(tensor.shape, found.shape, strict=True))
    if any(isinstance(said, str) and size is not None for said, size in pairs) and not fixed_only:
        return False
    return all(size is None or size == said for said, size in pairs if isinstance(said, int))


def _listed(names: Iterable[str]) -> str:
    text = ", ".join(sorted(names)) or "none"
    return text if len(text) <= 300 else text[:300] + "…"
