"""Random calls: options of all kinds with values of all kinds. A case is its seed alone."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latentrt.runtime import Pipeline
from latentrt.runtime.request import OPTIONS
from latentrt.runtime.scheduler import resolve, scheduler_names
from latentrt.runtime.scheduler.own_options import ALL_OPTIONS as SCHEDULERS
from latentrt.runtime.scheduler.own_options import KNOWN_KEYS
from latentrt.runtime.scheduler.sigma_grids import GRIDS
from latentrt.runtime.scheduler.web_ui_names import WEB_UI_SAMPLERS

WEB_UI = [name for row in WEB_UI_SAMPLERS for name in (row.automatic1111, row.comfyui) if name]

# Small calls stay possible, and large ones are refused rather than slow.
LIMITS = {"MAX_PIXELS": "65536", "MAX_IMAGES": "16", "MAX_STEPS": "1000", "MAX_TOKENS": "20000"}


class Raises:
    """Every method that numpy or the runtime may call raises."""

    def __init__(self, error: type[Exception]) -> None:
        self._error = error

    def _fail(self, *_: object, **__: object) -> Any:
        raise self._error("from the object")

    __array__ = __len__ = __index__ = __float__ = __repr__ = __iter__ = __fspath__ = __getitem__ = _fail


def numbers(rng: random.Random) -> Any:
    return rng.choice(
        [
            *(0, 1, 2, 3, 8, 63, 64, 72, 4096, -1, 2**31 - 8, 2**31, 2**40, 2**63, 2**64, 10**30, 10**9, -(10**40)),
            *(
                10**5000,
                -(10**5000),
                0.0,
                0.5,
                1.0,
                7.5,
                -0.0,
                1e-320,
                1e308,
                float("inf"),
                float("-inf"),
                float("nan"),
            ),
            *(np.int64(5), np.uint8(3), np.float32(0.5), np.float16(np.inf), np.bool_(True), True, False, 1j),
        ]
    )


def texts(rng: random.Random) -> Any:
    return rng.choice(
        [
            *("", "a red star", "\0", "\ud800", "(a:1e9)", "((((((a", "BREAK" * 50, "a, " * 500, "a" * 5000, "é" * 300),
            *(
                "x" * 200_000,
                ["a"],
                ["a", "b"],
                ["a"] * 2000,
                ("a", 1),
                b"bytes",
                "[a:b:0.5]",
                "euler",
                "plain",
                "web-ui",
            ),
            *("chunk", "truncate", "cpu", "cuda", "latent", "np", "pil", "a\n" * 40),
        ]
    )


def paths(rng: random.Random) -> Any:
    return rng.choice(
        [*sorted(FOLDER.iterdir()), "nowhere.png", "nowhere.npy", "/dev/zero", "/", "a\0b.png", "x" * 5000]
    )


def arrays(rng: random.Random) -> Any:
    shape = rng.choice(
        [(), (0,), (2,), (1, 4, 8, 8), (2, 4, 8, 8), (1, 77, 64), (1, 154, 64), (64, 64, 3), (1, 10**5, 64)]
    )
    array = np.random.default_rng(rng.randrange(99)).random(shape)
    dtype = rng.choice(["f4", "f8", "f2", "i8", "u1", "c8", "O", "S3", "M8[s]", "?"])
    with np.errstate(all="ignore"):
        array = array.astype("i8").astype(dtype) if dtype in ("M8[s]", "S3") else array.astype(dtype)
    if array.size and rng.random() < 0.3 and array.dtype.kind == "f":
        array.flat[0] = rng.choice([np.nan, np.inf, -np.inf, 1e30])
    return array if array.size > 10**5 or rng.random() < 0.8 else array.tolist()


def pictures(rng: random.Random) -> Any:
    mode = rng.choice(
        ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "La", "RGBa", "I;16"]
    )
    image = Image.new(mode, rng.choice([(64, 64), (1, 1), (7, 300), (0, 5), (600, 600)]))
    if rng.random() < 0.2:
        image.close()
    if rng.random() < 0.2:
        image.info["exif"] = b"Exif\0\0" + rng.randbytes(rng.randrange(40))
    return image if rng.random() < 0.7 else [image] * rng.randrange(4)


def odd(rng: random.Random) -> Any:
    error = rng.choice([ValueError, TypeError, RuntimeError, KeyError, MemoryError, RecursionError, OSError])
    return rng.choice(
        [Raises(error), object(), {1, 2}, {"a": 1}, {1: 2}, [], [[]], [None], range(3), Path(), len, Raises]
    )


def config(rng: random.Random) -> Any:
    """A scheduler's name, or a config with some values changed."""
    if rng.random() < 0.3:
        name = rng.choice([*scheduler_names(), *WEB_UI, "euler_z", "", "x" * 10_000])
        form = rng.randrange(4)
        key, value = (
            rng.choice(sorted(KNOWN_KEYS)),
            rng.choice(["karras", "1", "0", "-3", "1e400", "true", "[", "", "nan"]),
        )
        if form == 0:
            return f"{name}:{key}={value}"
        if form == 1:
            return {"name": rng.choice([name, 5, None, [name]]), key: value}
        return f"{name}_{rng.choice(sorted(GRIDS))}" if form == 2 else name
    class_name = rng.choice(sorted(SCHEDULERS))
    result: dict[Any, Any] = {"_class_name": class_name, "clip_sample": False, "skip_prk_steps": True}
    for _ in range(rng.randrange(4)):
        key = rng.choice(
            [*sorted(SCHEDULERS[class_name]), *sorted(KNOWN_KEYS), "_class_name", "_use_default_values", "format", "x"]
        )
        result[key] = rng.choice([*VALUES, lambda _: None, lambda r: r.choice(["-inf", "linear", "zero", "cosine"])])(
            rng
        )
    return result


def usual(rng: random.Random, name: str) -> Any:
    """A value of the right type, which may still be out of range or not fit the others."""
    if name in ("image", "mask_image"):
        return rng.choice([pictures, pictures, arrays, paths])(rng)
    if "embeds" in name or name == "latents":
        return rng.choice([arrays, paths if name == "latents" else arrays])(rng)
    if name == "scheduler":
        return config(rng)
    if name in ("timesteps", "sigmas"):
        return sorted((rng.choice([0, 0.5, 14.6, 999, 500, 1e6, -1]) for _ in range(rng.randrange(5))), reverse=True)
    if "size" in name or "coords" in name:
        return (rng.randrange(5000), rng.randrange(5000))
    kind = OPTIONS[name].kind.schema
    if "enum" in kind:
        return rng.choice(list(kind["enum"]))
    if kind.get("type") == "boolean":
        return rng.random() < 0.5
    if kind.get("type") == "number":
        return rng.choice([0.0, 0.3, 0.7, 1.0, 7.5, np.float32(0.5), np.int64(1)])
    if kind.get("type") == "integer" or name == "seed":
        return rng.choice([0, 1, 2, 8, 64, 72, 128, 20, np.int64(3), np.int32(64), [1], [1, 2], 2**64 - 1])
    return texts(rng)


VALUES: list[Callable[[random.Random], Any]] = [numbers, numbers, texts, paths, arrays, pictures, odd]
FOLDER = Path()


def make_files(folder: Path) -> None:
    """Files that calls may name: pictures and arrays, whole and damaged, and things that are no files."""
    global FOLDER
    FOLDER = folder
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    Image.new("RGB", (64, 64), "red").save(folder / "red.jpg")
    png = (folder / "red.png").read_bytes()
    (folder / "cut.png").write_bytes(png[: len(png) // 2])
    (folder / "text.png").write_text("no picture")
    (folder / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) print\n")
    np.save(folder / "noise.npy", np.zeros((1, 4, 8, 8), np.float32))
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    whole = (folder / "noise.npy").read_bytes()
    for i, header in enumerate(
        ["(1000000000000,)", "(-1,)", "((((", "(10**9,)", "(1, 4, 8, 9)", "x", "(1e3,)", "(True,)"]
    ):
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {header}, }}"
        (folder / f"header{i}.npy").write_bytes(
            b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text.encode() + whole[128:]
        )
    (folder / "huge.npy").write_bytes(b"\x93NUMPY\x02\0\xff\xff\xff\x7f")
    os.mkfifo(folder / "pipe.npy")
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "folder.npy").mkdir()


def case(seed: int) -> tuple[Any, dict[str, Any]]:
    """Prompt and options of a case."""
    rng = random.Random(seed)
    options: dict[str, Any] = {"num_inference_steps": 1, "height": 64, "width": 64}
    for name in rng.sample(sorted(OPTIONS), rng.randrange(1, 5)):
        options[name] = usual(rng, name) if rng.random() < 0.75 else rng.choice(VALUES)(rng)
    if rng.random() < 0.03:
        options[rng.choice(["hight", "x" * 10_000, "\ud800"])] = 1
    return (rng.choice(VALUES)(rng) if rng.random() < 0.2 else texts(rng) if rng.random() < 0.3 else "a star"), options


def runner() -> Callable[[int], None]:
    """Runs one case; errors of latentrt are as they should be."""
    pipe = Pipeline.load(device="cpu", backend="onnxruntime")
    pipe("a", num_inference_steps=1, height=64, width=64)
    resolve("euler", {})

    def run(seed: int) -> None:
        prompt, options = case(seed)
        pipe(prompt, **options)

    return run
