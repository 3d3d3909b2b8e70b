"""Bundles of which something is wrong, whoever made them, and the cache of hashes."""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.exports import SHAPES

from latentrt.runtime import Bundle, BundleError, InputError, Pipeline
from latentrt.runtime.bundle.engine_list import _HashCache
from latentrt.runtime.errors import BackendError
from latentrt.runtime.files import cache_folder
from latentrt.runtime.goldens import verify_goldens
from latentrt.runtime.locks import SharedLock

SMALL: dict[str, Any] = {"height": 72, "width": 64, "num_inference_steps": 1}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHAPES.bundle, tmp_path / "copy"))


def changed(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    change(manifest)
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def _first_weight(manifest: dict[str, Any]) -> dict[str, Any]:
    return next(uses[0] for uses in manifest["weights"].values() if uses[0]["offset"] is not None)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["defaults"].update(strength=8), "defaults.strength is 8"),
        (lambda m: m["golden"].update(latents_tolerance=1e30), "golden.latents_tolerance is 1e.30"),
        (lambda m: m["defaults"].update(guidance_scale=10**400), "guidance_scale: expected float"),
        (lambda m: m["defaults"].update(height=10**400), "defaults.height is out of range: expected"),
        (lambda m: m["model"]["latent_rgb"][0].__setitem__(0, 10**400), "latent_rgb"),
        (lambda m: m["graphs"].pop("time"), "graphs.time is missing"),
        (lambda m: m["model"].update(text_encoders=[]), "text_encoders has 0 entries"),
        (lambda m: _first_weight(m).update(offset=2**40), "are not in"),
        (lambda m: _first_weight(m).update(shape=[-1, 5]), "sides out of range"),
        (lambda m: m["model"]["text_encoders"][0].update(tokenizer="../x.json"), "which files does not list"),
        (lambda m: m["model"]["text_encoders"][0].update(tokenizer="/etc/passwd"), "which files does not list"),
        (lambda m: m["model"].update(vae_scale_factor=16), r"graphs\.|multiple of 16"),
        (lambda m: m["graphs"]["time"]["outputs"][0].update(shape=["n", 7]), "no output of context or time"),
        (lambda m: m["graphs"]["denoise"]["inputs"][0].update(name="stat"), "no tensor state"),
    ],
)
def test_manifests_that_cannot_be_are_refused(copy: Path, change: Any, message: str) -> None:
    Bundle.open(copy)
    changed(copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(copy)


@pytest.mark.parametrize("what", ["folder", "loop", "pipe", "zero", "deep", "twice", "utf-16"])
def test_manifests_that_are_no_files_of_json_are_refused(copy: Path, what: str) -> None:
    file = copy / "bundle.json"
    text = file.read_text()
    file.unlink()
    if what == "folder":
        file.mkdir()
    elif what == "pipe":
        os.mkfifo(file)
    elif what in ("loop", "zero"):
        file.symlink_to({"loop": "bundle.json", "zero": "/dev/zero"}[what])
    else:
        contents = {
            "deep": b"[" * 10**6,
            "twice": ('{"format": 1, ' + text[1:]).encode(),
            "utf-16": text.encode("utf-16"),
        }
        file.write_bytes(contents[what])
    with pytest.raises(BundleError, match=r"bundle\.json (cannot be read|is not valid JSON)"):
        Bundle.open(copy)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_graph_that_is_not_the_manifests_is_refused(copy: Path, backend: str) -> None:
    """Else the library would read and write beyond the buffers."""

    def widened(manifest: dict[str, Any]) -> None:
        for graph, side in (("context", "outputs"), ("denoise", "inputs")):
            next(t for t in manifest["graphs"][graph][side] if t["name"] == "key_00")["shape"][-1] = 48

    changed(copy, widened)
    with (
        pytest.raises(BackendError, match=r"key_00 float32 .*32.*bundle\.json says float32 .*48"),
        Pipeline.load(copy, device="cpu", backend=backend) as pipe,
    ):
        pipe("a", **SMALL)


def test_a_damaged_graph_prints_nothing(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Where stdout is a protocol, the library's own report would break it."""
    data = (copy / "denoise.onnx").read_bytes().replace(b"Conv", b"Co\xd0v")
    (copy / "denoise.onnx").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    changed(copy, lambda m: m["files"].update({"denoise.onnx": {"size": len(data), "sha256": sha256}}))
    with (
        pytest.raises(BackendError, match=r"cannot load .*denoise\.onnx"),
        Pipeline.load(copy, device="cpu", backend="onnxruntime") as pipe,
    ):
        pipe("a", **SMALL)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("kept", [(), ("vae_decoder.onnx",), ("denoise.onnx.data",)])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_files_may_be_links_as_in_the_cache_of_a_hub(tmp_path: Path, backend: str, kept: tuple[str, ...]) -> None:
    """Also where some are files of the folder."""
    snapshot, blobs = tmp_path / "snapshots" / "0a", tmp_path / "blobs"
    blobs.mkdir()
    for file in sorted(path for path in SHAPES.bundle.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        link = snapshot / file.relative_to(SHAPES.bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        if file.name in kept:
            shutil.copyfile(file, link)
            continue
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    with (
        Pipeline.load(snapshot, device="cpu", backend=backend) as linked,
        Pipeline.load(SHAPES.bundle, device="cpu", backend=backend) as plain,
    ):
        assert np.array_equal(*(pipe("a", seed=2, **SMALL).latents for pipe in (linked, plain)))


@pytest.mark.parametrize(
    "name", ["input_ids", "embedding", "noise", "latents", "image", "plan.coefficients", "plan.draws"]
)
@pytest.mark.parametrize("how", ["missing", "flat", "nan"])
def test_damaged_goldens_are_told(copy: Path, name: str, how: str) -> None:
    file = copy / "golden" / "golden.safetensors"
    arrays = load_file(file)
    array = arrays.pop(name)
    if how == "flat":
        arrays[name] = array.reshape(-1)[:3].copy()
    elif how == "nan":
        arrays[name] = np.full(array.shape, np.nan, np.float32)
    save_file(arrays, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    changed(
        copy,
        lambda m: m["files"].update({"golden/golden.safetensors": {"size": file.stat().st_size, "sha256": sha256}}),
    )
    with Pipeline.load(copy, device="cpu", backend="onnxruntime") as pipe:
        if (name, how) == ("plan.draws", "nan"):  # anything is a boolean
            return
        with pytest.raises(BundleError, match=r"golden\.safetensors is damaged"):
            verify_goldens(pipe)


@pytest.mark.parametrize("content", ["[]", "null", "5", '{"a": 5}', "[" * 10**6, ""])
def test_the_cache_of_hashes_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "latentrt").mkdir()
    (tmp_path / "latentrt" / "hashes.json").write_text(content)
    assert _HashCache().recall(["a"]) is None
    _HashCache().remember(["a"], "0" * 64)
    assert _HashCache().recall(["a"]) == "0" * 64


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(homeless))
    with pytest.raises(OSError, match="XDG_CACHE_HOME"):
        cache_folder()
    _HashCache().remember(["a"], "0" * 64)
    assert _HashCache().recall(["a"]) is None


# --- the lock of LoRAs: streams move between threads ------------------------------------------------------------------


def test_a_stream_may_move_to_another_thread_before_a_change() -> None:
    """What began in this thread and ends in another one does not make a change in this thread fail."""
    lock = SharedLock()
    holder = lock.shared()
    holder.__enter__()
    thread = threading.Timer(0.2, holder.__exit__, (None, None, None))
    thread.start()
    with lock.alone("busy", timeout=20):
        assert thread.finished.is_set()


def test_a_paused_stream_and_a_waiting_change_do_not_block_others() -> None:
    lock, changed_weights = SharedLock(patience=0.1), threading.Event()

    def change() -> None:
        with lock.alone("busy", timeout=20):
            changed_weights.set()

    with lock.shared():
        writer = threading.Thread(target=change)
        writer.start()
        time.sleep(0.05)
        with lock.shared():  # as the body of a stream that calls the pipeline
            assert not changed_weights.is_set()
    writer.join(20)
    assert changed_weights.is_set()


def test_a_change_gives_up_where_pictures_do_not_end() -> None:
    lock = SharedLock()
    with lock.shared(), pytest.raises(InputError, match="busy"), lock.alone("busy", timeout=0.05):
        pytest.fail("two hold it")
    with lock.alone("busy", timeout=1):
        pass
