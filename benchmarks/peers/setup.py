"""What the comparisons share: which peers take part, the model, and what each peer opens.

Knows the table and how it is installed; knows nothing about measuring.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.paths import ROOT, SHAPES_BUNDLE, SHAPES_CHECKPOINT

from .checkpoint import with_public_names
from .compare import Case
from .environments import PeerError, convert, make_environment, program
from .table import CONVERSIONS, ENVIRONMENTS, PEERS, Peer, lacking

PROMPT = "a large red star on a blue background"
CALIBRATION = Path(__file__).with_name("calibration.txt")
# Options that all peers support; `KEPT` are taken from the checkpoint. DDIM is exact for zero terminal SNR, too.
SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "ddim": {
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "trailing",
    },
    "euler": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace", "steps_offset": 0},
}
KEPT = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type", "rescale_betas_zero_snr")


def scheduler_config(checkpoint: Path, name: str) -> dict[str, Any]:
    """The config of a scheduler of `SCHEDULERS` with the checkpoint's betas and prediction type."""
    own = json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    return {**SCHEDULERS[name], **{key: own[key] for key in KEPT if key in own}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every comparison."""
    build = ROOT / "build" / "peers"
    parser.add_argument("--checkpoint", type=Path, default=SHAPES_CHECKPOINT, help="diffusers format; default: shapes")
    parser.add_argument("--bundle", type=Path, default=SHAPES_BUNDLE, help="its bundle; fp32 on a CPU; default: shapes")
    parser.add_argument("--name", help="name of the model in the results; default: name of the checkpoint's folder")
    parser.add_argument("--prompt", default=PROMPT, help=f"default: {PROMPT}")
    parser.add_argument("--size", type=int, default=128, help="pixels of each side; default: 128")
    parser.add_argument("--scheduler", choices=tuple(SCHEDULERS), default="ddim", help="default: ddim")
    parser.add_argument("--guidance-scale", type=float, default=4.0, help="default: 4")
    parser.add_argument("--seed", type=int, default=1, help="of the initial latents; default: 1")
    parser.add_argument("--memory", type=float, default=16.0, help="GiB for all loaded workers; default: 16")
    parser.add_argument("--peers", help="names separated by commas; default: all of the device")
    parser.add_argument("--without", action="append", default=[], metavar="PEER:REASON", help="exclude a peer")
    parser.add_argument("--environments", type=Path, default=build / "environments", help="kept between runs")
    parser.add_argument("--models", type=Path, default=build / "models", help="conversions, kept between runs")
    parser.add_argument("--out", type=Path, default=build / "pictures", help="folder of what is compared")
    parser.add_argument(
        "--quantize",
        default="--keep-float 8",
        metavar="WORDS",
        help="more arguments of latentrt quantize; default: --keep-float 8",
    )
    parser.add_argument("--prepare", action="store_true", help="make environments and conversions, measure nothing")


def chosen_peers(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, device: str, card: Mapping[str, Any]
) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that take part, and the reason of each that was chosen and cannot.

    Args:
        card: from `harness.environment`.
    """
    of_device = [name for name, peer in PEERS.items() if peer.device == device]
    chosen = [name.strip() for name in arguments.peers.split(",")] if arguments.peers else of_device
    for name in chosen:
        if name not in of_device:
            parser.error(f"--peers: unknown peer {name!r} for DEVICE={device}: choose from {', '.join(of_device)}")
    reasons = dict(text.partition(":")[::2] for text in arguments.without)
    for name in chosen if device == "cpu" else ():
        if reason := lacking(PEERS[name].precision, card["instructions"]):
            reasons.setdefault(name, reason)
    return {name: PEERS[name] for name in of_device if name in chosen and name not in reasons}, reasons


class Models:
    """What the peers open: the given model, and conversions of it that are made when they are needed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._environments, self._folder = arguments.environments, arguments.models
        self._name, self._size, self._quantize = arguments.checkpoint.name, arguments.size, arguments.quantize
        checkpoint = with_public_names(arguments.checkpoint, self._folder / f"{self._name}-checkpoint")
        self._places = {
            "bundle": arguments.bundle.resolve(),
            "checkpoint": checkpoint.resolve(),
            "prompts": CALIBRATION,
        }

    def find(self, kind: str) -> tuple[Path, float]:
        """The folder of "bundle", "checkpoint" or a conversion, and the seconds that it took to convert.

        Raises:
            PeerError: it could not be made.
        """
        if kind in self._places:
            return self._places[kind], 0.0
        conversion = CONVERSIONS[kind]
        source, before = self.find(conversion.source) if conversion.source else (Path(), 0.0)
        make_environment(self._environments, conversion.environment, ENVIRONMENTS[conversion.environment])
        size = f"-{self._size}" if conversion.depends_on_size else ""
        target = self._folder / f"{self._name}-{kind}{size}"
        places = {**self._places, "source": source, "size": self._size, "quantize": self._quantize}
        return target.resolve(), before + convert(self._environments, kind, places, target)


def prepare(
    peers: Mapping[str, Peer],
    arguments: argparse.Namespace,
    scheduler: Path,
    reasons: dict[str, str],
    *,
    part: str = "all",
) -> tuple[dict[str, Case], dict[str, float]]:
    """Make environments and conversions; return a case for each peer that has both, and the seconds of its conversions.

    `reasons` gets the reason of each peer that cannot be compared; `part` is what workers load.
    """
    arguments.environments.mkdir(parents=True, exist_ok=True)
    models = Models(arguments)
    cases: dict[str, Case] = {}
    seconds: dict[str, float] = {}
    for name, peer in peers.items():
        print(f"preparing {name}", flush=True)
        options = dict(peer.options)
        try:
            make_environment(arguments.environments, peer.environment, ENVIRONMENTS[peer.environment])
            place, took = models.find(peer.model)
            if peer.engines:
                engines, more = models.find(peer.engines)
                options["engines"], took = str(engines), took + more
        except PeerError as error:
            reasons[name] = str(error)
            continue
        if took:
            seconds[name] = took
        for file in place.rglob("*"):  # read all files into the page cache, so that no peer has to
            if file.is_file():
                file.read_bytes()
        command = (program(arguments.environments, peer.environment), "-u", "-m", f"benchmarks.peers.{peer.worker}")
        load = {"model": str(place), "scheduler": str(scheduler), "options": options, "part": part}
        cases[name] = Case(command, load, peer.precision, peer.own)
    return cases, seconds
