"""The worker for NVIDIA's demo, with a fake demo that opens the same files and draws with PyTorch."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from support.checkpoints import VOCABULARY, tiny_checkpoint
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.peers.environments import PeerError
from benchmarks.peers.table import PEERS
from benchmarks.peers.workers import Worker

DEMO = '''
"""File names, arguments and the order of calls are those of demo/Diffusion in TensorRT 11."""
import enum
import glob
from pathlib import Path

import diffusers
import torch
from transformers import CLIPTextModel, CLIPTokenizer

PIPELINE_TYPE = enum.Enum("PIPELINE_TYPE", ["TXT2IMG", "IMG2IMG"])
SCHEDULERS = {"DDIM": diffusers.DDIMScheduler, "Euler": diffusers.EulerDiscreteScheduler}


def cached(folder, name):
    assert glob.glob(f"{folder}/{name}*.safetensors"), f"{folder} is not cached: it would be downloaded"
    return folder


class StableDiffusionPipeline:
    def __init__(self, version, pipeline_type, max_batch_size, denoising_steps, scheduler, guidance_scale,
                 use_cuda_graph, vae_scaling_factor, framework_model_dir, output_dir, device="cpu"):
        self.folder = Path(framework_model_dir, version, pipeline_type.name)
        scheduler = SCHEDULERS[scheduler]
        self.scheduler = scheduler.from_pretrained(self.folder / scheduler.__name__.lower() / "scheduler")
        self.device, self.guidance_scale, self.scaling = device, guidance_scale, vae_scaling_factor
        self.denoising_steps, self.graphs, self.calls = denoising_steps, use_cuda_graph, []

    def loadEngines(self, engine_dir, framework_model_dir, onnx_dir, onnx_opset, opt_batch_size, opt_image_height,
                    opt_image_width, static_batch=False, static_shape=True):
        assert self.graphs and static_batch and static_shape and opt_batch_size == 1
        self.tokenizer = CLIPTokenizer.from_pretrained(self.folder / "tokenizer")
        self.text = CLIPTextModel.from_pretrained(cached(self.folder / "text_encoder", "model"))
        folder = cached(self.folder / "unet", "diffusion_pytorch_model.fp16")
        self.unet = diffusers.UNet2DConditionModel.from_pretrained(folder, variant="fp16")
        self.vae = diffusers.AutoencoderKL.from_pretrained(cached(self.folder / "vae", "diffusion_pytorch_model"))
        self.size = opt_image_height, opt_image_width
        self.calls.append("engines")

    def calculateMaxDeviceMemory(self):
        return 1

    def activateEngines(self, memory):
        assert memory == 99
        self.calls.append("activate")

    def loadResources(self, image_height, image_width, batch_size, seed):
        assert (image_height, image_width) == self.size
        self.calls.append("resources")

    def initialize_latents(self, batch_size, unet_channels, latent_height, latent_width):
        raise AssertionError("these are not the latents of the comparison")

    def encode(self, prompt):
        ids = self.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        return self.text(ids.input_ids)[0]

    @torch.inference_mode()
    def infer(self, prompt, negative_prompt, image_height, image_width, warmup=False, save_image=True):
        assert self.calls == ["engines", "activate", "resources"] and (image_height, image_width) == self.size
        self.scheduler.set_timesteps(self.denoising_steps)
        latents = self.initialize_latents(batch_size=1, unet_channels=4, latent_height=image_height // 8,
                                          latent_width=image_width // 8)
        text = torch.cat([self.encode(negative_prompt), self.encode(prompt)])
        for t in self.scheduler.timesteps:
            double = self.scheduler.scale_model_input(torch.cat([latents] * 2), t)
            without, with_text = self.unet(double, t, text).sample.chunk(2)
            latents = self.scheduler.step(without + self.guidance_scale * (with_text - without), t, latents)[0]
        return self.vae.decode(latents / self.scaling).sample, 1.0
'''


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with the text width of SD 1.4 and VAE factor 8."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("demo") / "wide", "sd1", 3)
    torch.manual_seed(4)
    text = CLIPTextConfig(hidden_size=768, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    unet = UNet2DConditionModel.load_config(folder / "unet") | {"cross_attention_dim": 768}
    UNet2DConditionModel.from_config(unet).save_pretrained(folder / "unet")
    blocks = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    AutoencoderKL(
        down_block_types=blocks[0],
        up_block_types=blocks[1],
        block_out_channels=(8, 16, 16, 16),
        norm_num_groups=8,
        scaling_factor=0.3,
    ).save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    demo = tmp_path / "demo"
    files = {
        "demo_diffusion/__init__.py": "",
        "demo_diffusion/deps.py": "def configure(group, fallback=False):\n    assert group == 'sd'\n",
        "demo_diffusion/pipeline.py": DEMO,
        "tensorrt.py": "__version__ = '11.0'\n",
        "cuda/__init__.py": "",
        "cuda/bindings/__init__.py": "",
        "cuda/bindings/runtime.py": "def cudaMalloc(size):\n    return 0, 99\n",
    }
    for name, text in files.items():
        (demo / name).parent.mkdir(parents=True, exist_ok=True)
        (demo / name).write_text(text)
    monkeypatch.setenv("NVIDIA_DEMO", str(demo))
    return Worker((sys.executable, "-m", "benchmarks.peers." + PEERS["NVIDIA's demo"].worker))


@pytest.mark.slow
def test_it_draws_the_checkpoint_that_it_is_given(worker: Worker, checkpoint: Path, tmp_path: Path) -> None:
    config = {
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "linspace",
    }
    (tmp_path / "scheduler.json").write_text(json.dumps(config))
    latents = np.random.default_rng(2).standard_normal((1, 4, 8, 8)).astype(np.float32)
    np.save(tmp_path / "latents.npy", latents)
    job = {"prompt": "a tin frog", "steps": 3, "size": 64, "guidance_scale": 5.0, "seed": 1}
    with worker:
        with pytest.raises(PeerError, match="expected text of 768 channels"):
            worker.ask("load", model=str(VOCABULARY.parent), scheduler=str(tmp_path / "scheduler.json"), options={})
        facts = worker.ask("load", model=str(checkpoint), scheduler=str(tmp_path / "scheduler.json"), options={})
        assert facts["facts"]["versions"]["tensorrt"] == "11.0"
        files = {"latents": str(tmp_path / "latents.npy"), "picture": str(tmp_path / "got.png")}
        assert worker.ask("draw", **job, **files)["unet_calls"] == 3
        assert worker.ask("draw", **{**job, "steps": 2}, **files)["unet_calls"] == 2
        worker.ask("draw", **job, **files)
    pipe = StableDiffusionPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = EulerDiscreteScheduler.from_config(config)
    expected = pipe(
        job["prompt"],
        num_inference_steps=3,
        guidance_scale=5.0,
        height=64,
        width=64,
        latents=torch.from_numpy(latents),
        output_type="np",
    ).images[0]
    got = np.asarray(Image.open(tmp_path / "got.png"))
    assert np.abs(got / 255 - expected).max() < 0.02  # the UNet's weights are in float16
    assert expected.std() > 0.05
