"""Settings of an application of Ray Serve: those of `latentrt serve`, and how replicas are made.

They come from the words of `serve run latentrt.serve.ray_app:build NAME=VALUE …`, or from `args` of its configuration
file. Knows nothing of Ray.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from latentrt.runtime.errors import InputError, shown, unknown
from latentrt.serve.settings import SETTINGS, DatabaseUrl, Setting, Settings, resolve
from latentrt.serve.settings.kinds import Kind, integer

TARGET = 0.7  # of the images that share a UNet call: requests on a replica, above which there is another one
TURNS = 4  # batches that a replica takes, so that its dispatcher has something to choose from
_LISTENER = "the proxies of Ray Serve listen: see http_options of its configuration file"
# Settings of `latentrt serve` that mean nothing here, and what to do instead.
_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("host", "port", "uds", "proxies", "keep_alive"), _LISTENER),
    "root_path": "Ray Serve has route_prefix for it, in its configuration file or as --route-prefix",
    "preload": "Ray Serve sends no requests to replicas that load",
    "grace_seconds": "Ray Serve tells its proxies before it stops a replica",
}


def _number(metavar: str) -> Kind:
    """A number >= 0, such as of cores."""

    def read(value: Any, _: Path) -> float:
        if isinstance(value, str) and re.fullmatch(r"\d{1,4}(\.\d{1,4})?", value, re.ASCII):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 10_000:
            raise ValueError
        return float(value)

    return Kind(read, "a number from 0, such as 0.5", metavar, show=lambda value: f"{value:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySettings:
    """How replicas are made, in normal form."""

    min_replicas: Annotated[
        int, Setting("replicas of the engine, at least; 0: the first request starts one", integer(0, 10_000))
    ] = 1
    max_replicas: Annotated[
        int | None, Setting("replicas of the engine, at most", integer(1, 10_000), "min_replicas, and 1 at least")
    ] = None
    ingress_replicas: Annotated[int, Setting("replicas of the ingress", integer(1, 1000))] = 1
    cpus: Annotated[float, Setting("cores that Ray reserves for a replica of the engine", _number("N"))] = 1.0
    gpus: Annotated[
        float | None,
        Setting("GPUs that Ray reserves for a replica of the engine", _number("N"), "1 where devices=cuda, else 0"),
    ] = None
    ongoing: Annotated[
        int | None,
        Setting("requests that a replica takes at a time", integer(1, 100_000), "4 times max_batch, or batch"),
    ] = None
    queued: Annotated[
        int, Setting("requests that wait for a replica, at each ingress and each proxy", integer(1, 100_000))
    ] = 64


RAY_SETTINGS: Mapping[str, Setting] = {
    row.name: row.type.__metadata__[0] for row in fields(RaySettings) if hasattr(row.type, "__metadata__")
}


@dataclass(frozen=True, slots=True)
class Application:
    """All settings of an application."""

    settings: Settings
    ray: RaySettings

    @property
    def cap(self) -> int:
        """Images that share a UNet call, at most."""
        return self.settings.batch or self.settings.max_batch

    @property
    def most_replicas(self) -> int:
        """Of the engine."""
        return max(1, self.ray.min_replicas, self.ray.max_replicas or 0)

    @property
    def ongoing(self) -> int:
        """Requests that a replica of the engine takes at a time."""
        return self.ray.ongoing or TURNS * self.cap

    @property
    def target(self) -> float:
        """Requests on each replica that autoscaling aims at."""
        return min(TARGET * self.cap, float(self.ongoing))

    @property
    def device(self) -> str | None:
        """What a replica sees as its device."""
        return self.settings.devices[0] if self.settings.devices else None

    @property
    def gpus(self) -> float:
        """That Ray reserves for a replica."""
        on_gpu = self.device is not None and self.device.startswith("cuda")
        return float(on_gpu) if self.ray.gpus is None else self.ray.gpus

    @property
    def keeps_jobs(self) -> bool:
        """Whether there are native jobs."""
        return isinstance(self.settings.state, DatabaseUrl)

    @property
    def multiplexed(self) -> bool:
        """Whether a replica holds fewer models than there are."""
        return self.settings.loaded is not None and self.settings.loaded < len(self.settings.models)


def application(arguments: Mapping[str, Any], environ: Mapping[str, str]) -> Application:
    """The settings that hold. `environ`: as for `resolve`. Raises `InputError`."""
    names = [*SETTINGS, *RAY_SETTINGS, "models", "config"]
    for name in arguments:
        if name in _ELSEWHERE:
            raise InputError(f"{name}={shown(arguments[name])}: not on Ray Serve; {_ELSEWHERE[name]}")
        if name not in names:
            raise InputError(unknown("setting", name, [known for known in names if known not in _ELSEWHERE]))
    own = {name: _read(name, value) for name, value in arguments.items() if name in RAY_SETTINGS and value is not None}
    rest = {name: value for name, value in arguments.items() if name not in RAY_SETTINGS and value is not None}
    result = Application(resolve(rest, environ, label="{}").settings, RaySettings(**own))
    _check(result)
    return result


def _read(name: str, value: Any) -> Any:
    kind = RAY_SETTINGS[name].kind
    try:
        return kind.read(value, Path())
    except ValueError:
        raise InputError(f"{name}={shown(value)}: expected {kind.expected}") from None


def _check(result: Application) -> None:
    settings, ray = result.settings, result.ray
    if len(settings.devices) > 1:
        raise InputError(f"devices={','.join(settings.devices)}: a replica has one device; expected cpu or cuda")
    if ray.max_replicas is not None and ray.max_replicas < ray.min_replicas:
        raise InputError(
            f"max_replicas={ray.max_replicas}: expected at least min_replicas, which is {ray.min_replicas}"
        )
    if settings.state is not None and not result.keeps_jobs:
        raise InputError(
            f"state={settings.state}: a folder is of one machine; on Ray Serve native jobs need state=postgresql://…"
        )
    if result.keeps_jobs and ray.min_replicas == 0:
        raise InputError(f"min_replicas=0: kept jobs start no replica; expected at least 1 with state={settings.state}")
    if settings.auth and settings.keys is None:
        raise InputError(
            "no keys are asked for, and Ray Serve may listen beyond this machine: make a key with "
            "`latentrt serve --keys FILE --new-key NAME` and say keys=FILE, or auth=false to serve everybody"
        )


def ray_settings_table() -> str:
    """The table of `docs/ray.md`."""
    lines = ["| name | what it does | default |", "|---|---|---|"]
    defaults = RaySettings()
    for name, row in RAY_SETTINGS.items():
        value = getattr(defaults, name)
        default = row.without if value is None else f"`{row.kind.show(value)}`"
        lines.append(f"| `{name}` | {row.text} | {default} |")
    return "\n".join(lines) + "\n"
