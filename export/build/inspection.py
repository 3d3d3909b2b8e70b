"""What is known of a bundle's engines without loading them: their records, layers, and how their graphs were fused."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentrt.runtime.backends.engine_fit import build_command, outdated
from latentrt.runtime.backends.trt.library import TRT_BACKENDS
from latentrt.runtime.bundle import AnyBundle, EngineList, EngineRecord, open_bundle, sizes_text
from latentrt.runtime.errors import BackendError, InputError, unknown

from .fusion import Fusion, Tally, fusion_of
from .layers import Layer, read_layers


@dataclass(frozen=True, slots=True, eq=False)
class Inspected:
    """An engine: its record, and how its graph was fused; or None, if that is not known, and `problem` says why."""

    record: EngineRecord
    fusion: Fusion | None
    problem: str = ""

    def __str__(self) -> str:
        """One line, such as "denoise B=1 …: 261 layers, attention fused 14 of 14, …"."""
        name = f"{self.record.graph} {sizes_text(self.record)}"
        return f"{name}: {self.problem}" if self.fusion is None else f"{name}: {summary(self.fusion)}"


def summary(fusion: Fusion) -> str:
    """One line of the most important numbers."""
    parts = [f"{len(fusion.rows):,} layers", f"{fusion.flops / 1e9:,.1f} GFLOP"]
    parts += [f"{name} {tally.fused} of {tally.parts}" for name, tally in tallies(fusion) if tally.parts]
    copied = "" if fusion.copied is None else f" of {fusion.copied / 1e6:,.1f} MB"
    return ", ".join([*parts, f"{fusion.copies} copies and casts{copied}"])


def tallies(fusion: Fusion) -> tuple[tuple[str, Tally], ...]:
    """What is counted, by name."""
    return (
        ("attention fused", fusion.attention),
        ("GroupNorm+SiLU in one kernel", fusion.group_norm),
        ("GELU in a product's kernel", fusion.geglu),
        ("products in 8 bits", fusion.quantized),
    )


def inspect_engines(
    bundle_path: Path | str, *, engines: Path | None = None, graphs: Sequence[str] = (), file: str | None = None
) -> Iterator[Inspected]:
    """Each of a bundle's TensorRT engines. Needs neither a GPU nor the library.

    Args:
        engines: folder of the engines; None is the bundle's own.
        graphs: names of graphs; empty is all.
        file: the beginning of an engine's file name; None is all.

    Raises `InputError` if there is none, `BackendError` without the package onnx.
    """
    bundle = open_bundle(bundle_path)
    for graph in graphs:
        if graph not in bundle.manifest.graphs:
            raise InputError(f"{bundle.path}: {unknown('graph', graph, bundle.manifest.graphs)}")
    listed = EngineList.of_bundle(bundle, engines)
    built = [record for record in listed.engines if record.backend in TRT_BACKENDS]
    if not built:
        raise InputError(
            f"{engines or bundle.path} has no engines of TensorRT. Build them: {build_command(bundle, 'tensorrt_rtx')}"
        )
    chosen = [
        record
        for record in built
        if (not graphs or record.graph in graphs) and Path(record.file).name.startswith(Path(file or "").name)
    ]
    if not chosen:
        known = ", ".join(Path(record.file).name for record in built)
        raise InputError(f"no such engine in {engines or bundle.path}; it has {known}")
    for record in chosen:
        yield _inspected(bundle, listed, record)


def _inspected(bundle: AnyBundle, listed: EngineList, record: EngineRecord) -> Inspected:
    path = listed.layers_path(record)
    if path is None:
        return Inspected(record, None, "its layers were not recorded; build it again")
    if (reason := outdated(record, bundle.manifest)) is not None:
        return Inspected(record, None, reason)
    layers = read_layers(path)
    try:
        return Inspected(record, _fusion(bundle, record, layers))
    except ValueError as error:  # a graph without shapes, or with symbols that are not in the profile
        return Inspected(record, None, f"the operations of its graph cannot be counted: {error}")


def _fusion(bundle: AnyBundle, record: EngineRecord, layers: Sequence[Layer]) -> Fusion:
    try:
        import onnx

        from .fusible import fusible_parts
        from .onnx_cost import node_flops
    except ImportError as error:
        raise BackendError(f"engines are compared with their graphs by onnx ({error}): pip install onnx") from error
    graph = onnx.load(bundle.file(bundle.graph(record.graph).file), load_external_data=False).graph
    sizes = {symbol: span[1] for symbol, span in record.profile.items()}
    if "h" in sizes:  # inside of `vae_encoder`, shapes are in pixels
        pixels = bundle.manifest.pixels_of_latent
        sizes |= {"H": sizes["h"] * pixels, "W": sizes["w"] * pixels}
    return fusion_of(layers, fusible_parts(graph), node_flops(graph, sizes))
