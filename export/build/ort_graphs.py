"""A bundle's graphs in ONNX Runtime's own form, beside its engines: smaller files that share the bundle's weights.

Needs onnx_ir, but neither PyTorch nor a GPU nor ONNX Runtime.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from latentrt.runtime.bundle import Bundle, EngineRecord
from latentrt.runtime.errors import BackendError, ExportError

from .store import Built, add_engine, built_before, require_unaltered, with_file

BACKEND = "onnxruntime"
DEVICES = ("cpu", "cuda")


def build_ort_graphs(
    bundle_path: Path | str,
    *,
    devices: Sequence[str] = DEVICES,
    engines: Path | None = None,
    graphs: Sequence[str] = (),
) -> Iterator[Built]:
    """Put what ONNX Runtime has a faster kernel of its own for into that form, in each graph that has such.

    For "cuda" these are group norms, for "cpu" attention. The files serve all sizes and LoRA. What is there already is
    kept.

    Args:
        engines: folder to put the files into, instead of the bundle's own.
        graphs: names of graphs; empty is all.

    Raises `BackendError`: onnx_ir is missing. `ExportError`: altered files, or no graph has anything to replace.
    """
    try:
        import onnx_ir as ir
    except ImportError as error:
        raise BackendError(f"{BACKEND}'s graphs are made with onnx_ir ({error}): pip install onnx-ir") from error
    from latentrt.export.build.rewrites.attention import use_flash_attention
    from latentrt.export.build.rewrites.group_norm import use_ort_group_norms
    from latentrt.export.build.rewrites.nodes import DOMAIN, DOMAIN_VERSION

    rewrites = {"cpu": ("attention", use_flash_attention), "cuda": ("group_norm", use_ort_group_norms)}
    bundle = Bundle.open(bundle_path)
    require_unaltered(bundle, graphs)
    found = False
    for name in graphs or bundle.manifest.graphs:
        for device in devices:
            what, rewrite = rewrites[device]
            record = _record(bundle, name, str(DOMAIN_VERSION), device, {what: DOMAIN})
            built = built_before(bundle.path, engines, record)
            if built is None:
                began = time.perf_counter()
                model = ir.load(bundle.file(bundle.graph(name).file))
                if not rewrite(model):
                    continue
                content: bytes = ir.to_proto(model).SerializeToString()
                add_engine(bundle.path, engines, record, content)
                built = Built(record, len(content), time.perf_counter() - began)
            found = True
            yield built
    if not found:
        recipe = bundle.manifest.recipe
        raise ExportError(
            f"{bundle.path}: {', '.join(graphs or bundle.manifest.graphs)}: nothing there that {BACKEND} has a kernel "
            f"of its own for on {' or '.join(devices)}. For cuda it replaces group norms of opset 21 and later in fp32 "
            f"or fp16, for cpu attention of opset 23 and later in fp32, and this bundle has opset {recipe.opset}, "
            f"{recipe.precision}, VAE {recipe.vae_precision}. The graphs run as they were exported"
        )


def _record(bundle: Bundle, name: str, version: str, device: str, options: dict[str, str]) -> EngineRecord:
    manifest = bundle.manifest
    file = bundle.graph(name).file
    weights = manifest.files.get(f"{file}.data")
    record = EngineRecord(
        graph=name,
        file="",
        backend=BACKEND,
        version=version,
        device=device,
        compute_capabilities=(),
        precision=manifest.recipe.precision,
        tf32=False,
        profile={},
        options=options,
        host_code=False,
        onnx_sha256=manifest.files[file].sha256,
        weights_sha256=weights.sha256 if weights else None,
    )
    return with_file(record, "onnx")
