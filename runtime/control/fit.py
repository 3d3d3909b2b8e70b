"""Whether a control bundle fits the bundle of a checkpoint: ports, precision, shapes."""

from collections.abc import Iterator, Mapping, Sequence

from latentrt.runtime.bundle import Bundle, ControlBundle, Graph, TensorSpec
from latentrt.runtime.bundle.control_manifest import PORT_OF
from latentrt.runtime.bundle.manifest import PORTS
from latentrt.runtime.errors import BundleError


def check_fit(bundle: Bundle, controls: Mapping[str, ControlBundle]) -> None:
    """Raise `BundleError` for a control bundle that cannot steer this checkpoint, with what to do."""
    for name, control in controls.items():
        if (fault := next(_misfits(bundle, control), None)) is not None:
            raise BundleError(f"{control.path} ({name}) does not fit {bundle.path}: {fault}")


def _misfits(bundle: Bundle, control: ControlBundle) -> Iterator[str]:
    kind = control.manifest.kind
    port = PORT_OF.get(kind)
    if port is None:
        return
    if port not in bundle.manifest.recipe.ports:
        yield f"the checkpoint was exported without this port; export it with --ports {port}"
        return
    if (theirs := control.manifest.recipe.precision) != (ours := bundle.manifest.recipe.precision):
        yield f"it is {theirs}, and the checkpoint {ours}; export both with the same --precision"
    graphs, denoise = control.manifest.graphs, bundle.manifest.graphs["denoise"]
    wanted = [spec for spec in denoise.inputs if spec.name.startswith(PORTS[port]) and spec.name != "image_strength"]
    *_, last = graphs.values()
    if port == "t2i":  # a UNet may have a port more, for adapters that also reach its middle
        wanted = wanted[: len(last.outputs)]
    yield from _differences(wanted, last.outputs)
    if port == "control":
        yield from _differences(
            [_input(bundle.manifest.graphs["context"], "hidden_states")], graphs["control_context"].inputs
        )
        yield from _differences([_input(denoise, "state")], graphs["control"].inputs)
        of_time = {spec.name: spec for spec in bundle.manifest.graphs["time"].inputs}
        for spec in graphs["control_time"].inputs:
            if spec.name != "control_type" and (spec.name not in of_time or of_time[spec.name].shape != spec.shape):
                yield f"its input {spec.name} {spec.shape} is none of the checkpoint's"
    if port != "ip-adapter" and control.manifest.vae_scale_factor != bundle.manifest.model.vae_scale_factor:
        factors = control.manifest.vae_scale_factor, bundle.manifest.model.vae_scale_factor
        yield f"a latent pixel is {factors[0]} pixels wide for it, and {factors[1]} for the checkpoint"


def _input(graph: Graph, name: str) -> TensorSpec:
    return next(spec for spec in graph.inputs if spec.name == name)


def _differences(wanted: Sequence[TensorSpec], found: Sequence[TensorSpec]) -> Iterator[str]:
    """Tensors that one side has and the other has not, or in another shape; numbers of rows and of tokens differ."""
    known = {spec.name: spec for spec in found}
    for spec in wanted:
        other = known.get(spec.name)
        if other is None or _form(other) != _form(spec):
            has = "none" if other is None else _text(other)
            yield f"its {spec.name} is {has}, and the checkpoint's {_text(spec)}; it is for another family of models"
    if len(wanted) > 1 and (more := sorted(known.keys() - {spec.name for spec in wanted})):
        yield f"the checkpoint has no {more[0]}; it is for another family of models"


def _form(spec: TensorSpec) -> tuple[str, tuple[int | str, ...]]:
    """Dtype and sizes, but for rows and tokens of a picture."""
    return spec.dtype, spec.shape[2 if spec.name.startswith(PORTS["ip-adapter"]) else 1 :]


def _text(spec: TensorSpec) -> str:
    return f"{spec.dtype} ({', '.join(map(str, spec.shape[1:]))})"
