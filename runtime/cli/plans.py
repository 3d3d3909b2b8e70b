"""`latentrt plans`: compiles schedulers for runtimes that cannot, such as the library for C and C++."""

import argparse
import re
from pathlib import Path
from typing import Any

from latentrt.runtime.errors import InputError, shown

MOST_STEPS = 1000
EXAMPLES = """examples:
  latentrt plans engines/sd15 --scheduler dpm++_3m_sde --scheduler euler_beta
  latentrt plans engines/sd15 --scheduler dpm++_2m_karras --steps 1-100
  latentrt plans engines/sd15 --scheduler lms --steps 20,25,30 --from-noise --out lms.plans
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "plans",
        help="compile schedulers for programs in C and C++",
        description="Write a file with the plans of schedulers, for programs that draw without Python: each scheduler "
        "with every number of steps, and with every strength. A bundle has those of ten schedulers with 1 to 50 steps "
        "from its export on. Python compiles its plans itself and needs none.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument(
        "--scheduler",
        action="append",
        default=[],
        metavar="NAME",
        help="such as dpm++_3m_sde_karras, euler:timestep_spacing=trailing, a web UI's name, or '' for the "
        "checkpoint's own; repeatable. Default: the ten that an export writes",
    )
    parser.add_argument("--steps", type=steps_of_text, metavar="N-M,…", help="numbers of steps; default: 1-50")
    parser.add_argument(
        "--from-noise",
        action="store_true",
        help="without the plans that begin from a picture, for any strength: a third smaller or more",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--out", type=Path, metavar="FILE", help="write this file and leave the bundle as it is")
    place.add_argument("--replace", action="store_true", help="remove the plans that the bundle has")
    parser.set_defaults(run=run)


def steps_of_text(text: str) -> tuple[int, ...]:
    """The numbers of a list such as `1-50,75,100`, rising."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", part)
        if match is None:
            raise argparse.ArgumentTypeError(f"{shown(text)}: expected numbers and ranges, such as 1-50,75,100")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= MOST_STEPS:
            raise argparse.ArgumentTypeError(f"{shown(part.strip())}: expected 1 to {MOST_STEPS} steps, rising")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from tqdm import tqdm

    from latentrt.runtime.bundle import Bundle, takes
    from latentrt.runtime.bundle.plan_files import add_pack, require_place_for_pack
    from latentrt.runtime.files import not_written, require_writable, written_whole
    from latentrt.runtime.scheduler.plan_pack import DEFAULT_COUNT, DEFAULT_STEPS, PackWriter, add_default_schedulers

    bundle = Bundle.open(arguments.bundle)
    model, out = bundle.manifest.model, arguments.out
    try:
        if out is None:
            require_place_for_pack(bundle.path)
        else:
            require_writable(out)
    except OSError as error:
        raise InputError(not_written(out, error)) from error
    writer = PackWriter(
        bundle.read_json(bundle.manifest.scheduler),
        prediction_type=model.prediction_type,
        text_encoders=len(model.text_encoders),
        distilled=takes(bundle.manifest.graphs["time"], "guidance_embedding"),
    )
    steps, starts = arguments.steps or tuple(DEFAULT_STEPS), not arguments.from_noise
    total = len(steps) * (len(arguments.scheduler) or DEFAULT_COUNT)
    with tqdm(total=total, disable=None, bar_format="{desc:24} {bar} {n_fmt}/{total_fmt} {elapsed}") as bar:

        def progress(name: str) -> None:
            bar.update()
            bar.set_description_str(name or "the checkpoint's own")

        for name in arguments.scheduler:
            writer.add(name, steps, starts=starts, progress=progress)
        if not arguments.scheduler:
            add_default_schedulers(writer, steps, starts=starts, progress=progress)
    content = writer.content()
    if out is None:
        file = add_pack(bundle.path, content, replace=arguments.replace)
    else:
        file = out
        try:
            with written_whole(file) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise InputError(not_written(file, error)) from error
    shown_names = [name or "the checkpoint's own" for name in writer.names]
    print(f"{file}: {writer.plans:,} plans, {len(content) / 2**20:.2f} MiB: {', '.join(shown_names)}")
    return 0
