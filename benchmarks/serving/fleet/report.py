"""Tables and the chart of the studies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .call_times import GROUP, CallTimes
from .simulation import ROUTERS
from .study import DEMAND, FEW, Plan, of
from .traces import BURST, BURST_SECONDS, CALM_SECONDS, KINDS

TITLES = {"poisson": "Poisson arrivals", "bursts": "bursts"}


def markdown(times: CallTimes, plan: Plan, found: Sequence[dict[str, Any]], command: str, chart: str) -> str:
    """The report."""
    calls = ", ".join(f"{count}: {took:.1f}" for count, took in times.calls.items())
    cap = times.costs(plan.max_batch).cap(GROUP)
    capacity, steps = plan.capacity(times), " or ".join(map(str, plan.steps))
    head = f"""# A fleet in virtual time: {times.name}

Made by `{command}`.
Nothing is drawn: each replica has the dispatcher's own policy and admission, and a device that takes the times below.
Equal arguments make equal files.

- Call times: {times.source}. Milliseconds of a UNet call by batch:
  {calls}; encoding {times.encode:.1f}, decoding {times.decode:.1f}. A server would use batches of at most {cap}.
- {steps} UNet calls an image: {capacity:.2f} jobs a second are what one replica can do in full batches, a load of 1.
- Traces of {plan.seconds:g} s, seed {plan.seed}: Poisson, and bursts of {BURST_SECONDS:g} s at {BURST:g} times
  the calm rate, {CALM_SECONDS:g} s apart (means of an MMPP). Replicas begin without work. Fewer than {FEW} replicas
  have traces of several seeds, so that p99 rests on enough jobs.
- A job is refused where it, or one before it, would wait for more than {plan.max_wait:g} s, and where its client
  has its share of a queue already, as one or two in a thousand do in bursts. It is not tried elsewhere.
- Latency is from arrival to the picture, in seconds. Cost: of a thousand pictures that were drawn, at
  {plan.price:g} an hour a replica, until the last picture. Work is the device time that a replica has ahead when a job
  arrives, the metric `latentrt_queue_work_seconds`; busy is the share of time in which a device works.

![latency, refusals and cost by replicas]({chart})
"""
    parts = [head]
    for kind in KINDS:
        parts.append(f"\n## Growth, load {plan.load:g}, {TITLES[kind]}\n")
        parts.append(_growth(of(found, study="growth", trace=kind), plan))
    for kind in KINDS:
        parts.append(f"\n## The same jobs, {capacity * DEMAND:.1f} a second, {TITLES[kind]}\n")
        parts.append(_same_jobs(of(found, study="same jobs", trace=kind)))
    return "\n".join(parts)


def _growth(runs: Sequence[dict[str, Any]], plan: Plan) -> str:
    lines = ["| replicas | jobs |" + "".join(f" {router}: p50 / p90 / p99 |" for router in ROUTERS)]
    lines.append("|---" * (2 + len(ROUTERS)) + "|")
    for count in plan.replicas:
        cells = [str(count), f"{of(runs, replicas=count)[0]['jobs']:,}"]
        for router in ROUTERS:
            (run,) = of(runs, replicas=count, router=router)
            refused = f", {100 * run['refused']:.1f} % refused" if run["refused"] >= 0.0005 else ""
            cells.append(f"{run['p50']:.2f} / {run['p90']:.2f} / {run['p99']:.2f}{refused}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _same_jobs(runs: Sequence[dict[str, Any]]) -> str:
    lines = ["| replicas | load | routing | refused | p50 | p90 | p99 | cost | work, s | busy | images a call |"]
    lines.append("|---" * 11 + "|")
    for run in sorted(runs, key=lambda run: (run["replicas"], run["router"])):
        cells = (
            *(f"{run['replicas']}", f"{DEMAND / run['replicas']:.2f}", run["router"]),
            *(f"{100 * run['refused']:.1f} %", *(f"{run[name]:.2f}" for name in ("p50", "p90", "p99"))),
            *(f"{run['cost']:.3f}", f"{run['work']:.2f}", f"{100 * run['busy']:.0f} %", f"{run['images']:.1f}"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def sizing_table(found: Sequence[dict[str, Any]]) -> str:
    """The table of docs/scaling.md: the same jobs by the number of replicas, with the least work first."""
    lines = ["| replicas | load | p50 / p99, Poisson | refused | p50 / p99, bursts | refused | cost | work | busy |"]
    lines.append("|---" * 9 + "|")
    runs = of(found, study="same jobs", router="least work")
    for count in sorted({run["replicas"] for run in runs}):
        calm, bursts = (of(runs, replicas=count, trace=kind)[0] for kind in KINDS)
        cells = [f"{count}", f"{DEMAND / count:.2f}"]
        for run in (calm, bursts):
            cells += [f"{run['p50']:.2f} / {run['p99']:.2f} s", f"{100 * run['refused']:.1f} %"]
        cells += [f"{calm['cost']:.3f}", f"{calm['work']:.2f} s", f"{100 * calm['busy']:.0f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw_chart(times: CallTimes, plan: Plan, found: Sequence[dict[str, Any]], file: Path) -> None:
    """Above: latency by replicas at one load, a line for each routing. Below: the same jobs on more replicas."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FormatStrFormatter, NullFormatter

    figure, axes = plt.subplots(2, 2, figsize=(10.5, 7.6), layout="constrained")
    for axis, kind in zip(axes[0], KINDS, strict=True):
        for router, colour in zip(ROUTERS, ("#b0443c", "#e0a030", "#5b6b7a", "#5a9a00"), strict=True):
            runs = of(found, study="growth", trace=kind, router=router)
            counts = [run["replicas"] for run in runs]
            wide = 4 if router == "round robin" else 1.5  # seen below the line of the least work
            p99 = [run["p99"] for run in runs]
            axis.plot(counts, p99, "o-", color=colour, label=f"{router}, p99", markersize=4, linewidth=wide)
            axis.plot(counts, [run["p50"] for run in runs], ":", color=colour, label=f"{router}, p50")
        axis.set(title=f"{TITLES[kind]}, load {plan.load:g}", ylabel="seconds to the picture", yscale="log")
        axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
        axis.tick_params(axis="y", which="minor", labelsize=7)
    axes[0][0].legend(fontsize=8, ncols=2, loc="upper right")
    axes[0][0].set_ylim(top=3 * axes[0][0].get_ylim()[1])
    for kind, style in zip(KINDS, ("o-", "s--"), strict=True):
        for router, colour in (("random", "#b0443c"), ("least work", "#5a9a00")):
            runs = of(found, study="same jobs", trace=kind, router=router)
            counts, label = [run["replicas"] for run in runs], f"{router}, {TITLES[kind]}"
            axes[1][0].plot(
                counts, [100 * run["refused"] for run in runs], style, color=colour, label=label, markersize=4
            )
            axes[1][1].plot(counts, [run["cost"] for run in runs], style, color=colour, label=label, markersize=4)
    rate = plan.capacity(times) * DEMAND
    axes[1][0].set(title=f"{rate:.1f} jobs a second, refused", ylabel="% of jobs", ylim=(0, None))
    axes[1][1].set(
        title=f"{rate:.1f} jobs a second, cost of 1,000 pictures",
        ylabel=f"cost, at {plan.price:g} an hour a replica",
        ylim=(0, None),
    )
    for axis in axes[1]:
        axis.axvline(DEMAND, color="black", linewidth=0.8, linestyle=":")
        axis.annotate(" full batches", (DEMAND, 0.95), xycoords=("data", "axes fraction"), fontsize=8)
        axis.legend(fontsize=8)
    for axis in axes.flat:
        axis.set(xscale="log", xlabel="replicas")
        axis.set_xticks(plan.replicas, [str(count) for count in plan.replicas])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    figure.suptitle(times.source, fontsize=10)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)
