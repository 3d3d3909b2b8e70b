"""Samplers and schedule types by the names of web UIs. The table of names is the runtime's."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from latentrt.runtime.errors import SchedulerError
from latentrt.runtime.request.guidance import PLUS_PLUS
from latentrt.runtime.scheduler.naming import options_taken_by
from latentrt.runtime.scheduler.web_ui_names import (
    AUTOMATIC1111_TYPES,
    COMFYUI_TYPES,
    WEB_UI_SAMPLERS,
    from_web_ui,
    is_web_ui_name,
)

from .answers import SamplerItem, SchedulerItem


@cache
def samplers() -> list[SamplerItem]:
    """Those that can be drawn with; each name and alias is one that `scheduler_of` takes."""
    found: dict[str, SamplerItem] = {}
    for known in WEB_UI_SAMPLERS:
        name = known.automatic1111 or known.comfyui
        if name is None or known.ours is None or from_web_ui(name)["name"] != known.ours["name"]:
            continue  # one of ComfyUI's whose name means another one in AUTOMATIC1111's web UI
        ours = str(known.ours["name"])
        aliases = [alias for alias in dict.fromkeys((known.comfyui, ours)) if alias and alias != name]
        own_type = {} if known.automatic == "normal" else {"scheduler": known.automatic}
        found.setdefault(name, SamplerItem(name=name, aliases=aliases, options=own_type))
    return list(found.values())


@cache
def schedule_types() -> list[SchedulerItem]:
    """The schedule types; a client may send their names or labels."""
    return [
        SchedulerItem(name=_name(label), label=label, aliases=[ours] if ours and ours != _name(label) else None)
        for label, ours in AUTOMATIC1111_TYPES.items()
    ]


def _name(label: str) -> str:
    return label.lower().replace(" ", "_")


def scheduler_of(sampler: str, schedule_type: str | None, options: Mapping[str, float]) -> dict[str, Any]:
    """The scheduler of a sampler, such as "DPM++ 2M" or "DPM++ 2M Karras", and a schedule type.

    Args:
        schedule_type: a name or a label; None and "Automatic" are the sampler's own.
        options: of the sampler, such as `s_churn`.

    Raises: SchedulerError: a name is not known, or the sampler does not take the schedule type.
    """
    kind = _type(schedule_type)
    if is_web_ui_name(sampler):
        return {**from_web_ui(sampler if kind is None else _without_type(sampler), kind), **options}
    # Our own names, which the list has as aliases.
    name = sampler if kind is None else f"{sampler}_{from_web_ui('Euler', kind)['schedule_type']}"
    return {"name": name, **options}


def _type(given: str | None) -> str | None:
    """A schedule type as `from_web_ui` takes it; None for the sampler's own."""
    name = (given or "Automatic").strip().lower()
    if name == "automatic":
        return None
    labels = {_name(label): label for label in AUTOMATIC1111_TYPES}
    return given if name in COMFYUI_TYPES else labels.get(name, given)


def _without_type(sampler: str) -> str:
    """The sampler of an old name such as "DPM++ 2M Karras", beside which another type was given."""
    for kind in AUTOMATIC1111_TYPES:
        base = sampler.strip()[: -len(kind) - 1]
        if sampler.strip().lower().endswith(f" {kind.lower()}") and is_web_ui_name(base):
            return base
    return sampler


def takes_eta(scheduler: Mapping[str, Any]) -> bool:
    """Whether a scheduler has `eta`; web UIs send it along for all, and others do not read it."""
    try:
        return "eta" in options_taken_by({"name": scheduler["name"]})
    except SchedulerError:
        return True  # the call's check says what is wrong with the name


def guidance_of(cfg_scale: float, scheduler: Mapping[str, Any] | None) -> float:
    """The guidance scale; the web UI's is another one for CFG++."""
    plus_plus = scheduler is not None and str(scheduler["name"]).endswith("_cfg_pp")
    return cfg_scale / PLUS_PLUS if plus_plus else cfg_scale
