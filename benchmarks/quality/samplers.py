"""Every sampler on all held-out prompts at equal model calls, beside `dpm++_2m` with the same seeds.

    python -m benchmarks.quality.samplers [--bundle engines/shapes] [--names dpm++_sde er_sde] [--out FOLDER]

A sampler with several calls per step gets fewer steps. Samplers that the JSON of an earlier run holds are not drawn
again. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.paths import PROMPTS, RESULTS
from benchmarks.shapes.drawings import scene_from_caption
from latentrt.runtime import Pipeline, Plan
from latentrt.runtime.scheduler import resolve
from latentrt.runtime.scheduler.naming import short_names

from .judge import judge
from .shapes_quality import draw

CALLS = 20
REFERENCE = "dpm++_2m"
ALLOWED = {"single": 0.03, "double": 0.06}  # share by which a sampler may be below the reference
_DEFAULT_SCALE = "its default scale is the bundle's guidance scale over 12.5, which is little where that is low"
REASONS = {
    "ipndm": "its weights are those of equal steps, and steps in sigma are not equal; `ipndm_v` knows their lengths",
    "euler_cfg_pp": _DEFAULT_SCALE,
    "ddim_cfg_pp": _DEFAULT_SCALE,
    "euler_a_cfg_pp": f"{_DEFAULT_SCALE}. An ancestral step goes further down before noise is added, so CFG++'s "
    "scale means about half as much as for `euler_cfg_pp`",
    "dpm_fast": "its steps are even in log sigma, from 4096 on with this model (zero terminal SNR), where there "
    "is no signal for many of them",
}


def steps_for(name: str, config: Mapping[str, Any]) -> int:
    """The most steps that take at most `CALLS` model calls."""
    fitting = [steps for steps in range(1, CALLS + 1) if len(Plan.from_config(resolve(name, config), steps)) <= CALLS]
    return max(fitting)


def verdicts(pipe: Pipeline, name: str, prompts: Sequence[str]) -> dict[str, Any]:
    """Number of calls, and for each prompt whether its picture is right."""
    config = pipe.bundle.read_json(pipe.bundle.manifest.scheduler)
    steps = steps_for(name, config)
    pictures = draw(pipe, prompts, range(len(prompts)), scheduler=name, num_inference_steps=steps)
    right = [judge(picture, scene_from_caption(p))["all"] for picture, p in zip(pictures, prompts, strict=True)]
    return {"calls": len(Plan.from_config(resolve(name, config), steps)), "right": [int(value) for value in right]}


def report(record: Mapping[str, Any], kinds: Sequence[str]) -> str:
    """The table: shares, and against the reference how many prompts only one of both draws right."""
    found: Mapping[str, Mapping[str, Any]] = record["samplers"]
    reference = found[REFERENCE]["right"]
    lines = [
        "# Samplers at equal model calls",
        "",
        f"The {len(kinds)} held-out prompts of `shapes`, checkpoint {record['model'][:10]}, seed = index, at most",
        f"{CALLS} model calls, {record['backend']}. Beside `{REFERENCE}`: prompts that only this sampler draws",
        "right, and that only the reference does.",
        "",
        "| sampler | calls | one object | two objects | only this | only the reference | |",
        "|---|---|---|---|---|---|---|",
    ]
    reasons = []
    for name, row in found.items():
        shares, below = [], []
        for kind, allowed in ALLOWED.items():
            at = [i for i, k in enumerate(kinds) if k == kind]
            share, usual = (sum(right[i] for i in at) / len(at) for right in (row["right"], reference))
            shares.append(f"{share:.1%}")
            if share < usual - allowed:
                below.append(f"{kind} {usual - share:.1%} below")
        if below and name in REASONS:
            reasons.append(f"- `{name}`: {REASONS[name]}.")
        pairs = list(zip(row["right"], reference, strict=True))
        only = [sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)]
        lines.append(f"| {name} | {row['calls']} | {' | '.join(shares)} | {only[0]} | {only[1]} | {', '.join(below)} |")
    lines += ["", *reasons]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Draw all held-out prompts with every sampler.")
    parser.add_argument("--bundle", type=Path, help="default: the embedded model")
    parser.add_argument("--names", nargs="+", help="default: all but flow matching's")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table; default: benchmarks/results")
    options = parser.parse_args()
    prompts: list[str] = json.loads(PROMPTS.read_text())["prompts"]
    kinds = ["single" if len(scene_from_caption(prompt).objects) == 1 else "double" for prompt in prompts]
    names = options.names or [name for name in short_names() if not name.startswith("flow")]
    record = options.out / "samplers.json"
    with Pipeline.load(options.bundle) as pipe:
        model = pipe.bundle.manifest.checkpoint.sha256
        kept = json.loads(record.read_text()) if record.exists() else {}
        if kept.get("model") != model:
            kept = {"model": model, "backend": pipe.backend, "samplers": {}}
        found = kept["samplers"]
        for name in [REFERENCE, *(name for name in names if name != REFERENCE)]:
            if name not in found:
                found[name] = verdicts(pipe, name, prompts)
                record.write_text(json.dumps(kept) + "\n")
            print(
                f"{name:22} {found[name]['calls']:3} calls, {sum(found[name]['right'])} of {len(prompts)}", flush=True
            )
        (options.out / "samplers.md").write_text(report(kept, kinds))
    print(json.dumps({name: sum(row["right"]) for name, row in found.items()}))


if __name__ == "__main__":
    main()
