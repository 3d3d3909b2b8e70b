"""Rewrite a bundle's graphs to ONNX Runtime's own operators, and save them as it optimizes them for this CPU.

The files are stored like engines. Rewritten graphs share the bundle's weights, and need onnx_ir alone; saved ones have
weights of their own, and need ONNX Runtime, too. Neither needs PyTorch or a GPU.
"""

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latentrt.runtime.bundle import AnyBundle, EngineRecord, open_bundle
from latentrt.runtime.errors import BackendError, ExportError, InputError, unknown

from .ort_saved import can_save, save_built
from .store import (
    Built,
    add_engine,
    built_before,
    clear_killed,
    remove_saved_graphs,
    require_storable,
    require_unaltered,
    with_file,
)

if TYPE_CHECKING:
    import onnx_ir as ir

BACKEND = "onnxruntime"
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One kind of replacement.

    Attributes:
        device: the device whose kernels it is for.
        function: module and name in the package `rewrites`, of a function that changes a graph in place and returns
            the number of replacements.
        default: whether graphs get it unless others are named. Those that are none may or may not be faster.
    """

    device: str
    function: str
    default: bool = True


# By name, in the order in which they are applied: each leaves to the next what it does not take.
REWRITES = {
    "attention": Rewrite("cpu", "attention.use_flash_attention"),
    "group_norm": Rewrite("cuda", "group_norm.use_ort_group_norms"),
    "skip_group_norm": Rewrite("cuda", "skip_group_norm.add_time_in_group_norms"),
    "residual_group_norm": Rewrite("cuda", "skip_group_norm.add_residual_in_group_norms", default=False),
    "attention_casts": Rewrite("cuda", "attention_casts.drop_attention_casts"),
    "packed_attention": Rewrite("cuda", "packed_attention.use_packed_attention", default=False),
    "multi_head_attention": Rewrite("cuda", "attention.use_multi_head_attention", default=False),
    "flat_attention": Rewrite("cuda", "attention.use_flat_attention"),
    "bias_split_gelu": Rewrite("cuda", "bias_split_gelu.use_bias_split_gelu"),
    "skip_layer_norm": Rewrite("cuda", "skip_layer_norm.use_skip_layer_norm"),
    "bias_add": Rewrite("cuda", "bias_add.use_bias_add"),
}


def build_ort_graphs(
    bundle_path: Path | str,
    *,
    devices: Sequence[str] = DEVICES,
    engines: Path | None = None,
    graphs: Sequence[str] = (),
    rewrites: Sequence[str] = (),
    saved: bool = False,
) -> Iterator[Built]:
    """Rewrite graphs for faster kernels of ONNX Runtime, for "cuda" and for "cpu"; save those for "cpu".

    Rewritten graphs serve all sizes and LoRA. Graphs without such operators are skipped, and existing files are kept. A
    file replaces that of other rewrites of the same graph and device.

    Args:
        engines: folder for the files; None is the bundle's own.
        graphs: names of graphs; empty is all.
        rewrites: keys of `REWRITES`; empty is all that are a default.
        saved: whether graphs with convolutions are also saved, optimized for this CPU; False removes those that were.

    Raises `BackendError` if onnx_ir is missing, `InputError` for unknown graphs and rewrites and for rewrites that are
    for other devices, and `ExportError` for altered files and if there was nothing to build.
    """
    chosen = chosen_rewrites(devices, rewrites)
    functions = {device: _functions(names) for device, names in chosen.items()}
    clear_killed(Path(bundle_path), engines)
    bundle = open_bundle(bundle_path)
    require_unaltered(bundle, graphs)
    names = graphs or tuple(bundle.manifest.graphs)
    if "cpu" in chosen and not saved:
        remove_saved_graphs(bundle.path, engines, names)
    saves, found = saved and "cpu" in chosen and can_save(bundle), False
    for name in names:
        for device, used in chosen.items():
            record = _record(bundle, name, device, used)
            built = [_built(bundle, engines, record, functions[device])]
            if saves and device == "cpu":
                built.append(save_built(bundle, engines, record, is_rewritten=built[0] is not None))
            for one in filter(None, built):
                found = True
                yield one
    if not found:
        raise _nothing_to_replace(bundle, graphs, chosen)


def _built(
    bundle: AnyBundle, engines: Path | None, record: EngineRecord, functions: Sequence[Callable[["ir.Model"], int]]
) -> Built | None:
    """The rewritten graph, made if it is missing; None if there was nothing to replace."""
    if (before := built_before(bundle.path, engines, record)) is not None:
        return before
    require_storable(bundle.path, engines)
    began = time.perf_counter()
    content = _rewritten(bundle.file(bundle.graph(record.graph).file), functions)
    if content is None:
        return None
    add_engine(bundle.path, engines, record, content)
    return Built(record, len(content), time.perf_counter() - began)


def chosen_rewrites(devices: Sequence[str], names: Sequence[str] = ()) -> dict[str, list[str]]:
    """Device -> its rewrites in their order, for devices that have any; no names is all defaults.

    Raises `InputError` for unknown names and if no device has a rewrite of these names.
    """
    for name in names:
        if name not in REWRITES:
            raise InputError(unknown("rewrite", name, REWRITES))
    chosen = {
        device: [
            name
            for name, rewrite in REWRITES.items()
            if rewrite.device == device and (name in names if names else rewrite.default)
        ]
        for device in devices
    }
    found = {device: rewrites for device, rewrites in chosen.items() if rewrites}
    if not found:
        here = [name for name, rewrite in REWRITES.items() if rewrite.device in devices]
        raise InputError(
            f"{', '.join(names)}: not a rewrite for {' or '.join(devices)}, which has {', '.join(here)}. "
            f"Leave out --device, or name one of these"
        )
    return found


def _functions(names: Sequence[str]) -> list[Callable[["ir.Model"], int]]:
    """The functions of rewrites. Imported here because importing this module does not need onnx_ir."""
    found: list[Callable[[ir.Model], int]] = []
    try:
        for name in names:
            module, function = REWRITES[name].function.split(".")
            found.append(getattr(importlib.import_module(f"latentrt.export.build.rewrites.{module}"), function))
    except ImportError as error:
        raise BackendError(f"{BACKEND}'s graphs are built with onnx_ir ({error}): pip install onnx-ir") from error
    return found


def _rewritten(path: Path, functions: Sequence[Callable[["ir.Model"], int]]) -> bytes | None:
    """The ONNX file after all rewrites, which refers to the same weights; None if there was nothing to replace."""
    import onnx_ir as ir

    model = ir.load(path)
    if not sum([rewrite(model) for rewrite in functions]):
        return None
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def _nothing_to_replace(bundle: AnyBundle, graphs: Sequence[str], chosen: dict[str, list[str]]) -> ExportError:
    recipe = bundle.manifest.recipe
    tried = "; ".join(f"on {device} {', '.join(names)}" for device, names in chosen.items())
    return ExportError(
        f"{bundle.path}: {', '.join(graphs or bundle.manifest.graphs)}: nothing to replace by an operator of {BACKEND} "
        f"({tried}). On cuda the kernels take fp32 and fp16, and group norms from opset 21 on; on cpu they take "
        f"attention of opset 23 and later in fp32, and graphs in fp32 are saved. This bundle has opset {recipe.opset}, "
        f"{recipe.precision}, VAE {recipe.vae_precision}. Its graphs run as exported"
    )


def _record(bundle: AnyBundle, name: str, device: str, rewrites: Sequence[str]) -> EngineRecord:
    from latentrt.export.build.rewrites.nodes import DOMAIN, DOMAIN_VERSION

    manifest = bundle.manifest
    file = bundle.graph(name).file
    weights = manifest.files.get(f"{file}.data")
    record = EngineRecord(
        graph=name,
        file="",
        backend=BACKEND,
        version=str(DOMAIN_VERSION),
        device=device,
        compute_capabilities=(),
        precision=manifest.recipe.precision,
        tf32=False,
        profile={},
        options={", ".join(rewrites): DOMAIN},
        host_code=False,
        onnx_sha256=manifest.files[file].sha256,
        weights_sha256=weights.sha256 if weights else None,
    )
    return with_file(record, "onnx")
