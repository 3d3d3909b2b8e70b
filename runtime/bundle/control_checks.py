"""What the manifest of a control bundle must say besides its types."""

from collections.abc import Iterator, Sequence

from .checks import engines_faults, file_faults, outside
from .control_manifest import KINDS, PORT_OF, ControlManifest
from .graph_checks import feature_faults, tensor_faults
from .manifest import PORTS, TensorSpec

_RANGES: dict[str, tuple[float, float]] = {
    "height": (1, 16384),
    "width": (1, 16384),
    "vae_scale_factor": (1, 64),
    "control_types": (0, 64),
    "image_tokens": (0, 1024),
}
_OF_TIME = {"timesteps", "pooled", "time_ids", "control_type"}


def control_faults(manifest: ControlManifest) -> Iterator[str]:
    """What is wrong, one sentence each."""
    if manifest.kind not in KINDS:
        yield f"kind is {manifest.kind[:40]!r}: expected one of {', '.join(KINDS)}"
        return
    for name, (least, most) in _RANGES.items():
        yield from outside(name, getattr(manifest, name), least, most)
    yield from outside("golden.tolerance", manifest.golden.tolerance, 0, 0.5)
    yield from file_faults(manifest.files)
    listed = {f"graphs.{name}.file": graph.file for name, graph in manifest.graphs.items()}
    for where, name in {**listed, "golden.file": manifest.golden.file}.items():
        if name not in manifest.files:
            yield f"{where} is {name[:80]!r}, which files does not list"
    if {*manifest.graphs} != {*KINDS[manifest.kind]}:
        yield f"graphs has {', '.join(manifest.graphs)[:80]}: expected {', '.join(KINDS[manifest.kind])}"
        return
    yield from tensor_faults(manifest.graphs)
    yield from _OF_KIND[manifest.kind](manifest)
    yield from engines_faults(manifest)


def _net(manifest: ControlManifest) -> Iterator[str]:
    """A ControlNet: what `control` reads and gives."""
    graphs, factor = manifest.graphs, manifest.vae_scale_factor
    control, hint = graphs["control"], graphs["hint"]
    outputs = list(control.outputs)
    yield from feature_faults("control", PORTS["control"], outputs)
    previous = [spec for spec in control.inputs if spec.name.startswith("previous_")]
    yield from feature_faults("control", "previous_", previous)
    if [(spec.dtype, spec.shape) for spec in previous] != [(spec.dtype, spec.shape) for spec in outputs]:
        yield "graphs.control: the tensors previous_* are not like residual_*"
    pixels = tuple(f"{factor}*{side}" if factor > 1 else side for side in "hw")
    yield from _has("hint", hint.inputs, "hint", ("B", *pixels), "float32")
    yield from _has("control", control.inputs, "weights", ("B*G", len(outputs)), "float32")
    yield from _has("control", control.inputs, "hint_features", ("B",))
    yield from _has("control", control.inputs, "state", ("B",), "float32")
    if unknown := sorted({spec.name for spec in graphs["control_time"].inputs} - _OF_TIME):
        yield f"graphs.control_time has the input {unknown[0][:40]!r}, which is not in the format"
    given = {"state", "weights", "task", *(spec.name for spec in (*hint.outputs, *previous))}
    given |= {spec.name for name in ("control_time", "control_context") for spec in graphs[name].outputs}
    if unknown := sorted({spec.name for spec in control.inputs} - given):
        yield f"graphs.control: nothing gives its input {unknown[0][:40]}"


def _adapter(manifest: ControlManifest) -> Iterator[str]:
    yield from feature_faults("adapter", PORTS["t2i"], manifest.graphs["adapter"].outputs, "B")


def _images(manifest: ControlManifest) -> Iterator[str]:
    graph, tokens = manifest.graphs["image_context"], manifest.image_tokens
    layers = len(graph.outputs) // 2
    names = [f"image_{kind}_{i:02d}" for kind in ("key", "value") for i in range(layers)]
    if [spec.name for spec in graph.outputs] != names or not layers or tokens < 1:
        yield "graphs.image_context has no outputs image_key_00, …, image_value_00, …, in this order"
    for spec in graph.outputs:
        if spec.shape[:2] != ("n", tokens) or len(spec.shape) != 3:
            yield f"graphs.image_context: {spec.name[:40]} is {str(spec.shape)[:80]}: expected (n, {tokens}, a number)"


def _encoder(manifest: ControlManifest) -> Iterator[str]:
    graph = manifest.graphs["image_encoder"]
    yield from _has("image_encoder", graph.inputs, "pixels", ("n",), "float32")
    if [spec.name for spec in graph.outputs] != ["image_embeds", "hidden_states"]:
        yield "graphs.image_encoder has no outputs image_embeds and hidden_states"


_OF_KIND = {
    "controlnet": _net,
    "controlnet-union": _net,
    "t2i-adapter": _adapter,
    "ip-adapter": _images,
    "image-encoder": _encoder,
}
assert {*PORT_OF} < {*_OF_KIND} == {*KINDS}


def _has(
    graph: str, specs: Sequence[TensorSpec], tensor: str, begins: tuple[int | str, ...], dtype: str | None = None
) -> Iterator[str]:
    """Whether a graph has a tensor whose shape begins so."""
    spec = next((spec for spec in specs if spec.name == tensor), None)
    if spec is None:
        yield f"graphs.{graph} has no tensor {tensor}"
    elif spec.shape[: len(begins)] != begins or dtype not in (None, spec.dtype):
        yield f"graphs.{graph}: {tensor} is {spec.dtype[:40]} {str(spec.shape)[:80]}: expected {begins}"
