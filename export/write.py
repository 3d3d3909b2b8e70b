"""Write a bundle: export all graphs, compare them with PyTorch, then move the finished folder into place.

All work happens in a temporary folder beside the target, so a failure or an interrupt leaves nothing behind, and what
a kill leaves is removed by the next export or build of the same target.
"""

import gc
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from latentrt.export.checkpoint.checkpoint import Checkpoint
from latentrt.export.checkpoint.families import time_inputs
from latentrt.export.checkpoint.source import Source
from latentrt.export.graphs import text_encoder, unet, vae
from latentrt.export.graphs.cut import cut_denoiser
from latentrt.export.graphs.fuse import blend_model, fuse_denoise
from latentrt.export.graphs.onnx_export import TRANSPOSED, onnx_from_module
from latentrt.export.graphs.onnx_files import save_graph, stored_weights
from latentrt.export.graphs.ports import check_ports, port_inputs
from latentrt.export.graphs.precision import dtype_of, keep_unet_islands
from latentrt.runtime.bundle import Bundle, hashed_files, manifest, takes
from latentrt.runtime.bundle.plan_files import pack_name
from latentrt.runtime.bundle.strict_json import decode, encode
from latentrt.runtime.errors import ExportError, ParityError
from latentrt.runtime.scheduler.plan_pack import PackWriter, add_default_schedulers

from .goldens import Findings
from .graph_records import graph_record
from .model_facts import defaults_of, golden_scheduler, model_of
from .new_bundle import new_bundle, require_free
from .producer import this_producer

logger = logging.getLogger(__name__)

STAGES = ("text encoder", "UNet", "VAE decoder", "VAE encoder", "tokenizer", "parity with PyTorch", "plans", "hashes")
_MOST_STEPS = 1000


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """User options of an export. None takes the checkpoint's value, else diffusers' default.

    Attributes:
        precision: "fp32", "fp16" or "bf16".
        vae_precision: None is `precision`, except fp32 for a VAE that overflows in fp16.
        opset: ONNX opset, 23 or 18.
        compact: store fp32 weights as fp16 where that is exact.
        num_inference_steps, guidance_scale: the bundle's defaults.
        golden_prompt: prompt of the golden image.
        ports: keys of `PORTS`, optional inputs of `denoise` for ControlNets and adapters.
        plans: write the plan pack, which runtimes without Python need.
        overwrite: replace an existing folder.
    """

    precision: str = "fp16"
    vae_precision: str | None = None
    opset: int = 23
    compact: bool = False
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    golden_prompt: str = "a photo of an astronaut riding a horse on mars"
    ports: tuple[str, ...] = ()
    plans: bool = True
    overwrite: bool = False


def export_bundle(
    source: Source | Path | str,
    out: Path | str,
    options: ExportOptions | None = None,
    *,
    progress: Callable[[str], object] = lambda _: None,
) -> Bundle:
    """Export a checkpoint to the bundle `out`.

    Args:
        source: folder in the diffusers format, single file, or Hub id; a `Source` can also add LoRAs, textual
            inversions and another VAE.
        progress: called with each of `STAGES` when it begins.

    Raises `CheckpointError` if the checkpoint cannot be read, `ParityError` if a graph differs from PyTorch, and
    `ExportError` for other failures. On an error nothing of the new bundle remains, and an old one is unchanged.
    """
    options = options or ExportOptions()
    out = Path(out)
    _check_options(options)
    require_free(out, overwrite=options.overwrite)
    checkpoint = Checkpoint.open(source)
    steps = options.num_inference_steps or checkpoint.preset.num_inference_steps
    if reason := golden_scheduler(checkpoint.configs["scheduler"], steps)[1]:
        logger.warning("calls must choose a scheduler, since the checkpoint's own cannot be used: %s", reason)
    # The checkpoint is hashed on a separate thread meanwhile.
    needs = "A bundle needs about as much space as the checkpoint."
    with new_bundle(out, "export", needs) as folder, ThreadPoolExecutor(1) as pool:
        writer = _Writer(checkpoint, folder, options, pool.submit(checkpoint.record))
        for stage, work in zip(STAGES, writer.stages(), strict=True):
            progress(stage)
            work()
            gc.collect()
    return Bundle.open(out)


def _check_options(options: ExportOptions) -> None:
    """Raise `ExportError` for values that are not allowed, before any work."""
    for precision in (options.precision, options.vae_precision or options.precision):
        dtype_of(precision)
    check_ports(options.ports)
    steps, scale = options.num_inference_steps, options.guidance_scale
    if steps is not None and not 1 <= steps <= _MOST_STEPS:
        raise ExportError(f"num_inference_steps is {steps}; expected an integer from 1 to {_MOST_STEPS}")
    if scale is not None and not (math.isfinite(scale) and scale >= 0):
        raise ExportError(f"guidance_scale is {scale}; expected a number >= 0")


class _Writer:
    """Writes one bundle, stage by stage."""

    def __init__(
        self, checkpoint: Checkpoint, folder: Path, options: ExportOptions, record: Future[manifest.CheckpointRecord]
    ) -> None:
        self.checkpoint, self.folder, self.options, self.record = checkpoint, folder, options, record
        vae_precision = options.vae_precision or _vae_precision(checkpoint, options.precision)
        self.recipe = manifest.Recipe(
            options.precision, vae_precision, options.opset, options.compact, ports=options.ports
        )
        self.dtype, self.vae_dtype = dtype_of(options.precision), dtype_of(vae_precision)
        self.graphs: dict[str, manifest.Graph] = {}
        self.weights: dict[str, list[manifest.Weight]] = {}
        self.findings: Findings | None = None
        self.packs: tuple[str, ...] = ()

    def stages(self) -> Iterator[Callable[[], None]]:
        """The work of each of `STAGES`, in order."""
        yield self.text_encoder
        yield self.unet
        yield self.vae_decoder
        yield self.vae_encoder
        yield self.tokenizer
        yield self.parity
        yield self.plans
        yield self.write_manifest

    def text_encoder(self) -> None:
        for row in self.checkpoint.family.text_encoders:
            config = self.checkpoint.configs[row.part]
            length = self.checkpoint.max_length(row)
            module = text_encoder.TextEncoderGraph(self.checkpoint.load(row.part, self.dtype), row)
            outputs = ["hidden_states", "pooled"][: 1 + row.pooled]
            model = onnx_from_module(module, text_encoder.inputs(length), outputs, opset=self.options.opset)
            shape = ["n", text_encoder.hidden_states(config, row), length, config["hidden_size"]]
            self._save(row.part, model, module, {"hidden_states": shape})

    def unet(self) -> None:
        config = self.checkpoint.configs["unet"]
        unet_module: Any = self.checkpoint.load("unet", self.dtype)
        keep_unet_islands(unet_module)
        module = unet.UNetGraph(unet_module)
        max_length = self.checkpoint.max_length(self.checkpoint.family.text_encoders[0])
        time_ids = self.checkpoint.family.time_ids
        inputs = unet.inputs(config, self.dtype, max_length, time_ids=time_ids)
        more, shapes = port_inputs(unet_module, self.recipe.ports, module, inputs)
        model = onnx_from_module(module, [*inputs, *more], ["prediction"], opset=self.options.opset)
        of_time = {"timesteps", *(more.name for more in time_inputs(config, time_ids))}
        cut = cut_denoiser(model, time_inputs=of_time, context_inputs={"hidden_states"})
        channels = config.get("out_channels", 4)
        self._save("context", cut.context, module, {})
        self._save("time", cut.time, module, {})
        self._save("denoise", fuse_denoise(cut.loop, channels=channels), module, shapes)
        self._save("blend", blend_model(channels=channels, opset=self.options.opset), None, {})

    def vae_decoder(self) -> None:
        self._decoder("vae_decoder", "vae", self.vae_dtype)
        if "preview_vae" in self.checkpoint.configs:
            self._decoder("preview_decoder", "preview_vae", self.dtype)

    def _decoder(self, name: str, part: str, dtype: torch.dtype) -> None:
        config = self.checkpoint.configs[part]
        module = vae.VAEDecoderGraph(self.checkpoint.load(part, dtype))
        outputs = ["images", "nonfinite"]
        model = onnx_from_module(module, vae.decoder_inputs(config), outputs, opset=self.options.opset)
        factor = vae.scale_factor(config)
        # Weights of previews are not the checkpoint's: nothing changes them later.
        own = module if part == "vae" else None
        self._save(name, model, own, {"images": ["B", f"{factor}*h", f"{factor}*w", 3]})

    def vae_encoder(self) -> None:
        config = self.checkpoint.configs["vae"]
        module = vae.VAEEncoderGraph(self.checkpoint.load("vae", self.vae_dtype))
        outputs = vae.encoder_outputs(config)
        model = onnx_from_module(module, vae.encoder_inputs(config), outputs, opset=self.options.opset)
        factor, latents = vae.scale_factor(config), ["B", config.get("latent_channels", 4), "h", "w"]
        images = ["B", f"{factor}*h", f"{factor}*w", 3]
        self._save("vae_encoder", model, module, {"images": images, **dict.fromkeys(outputs, latents)})

    def tokenizer(self) -> None:
        for row in self.checkpoint.family.text_encoders:
            self.checkpoint.write_tokenizer(self.folder / row.tokenizer, row.tokenizer)
        (self.folder / "scheduler").mkdir()
        # Byte for byte: diffusers would write its defaults into it, which change other schedulers.
        (self.folder / "scheduler" / "scheduler_config.json").write_bytes(self.checkpoint.scheduler)

    def parity(self) -> None:
        """Run the parity check in a child process, so that its memory does not add to that of the export."""
        request = {
            "source": encode(self.checkpoint.source),
            "folder": str(self.folder.resolve()),
            "precision": self.recipe.precision,
            "vae_precision": self.recipe.vae_precision,
            "ports": self.recipe.ports,
            "prompt": self.options.golden_prompt,
            "model": encode(model_of(self.checkpoint, self._tokenizers)),
            "defaults": encode(self._defaults),
        }
        command = [sys.executable, "-m", "latentrt.export.parity_child", str(os.getpid())]
        child = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
        if child.returncode == 0:
            self.findings = decode(Findings, json.loads(child.stdout.splitlines()[-1]), "findings")
            return
        logger.info("the parity check wrote:\n%s", child.stderr)
        raise _parity_failure(child.returncode, child.stderr)

    def plans(self) -> None:
        """Write the plans of ten schedulers, unless none can use the checkpoint's config."""
        if not self.options.plans:
            return
        config = self.checkpoint.configs["scheduler"]
        writer = PackWriter(
            config,
            prediction_type=config.get("prediction_type", "epsilon"),
            text_encoders=len(self.checkpoint.family.text_encoders),
            distilled=takes(self.graphs["time"], "guidance_embedding"),
        )
        add_default_schedulers(writer)
        content = writer.content()
        name = pack_name(content)
        (self.folder / name).parent.mkdir()
        (self.folder / name).write_bytes(content)
        self.packs = (name,)

    def write_manifest(self) -> None:
        assert self.findings is not None
        content = manifest.Manifest(
            format=manifest.FORMATS[self._needs_second_format()],
            producer=this_producer(),
            checkpoint=self.record.result(),
            recipe=self.recipe,
            model=replace(model_of(self.checkpoint, self._tokenizers), latent_rgb=self.findings.latent_rgb),
            defaults=self._defaults,
            scheduler="scheduler/scheduler_config.json",
            graphs=self.graphs,
            weights={name: tuple(uses) for name, uses in sorted(self.weights.items())},
            engines=(),
            golden=self.findings.golden,
            files=hashed_files(self.folder),
            plans=self.packs,
        )
        (self.folder / manifest.MANIFEST).write_text(manifest.manifest_json(content), encoding="utf-8")

    def _needs_second_format(self) -> bool:
        samples = "logvar" in vae.encoder_outputs(self.checkpoint.configs["vae"])
        return bool(self.packs or self.recipe.ports) or "preview_decoder" in self.graphs or not samples

    def _save(self, name: str, model: ir.Model, module: torch.nn.Module | None, shapes: dict[str, list[Any]]) -> None:
        """Save a graph and record its tensors and weights; `shapes` replaces shapes that the exporter named."""
        record = graph_record(name, model, shapes)
        save_graph(model, self.folder / f"{name}.onnx", compact=self.options.compact)
        if module is not None:
            self._note_weights(name, module)
        self.graphs[name] = record

    def _note_weights(self, name: str, module: torch.nn.Module) -> None:
        parameters = dict(module.named_parameters())
        for initializer, stored in stored_weights(self.folder / f"{name}.onnx").items():
            parameter = initializer.removesuffix(TRANSPOSED)
            if parameter in parameters:
                use = manifest.Weight(
                    graph=name,
                    initializer=initializer,
                    transposed=initializer.endswith(TRANSPOSED),
                    dtype=str(parameters[parameter].dtype).removeprefix("torch."),
                    stored_dtype=stored.dtype,
                    shape=stored.shape,
                    offset=stored.offset,
                )
                # transformers 5.6 removed this level; the manifest leaves it out for every version.
                self.weights.setdefault(parameter.replace(".text_model.", "."), []).append(use)

    @property
    def _defaults(self) -> manifest.Defaults:
        options = self.options
        return defaults_of(self.checkpoint, options.num_inference_steps, options.guidance_scale)

    @cached_property
    def _tokenizers(self) -> dict[str, Any]:
        rows = self.checkpoint.family.text_encoders
        return {row.part: self.checkpoint.load_tokenizer(row.tokenizer) for row in rows}


def _parity_failure(status: int, errors: str) -> ExportError:
    """The error for a parity check that failed; the last line that it wrote says why."""
    last = errors.strip().rpartition("\n")[2]
    if status == 3:
        return ParityError(last)
    if status < 0:
        why = "most likely the memory ran out" if -status == signal.SIGKILL else "the log of --verbose may say why"
        return ExportError(f"the parity check was ended by {signal.Signals(-status).name}: {why}")
    return ExportError(f"the parity check failed: {last or f'exit status {status}'}")


def _vae_precision(checkpoint: Checkpoint, precision: str) -> str:
    """Default precision of the VAE: `precision`, except fp32 for a VAE that overflows in fp16."""
    overflows = checkpoint.family.vae_overflows and checkpoint.configs["vae"].get("force_upcast", True)
    return "fp32" if precision == "fp16" and overflows else precision
