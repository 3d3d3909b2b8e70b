"""What a manifest must say of graphs: names, dtypes and shapes of tensors, and which graph reads what another gives."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from latentrt.runtime.arrays import DTYPES

from .manifest import PORTS, Graph, Manifest, TensorSpec
from .sizes import symbols_of, takes_score

HIGH = 2**31
# Graph -> the inputs and outputs that it must have; `text_encoder`s come from `model.text_encoders`.
_TENSORS = {
    "context": ({"hidden_states"}, set[str]()),
    "time": ({"timesteps"}, {"time_features"}),
    "denoise": (
        {"state", "coefficients", "guidance", "guidance_rescale", "noise", "time_features"},
        {"next_state"},
    ),
    "blend": ({"state", "mask", "clean", "noise", "blend"}, {"next_state"}),
    "vae_decoder": ({"latents"}, {"images", "nonfinite"}),
    "vae_encoder": ({"images"}, {"mean"}),
    "preview_decoder": ({"latents"}, {"images", "nonfinite"}),
}
_OPTIONAL = ("preview_decoder",)
_SYMBOLS = "BGhwSTn"
_DIMENSION = re.compile(rf"([1-9][0-9]{{0,3}}\*)*[{_SYMBOLS}](\*[{_SYMBOLS}])*|[hw]/[1-9][0-9]?")


def graph_faults(manifest: Manifest) -> Iterator[str]:
    """What is wrong, one sentence each."""
    for name, (inputs, outputs) in _TENSORS.items():
        graph = manifest.graphs.get(name)
        if graph is None:
            if name not in _OPTIONAL:
                yield f"graphs.{name} is missing"
            continue
        has = {spec.name for spec in graph.inputs}, {spec.name for spec in graph.outputs}
        if missing := [*sorted(inputs - has[0]), *sorted(outputs - has[1])]:
            yield f"graphs.{name} has no tensor {', '.join(missing)}"
        yield from _known_shapes(manifest, name, graph)
    yield from _handed_on(manifest)
    yield from _ports(manifest)
    yield from tensor_faults(manifest.graphs)


def tensor_faults(graphs: Mapping[str, Graph]) -> Iterator[str]:
    """What is wrong with the tensors of any graphs."""
    for name, graph in graphs.items():
        if any(len({spec.name for spec in specs}) < len(specs) for specs in (graph.inputs, graph.outputs)):
            yield f"graphs.{name[:40]} has a tensor twice"
        for spec in (*graph.inputs, *graph.outputs):
            yield from _tensor(f"graphs.{name[:40]}", spec)
        yield from _input_symbols(name, graph)


def _known_shapes(manifest: Manifest, name: str, graph: Graph) -> Iterator[str]:
    """The sizes that the runtime takes for granted."""
    model = manifest.model
    factor, latents = model.vae_scale_factor, ("B", model.latent_channels, "h", "w")
    pixels = ("B", f"{factor}*h" if factor > 1 else "h", f"{factor}*w" if factor > 1 else "w", 3)
    state = ("B", model.registers, *latents[1:])
    decoder: dict[str, tuple[int | str, ...]] = {"latents": latents, "images": pixels, "nonfinite": ("B",)}
    known: dict[str, dict[str, tuple[int | str, ...]]] = {
        "denoise": {
            "state": state,
            "next_state": state,
            "coefficients": ("B", model.registers, model.registers + 2),
            "guidance": ("B", "G"),
            "guidance_rescale": ("B",),
            "noise": latents,
            "extra": ("B", model.latent_channels + 1, "h", "w"),
        },
        "blend": {
            "state": state,
            "next_state": state,
            "mask": ("B", 1, "h", "w"),
            "clean": latents,
            "noise": latents,
            "blend": ("B", 2),
        },
        "time": {"timesteps": ("n",), "time_ids": ("n", 5 if takes_score(graph) else 6)},
        "context": {"hidden_states": ("n", "S", sum(encoder.hidden_size for encoder in model.text_encoders))},
        "vae_decoder": decoder,
        "preview_decoder": decoder,
        "vae_encoder": {"images": pixels, "mean": latents, "logvar": latents},
    }
    dtypes = {"images": "float32" if name == "vae_encoder" else "uint8", "nonfinite": "int32"}
    for spec in (*graph.inputs, *graph.outputs):
        shape, dtype = known[name].get(spec.name), dtypes.get(spec.name, "float32")
        if shape is not None and (spec.shape, spec.dtype) != (shape, dtype):
            yield f"graphs.{name}: {spec.name} is {spec.dtype[:40]} {str(spec.shape)[:80]}: expected {dtype} {shape}"


def _handed_on(manifest: Manifest) -> Iterator[str]:
    """`denoise` reads what `context` and `time` give, and no graph has an input that nobody knows."""
    graphs = manifest.graphs
    if not {"context", "time", "denoise"} <= graphs.keys():
        return
    given = {spec.name: spec for name in ("context", "time") for spec in graphs[name].outputs}
    own = {*_TENSORS["denoise"][0], "extra"} - {"time_features"}
    ports = tuple(PORTS[name] for name in manifest.recipe.ports if name in PORTS)
    for spec in graphs["denoise"].inputs:
        if spec.name in own or spec.name.startswith(ports):
            continue
        source = given.get(spec.name)
        if source is None or (source.dtype, source.shape[1:]) != (spec.dtype, spec.shape[1:]):
            yield f"graphs.denoise: the input {spec.name[:40]} is no output of context or time"
        elif spec.shape[:1] != ("B*G",):
            yield f"graphs.denoise: the input {spec.name[:40]} has {spec.shape[0]!s:.40} rows: expected B*G"
    if missing := sorted(given.keys() - {spec.name for spec in graphs["denoise"].inputs}):
        yield f"graphs.denoise has no input {missing[0][:40]}"
    if taken := sorted(given.keys() & own):
        yield f"graphs.denoise: another graph gives its input {taken[0]}"
    pooled = any(encoder.pooled for encoder in manifest.model.text_encoders)
    optional = {"time_ids", "guidance_embedding", *({"pooled"} if pooled else ())}
    if unknown := sorted({spec.name for spec in graphs["time"].inputs} - {"timesteps", *optional}):
        yield f"graphs.time has the input {unknown[0][:40]!r}, which is not in the format"
    for spec in graphs["time"].inputs:
        if spec.name in optional and (len(spec.shape) != 2 or not isinstance(spec.shape[1], int) or spec.shape[1] < 4):
            yield f"graphs.time: {spec.name} is {str(spec.shape)[:80]}: expected (n, a number)"


def _ports(manifest: Manifest) -> Iterator[str]:
    """The inputs of `denoise` that are off where they are zero."""
    recipe, graph = manifest.recipe, manifest.graphs.get("denoise")
    for name in recipe.ports:
        if name not in PORTS or recipe.ports.count(name) > 1:
            yield f"recipe.ports has {name[:40]!r}: expected each of {', '.join(PORTS)} at most once"
            continue
        inputs = [spec for spec in graph.inputs if spec.name.startswith(PORTS[name])] if graph else []
        yield from _of_images(inputs) if name == "ip-adapter" else feature_faults("denoise", PORTS[name], inputs)


def feature_faults(graph: str, prefix: str, specs: Sequence[TensorSpec], rows: str = "B*G") -> Iterator[str]:
    """What is wrong with tensors that are added to features of the UNet."""
    if [spec.name for spec in specs] != [f"{prefix}{i:02d}" for i in range(len(specs))] or not specs:
        yield f"graphs.{graph} has no tensors {prefix}00, {prefix}01, …, in this order"
    for spec in specs:
        sides = [str(size).partition("/")[0] for size in spec.shape[2:]]
        if spec.shape[:1] != (rows,) or sides != ["h", "w"] or not isinstance(spec.shape[1], int):
            yield f"graphs.{graph}: {spec.name[:40]} is {str(spec.shape)[:80]}: expected ({rows}, a number, h/…, w/…)"


def _of_images(inputs: Sequence[TensorSpec]) -> Iterator[str]:
    """Keys and values of a picture's tokens, and the strength of each layer."""
    layers = (len(inputs) - 1) // 2
    names = [f"image_{kind}_{i:02d}" for kind in ("key", "value") for i in range(layers)] + ["image_strength"]
    if [spec.name for spec in inputs] != names or not layers:
        yield "graphs.denoise has no inputs image_key_00, …, image_value_00, …, image_strength, in this order"
        return
    for spec in inputs[:-1]:
        if spec.shape[:2] != ("B*G", "T") or len(spec.shape) != 3 or not isinstance(spec.shape[2], int):
            yield f"graphs.denoise: {spec.name} is {str(spec.shape)[:80]}: expected (B*G, T, a number)"
    if (inputs[-1].dtype, inputs[-1].shape) != ("float32", ("B*G", layers)):
        yield f"graphs.denoise: image_strength is {str(inputs[-1].shape)[:80]}: expected float32 (B*G, {layers})"


def _tensor(where: str, spec: TensorSpec) -> Iterator[str]:
    if spec.dtype not in DTYPES:
        yield f"{where}: {spec.name[:40]} has the dtype {spec.dtype[:40]!r}: expected one of {', '.join(DTYPES)}"
    for size in spec.shape:
        if isinstance(size, int) and not 0 < size < HIGH:
            yield f"{where}: {spec.name[:40]} has the size {size}"
        if isinstance(size, str) and not (len(size) < 40 and _DIMENSION.fullmatch(size)):
            expected = f"expected a product of numbers and {_SYMBOLS}, or a part such as h/2"
            yield f"{where}: {spec.name[:40]} has the size {size[:40]!r}: {expected}"
        elif isinstance(size, str) and math.prod(int(part) for part in size.split("*") if part.isdigit()) >= HIGH:
            yield f"{where}: {spec.name[:40]} has the size {size[:40]!r}"
    if not spec.shape:
        yield f"{where}: {spec.name[:40]} has no sizes"


def _input_symbols(name: str, graph: Graph) -> Iterator[str]:
    """Every size of an output must follow from those of the inputs."""
    known = {symbol for spec in graph.inputs for size in spec.shape for symbol in symbols_of(size)}
    for spec in graph.outputs:
        for symbol in {symbol for size in spec.shape for symbol in symbols_of(size)} - known:
            yield f"graphs.{name[:40]}: the size {symbol[:40]!r} of {spec.name[:40]} is not one of its inputs"
