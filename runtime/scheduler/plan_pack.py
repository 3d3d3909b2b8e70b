"""Plan packs: files with the plans of many schedulers, for runtimes that cannot compile them.

`engines/README.md` specifies the format. Knows schedulers, their names and their starts; knows nothing of bundles.
"""

import itertools
import json
import logging
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from latentrt.runtime.errors import SchedulerError
from latentrt.runtime.scheduler.samplers import REGISTERS

from .config import Config, checked_options, plain
from .naming import every_name, resolve_for_model
from .pack_tables import Tables
from .plan import Plan
from .starts import plan_from_noise, plans_of_starts, plans_within
from .web_ui_names import web_ui_labels

logger = logging.getLogger("latentrt")

PACK_FORMAT = "latentrt.plans/1"
HEADER = struct.Struct("<8sIIII")  # magic, version, CRC-32 of what follows, bytes of the index and of the data
MAGIC, VERSION = b"LRTPLANS", 1
DEFAULT_STEPS = range(1, 51)
DEFAULT_COUNT = 10
# Those that people choose most, in the order that decides which are left out where ten are too few.
_DEFAULT_NAMES = (
    *("euler", "euler_a", "dpm++_2m_karras", "dpm++_2m", "ddim", "dpm++_2m_sde_karras", "unipc", "dpm++_sde_karras"),
    *("heun", "lcm", "pndm", "dpm++_3m_sde_karras"),
)


class PackWriter:
    """Compiles schedulers for one checkpoint, and gives the bytes of the pack.

    Args:
        config: the checkpoint's `scheduler_config.json`.
        prediction_type: the model's; schedulers with another one are refused.
        text_encoders: how many the model has, see `resolve_for_model`.
        distilled: whether the model takes the guidance scale as an input: then LCM's image-to-image has its own plans.
    """

    def __init__(
        self, config: Config, *, prediction_type: str, text_encoders: int = 1, distilled: bool = False
    ) -> None:
        self._config, self._text_encoders = config, text_encoders
        self._prediction_type, self.distilled = prediction_type, distilled
        self._tables, self._entries = Tables(), dict[str, dict[str, Any]]()
        self._aliases: dict[str, tuple[list[str], dict[str, bool]]] | None = None

    @property
    def names(self) -> list[str]:
        """The first name of each scheduler."""
        return [entry["names"][0] for entry in self._entries.values()]

    @property
    def plans(self) -> int:
        """Number of plans."""
        return sum(entry["plans"] for entry in self._entries.values())

    def add(
        self,
        name: str,
        steps: Sequence[int] = DEFAULT_STEPS,
        *,
        starts: bool = True,
        progress: Callable[[str], object] = lambda _: None,
    ) -> None:
        """Compile a scheduler, the checkpoint's own for "", at every number of steps and, with `starts`, every start.

        Args:
            progress: called with the name after each number of steps.

        A scheduler that was added under another name gets this one too. Numbers of steps that it cannot do are left
        out with a warning.

        Raises: SchedulerError: an unknown scheduler or invalid config, or one that can do none of the steps.
        """
        config = resolve_for_model(name or None, self._config, text_encoders=self._text_encoders)
        options = checked_options(config)
        self._check(name, options, steps)
        key = _key(options)
        if key in self._entries:
            self._entries[key]["names"] = list(dict.fromkeys([*self._entries[key]["names"], name]))
            return
        within = self.distilled and starts and options["_class_name"] == "LCMScheduler"
        compiled: dict[int, list[Plan | None]] = {}
        counts: list[int] = []
        refusals: dict[int, SchedulerError] = {}
        for count in sorted(set(steps)):
            (noise, *begun), refusal = _plans(options, count, starts)
            every = [noise, *begun, *(plans_within(options, count) if within else ())]
            if any(plan is not None for plan in every):
                compiled[count] = every
                counts.append(len(begun))
            elif refusal is not None:
                refusals[count] = refusal
            progress(name)
        _tell_of_refusals(name, refusals, len(compiled))
        for plan in itertools.chain.from_iterable(compiled.values()):
            self._tables.add(plan)
        names, labels = self._names(key)
        self._entries[key] = {
            "names": list(dict.fromkeys([name, *names])),
            "labels": labels,
            "config": plain(options),
            "steps": list(compiled),
            "starts": counts,
            "original_inference_steps": options["original_inference_steps"] if within else None,
            "plans": sum(plan is not None for plans in compiled.values() for plan in plans),
        }

    def content(self) -> bytes:
        """The file."""
        index = {
            "format": PACK_FORMAT,
            "prediction_type": self._prediction_type,
            "registers": REGISTERS,
            "tables": self._tables.sizes(),
            "schedulers": [{k: v for k, v in entry.items() if k != "plans"} for entry in self._entries.values()],
        }
        text = json.dumps(index, ensure_ascii=False, separators=(",", ":")).encode()
        data = self._tables.data()
        return HEADER.pack(MAGIC, VERSION, zlib.crc32(text + data), len(text), len(data)) + text + data

    def _check(self, name: str, options: Mapping[str, Any], steps: Sequence[int]) -> None:
        predicts = options.get("prediction_type", self._prediction_type)
        if predicts != self._prediction_type:
            raise SchedulerError(
                f"{name!r} has prediction_type={predicts!r}, and the model predicts {self._prediction_type!r}"
            )
        most = options["num_train_timesteps"]
        if not steps or not 1 <= min(steps) <= max(steps) <= most:
            raise SchedulerError(f"steps {_ranges(steps) or 'none'} of {name!r}: expected integers from 1 to {most}")

    def _names(self, key: str) -> tuple[list[str], dict[str, bool]]:
        """Every name that gives the same options, and web UIs' ones in lower case with whether it does as it stands."""
        if self._aliases is None:
            self._aliases = {}
            for name in ("", *every_name()):
                if (found := self._key_of(name)) is not None:
                    self._aliases.setdefault(found, ([], {}))[0].append(name)
            for label in web_ui_labels():
                # Another spelling than in lower case: that may be one of our names, with other options.
                if (found := self._key_of(label.upper())) is not None:
                    self._aliases.setdefault(found, ([], {}))[1][label] = found == self._key_of(label)
        return self._aliases.get(key, ([], {}))

    def _key_of(self, name: str) -> str | None:
        try:
            config = resolve_for_model(name or None, self._config, text_encoders=self._text_encoders)
            return _key(checked_options(config))
        except SchedulerError:
            return None


def add_default_schedulers(
    writer: PackWriter,
    steps: Sequence[int] = DEFAULT_STEPS,
    *,
    starts: bool = True,
    progress: Callable[[str], object] = lambda _: None,
) -> None:
    """Ten schedulers: the checkpoint's own, LCM for distilled models, and those that people choose most.

    Those that cannot use the checkpoint's config are left out. Raises `SchedulerError` if that leaves none.
    """
    preferred = ("lcm",) if writer.distilled else ()
    first: SchedulerError | None = None
    for name in ("", *preferred, *_DEFAULT_NAMES):
        if len(writer.names) == DEFAULT_COUNT:
            break
        try:
            writer.add(name, steps, starts=starts, progress=progress)
        except SchedulerError as error:
            first = first or error
    if first is not None and not writer.names:
        raise first


def _plans(options: Config, count: int, starts: bool) -> tuple[list[Plan | None], SchedulerError | None]:
    """The plan from noise, those of the starts, and why there is none from noise."""
    plans: list[Plan | None] = [None]
    refusal = None
    try:
        plans[0] = plan_from_noise(options, count)
    except SchedulerError as error:
        refusal = error
    if starts:
        with suppress(SchedulerError):  # no strength can be asked for
            plans += plans_of_starts(options, count)
    return plans, refusal


def _key(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True)


def _tell_of_refusals(name: str, refusals: Mapping[int, SchedulerError], compiled: int) -> None:
    if not refusals:
        return
    why = next(iter(refusals.values()))
    if not compiled:
        raise why
    logger.warning("%s: without %s steps: %s", name or "the checkpoint's scheduler", _ranges(list(refusals)), why)


def _ranges(steps: Sequence[int]) -> str:
    """Such as "1-4, 9"."""
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in _runs(sorted(set(steps))))


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        values = [number for _, number in run]
        yield values[0], values[-1]
