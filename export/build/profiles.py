"""Sizes that engines are built for: what a user asks for, as ranges of the symbols in a bundle's graphs.

A bucket gives each symbol (B images, G guidance groups, h and w latent pixels, S text tokens) a minimum, an optimum and
a maximum; a static bucket's are equal. Knows nothing of TensorRT.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from latentrt.runtime.bundle import Graph, Manifest, TensorSpec, shape_at
from latentrt.runtime.errors import InputError

# Each image's text is one row of the text encoder, each model call of each image one row of `time`. Both are small.
MOST_TEXTS = 16
TIME_ROWS = (1, 32, 2048)


class Span(NamedTuple):
    """Sizes from `min` to `max`, kernels chosen for `opt`."""

    min: int
    opt: int
    max: int

    def times(self, other: "Span | int") -> "Span":
        """The span of a product."""
        factor = Span(other, other, other) if isinstance(other, int) else other
        return Span(*(a * b for a, b in zip(self, factor, strict=True)))


SizeRanges = Mapping[str, Span]


def span_from_text(option: str, text: str) -> Span:
    """ "512" is a static size, "256:512:1024" minimum, optimum and maximum."""
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(f"{option} {text}: give one size, such as 512, or min:opt:max, such as 256:512:1024")
    span = Span(*map(int, parts * (3 if len(parts) == 1 else 1)))
    if not 1 <= span.min <= span.opt <= span.max:
        raise InputError(f"{option} {text}: min, opt and max are 1 or more, in this order")
    return span


def buckets_from_options(
    manifest: Manifest,
    *,
    height: Sequence[str] = (),
    width: Sequence[str] = (),
    batch: Sequence[str] = (),
    groups: Sequence[str] = (),
    tokens: Sequence[str] = (),
) -> list[SizeRanges]:
    """All combinations of the given sizes; an option left out is the bundle's default.

    Args:
        height, width: pixels. batch: images. groups: 2 with guidance, 1 without. tokens: length of the text.
    """
    model, defaults = manifest.model, manifest.defaults
    factor, length = model.vae_scale_factor, model.text_encoders[0].max_length
    spans = {
        "B": [span_from_text("--batch", text) for text in batch or ("1",)],
        "G": [span_from_text("--groups", text) for text in groups or ("2",)],
        "h": [_latent("--height", text, factor) for text in height or (str(defaults.height),)],
        "w": [_latent("--width", text, factor) for text in width or (str(defaults.width),)],
        "S": [span_from_text("--tokens", text) for text in tokens or (str(length),)],
    }
    for span in spans["S"]:
        if any(size % length for size in span):
            raise InputError(f"--tokens {':'.join(map(str, span))}: texts come in pieces of {length} tokens")
    return [dict(zip(spans, combination, strict=True)) for combination in itertools.product(*spans.values())]


def profiles_of_graph(name: str, graph: Graph, buckets: Iterable[SizeRanges]) -> list[SizeRanges]:
    """The different profiles that a graph needs for these buckets; each holds just the symbols of its inputs.

    `n` of the text encoder, `context` and `time` is always a range, and one engine serves all buckets: they run once
    for a prompt, and are not worth an engine for each size.
    """
    buckets = list(buckets)
    symbols = {symbol for spec in graph.inputs for size in spec.shape for symbol in _symbols(size)}
    if "n" in symbols:
        return [{"n": _rows(name, buckets)} | ({"S": _union(b["S"] for b in buckets)} if "S" in symbols else {})]
    profiles = [{symbol: bucket[symbol] for symbol in bucket if symbol in symbols} for bucket in buckets]
    return [profile for i, profile in enumerate(profiles) if profile not in profiles[:i]]


def shapes_of_tensor(spec: TensorSpec, profile: SizeRanges) -> tuple[tuple[int, ...], ...]:
    """Minimal, optimal and maximal shape of a tensor."""
    return tuple(shape_at(spec, {symbol: span[which] for symbol, span in profile.items()}) for which in range(3))


def _symbols(size: int | str) -> list[str]:
    return [part for part in str(size).split("*") if not part.isdigit()]


def _rows(graph: str, buckets: Sequence[SizeRanges]) -> Span:
    if graph == "time":
        return Span(*TIME_ROWS)
    rows = _union(bucket["B"].times(bucket["G"]) for bucket in buckets)
    return Span(1, rows.opt, max(rows.max, MOST_TEXTS))


def _union(spans: Iterable[Span]) -> Span:
    """From the least to the greatest; the optimum is the first one's."""
    spans = list(spans)
    return Span(min(s.min for s in spans), spans[0].opt, max(s.max for s in spans))


def _latent(option: str, text: str, factor: int) -> Span:
    span = span_from_text(option, text)
    if any(size % factor for size in span):
        raise InputError(f"{option} {text}: pixels come in multiples of {factor}")
    return Span(*(size // factor for size in span))
