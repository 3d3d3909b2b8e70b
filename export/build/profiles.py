"""Sizes that engines are built for: the user's sizes as ranges of the symbols in a bundle's graphs.

A bucket gives each symbol (B images, G guidance groups, h and w latent pixels, S text tokens, T image tokens) a
minimum, an optimum and a maximum; in a static bucket they are equal. Knows nothing of TensorRT.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from latentrt.runtime.bundle import Contents, Graph, TensorSpec, shape_at
from latentrt.runtime.bundle.sizes import IMAGE_TOKENS, MOST_IMAGE_TOKENS, symbols_of
from latentrt.runtime.errors import InputError

# The text encoder has a row for each text, `time` a row for each UNet call of each image. Both graphs are small.
MOST_TEXTS = 16
TIME_ROWS = (1, 32, 2048)


class Span(NamedTuple):
    """Sizes from `min` to `max`; kernels are optimized for `opt`."""

    min: int
    opt: int
    max: int

    def times(self, other: "Span | int") -> "Span":
        """The span of the product of two sizes."""
        factor = Span(other, other, other) if isinstance(other, int) else other
        return Span(*(a * b for a, b in zip(self, factor, strict=True)))


SizeRanges = Mapping[str, Span]


def span_from_text(option: str, text: str) -> Span:
    """Parse a static size such as "512", or minimum, optimum and maximum such as "256:512:1024".

    Raises `InputError`; `option` is the option's name, for error messages.
    """
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(f"{option} {text}: expected a size such as 512, or min:opt:max such as 256:512:1024")
    span = Span(*map(int, parts * (3 if len(parts) == 1 else 1)))
    if not 1 <= span.min <= span.opt <= span.max:
        raise InputError(f"{option} {text}: expected 1 <= min <= opt <= max")
    return span


def buckets_from_options(
    manifest: Contents,
    *,
    height: Sequence[str] = (),
    width: Sequence[str] = (),
    batch: Sequence[str] = (),
    groups: Sequence[str] = (),
    tokens: Sequence[str] = (),
) -> list[SizeRanges]:
    """Buckets for all combinations of the given sizes, each as `span_from_text` reads it.

    Args:
        height, width: image pixels; default: the bundle's.
        batch: images; default: 1.
        groups: guidance groups, 2 with guidance and 1 without; default: 2.
        tokens: length of the prompt; default: the text encoder's.

    Raises `InputError` for malformed sizes, and for sizes that the model does not support.
    """
    factor, (usual_height, usual_width, length) = manifest.pixels_of_latent, manifest.usual_sizes
    spans = {
        "B": [span_from_text("--batch", text) for text in batch or ("1",)],
        "G": [span_from_text("--groups", text) for text in groups or ("2",)],
        "h": [_latent("--height", text, factor) for text in height or (str(usual_height),)],
        "w": [_latent("--width", text, factor) for text in width or (str(usual_width),)],
        "S": [span_from_text("--tokens", text) for text in tokens or (str(length),)],
        "T": [Span(IMAGE_TOKENS, IMAGE_TOKENS, MOST_IMAGE_TOKENS)],
    }
    for span in spans["S"]:
        if any(size % length for size in span):
            raise InputError(f"--tokens {':'.join(map(str, span))}: expected multiples of {length}")
    return [dict(zip(spans, combination, strict=True)) for combination in itertools.product(*spans.values())]


def profiles_of_graph(name: str, graph: Graph, buckets: Iterable[SizeRanges]) -> list[SizeRanges]:
    """The distinct profiles that a graph needs for these buckets; each has only the symbols of the graph's inputs.

    The text encoder, `context` and `time` run once per prompt and are not worth an engine for each size: one engine
    serves all buckets, with a range for `n`.
    """
    buckets = list(buckets)
    symbols = {symbol for spec in graph.inputs for size in spec.shape for symbol in symbols_of(size)}
    if "n" in symbols:
        return [{"n": _rows(name, buckets)} | ({"S": _union(b["S"] for b in buckets)} if "S" in symbols else {})]
    profiles = [{symbol: bucket[symbol] for symbol in bucket if symbol in symbols} for bucket in buckets]
    return [profile for i, profile in enumerate(profiles) if profile not in profiles[:i]]


def shapes_of_tensor(spec: TensorSpec, profile: SizeRanges) -> tuple[tuple[int, ...], ...]:
    """Minimum, optimum and maximum shape of a tensor."""
    return tuple(shape_at(spec, {symbol: span[which] for symbol, span in profile.items()}) for which in range(3))


def _rows(graph: str, buckets: Sequence[SizeRanges]) -> Span:
    if graph in ("time", "control_time"):
        return Span(*TIME_ROWS)
    rows = _union(bucket["B"].times(bucket["G"]) for bucket in buckets)
    return Span(1, rows.opt, max(rows.max, MOST_TEXTS))


def _union(spans: Iterable[Span]) -> Span:
    """The smallest span that contains all `spans`, with the optimum of the first."""
    spans = list(spans)
    return Span(min(s.min for s in spans), spans[0].opt, max(s.max for s in spans))


def _latent(option: str, text: str, factor: int) -> Span:
    span = span_from_text(option, text)
    if any(size % factor for size in span):
        raise InputError(f"{option} {text}: expected multiples of {factor}")
    return Span(*(size // factor for size in span))
