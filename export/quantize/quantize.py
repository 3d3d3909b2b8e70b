"""Quantize a bundle: calibrate with its own graphs, write the quantized ones, judge them, then keep them or not."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from latentrt.export.graphs.onnx_files import load_in_full, save_graph
from latentrt.export.new_bundle import new_bundle, require_free
from latentrt.runtime.backends.openvino_backend import openvino_is_installed
from latentrt.runtime.bundle import Bundle, Golden
from latentrt.runtime.bundle.manifest import Quantization
from latentrt.runtime.errors import ExportError, InputError

from .calls import Caller, call_options
from .gate import Measured, measure, references
from .insert import Ranges, Writer, insert
from .layers import Layer, chosen, find_layers
from .merge import with_loras
from .new_manifest import size_of, source_sha256, with_limits, write_manifest
from .observe import Calibration, observe
from .options import QuantizeOptions, check
from .ranking import costs, needed_in_float, with_switches
from .report import REPORT, LayerRow, lines, report_json
from .smooth import smooth
from .temporary import in_float32, is_float32, take_others, with_models

CALIBRATION = "quantization.safetensors"
_GATE_SEED = 1000
# Called with what is done, and how much of how much.
Progress = Callable[[str, int, int], object]


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """The new bundle, and what there is to say about it, in lines."""

    bundle: Bundle
    lines: tuple[str, ...]


def quantize_bundle(
    source: Path | str, out: Path | str, options: QuantizeOptions, *, progress: Progress = lambda *_: None
) -> Quantized:
    """Write a quantized bundle to `out`.

    Raises `InputError` for options that are not allowed, and `ExportError` if the result is below the gate or cannot
    be written. On an error nothing of the new bundle remains, and an old one is unchanged.
    """
    bundle, out = Bundle.open(source), Path(out)
    check(options, bundle)
    if out.resolve() == bundle.path.resolve():
        raise ExportError(f"{out} is the bundle itself: a quantized bundle is another one")
    require_free(out, overwrite=options.overwrite)
    needs = "Meanwhile, a quantized bundle needs about twice the space of its source in float32."
    with new_bundle(out, "quantization", needs) as folder:
        said = _Quantizer(bundle, folder, options, progress).run()
    return Quantized(Bundle.open(out), said)


class _Quantizer:
    """One quantization, stage by stage. `work` holds what exists only meanwhile."""

    def __init__(self, given: Bundle, folder: Path, options: QuantizeOptions, progress: Progress) -> None:
        self.given, self.folder, self.options, self.progress = given, folder, options, progress
        self.work = folder / ".work"
        self.source_sha256 = source_sha256(given, options.loras)
        self.call_options = call_options(given, steps=options.steps, height=options.height, width=options.width)
        self.costs: dict[str, float] = {}
        self.rows: list[LayerRow] = []

    def run(self) -> tuple[str, ...]:
        """All stages; returns the lines of the report."""
        self.work.mkdir()
        self.source = with_loras(self.given, self.work / "merged", self.options.loras)
        full = self._in_float32(self.source, "full")
        self._calibrate(full)
        self._rank(full)
        by_cost = sorted(self.costs, key=lambda name: -self.costs[name])
        bundle = self._written(by_cost[: self.options.keep_float])
        measured, golden = self._judged(bundle)
        sizes = {name: (size_of(self.source, name), size_of(bundle, name)) for name in self.options.graphs}
        self._finish(measured, golden)
        said = [*lines(self.rows, measured, sizes)]
        if golden is None and self.source.manifest.golden is not None:
            said.append("no goldens: the latents of the golden picture differ by more than a manifest may allow")
        return tuple(said)

    @property
    def _backend(self) -> str:
        """What runs the source: OpenVINO is faster."""
        return "openvino" if openvino_is_installed() else "onnxruntime"

    def _in_float32(self, bundle: Bundle, name: str) -> Bundle:
        return bundle if is_float32(bundle) else in_float32(bundle, self.work / name)

    def _calibrate(self, full: Bundle) -> None:
        """Observe the source with the prompts of the calibration; draw the references of the gate."""
        options, known = self.options, self._known_calibration()
        names = () if known or options.form.activation is None else options.graphs
        models = {name: ir.load(full.file(full.graph(name).file)) for name in names}
        watched = {name: observe(model, find_layers(model.graph)) for name, model in models.items()}
        observed = with_models(full, self.work / "observed", models, own_weights=False)
        self.calibration = known or Calibration(self.source_sha256, options.prompts, watched)
        with closing(Caller(observed, self._backend)) as caller:
            if names:
                caller.note = self.calibration.note
                tick = self._ticks("calibrate", len(options.calibration_prompts))
                for index, prompt in enumerate(options.calibration_prompts):
                    caller.decode(caller.draw(prompt, index, self.call_options, tick)[-1].after[0])
                # The gate is for prompts that the calibration has not seen.
                caller.note = lambda *_: None
            prompts = options.gate_prompts
            tick = self._ticks("reference", len(prompts))
            self.references = references(caller, prompts, self.call_options, seed=_GATE_SEED, tick=tick)
        shutil.rmtree(self.work / "observed")

    def _known_calibration(self) -> Calibration | None:
        """The calibration of an earlier run, if one was given. Raises `InputError` if it is of something else."""
        known = self.options.calibration
        if known is None or self.options.form.activation is None:
            return None
        if known.source != self.source_sha256:
            raise InputError("the calibration was made from another bundle, or with other LoRAs: give prompts instead")
        if missing := set(self.options.graphs) - known.watched.keys():
            raise InputError(f"the calibration has no ranges of {', '.join(sorted(missing))}: give prompts instead")
        return known

    def _prepared(self, graph: str, model: ir.Model, kept: Sequence[str]) -> tuple[list[Layer], Ranges]:
        """The layers to quantize and the ranges of their activations; smoothed, where the form asks for it."""
        form = self.options.form
        layers = [layer for layer in chosen(find_layers(model.graph), self.options.level) if layer.name not in kept]
        if form.activation is None:
            return layers, {}
        ranges: Ranges = self.calibration.of(graph)
        if form.smooth:
            ranges = smooth(model.graph, layers, self.calibration.channel_maxima(graph), ranges, form.smooth)
        return layers, ranges

    def _rank(self, full: Bundle) -> None:
        """Measure what each layer of `denoise` costs."""
        if "denoise" not in self.options.graphs:
            return
        model = load_in_full(full.file(full.graph("denoise").file))
        layers, ranges = self._prepared("denoise", model, ())
        with_switches(model, layers, Writer(model.graph, self.options.form, ranges))
        switched = with_models(full, self.work / "switched", {"denoise": model}, own_weights=True)
        tick = self._ticks("rank layers", len(layers), calls=1)
        self.costs = costs(switched, layers, self.options.gate_prompts[0], _GATE_SEED, self.call_options, tick)
        shutil.rmtree(self.work / "switched")

    def _written(self, kept: Sequence[str]) -> Bundle:
        """Write the quantized graphs, and copy all else; the bundle's manifest is still that of its source."""
        manifest = self.source.manifest
        new = [file for name in self.options.graphs for file in manifest.graphs[name].files]
        take_others(self.source, self.folder, new, shutil.copyfile)
        for name in self.options.graphs:
            model = load_in_full(self.source.file(manifest.graphs[name].file))
            everything = find_layers(model.graph)
            layers, ranges = self._prepared(name, model, kept if name == "denoise" else ())
            self._report(name, everything, {layer.name for layer in layers}, kept)
            insert(model, layers, self.options.form, ranges)
            save_graph(model, self.folder / manifest.graphs[name].file, compact=manifest.recipe.compact)
        return Bundle(self.folder, replace(manifest, engines=()))

    def _report(self, graph: str, layers: Sequence[Layer], quantized: set[str], kept: Sequence[str]) -> None:
        for layer in layers:
            reason = "" if layer.name in quantized else layer.kept or ("cost" if layer.name in kept else "level")
            cost = self.costs.get(layer.name) if graph == "denoise" else None
            self.rows.append(LayerRow(graph, layer.name, layer.kind, layer.shape, not reason, reason, cost))

    def _judged(self, bundle: Bundle) -> tuple[Measured, Golden | None]:
        """Measure the new bundle on what it is for, where that is here. Raises `ExportError` below the gate."""
        options = self.options
        if options.backend == "openvino" and openvino_is_installed():
            backend = "openvino"
        else:  # ONNX Runtime computes every form as it is written
            bundle, backend = self._in_float32(bundle, "judged"), "onnxruntime"
        with closing(Caller(bundle, backend)) as caller:
            tick = self._ticks("judge", 2 * len(self.references))
            measured = measure(caller, self.references, self.call_options, tick=tick)
            if measured.mean <= options.gate_mean and measured.worst <= options.gate_worst:
                return measured, with_limits(bundle, caller.backend)
        raise ExportError(self._below_the_gate(measured))

    def _below_the_gate(self, measured: Measured) -> str:
        options = self.options
        too_much = max(measured.mean / options.gate_mean, measured.worst / options.gate_worst)
        enough = options.keep_float + needed_in_float(
            {row.layer: row.cost for row in self.rows if row.cost is not None and row.quantized}, too_much, 1.0
        )
        advice = f"--keep-float {enough} is likely to pass; or " if enough < len(self.costs) else ""
        said = "\n".join(lines(self.rows, measured, {}))
        return (
            f"below the gate: the error of the guided prediction is {measured.mean:.3f} in the mean and "
            f"{measured.worst:.3f} at the worst call; allowed are {options.gate_mean:g} and {options.gate_worst:g}. "
            f"Nothing was written. {advice}take a lower --level or other prompts, or allow more with --gate.\n{said}"
        )

    def _finish(self, measured: Measured, golden: Golden | None) -> None:
        """Write report, calibration and manifest."""
        options, calibrated = self.options, self.options.form.activation is not None
        (self.folder / REPORT).write_text(report_json(self.rows, self.references, measured), encoding="utf-8")
        if calibrated:
            self.calibration.save(self.folder / CALIBRATION)
        quantization = Quantization(
            to=options.to,
            target=options.backend,
            level=options.level,
            graphs=options.graphs,
            report=REPORT,
            calibration=CALIBRATION if calibrated else None,
            prompts=len(options.prompts),
            prompts_sha256=options.prompts_sha256,
            source_sha256=self.source_sha256,
            gate_mean=options.gate_mean,
            gate_worst=options.gate_worst,
            error_mean=measured.mean,
            error_worst=measured.worst,
            psnr=float(np.median(measured.psnr)),
        )
        manifest = self.source.manifest
        shutil.rmtree(self.work)
        write_manifest(self.folder, manifest, quantization, golden)

    def _ticks(self, stage: str, prompts: int, *, calls: int | None = None) -> Callable[[], None]:
        """A function that tells the progress of a stage by one call of `denoise`."""
        total, done = prompts * (calls or self.call_options["num_inference_steps"] or 1), 0
        self.progress(stage, 0, total)

        def tick() -> None:
            nonlocal done
            done += 1
            self.progress(stage, min(done, total), total)

        return tick
