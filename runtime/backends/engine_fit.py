"""Which compiled engine serves which sizes, and why another one may not be used. Knows nothing of TensorRT.

A size is a number for each symbol of a graph: B images, G groups, h and w latent pixels, S tokens, n rows.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from latentrt.runtime.bundle import Bundle, EngineRecord, Manifest, Sizes, sizes_text
from latentrt.runtime.gpu.device import Device

ROWS = ("n", "B")  # symbols of the first dimension: rows are independent, so fewer may be wanted than are computed


def needed_graphs(manifest: Manifest) -> tuple[str, ...]:
    """The graphs that every picture needs an engine of; others are for tasks that begin from a picture."""
    text_encoders = (encoder.graph for encoder in manifest.model.text_encoders)
    return (*text_encoders, "context", "time", "denoise", "vae_decoder")


@dataclass(frozen=True, slots=True)
class Host:
    """What an engine must fit: the installed library, the GPU, and whether engines may bring code for the host."""

    backend: str
    version: str
    device: Device
    trusts_engines: bool


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """An engine and the sizes to run it at; as many runs as the rows need."""

    record: EngineRecord
    sizes: Sizes
    runs: int


# --- may it be used ---------------------------------------------------------------------------------------------------


def outdated(record: EngineRecord, manifest: Manifest) -> str | None:
    """Why an engine is not one of the bundle as it is now; None where it is."""
    graph = manifest.graphs.get(record.graph)
    if graph is None:
        return f"the bundle has no graph {record.graph!r}"
    weights = manifest.files.get(f"{graph.file}.data")
    if record.onnx_sha256 != manifest.files[graph.file].sha256:
        return f"it was built from another {graph.file}; the bundle was exported again since"
    if record.weights_sha256 != (weights.sha256 if weights else None):
        return f"it was built with other weights than those in {graph.file}.data"
    return None


def refusal(record: EngineRecord, manifest: Manifest, host: Host) -> str | None:
    """Why an engine of this backend cannot be used here; None where it can."""
    if (reason := outdated(record, manifest)) is not None:
        return reason
    if not _version_fits(record, host.version):
        return f"it was built with {record.backend} {record.version}, and {host.version} is installed"
    if record.device is not None and record.device != host.device.name:
        return f"it was built for {record.device}, and this GPU is {host.device.name}"
    if not any(_capability_fits(known, host.device.compute_capability) for known in record.compute_capabilities):
        return (
            f"it was built for compute capability {', '.join(record.compute_capabilities)}, and {host.device.name} "
            f"has {host.device.compute_capability}"
        )
    if record.host_code and not host.trusts_engines:
        return "it carries code that runs on the host: load it with trust_engines=True if you trust who built it"
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


# --- which one --------------------------------------------------------------------------------------------------------


def best_fit(records: Iterable[EngineRecord], sizes: Sizes, *, split: bool = False) -> Choice | None:
    """The engine that computes least in vain for these sizes; None where none fits.

    Rows may be added up to an engine's minimum; with `split` they may also be spread over several runs. All other
    sizes must be within the engine's. Where several engines compute the same, the narrowest is taken.
    """
    choices = [choice for record in records if (choice := _at(record, sizes, split)) is not None]
    return min(choices, key=lambda choice: _padding(choice, sizes), default=None)


def _at(record: EngineRecord, sizes: Sizes, split: bool) -> Choice | None:
    chosen, runs = {}, 1
    for symbol, wanted in sizes.items():
        least, _, most = record.profile[symbol]
        size = wanted
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


def nothing_fits(bundle: Bundle, backend: str, graph: str, sizes: Sizes, records: Iterable[EngineRecord]) -> str:
    """What a caller reads where no engine fits: the sizes, those that exist, and the command that builds it."""
    wanted = " ".join(f"{symbol}={size}" for symbol, size in sizes.items())
    known = "; ".join(sizes_text(record) for record in records if record.graph == graph) or "none"
    return (
        f"{bundle.path} has no {backend} engine of {graph} for {wanted}. It has: {known}. Build one: "
        f"{build_command(bundle, backend, sizes)}"
    )


def build_command(bundle: Bundle, backend: str, sizes: Sizes | None = None) -> str:
    """The command that builds engines for these sizes."""
    words = ["latentrt build", str(bundle.path), "--backend", backend]
    pixels = bundle.manifest.model.vae_scale_factor
    options = {"h": "--height", "w": "--width", "B": "--batch", "G": "--groups", "S": "--tokens"}
    for symbol, size in (sizes or {}).items():
        if symbol in options:
            words += [options[symbol], str(size * pixels if symbol in "hw" else size)]
    return " ".join(words)
