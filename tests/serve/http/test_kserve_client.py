"""Triton's client against a real server: pictures are those of `Pipeline`, to the bit; models go and come back."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from support.exports import Exported
from support.kserve import tensor, wanted
from support.real_server import SIZE, ServerProcess, real_server
from tritonclient.utils import InferenceServerException

from latentrt.runtime import Pipeline
from latentrt.runtime.request.options import json_options
from latentrt.serve.http.keys import new_key

TEXTS = ["a red star", "a large blue square"]
OPTIONS: dict[str, Any] = {"num_inference_steps": 3, "scheduler": "euler_a", "seed": 11, "guidance_scale": 3.3}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys by name; that of "admin" may manage models."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys = {name: new_key(file, name) for name in ("alice", "admin")}
    file.write_text(f"{file.read_text()}admin = true\n")
    return {**keys, "file": str(file)}


@pytest.fixture(scope="module")
def server(keys: dict[str, str]) -> Iterator[ServerProcess]:
    with real_server("--lazy", f"--keys={keys['file']}") as server:
        yield server


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipe:
        yield pipe


class Client:
    """Triton's client with a key."""

    def __init__(self, server: ServerProcess, key: str) -> None:
        self._key = key
        self._triton = triton.InferenceServerClient(server.address.removeprefix("http://"), network_timeout=100)

    @property
    def headers(self) -> dict[str, str]:
        """Anew each time, as the client adds its own."""
        return {"Authorization": f"Bearer {self._key}"}

    def __getattr__(self, name: str) -> Any:
        def called(*words: Any, **options: Any) -> Any:
            return getattr(self._triton, name)(*words, headers=self.headers, **options)

        return called

    def pixels(self, *inputs: triton.InferInput, binary: bool = True, **options: Any) -> Any:
        """(n, H, W, 3)."""
        result = self.infer("shapes", [*inputs], outputs=wanted("pixels", binary=binary), parameters=options)
        return result.as_numpy("pixels")


@pytest.fixture
def client(server: ServerProcess, keys: dict[str, str]) -> Client:
    return Client(server, keys["alice"])


@pytest.fixture
def admin(server: ServerProcess, keys: dict[str, str]) -> Client:
    return Client(server, keys["admin"])


def drawn(pipe: Pipeline, prompt: Any, **options: Any) -> Any:
    return pipe(prompt, **{"width": SIZE[0], "height": SIZE[1], **OPTIONS, **options}, output_type="np").images


def test_metadata(client: Client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("shapes", "1")
    assert client.get_server_metadata()["name"] == "latentrt"
    told = client.get_model_metadata("shapes", "1")
    inputs = {one["name"]: (one["datatype"], one["shape"]) for one in told["inputs"]}
    assert inputs.keys() == {"prompt", *json_options()}
    for name, wanted_input in {
        "prompt": ("BYTES", [-1]),
        "seed": ("INT64", [-1]),
        "image": ("BYTES", [-1]),
        "guidance_scale": ("FP64", [1]),
        "vae_tiling": ("BOOL", [1]),
        "scheduler": ("BYTES", [1]),
        "target_size": ("INT64", [2]),
        "sigmas": ("FP64", [-1]),
    }.items():
        assert inputs[name] == wanted_input
    assert [one["name"] for one in told["outputs"]] == ["image", "pixels", "seed"]
    with pytest.raises(InferenceServerException, match="has no version '2'"):
        client.get_model_metadata("shapes", "2")


@pytest.mark.parametrize("binary", [True, False])
def test_pictures_are_those_of_the_pipeline(client: Client, pipe: Pipeline, binary: bool) -> None:
    inputs = [
        tensor("prompt", TEXTS, binary=binary),
        tensor("negative_prompt", [["green"], ["a circle"]], binary=binary),
        *(tensor(name, [value], binary=binary) for name, value in OPTIONS.items()),
    ]
    expected = drawn(pipe, TEXTS, negative_prompt=["green", "a circle"])
    outputs = wanted("seed", "pixels", "image", binary=binary)
    result = client.infer("shapes", inputs, outputs=outputs, request_id="seven", model_version="1")
    assert result.get_response()["id"] == "seven"
    assert [one["name"] for one in result.get_response()["outputs"]] == ["seed", "pixels", "image"]
    assert result.as_numpy("pixels").dtype == np.uint8
    assert np.array_equal(result.as_numpy("pixels"), expected)
    assert result.as_numpy("seed").tolist() == [11, 12]
    for text, pixels in zip(result.as_numpy("image"), expected, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
            assert np.array_equal(np.asarray(picture), pixels)
            assert "latentrt" in picture.info


def test_options_as_parameters_and_raw_pixels(client: Client, pipe: Pipeline) -> None:
    pixels = client.pixels(tensor("prompt", TEXTS[:1]), **OPTIONS, num_images_per_prompt=2)
    assert np.array_equal(pixels, drawn(pipe, TEXTS[0], num_images_per_prompt=2))


def test_lists_objects_and_seeds_of_each_picture(client: Client, pipe: Pipeline) -> None:
    scheduler = {"name": "euler", "timestep_spacing": "trailing"}
    pixels = client.pixels(
        tensor("prompt", TEXTS),
        tensor("scheduler", [json.dumps(scheduler)]),
        tensor("seed", np.array([-5, 2**40], np.int64)),
        tensor("timesteps", np.array([900.0, 500.0, 100.0], np.float32)),
    )
    options = {"num_inference_steps": None, "guidance_scale": None, "timesteps": [900, 500, 100]}
    assert np.array_equal(pixels, drawn(pipe, TEXTS, scheduler=scheduler, seed=[-5, 2**40], **options))


@pytest.mark.parametrize("form", ["bytes", "base64"])
def test_a_picture_and_a_mask_to_begin_from(client: Client, pipe: Pipeline, form: str) -> None:
    values = np.random.default_rng(0)
    image = Image.fromarray(values.integers(0, 256, (64, 64, 3), np.uint8))
    mask = Image.fromarray(np.repeat(np.uint8([[0, 255]]), 64, 0).repeat(32, 1))
    files = {}
    for name, picture in (("image", image), ("mask_image", mask)):
        picture.save(file := io.BytesIO(), "PNG")
        files[name] = file.getvalue() if form == "bytes" else base64.b64encode(file.getvalue())
    inputs = [tensor(name, np.array([data], object)) for name, data in files.items()]
    pixels = client.pixels(tensor("prompt", TEXTS[:1]), tensor("strength", [0.7]), *inputs, **OPTIONS)
    assert np.array_equal(pixels, drawn(pipe, TEXTS[0], image=image, mask_image=mask, strength=0.7))


def test_noise_to_begin_from(client: Client, pipe: Pipeline) -> None:
    latents = np.random.default_rng(1).standard_normal((1, pipe.bundle.manifest.model.latent_channels, 8, 8), "f4")
    np.save(file := io.BytesIO(), latents)
    pixels = client.pixels(
        tensor("prompt", TEXTS[:1]), tensor("latents", np.array([file.getvalue()], object)), **OPTIONS
    )
    assert np.array_equal(pixels, drawn(pipe, TEXTS[0], latents=latents))


def test_only_admins_manage_models(client: Client) -> None:
    for call in (
        client.get_model_repository_index,
        lambda: client.load_model("shapes"),
        lambda: client.unload_model("shapes"),
    ):
        with pytest.raises(InferenceServerException, match="this key may not manage models") as error:
            call()
        assert error.value.status() == "403"
    assert client.is_model_ready("shapes")


def test_a_model_is_unloaded_and_loaded_again(
    client: Client, admin: Client, server: ServerProcess, pipe: Pipeline
) -> None:
    assert [entry["state"] for entry in admin.get_model_repository_index()] == ["READY"]
    admin.load_model("shapes")  # it is there already
    assert model_files_in_use(server)
    admin.unload_model("shapes")
    with pytest.raises(InferenceServerException, match="shapes is unloaded") as error:
        client.infer("shapes", [tensor("prompt", TEXTS)])
    assert error.value.status() == "503"
    assert not client.is_model_ready("shapes")
    assert httpx.get(f"{server.address}/ready").status_code == 503
    answer = httpx.post(f"{server.address}/v1/images/generations", json={"prompt": "a"}, headers=client.headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_unloaded")
    while (state := admin.get_model_repository_index()[0]["state"]) == "UNLOADING":
        pass
    assert state == "UNAVAILABLE"
    assert not model_files_in_use(server)
    admin.load_model("shapes")
    assert client.is_model_ready("shapes")
    assert np.array_equal(client.pixels(tensor("prompt", TEXTS), **OPTIONS), drawn(pipe, TEXTS))


def model_files_in_use(server: ServerProcess) -> list[str]:
    """Files of bundles that the device has in its memory."""
    maps = [Path(entry.path) for device in server.devices() for entry in device.memory_maps()]
    return [str(file) for file in maps if "engines/shapes" in str(file)]


def test_a_model_that_is_not_configured(admin: Client) -> None:
    for call in (admin.load_model, admin.unload_model):
        with pytest.raises(InferenceServerException, match="unknown model") as error:
            call("sdxl")
        assert error.value.status() == "404"
    with pytest.raises(InferenceServerException, match="models are those that the operator named"):
        admin.load_model("shapes", config='{"backend": "python"}')


def test_pictures_for_several_nets(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    """Each net has a picture and a strength of its own, as bytes and as base64; one of them alone draws another."""
    bundle, nets = (
        exported("sd1-ports-fp32").bundle,
        {"edges": exported("sd1-net").bundle, "pose": exported("sd1-bgr").bundle},
    )
    controls = ", ".join(f"'{name}' = '{folder}'" for name, folder in nets.items())
    config = tmp_path / "serve.toml"
    config.write_text(f"[[model]]\nname = 'sd'\npath = '{bundle}'\nsizes = ['48x40']\ncontrols = {{ {controls} }}\n")
    maps = {name: Image.effect_noise((48, 40), 40 + 20 * at).convert("RGB") for at, name in enumerate(nets)}
    files = {}
    for name, image in maps.items():
        file = io.BytesIO()
        image.save(file, "PNG")
        files[name] = file.getvalue()
    prompt, seed = tensor("prompt", ["a cat"]), {"seed": 4, "num_inference_steps": 3}
    inputs = [
        prompt,
        tensor("control_image.edges", np.array([files["edges"]], object)),
        tensor("control_image.pose", [base64.b64encode(files["pose"]).decode()]),
        tensor("controlnet_conditioning_scale.pose", np.array([0.5])),
    ]
    with real_server(f"--config={config}", "--lazy") as server:
        client = triton.InferenceServerClient(server.address.removeprefix("http://"), network_timeout=100)
        told = {one["name"]: one for one in client.get_model_metadata("sd")["inputs"]}
        assert told["control_image.edges"] == {"name": "control_image.edges", "datatype": "BYTES", "shape": [-1]}
        assert told["controlnet_conditioning_scale.pose"]["shape"] == [1]
        assert "image.edges" not in told

        def pixels(*inputs: triton.InferInput, **options: Any) -> Any:
            return client.infer("sd", [*inputs], outputs=wanted("pixels"), parameters=options).as_numpy("pixels")

        got = pixels(*inputs, **seed)
        by_parameters = {name: base64.b64encode(file).decode() for name, file in files.items()}
        same = pixels(prompt, control_image=by_parameters, controlnet_conditioning_scale={"pose": 0.5}, **seed)
        for wrong, message in (
            ([tensor("control_image.depth", ["AAAA"])], "unknown ControlNet 'depth'|control_image"),
            ([tensor("image.edges", ["AAAA"])], "unknown input 'image.edges'"),
            ([tensor("control_image.", ["AAAA"])], "unknown input"),
            ([inputs[1], tensor("control_image", ["AAAA"])], "for all ControlNets and for single ones"),
            ([tensor("control_image", ["AAAA"]), inputs[1]], "for all ControlNets and for single ones"),
        ):
            with pytest.raises(InferenceServerException, match=message):
                pixels(prompt, *wrong)
    with Pipeline.load(bundle, backend="onnxruntime", device="cpu", controls=nets) as pipe:
        options: dict[str, Any] = {**seed, "width": 48, "height": 40, "output_type": "np"}
        alone = pipe("a cat", control_image=maps, controlnet_conditioning_scale={"pose": 0.5}, **options).images
        other = pipe("a cat", control_image={"edges": maps["edges"]}, **options).images
    assert np.array_equal(got, alone)
    assert np.array_equal(same, alone)
    assert not np.array_equal(got, other)
