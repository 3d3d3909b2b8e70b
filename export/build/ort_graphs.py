"""Rewrite a bundle's graphs to ONNX Runtime's own operators.

The files are stored like engines and share the bundle's weights. Needs onnx_ir, but neither PyTorch nor a GPU nor ONNX
Runtime.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentrt.runtime.bundle import Bundle, EngineRecord
from latentrt.runtime.errors import BackendError, ExportError

from .store import Built, add_engine, built_before, clear_killed, require_storable, require_unaltered, with_file

if TYPE_CHECKING:
    import onnx_ir as ir

BACKEND = "onnxruntime"
DEVICES = ("cpu", "cuda")

# What is replaced, and a function that does so in place and returns the number of replacements.
Rewrite = tuple[str, Callable[["ir.Model"], int]]


def build_ort_graphs(
    bundle_path: Path | str,
    *,
    devices: Sequence[str] = DEVICES,
    engines: Path | None = None,
    graphs: Sequence[str] = (),
) -> Iterator[Built]:
    """Rewrite graphs for faster kernels of ONNX Runtime: group norms and attention, for "cuda" and for "cpu".

    The files serve all sizes and LoRA. Graphs without such operators are skipped, and existing files are kept.

    Args:
        engines: folder for the files; None is the bundle's own.
        graphs: names of graphs; empty is all.

    Raises `BackendError` if onnx_ir is missing, `InputError` for unknown graphs, and `ExportError` for altered files
    and if no graph has anything to replace.
    """
    rewrites = _rewrites()
    clear_killed(Path(bundle_path), engines)
    bundle = Bundle.open(bundle_path)
    require_unaltered(bundle, graphs)
    found = False
    for name in graphs or bundle.manifest.graphs:
        for device in devices:
            what, rewrite = rewrites[device]
            record = _record(bundle, name, device, what)
            built = built_before(bundle.path, engines, record)
            if built is None:
                require_storable(bundle.path, engines)
                began = time.perf_counter()
                content = _rewritten(bundle.file(bundle.graph(name).file), rewrite)
                if content is None:
                    continue
                add_engine(bundle.path, engines, record, content)
                built = Built(record, len(content), time.perf_counter() - began)
            found = True
            yield built
    if not found:
        raise _nothing_to_replace(bundle, graphs, devices)


def _rewrites() -> dict[str, Rewrite]:
    """Device -> its rewrite. Imported here because importing this module does not need onnx_ir."""
    try:
        from latentrt.export.build.rewrites.attention import use_flash_attention
        from latentrt.export.build.rewrites.attention_casts import drop_attention_casts
        from latentrt.export.build.rewrites.group_norm import use_ort_group_norms
    except ImportError as error:
        raise BackendError(f"{BACKEND}'s graphs are built with onnx_ir ({error}): pip install onnx-ir") from error

    def for_cuda(model: "ir.Model") -> int:
        return use_ort_group_norms(model) + drop_attention_casts(model)

    return {"cpu": ("attention", use_flash_attention), "cuda": ("group_norm, attention", for_cuda)}


def _rewritten(path: Path, rewrite: Callable[["ir.Model"], int]) -> bytes | None:
    """The ONNX file after the rewrite, which refers to the same weights; None if there was nothing to replace."""
    import onnx_ir as ir

    model = ir.load(path)
    if not rewrite(model):
        return None
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def _nothing_to_replace(bundle: Bundle, graphs: Sequence[str], devices: Sequence[str]) -> ExportError:
    recipe = bundle.manifest.recipe
    return ExportError(
        f"{bundle.path}: {', '.join(graphs or bundle.manifest.graphs)}: nothing to replace by an operator of {BACKEND} "
        f"on {' or '.join(devices)}. On cuda it replaces group norms of opset 21 and later in fp32 or fp16, and drops "
        "casts of 16-bit attention; on cpu it replaces attention of opset 23 and later in fp32. This bundle has opset "
        f"{recipe.opset}, {recipe.precision}, VAE {recipe.vae_precision}. Its graphs run as exported"
    )


def _record(bundle: Bundle, name: str, device: str, what: str) -> EngineRecord:
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
        options={what: DOMAIN},
        host_code=False,
        onnx_sha256=manifest.files[file].sha256,
        weights_sha256=weights.sha256 if weights else None,
    )
    return with_file(record, "onnx")
