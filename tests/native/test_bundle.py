"""Bundles are opened by C++ where Python opens them, and refused where Python refuses them."""

import copy
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from ctypes import c_size_t, c_void_p, create_string_buffer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from support.exports import ROOT, SHAPES
from support.native import probe

from latentrt.runtime import Bundle, BundleError

DATA = ROOT / "native" / "tests" / "fuzz" / "data"
NAMES = ("small", "sdxl", "inpaint", "distilled", "quantized", "taesd")
QUANTIZATION = {
    "to": "int8",
    "target": "openvino",
    "level": 2.5,
    "graphs": ["denoise"],
    "report": "quantization.json",
    "calibration": "quantization.safetensors",
    "prompts": 8,
    "prompts_sha256": "0" * 64,
    "source_sha256": "1" * 64,
    "gate_mean": 0.1,
    "gate_worst": 0.15,
    "error_mean": 0.04,
    "error_worst": 0.06,
    "psnr": 33.1,
}
# What takes the place of a value.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 7, 2**31, 2**31 - 1, 2**53, 2**63, -(2**63), 0.5, -0.5, 1e300, 1e-9),
    *("", "x", "n", "B", "B*G", "G*B", "8*h", "2*4*h", "1*h", "08*h", "8*h*", "h*8", "9999*9999*9999*B", "float16"),
    *("../x", "/x", "a/../b", "./time.onnx", "a\\b", "a\0b", "ü", "8.9", "8.0+", "٨.٩", "0" * 64, "0" * 63),
    *([], [[]], ["B"], [1, 2, 3], {}, {"a": 1}, {"min": 1, "max": 2}),
)


def _said(function: Any, *arguments: Any) -> str:
    error = create_string_buffer(1000)
    function(*arguments, error)
    return error.value.decode()


def manifest_fault(text: str) -> str:
    """What C++ says is wrong with a manifest, or ""."""
    data = text.encode()
    return _said(probe().probe_manifest, data, c_size_t(len(data)))


def opened_by_python(folder: Path) -> str:
    """What Python says is wrong with a bundle, or ""."""
    try:
        Bundle.open(folder)
    except BundleError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of no content, one for each that the small manifests list."""
    path = tmp_path_factory.mktemp("bundle")
    for name in NAMES:
        for file in _small(name)["files"]:
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_bytes(b"")
    (path / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    return path


def _small(name: str) -> dict[str, Any]:
    file = "small" if name in ("quantized", "taesd") else name
    content: dict[str, Any] = json.loads((DATA / f"{file}.json").read_text())
    if name == "quantized":
        content["format"] = "latentrt.bundle/2"
        content["recipe"]["quantization"] = copy.deepcopy(QUANTIZATION)
        content["files"] |= {QUANTIZATION[key]: {"size": 0, "sha256": "0" * 64} for key in ("report", "calibration")}
    if name == "taesd":
        graphs = content["graphs"]
        content["format"] = "latentrt.bundle/2"
        graphs["preview_decoder"] = copy.deepcopy(graphs["vae_decoder"])
        graphs["vae_encoder"]["outputs"] = [o for o in graphs["vae_encoder"]["outputs"] if o["name"] == "mean"]
    return content


def _at_home(manifest: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The manifest with the sizes of the files that are there; weights with an offset need none."""
    for name, file in manifest["files"].items():
        file["size"] = (folder / name).stat().st_size
    for uses in manifest["weights"].values():
        for use in uses:
            use["offset"] = None
    return manifest


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every object or list with each of its keys, all the way down."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(part, dict | list):
            yield from _places(part)


def _changed(original: dict[str, Any], place: int, change: Any) -> dict[str, Any]:
    manifest = copy.deepcopy(original)
    parent, key = [*_places(manifest)][place]
    change(parent, key)
    return manifest


def _changes(manifest: dict[str, Any], seed: int, values: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each key removed, added and doubled, and some other values for each."""
    choice = random.Random(seed)
    for place, (parent, key) in enumerate(_places(manifest)):
        where = f"{place} {key!r}"
        yield f"{where} removed", _changed(manifest, place, lambda p, k: p.pop(k))
        if isinstance(parent, dict):
            yield f"{where} added", _changed(manifest, place, lambda p, _: p.update(other=1))
        else:
            yield f"{where} doubled", _changed(manifest, place, lambda p, k: p.append(copy.deepcopy(p[k])))
        for value in choice.sample(VALUES, values):
            yield f"{where} is {value!r}", _changed(manifest, place, lambda p, k, v=value: p.__setitem__(k, v))


def _compared(folder: Path, manifest: dict[str, Any], what: str) -> bool:
    """Whether it is accepted, by both."""
    text = json.dumps(manifest)
    (folder / "bundle.json").write_text(text)
    python, native = opened_by_python(folder), _said(probe().probe_open_bundle, os.fsencode(folder))
    assert (python == "") == (native == ""), f"{what}: Python says {python!r}, C++ {native!r}"
    return not python


@pytest.mark.parametrize("name", NAMES)
def test_the_manifests_are_accepted(folder: Path, name: str) -> None:
    assert _compared(folder, _at_home(_small(name), folder), name)


def test_a_refiner_is_refused_by_name(folder: Path) -> None:
    manifest = _at_home(_small("sdxl"), folder)
    (ids,) = [spec for spec in manifest["graphs"]["time"]["inputs"] if spec["name"] == "time_ids"]
    ids["shape"] = ["n", 5]
    (folder / "bundle.json").write_text(json.dumps(manifest))
    assert opened_by_python(folder) == ""
    assert "it is SDXL's refiner, which this library does not draw with" in manifest_fault(json.dumps(manifest))
    ids["shape"] = ["n", 7]
    assert "time_ids" in manifest_fault(json.dumps(manifest))


# 1,200 manifests or so for each kind; the slow tests take a third of them, `make test` less.
@pytest.mark.parametrize(
    ("name", "share", "values"),
    [
        *((name, 12, 2) for name in NAMES),
        *(pytest.param(name, 3, 4, marks=pytest.mark.slow) for name in NAMES),
    ],
)
def test_changed_manifests_are_accepted_as_by_python(folder: Path, name: str, share: int, values: int) -> None:
    manifest = _at_home(_small(name), folder)
    accepted = refused = 0
    for i, (what, changed) in enumerate(_changes(manifest, 20 + share, values)):
        if i % share:
            continue
        if _compared(folder, changed, f"{name} {what}"):
            accepted += 1
        else:
            refused += 1
    assert accepted > 4
    assert refused > 80


def _twice(tensors: list[Any]) -> None:
    tensors.append(tensors[-1])


def _renamed(manifest: dict[str, Any], old: str, new: str) -> None:
    for graph, side in (("context", "outputs"), ("denoise", "inputs")):
        for spec in manifest["graphs"][graph][side]:
            spec["shape"] = [new if size == old else size for size in spec["shape"]]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["model"].update(vae_tile=3),
        lambda m: _twice(m["graphs"]["text_encoder_2"]["outputs"]),
        lambda m: m["graphs"]["context"]["outputs"].append(
            {"name": "noise", "dtype": "float32", "shape": ["n", "S", 32]}
        ),
        lambda m: _renamed(m, "S", "9999*9999*9999*S"),
        lambda m: m["model"]["text_encoders"][1].update(max_length=76),
        lambda m: m["engines"][0].update(compute_capabilities=["٨.٩"]),
        lambda m: m["engines"][0].update(profile={"B": [1, 2]}),
        lambda m: m.update(format="latentrt.bundle/2", plans=["time.onnx", "time.onnx"]),
        lambda m: (m.update(format="latentrt.bundle/1"), m.pop("plans", None), m["recipe"].update(quantization=None)),
        lambda m: (m.update(format="latentrt.bundle/1"), m.pop("plans", None), m["recipe"].update(ports=[])),
        lambda m: (m.update(format="latentrt.bundle/2"), m["recipe"].update(ports=["pose"])),
        lambda m: m["graphs"]["vae_decoder"]["outputs"][0]["shape"].__setitem__(1, "2*4*h"),
        lambda m: m["graphs"]["vae_encoder"]["outputs"][0].update(name="latents"),
        lambda m: m["graphs"].update(preview_decoder=m["graphs"]["vae_encoder"]),
        lambda m: (m.update(format="latentrt.bundle/2"), m["graphs"].update(preview_decoder=m["graphs"]["blend"])),
    ],
)
def test_what_both_refuse(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = _at_home(_small("sdxl"), folder)
    assert _compared(folder, manifest, "as it is")
    change(manifest)
    assert not _compared(folder, manifest, "changed")


WEIGHT = {"graph": "time", "initializer": "w", "transposed": False, "dtype": "float32", "stored_dtype": "float16"}


@pytest.mark.parametrize(
    ("shape", "offset", "accepted"),
    [
        ([2, 3], 0, True),
        ([2, 3], 2, True),
        ([2, 3], 3, False),
        ([2, 3], -1, False),
        ([0, 9], 14, True),
        ([0, 9], 15, False),
        ([2**30] * 3, 0, False),
        ([2**31], None, False),
        ([-1], None, False),
        ([2**31 - 1], None, True),
        ([7, 1], 0, True),
        ([8, 1], 0, False),
    ],
)
def test_where_weights_lie(folder: Path, shape: list[int], offset: int | None, accepted: bool) -> None:
    manifest = _at_home(_small("small"), folder)
    (folder / "time.onnx.data").write_bytes(b"14 bytes of it")
    manifest["files"]["time.onnx.data"]["size"] = 14
    manifest["weights"] = {"unet.w": [{**WEIGHT, "shape": shape, "offset": offset}]}
    try:
        assert _compared(folder, manifest, f"{shape} {offset}") == accepted
    finally:
        (folder / "time.onnx.data").write_bytes(b"")


def test_messages_are_not_cut_within_a_character() -> None:
    """The 60th byte of this value is within an ü."""
    manifest = _small("small")
    manifest["model"]["registers"] = "ü" * 80
    assert manifest_fault(json.dumps(manifest, ensure_ascii=False)).endswith('got "' + "ü" * 59 + "…")
    manifest = _small("small")
    manifest["graphs"]["ü" * 80] = {"file": "nowhere", "inputs": [], "outputs": [], "dimensions": {}}
    assert "which files does not list" in manifest_fault(json.dumps(manifest, ensure_ascii=False))
    manifest["graphs"]["ü" * 80]["file"] = "time.onnx"
    manifest["graphs"]["ü" * 80]["inputs"] = [{"name": "a", "dtype": "float5", "shape": [1]}]
    assert manifest_fault(json.dumps(manifest, ensure_ascii=False)).startswith("graphs." + "ü" * 40 + ": ")


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_what_is_nested_deeply_is_refused(opening: str) -> None:
    """Also where it is the value of a key that is shown."""
    assert manifest_fault(opening * 2_000_000) == "it is nested too deeply"
    assert manifest_fault('{"format": ' + opening * 2_000_000) == "it is nested too deeply"


def test_sizes_that_overflow_are_not_computed(folder: Path) -> None:
    """Every power of h is a size as the format has them; that of a picture does not fit 64 bits."""
    manifest = _at_home(_small("small"), folder)
    for graph, side in (("context", "outputs"), ("denoise", "inputs")):
        for spec in manifest["graphs"][graph][side]:
            if spec["name"] == "key_00":
                spec["shape"][1:] = ["S*S*S*S*S*S*S*S*S*S*S*S"]
    assert _compared(folder, manifest, "powers")


def test_files_that_are_not_files(folder: Path) -> None:
    """A pipe must not be waited for."""
    text = json.dumps(_at_home(_small("small"), folder))
    manifest, graph = folder / "bundle.json", folder / "time.onnx"
    manifest.unlink(missing_ok=True)
    makers: tuple[Callable[[], object], ...] = (lambda: os.mkfifo(manifest), manifest.mkdir)
    try:
        for make in makers:
            make()
            assert opened_by_python(folder)
            assert "not a regular file" in _said(probe().probe_open_bundle, os.fsencode(folder))
            manifest.rmdir() if manifest.is_dir() else manifest.unlink()
        manifest.write_text(text)
        graph.unlink()
        os.mkfifo(graph)
        assert opened_by_python(folder)
        assert "time.onnx is missing" in _said(probe().probe_open_bundle, os.fsencode(folder))
    finally:
        graph.unlink(missing_ok=True)
        graph.write_bytes(b"")
    assert "cannot be used" in _said(probe().probe_open_bundle, b"/nowhere")
    assert "cannot be used" in _said(probe().probe_open_bundle, os.fsencode(manifest))


def test_files_that_are_too_large_are_not_read(folder: Path) -> None:
    """64 MiB of a manifest, as in Python; the file has holes."""
    manifest = folder / "bundle.json"
    with manifest.open("wb") as file:
        file.truncate((1 << 26) + 1)
    try:
        assert "64 MiB" in opened_by_python(folder)
        assert "expected at most 67108864" in _said(probe().probe_open_bundle, os.fsencode(folder))
    finally:
        manifest.unlink()


def test_damaged_bundles(tmp_path: Path) -> None:
    """Each file of a bundle missing, and cut by a byte."""
    bundle = Path(shutil.copytree(SHAPES.bundle, tmp_path / "copy"))
    assert not _said(probe().probe_open_bundle, os.fsencode(bundle))
    for name in json.loads((bundle / "bundle.json").read_text())["files"]:
        content = (bundle / name).read_bytes()
        (bundle / name).write_bytes(content[:-1])
        assert "is damaged" in opened_by_python(bundle)
        assert "is damaged" in _said(probe().probe_open_bundle, os.fsencode(bundle))
        (bundle / name).unlink()
        assert "is missing" in opened_by_python(bundle)
        assert "is missing" in _said(probe().probe_open_bundle, os.fsencode(bundle))
        (bundle / name).write_bytes(content)
    assert not _said(probe().probe_open_bundle, os.fsencode(bundle))


def _floats(content: bytes, name: str) -> list[float] | str:
    out, error = (np.zeros(100, np.float32)), create_string_buffer(1000)
    function = probe().probe_safetensors
    function.restype = c_size_t
    count = function(content, c_size_t(len(content)), name.encode(), c_void_p(out.ctypes.data), c_size_t(100), error)
    return error.value.decode() or list(map(float, out[:count]))


def test_tensors_are_those_of_the_library_safetensors() -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "empty": np.zeros((0, 4), np.float32)}
    content = save({**arrays, "i": np.arange(3)}, {"note": "x"})
    assert _floats(content, "a") == [0, 1, 2, 3, 4, 5]
    assert _floats(content, "empty") == []
    assert "of the type I64, not F32" in _floats(content, "i")
    assert _floats(content, "b") == "it holds no b"


def _framed(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        _framed([], b""),
        _framed({"a": 1}, b""),
        _framed({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
        _framed({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        _framed({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}, bytes(4)),
        _framed({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
        _framed({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        _framed({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}, bytes(4)),
        _framed({"a": {"dtype": "F32", "shape": [0, 2**62, 4], "data_offsets": [0, 0]}}, bytes(4)),
        _framed({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, bytes(4)),
        _framed(b'{"a":' * 100_000, bytes(4)),
        _framed(b"[" * 100_000, bytes(4)),
    ],
)
def test_damaged_tensors_are_refused(content: bytes) -> None:
    assert isinstance(_floats(content, "a"), str)
