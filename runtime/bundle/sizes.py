"""Tensor sizes: from the symbols of a graph's dimensions to numbers, and back.

`Sizes` maps symbols to numbers: B images, G guidance groups, h and w latent pixels, S tokens, T tokens of a picture for
an IP-Adapter, n rows.
"""

import math
from collections.abc import Mapping, Sequence

from latentrt.runtime.arrays import DTYPES
from latentrt.runtime.errors import InputError

from .manifest import PORTS, EngineRecord, Graph, Manifest, TensorSpec

Sizes = Mapping[str, int]
IMAGE_TOKENS, MOST_IMAGE_TOKENS = 4, 16  # of a plain IP-Adapter, and of the kind "plus"


def sizes_text(record: EngineRecord) -> str:
    """The sizes that an engine is built for, such as "B=1 G=2 h=64 w=32:64:96 S=77"."""
    return " ".join(
        f"{symbol}={span[0] if len(set(span)) == 1 else ':'.join(map(str, span))}"
        for symbol, span in record.profile.items()
    )


def symbols_of(size: int | str) -> list[str]:
    """The symbols of a dimension: `B*G` has B and G, `h/2` has h, a number has none."""
    return [part.partition("/")[0] for part in str(size).split("*") if not part.isdigit()]


def shape_at(spec: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
    """The shape of a tensor at these sizes."""
    return tuple(math.prod(_size_of(part, sizes) for part in str(size).split("*")) for size in spec.shape)


def _size_of(part: str, sizes: Sizes) -> int:
    """A number, a symbol, or a symbol over a number, rounded up."""
    if part.isdigit():
        return int(part)
    symbol, _, divisor = part.partition("/")
    return -(-sizes[symbol] // int(divisor or 1))


def sizes_of_inputs(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Sizes by symbol, from input shapes. Raises `InputError` if an input is missing or does not fit the graph."""
    for spec in graph.inputs:
        if spec.name not in shapes:
            raise InputError(f"{graph.file} needs the input {spec.name!r}; got {', '.join(shapes) or 'none'}")
    # Twice, as a product such as B*G gives G once B is known.
    sizes: dict[str, int] = {}
    for spec in (*graph.inputs, *graph.inputs):
        for size, got in zip(spec.shape, shapes[spec.name], strict=False):
            parts = str(size).split("*")
            unknown = [part for part in parts if part.isalpha() and part not in sizes]
            if len(unknown) == 1 and not any("/" in part for part in parts):
                known = math.prod(_size_of(part, sizes) for part in parts if part not in unknown)
                sizes[unknown[0]] = got // known if known else 0
    for spec in graph.inputs:
        given = shapes[spec.name]
        if len(given) != len(spec.shape) or shape_at(spec, sizes) != tuple(given):
            raise InputError(f"{spec.name} of {graph.file} has shape {tuple(given)}; expected {spec.shape}")
    return sizes


def port_bytes(manifest: Manifest) -> dict[str, int]:
    """Port -> bytes of its inputs for one guided image of the default size, which are taken when it is first used."""
    height, width, tokens = manifest.usual_sizes
    pixels = manifest.pixels_of_latent
    sizes = {"B": 1, "G": 2, "h": height // pixels, "w": width // pixels, "S": tokens, "T": IMAGE_TOKENS}
    inputs = manifest.graphs["denoise"].inputs
    return {
        port: sum(
            math.prod(shape_at(spec, sizes)) * DTYPES[spec.dtype].bytes
            for spec in inputs
            if spec.name.startswith(PORTS[port])
        )
        for port in manifest.recipe.ports
    }


def takes(graph: Graph, name: str) -> bool:
    """Whether a graph has this input."""
    return any(spec.name == name for spec in graph.inputs)


def takes_score(time: Graph) -> bool:
    """Whether the graph `time` is told an aesthetic score in place of the target size, as SDXL's refiner."""
    return any((spec.name, spec.shape) == ("time_ids", ("n", 5)) for spec in time.inputs)
