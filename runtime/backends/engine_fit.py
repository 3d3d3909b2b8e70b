"""Selects compiled engines by size, and explains why an engine cannot be used. Knows nothing about TensorRT."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from latentrt.runtime.bundle import AnyBundle, Contents, EngineRecord, Sizes, sizes_text
from latentrt.runtime.gpu.device import Device

ROWS = ("n", "B")  # symbols of the first dimension: rows are independent, so an engine may compute more than requested


def uses_tf32(manifest: Contents, graph: str) -> bool:
    """Whether a graph's fp32 products are rounded to TF32 by default: a VAE that is fp32 beside a UNet of 16 bits.

    There fp32 is for the range of its values, which TF32 has too; docs/decisions/0017-tf32-for-the-vae.md.
    """
    recipe = manifest.recipe
    return graph.startswith("vae") and recipe.vae_precision == "fp32" and recipe.precision != "fp32"


@dataclass(frozen=True, slots=True)
class Host:
    """What an engine must fit: the installed library, the GPU, and whether engines may contain host code."""

    backend: str
    version: str
    device: Device
    trusts_engines: bool


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """An engine, the sizes to run it at, and the number of runs for all rows."""

    record: EngineRecord
    sizes: Sizes
    runs: int


# --- compatibility ----------------------------------------------------------------------------------------------------


def outdated(record: EngineRecord, manifest: Contents) -> str | None:
    """Why an engine does not match the current bundle; None if it does."""
    graph = manifest.graphs.get(record.graph)
    if graph is None:
        return f"the bundle has no graph {record.graph!r}"
    weights = manifest.files.get(f"{graph.file}.data")
    if record.onnx_sha256 != manifest.files[graph.file].sha256:
        return f"it was built from another {graph.file}; the bundle has been exported again since"
    if record.weights_sha256 != (weights.sha256 if weights else None):
        return f"it was built with weights that differ from {graph.file}.data"
    return None


def refusal(record: EngineRecord, manifest: Contents, host: Host) -> str | None:
    """Why an engine of this backend cannot be used on this host; None if it can."""
    if (reason := outdated(record, manifest)) is not None:
        return reason
    if not _version_fits(record, host.version):
        return f"it was built with {record.backend} {record.version}, but {host.version} is installed"
    if record.device is not None and record.device != host.device.name:
        return f"it was built for {record.device}, but this GPU is {host.device.name}"
    if not any(_capability_fits(known, host.device.compute_capability) for known in record.compute_capabilities):
        return (
            f"it was built for compute capability {', '.join(record.compute_capabilities)}, but {host.device.name} "
            f"has {host.device.compute_capability}"
        )
    if record.host_code and not host.trusts_engines:
        return "it contains code that runs on the host: load it with trust_engines=True if you trust its source"
    return None


def _version_fits(record: EngineRecord, installed: str) -> bool:
    if record.options.get("version_compatible") != "true":
        return record.version == installed
    built, here = (tuple(map(int, re.findall(r"\d+", version)[:3])) for version in (record.version, installed))
    return built[0] == here[0] and built <= here


def _capability_fits(known: str, capability: str) -> bool:
    least = tuple(map(int, known.removesuffix("+").split(".")))
    own = tuple(map(int, capability.split(".")))
    return own >= least if known.endswith("+") else own == least


# --- selection --------------------------------------------------------------------------------------------------------


def best_fit(records: Iterable[EngineRecord], sizes: Sizes, *, split: bool = False) -> Choice | None:
    """The engine with the least padding for these sizes; None if none fits.

    Rows are padded up to an engine's minimum; with `split` they may also be spread over several runs. All other sizes
    must be within the engine's range. Among equals, the engine with the narrowest range wins.
    """
    choices = [choice for record in records if (choice := _at(record, sizes, split)) is not None]
    return min(choices, key=lambda choice: _padding(choice, sizes), default=None)


def _at(record: EngineRecord, sizes: Sizes, split: bool) -> Choice | None:
    chosen, runs = {}, 1
    for symbol, (least, _, most) in record.profile.items():
        size = wanted = sizes[symbol]
        if symbol in ROWS:
            size = max(wanted, least)
            if split and wanted > most:
                size, runs = most, math.ceil(wanted / most)
        if not least <= size <= most:
            return None
        chosen[symbol] = size
    return Choice(record, chosen, runs)


def _padding(choice: Choice, sizes: Sizes) -> tuple[float, int, float]:
    rows = [symbol for symbol in ROWS if symbol in sizes]
    computed = math.prod(choice.runs * choice.sizes[symbol] / sizes[symbol] for symbol in rows)
    breadth = math.prod(most / least for least, _, most in choice.record.profile.values())
    return computed, choice.runs, breadth


def nothing_fits(bundle: AnyBundle, backend: str, graph: str, sizes: Sizes, records: Iterable[EngineRecord]) -> str:
    """The error message when no engine fits: requested sizes, available sizes, and the build command."""
    wanted = " ".join(f"{symbol}={size}" for symbol, size in sizes.items())
    known = "; ".join(sizes_text(record) for record in records if record.graph == graph) or "none"
    return (
        f"{bundle.path} has no {backend} engine of {graph} for {wanted}. Available: {known}. Build one: "
        f"{build_command(bundle, backend, sizes)}"
    )


def build_command(bundle: AnyBundle, backend: str, sizes: Sizes | None = None) -> str:
    """The command that builds engines for these sizes."""
    words = ["latentrt build", str(bundle.path), "--backend", backend]
    pixels = bundle.manifest.pixels_of_latent
    options = {"h": "--height", "w": "--width", "B": "--batch", "G": "--groups", "S": "--tokens"}
    for symbol, size in (sizes or {}).items():
        if symbol in options:
            words += [options[symbol], str(size * pixels if symbol in "hw" else size)]
    return " ".join(words)
