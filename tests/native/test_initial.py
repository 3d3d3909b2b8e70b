"""What the loop starts from in C++: the draws of `latents/initial.py`, in its order."""

import ctypes
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from support.native import probe
from support.probe_arguments import address, error_of, integer, number, pixels, size

from latentrt.runtime.latents import GivenImages, TorchGenerator, initial_latents, known_images
from latentrt.runtime.latents.initial import InitialLatents
from latentrt.runtime.scheduler import Plan

Float32 = NDArray[np.float32]
SHAPE, FACTOR, SCALING = (4, 6, 9), 8, 0.18215
RNGS = ("cpu", "cuda")
Encode = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p, ctypes.c_void_p)


def encoded(images: Float32) -> tuple[Float32, Float32]:
    """Some moments that depend on every pixel."""
    blocks = images.reshape(len(images), SHAPE[1], FACTOR, SHAPE[2], FACTOR, 3).mean((2, 4), dtype=np.float32)
    mean = np.concatenate([blocks, blocks[..., :1] * blocks[..., 1:2]], -1).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(mean), np.ascontiguousarray(40 * mean[:, ::-1] - 10)


def floats(pointer: int, shape: tuple[int, ...]) -> Float32:
    return np.ctypeslib.as_array((ctypes.c_float * int(np.prod(shape))).from_address(pointer)).reshape(shape)


def latents_of(images: Float32) -> tuple[Float32, None]:
    """The means alone, as of a VAE without a distribution."""
    return encoded(images)[0], None


def encode(images: int, sides: Any, mean: int, logvar: int) -> None:
    shape = (sides[0], *SHAPE)
    moments = encoded(floats(images, tuple(sides[:4])))
    for pointer, values in zip((mean, logvar), moments, strict=True):
        floats(pointer, shape)[:] = values


def plan_of(draws: list[bool], *, starts_clean: int) -> Plan:
    """As much of a plan as the first latents depend on; `starts_clean`: 2 for a plan that takes no initial noise."""
    initial = np.zeros((7, 2), np.float32)
    initial[0] = (0 if starts_clean == 2 else 1, 0.5 if starts_clean else 0)
    return cast(Plan, SimpleNamespace(draws=np.array(draws, bool), initial=initial))


def ours(
    image: NDArray[Any] | None,
    mask: NDArray[np.uint8] | None,
    *,
    draws: list[bool],
    starts_clean: int,
    inpaints: bool,
    seed: int,
    rng: str,
    between: int | None,
    noise: Float32 | None,
    samples: bool = True,
) -> dict[str, Float32]:
    latents = image if image is not None and image.dtype == np.float32 else None
    images = [] if image is None or latents is not None else [image]
    masks = [] if mask is None else [mask]
    sizes, out = np.zeros(4, np.uint64), np.zeros(50 * int(np.prod(SHAPE)), np.float32)
    sides, flags = np.array(SHAPE, np.int64), np.array(draws, np.uint8)
    other = None if between is None else np.array([between], np.uint64)
    error = error_of(
        lambda text: probe().probe_initial(
            pixels(images), size(len(images)), pixels(masks), size(len(masks)), address(latents),
            size(0 if latents is None else latents.size), size(1), size(1), size(0), address(sides), integer(FACTOR),
            number(SCALING), int(inpaints), int(samples), int(starts_clean), address(flags), size(len(draws)),
            ctypes.c_uint64(seed), RNGS.index(rng), address(other), address(noise), Encode(encode), address(sizes),
            address(out), text,
        )
    )  # fmt: skip
    assert not error
    parts = np.split(out, np.cumsum(sizes).astype(int))
    return dict(zip(("noise", "clean", "extra", "mask"), parts, strict=False))


def theirs(
    image: Any, mask: Any, plan: Plan, *, inpaints: bool, samples: bool = True, **options: Any
) -> InitialLatents:
    given = GivenImages(image, mask, SHAPE[0])
    input_ = given.fitted(SHAPE[1] * FACTOR, SHAPE[2] * FACTOR, factor=FACTOR, prompts=1, per_prompt=1)
    known = None
    if input_ is not None:
        moments = encoded if samples else latents_of
        (known,) = known_images(input_, plan, scaling=SCALING, factor=FACTOR, inpaints=inpaints, encode=moments)
    return initial_latents(plan, shape=SHAPE, known=known, **options)


def picture(kind: str) -> NDArray[Any] | None:
    rng = np.random.default_rng(8)
    if kind == "latents":
        return rng.standard_normal((1, *SHAPE), np.float32)
    return rng.integers(0, 256, (50, 70, 3), np.uint8) if kind == "picture" else None


def circle() -> NDArray[np.uint8]:
    y, x = np.ogrid[:50, :70]
    return np.where((y - 20) ** 2 + (x - 40) ** 2 < 200, 255, 0).astype(np.uint8)


@pytest.mark.parametrize("rng", RNGS)
@pytest.mark.parametrize("between", [None, 2**64 - 3])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize("starts_clean", [0, 1, 2])
@pytest.mark.parametrize(
    ("kind", "masked", "inpaints"),
    [
        ("none", False, False),
        ("picture", False, False),
        ("latents", False, False),
        ("picture", True, False),
        ("picture", True, True),
    ],
)
def test_draws_as_python(
    rng: str,
    between: int | None,
    noise: bool,
    samples: bool,
    starts_clean: int,
    kind: str,
    masked: bool,
    inpaints: bool,
) -> None:
    draws, seed = [False, True, True, False, True], 31337
    image, mask = picture(kind), circle() if masked else None
    first = np.random.default_rng(1).standard_normal(SHAPE, np.float32) if noise else None
    result = ours(
        image,
        mask,
        draws=draws,
        starts_clean=starts_clean,
        inpaints=inpaints,
        seed=seed,
        rng=rng,
        between=between,
        noise=first,
        samples=samples,
    )
    reference = theirs(
        image,
        mask,
        plan_of(draws, starts_clean=starts_clean),
        inpaints=inpaints,
        samples=samples,
        generator=TorchGenerator(seed, rng),
        noise=first,
        between=None if between is None else TorchGenerator(between, rng),
    )
    for name, values in result.items():
        wanted: Float32 | None = getattr(reference, name)
        assert values.size == (0 if wanted is None else wanted.size), name
        if wanted is not None:
            np.testing.assert_allclose(values.reshape(wanted.shape), wanted, rtol=2e-6, atol=3e-6, err_msg=name)


@pytest.mark.parametrize("count", [1, 3])
def test_extreme_deviations_are_finite(count: int) -> None:
    """`encoded` gives logarithms of the variance beyond the limits of what exp takes in float32."""
    white = np.full((48, 72, 3), 255, np.uint8)
    result = ours(
        white,
        None,
        draws=[False] * count,
        starts_clean=True,
        inpaints=False,
        seed=1,
        rng="cpu",
        between=None,
        noise=None,
    )
    reference = theirs(
        white, None, plan_of([False] * count, starts_clean=True), inpaints=False, generator=TorchGenerator(1)
    )
    assert np.isfinite(result["clean"]).all()
    assert reference.clean is not None
    np.testing.assert_allclose(result["clean"], reference.clean.ravel(), rtol=1e-5)
