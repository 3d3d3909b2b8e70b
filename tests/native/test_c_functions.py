"""The C functions as a program misuses them: each returns a status with a text, and the next call works."""

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from ctypes import byref, c_double, c_int, c_int32, c_size_t, c_uint8, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.exports import ROOT, SHAPES
from support.native import (
    BUNDLE,
    CANCELLED,
    INPUT,
    NUL,
    OK,
    ON_STEP,
    OUT_OF_MEMORY,
    SCHEDULER,
    NativeError,
    NativePipeline,
    OpenOptions,
    RequestStruct,
    Text,
    Verification,
    built,
    check,
    library,
    onnxruntime_library,
    request_struct,
)

SMALL: dict[str, Any] = {"num_inference_steps": 2, "height": 64, "width": 64, "seed": 3}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle as in the cache of a model hub: every file is a link to another folder."""
    path = tmp_path_factory.mktemp("links")
    for file in filter(Path.is_file, SHAPES.bundle.rglob("*")):
        link = path / file.relative_to(SHAPES.bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    return path


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[NativePipeline]:
    """An open bundle."""
    with NativePipeline(bundle) as opened:
        yield opened


def drawn(pipeline: NativePipeline, request: RequestStruct, each: Any = None) -> tuple[int, str]:
    """Status and text of a draw; its pictures are freed."""
    images, error = c_void_p(), c_void_p()
    lib = library()
    status = lib.latentrt_draw(pipeline.handle, byref(request), each, None, byref(images), byref(error))
    text = lib.latentrt_error_text(error).decode()
    assert lib.latentrt_error_status(error) == status
    assert bool(images) == (status == OK)
    assert bool(text) == (status != OK)
    lib.latentrt_error_free(error)
    lib.latentrt_images_free(images)
    return status, text


def small(**changes: Any) -> RequestStruct:
    """A request that is right but for some fields of the struct."""
    request = request_struct("a circle", SMALL)
    for name, value in changes.items():
        setattr(request, name, value)
    return request


def test_a_bundle_of_links_draws(pipeline: NativePipeline) -> None:
    with NativePipeline(SHAPES.bundle) as other:
        one, two = (p.draw("a circle", **SMALL).pixels[0] for p in (pipeline, other))
    np.testing.assert_array_equal(one, two)


NULLS = """
import ctypes, sys
from ctypes import byref, c_size_t, c_void_p, c_int
lib = ctypes.CDLL(sys.argv[1])
for name in ("version", "error_text", "backend", "scheduler_name", "images_text", "images_pixels", "images_latents"):
    getattr(lib, "latentrt_" + name).restype = c_void_p
lib.latentrt_images_milliseconds.restype = ctypes.c_double
zero, null = c_size_t(0), None
def both(function, *arguments):
    error = c_void_p()
    assert function(*arguments, null) == 1, function
    assert function(*arguments, byref(error)) == 1, function
    assert lib.latentrt_error_status(error) == 1
    assert b"NULL" in ctypes.string_at(lib.latentrt_error_text(error)), ctypes.string_at(lib.latentrt_error_text(error))
    lib.latentrt_error_free(error)
out, pipeline, text = c_void_p(5), c_void_p(), c_void_p(lib.latentrt_version())
both(lib.latentrt_open, null, null, byref(out)); assert not out
both(lib.latentrt_open, b"/nowhere", null, null)
both(lib.latentrt_open, null, null, null)
both(lib.latentrt_draw, null, null, null, null, null)
request = ctypes.create_string_buffer(2000)
lib.latentrt_request_init(request, c_size_t(2000))
out = c_void_p(5)
both(lib.latentrt_draw, null, request, null, null, byref(out)); assert not out
both(lib.latentrt_draw, null, null, null, null, byref(out))
both(lib.latentrt_draw, null, request, null, null, null)
both(lib.latentrt_verify, null, null)
both(lib.latentrt_call_new, null)
both(lib.latentrt_plan_from_memory, null, zero, byref(out))
both(lib.latentrt_plan_from_memory, b"{}", c_size_t(2), null)
both(lib.latentrt_step_preview, null, zero, 0, byref(out), null, null); assert not out
both(lib.latentrt_step_preview, null, zero, 0, null, null, null)
both(lib.latentrt_images_png, null, zero, null, null)
both(lib.latentrt_images_png, null, zero, byref(out), null); assert not out
for name in ("error_free", "close", "cancel", "call_free", "plan_free", "images_free"):
    getattr(lib, "latentrt_" + name)(null)
for name in ("open_options_init", "request_init", "verification_init"):
    getattr(lib, "latentrt_" + name)(null, c_size_t(100))
assert lib.latentrt_error_status(null) == 0 and ctypes.string_at(lib.latentrt_error_text(null)) == b""
assert ctypes.string_at(lib.latentrt_backend(null)) == b"" and lib.latentrt_scheduler_name(null, zero) is None
for name in ("default_height", "default_width", "images_count", "images_height", "images_width", "step_index",
             "step_total", "step_images"):
    assert getattr(lib, "latentrt_" + name)(null) == 0, name
assert lib.latentrt_images_seed(null, zero) == 0 and lib.latentrt_images_pixels(null, zero) is None
shape = (c_size_t * 3)(1, 2, 3)
assert lib.latentrt_images_latents(null, zero, shape) is None and tuple(shape) == (0, 0, 0)
assert lib.latentrt_images_latents(null, zero, null) is None
assert lib.latentrt_images_milliseconds(null, b"total") == 0 and lib.latentrt_images_milliseconds(null, null) == 0
assert lib.latentrt_images_text(null, zero, b"latentrt") is None
assert lib.latentrt_images_text(null, zero, null) is None
print("all")
"""


def test_null_for_every_pointer() -> None:
    """In a process of its own, which must live."""
    command = [sys.executable, "-c", NULLS, str(built() / "liblatentrt.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "all\n"), done.stderr[-2000:]


def test_null_on_an_open_pipeline(pipeline: NativePipeline) -> None:
    lib, images = library(), c_void_p(5)
    request = small()
    assert lib.latentrt_draw(pipeline.handle, None, None, None, byref(images), None) == INPUT
    assert not images
    assert lib.latentrt_draw(pipeline.handle, byref(request), None, None, None, None) == INPUT
    assert lib.latentrt_draw(pipeline.handle, byref(request), None, None, byref(images), None) == OK
    assert lib.latentrt_images_text(images, c_size_t(0), None) is None
    assert lib.latentrt_images_text(images, c_size_t(0), b"other") is None
    assert lib.latentrt_images_text(images, c_size_t(1), b"parameters") is None
    assert lib.latentrt_images_milliseconds(images, b"other") == 0
    assert lib.latentrt_images_pixels(images, c_size_t(1)) is None
    assert lib.latentrt_images_seed(images, c_size_t(1)) == 0
    data, length, error = ctypes.POINTER(c_uint8)(), c_size_t(), c_void_p()
    for index in (1, 2**64 - 1):
        assert lib.latentrt_images_png(images, c_size_t(index), byref(data), byref(length), byref(error)) == INPUT
        assert "out of range" in lib.latentrt_error_text(error).decode()
        lib.latentrt_error_free(error)
    assert lib.latentrt_images_png(images, c_size_t(0), byref(data), None, None) == INPUT
    lib.latentrt_images_free(images)
    assert lib.latentrt_verify(pipeline.handle, None, None) == OK


STRUCTS = (
    (OpenOptions, "latentrt_open_options_init"),
    (RequestStruct, "latentrt_request_init"),
    (Verification, "latentrt_verification_init"),
)


@pytest.mark.parametrize(("kind", "name"), STRUCTS)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 50, 2**17, 2**40])
def test_init_writes_no_more_than_the_struct(kind: Any, name: str, size: int) -> None:
    """Sizes that no struct has are not believed, either."""
    memory = (ctypes.c_ubyte * 2000)(*[0x5A] * 2000)
    getattr(library(), name)(memory, c_size_t(size))
    end = min(size, ctypes.sizeof(kind))
    assert bytes(memory[end:]) == b"\x5a" * (2000 - end)
    if size >= 8:
        assert int.from_bytes(bytes(memory[:8]), "little") == size


@pytest.mark.parametrize("size", [0, 7, 2**16 + 1, 2**40, NUL])
def test_sizes_that_no_struct_has(pipeline: NativePipeline, bundle: Path, size: int) -> None:
    status, text = drawn(pipeline, small(struct_size=size))
    assert status == INPUT
    assert text == f"latentrt_request.struct_size is {size}: fill the struct by latentrt_request_init"
    options, found, out = OpenOptions(), Verification(), c_void_p()
    options.struct_size = found.struct_size = size
    assert library().latentrt_open(str(bundle).encode(), byref(options), byref(out), None) == INPUT
    assert library().latentrt_verify(pipeline.handle, byref(found), None) == INPUT


def test_smaller_structs_have_defaults(pipeline: NativePipeline) -> None:
    """Cut behind each field: what is missing does not matter, whatever lies there."""
    wrong = dict.fromkeys(("clip_skip", "num_images_per_prompt", "height", "width"), -5) | {"rng": 9, "output": 9}
    for field, *_ in RequestStruct._fields_[2:]:
        request = small()
        end = getattr(RequestStruct, field).offset
        for name, value in wrong.items():
            if getattr(RequestStruct, name).offset >= end:
                setattr(request, name, value)
        if RequestStruct.call.offset >= end:
            request.call = 1
        request.struct_size = end
        if end <= RequestStruct.num_inference_steps.offset:
            request.num_inference_steps = 0
            continue  # the default size and steps of the bundle take longer
        if RequestStruct.prompts_count.offset < end:
            assert drawn(pipeline, request) == (OK, ""), field


def test_without_prompts(pipeline: NativePipeline) -> None:
    request = small()
    request.struct_size = RequestStruct.prompts.offset
    assert drawn(pipeline, request) == (INPUT, "pass prompts; an empty prompt ('') is allowed")


@pytest.mark.parametrize("more", [1, 8, 1000])
def test_larger_structs(pipeline: NativePipeline, more: int) -> None:
    """Of a later version: accepted while what it adds is zero."""
    size = ctypes.sizeof(RequestStruct)
    memory = ctypes.create_string_buffer(size + more)
    library().latentrt_request_init(memory, c_size_t(size + more))
    given = small()
    ctypes.memmove(byref(memory, 8), byref(given, 8), size - 8)
    request = RequestStruct.from_buffer(memory)
    assert drawn(pipeline, request) == (OK, "")
    for at in {0, more // 2, more - 1}:
        memory[size + at] = b"\1"
        status, text = drawn(pipeline, request)
        assert status == INPUT
        assert "holds fields that this version of latentrt does not know" in text
        memory[size + at] = b"\0"
    assert drawn(pipeline, request) == (OK, "")


def test_verification_fills_what_the_struct_has(pipeline: NativePipeline) -> None:
    found = Verification(psnr=-1, psnr_floor=-1)
    found.struct_size = Verification.psnr.offset
    check(library().latentrt_verify(pipeline.handle, byref(found), None), c_void_p())
    assert (found.ids_equal, found.psnr, found.psnr_floor) == (1, -1, -1)
    assert found.struct_size == Verification.psnr.offset
    assert 0 < found.latents_error <= found.latents_tolerance


@pytest.mark.parametrize("name", ["rng", "prompt_syntax", "long_prompt", "output"])
@pytest.mark.parametrize("value", [-1, 2, 3, 4, 255, 2**31 - 1, -(2**31)])
def test_values_that_an_enum_has_not(pipeline: NativePipeline, name: str, value: int) -> None:
    assert drawn(pipeline, small(**{name: value})) == (INPUT, f"{name}={value}: expected 0 to 1")


LISTS = ("prompts", "negative_prompts", "guidance_scales", "seeds", "latents", "images", "masks", "image_latents")


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("count", [1, 2**40, NUL])
def test_counts_without_pointers(pipeline: NativePipeline, name: str, count: int) -> None:
    request = small(**{name: None, f"{name}_count": count})
    if name == "masks":
        picture = np.zeros((64, 64, 3), np.uint8)
        other = request_struct("a circle", {**SMALL, "image": picture})
        request.images, request.images_count = other.images, 1
    status, _ = drawn(pipeline, request)
    assert status == INPUT
    assert drawn(pipeline, small()) == (OK, "")


@pytest.mark.parametrize("name", LISTS[1:])
def test_pointers_without_counts(pipeline: NativePipeline, name: str) -> None:
    """A count of 0 is a list that is not given, wherever its pointer leads."""
    kind = {field[0]: field[1] for field in RequestStruct._fields_}[name]
    request = small(**{name: ctypes.cast(c_void_p(8), kind), f"{name}_count": 0})
    assert drawn(pipeline, request) == (OK, "")


def test_options_with_counts_without_pointers(bundle: Path) -> None:
    for name in ("provider_options_count", "plans_count"):
        options, out, error = OpenOptions(), c_void_p(), c_void_p()
        library().latentrt_open_options_init(byref(options), c_size_t(ctypes.sizeof(options)))
        setattr(options, name, 3)
        status = library().latentrt_open(str(bundle).encode(), byref(options), byref(out), byref(error))
        with pytest.raises(NativeError, match=f"{name} is set: pass"):
            check(status, error)


def texts(*given: tuple[bytes | None, int]) -> Any:
    """A list of latentrt_text."""
    return (Text * len(given))(*(Text(*one) for one in given))


@pytest.mark.parametrize(
    ("text", "length", "message"),
    [
        (b"caf\xe9", 4, "is not UTF-8 at byte 3"),
        (b"\xed\xa0\x80", NUL, "is not UTF-8 at byte 0"),
        (b"a\xc3\xa9", 2, "is not UTF-8 at byte 1"),
        (b"a\0b", 3, "holds a NUL"),
        (b"a", 2**60, "has 1152921504606846976 bytes: expected at most"),
        (b"a", NUL - 1, "bytes: expected at most"),
    ],
)
def test_texts_that_are_none(pipeline: NativePipeline, text: bytes, length: int, message: str) -> None:
    """Also where nothing reads the negative prompt."""
    for field in ("prompts", "negative_prompts"):
        request = small(**{field: texts((text, length)), f"{field}_count": 1})
        scales = (c_double * 1)(1.0)
        request.guidance_scales, request.guidance_scales_count = scales, 1
        status, said = drawn(pipeline, request)
        assert status == INPUT
        assert message in said
    request = small(scheduler=Text(text, length))
    status, said = drawn(pipeline, request)
    assert status in (INPUT, SCHEDULER)
    said.encode()


def test_texts_with_and_without_a_length(pipeline: NativePipeline) -> None:
    """The bytes behind the length are not read; NULL is no prompt."""
    for text, length, expected in ((b"a cat\xff\xff", 5, "a cat"), (b"a cat", NUL, "a cat")):
        request = small(prompts=texts((text, length)), prompts_count=1)
        images = c_void_p()
        check(library().latentrt_draw(pipeline.handle, byref(request), None, None, byref(images), None), c_void_p())
        content = json.loads(library().latentrt_images_text(images, c_size_t(0), b"latentrt"))
        assert content["prompt"] == expected
        library().latentrt_images_free(images)
    request = small(prompts=texts((None, 7)), prompts_count=1)
    assert "prompts[0] is NULL" in drawn(pipeline, request)[1]


def stepping(work: Callable[[Any, int], int]) -> Any:
    """A callback of the handle and the index."""
    return ON_STEP(lambda step, _: work(c_void_p(step), library().latentrt_step_index(c_void_p(step))))


def test_stopping_at_each_step(pipeline: NativePipeline) -> None:
    for last in range(4):
        seen: list[int] = []

        def stop(_: Any, index: int, last: int = last, seen: list[int] = seen) -> int:
            seen.append(index)
            return int(index != last)

        request = small(num_inference_steps=4)
        assert drawn(pipeline, request, stepping(stop)) == (CANCELLED, "on_step returned 0")
        assert seen == list(range(last + 1))


def test_a_call_is_cancelled_before_it_begins_and_by_its_own_callback(pipeline: NativePipeline) -> None:
    lib, call, seen = library(), c_void_p(), []
    check(lib.latentrt_call_new(byref(call), None), c_void_p())

    def cancel(_: Any, index: int) -> int:
        seen.append(index)
        lib.latentrt_cancel(call)
        return 1

    request = small(call=call.value, num_inference_steps=3)
    assert drawn(pipeline, request, stepping(cancel)) == (CANCELLED, "the call was cancelled")
    assert seen == [0]
    assert drawn(pipeline, request, stepping(cancel)) == (CANCELLED, "the call was cancelled")
    assert seen == [0]  # it stays so
    lib.latentrt_call_free(call)
    check(lib.latentrt_call_new(byref(call), None), c_void_p())
    request.num_inference_steps, request.call = 1, call.value
    # At the last step: nothing is decoded.
    assert drawn(pipeline, request, stepping(cancel)) == (CANCELLED, "the call was cancelled")
    lib.latentrt_call_free(call)


def preview(step: Any, image: int, method: int) -> tuple[int, str, tuple[int, int], bytes]:
    """Status, text, size and pixels."""
    pixels, height, width, error = ctypes.POINTER(c_uint8)(), c_int32(), c_int32(), c_void_p()
    found = byref(pixels), byref(height), byref(width), byref(error)
    status = library().latentrt_step_preview(step, c_size_t(image), c_int(method), *found)
    text = library().latentrt_error_text(error).decode()
    library().latentrt_error_free(error)
    size = (height.value, width.value)
    return status, text, size, bytes(pixels[: size[0] * size[1] * 3]) if status == OK else b""


def test_previews_of_every_method_at_every_step(pipeline: NativePipeline) -> None:
    found: list[list[Any]] = []
    refused: list[tuple[int, str]] = []

    def look(step: Any, _: int) -> int:
        found.append([preview(step, image, method) for image in (0, 1) for method in (0, 1, 2, 1)])
        refused.extend(preview(step, *wrong)[:2] for wrong in ((2, 0), (NUL, 0), (0, 3), (0, 7), (0, -1)))
        assert library().latentrt_step_preview(step, c_size_t(0), 0, None, None, None, None) == INPUT
        return 1

    request = request_struct(["a circle", "a star"], {**SMALL, "num_inference_steps": 3})
    assert drawn(pipeline, request, stepping(look)) == (OK, "")
    assert len(found) == 3
    for at_step in found:
        assert {(status, text, size) for status, text, size, _ in at_step} == {(OK, "", (64, 64))}
        automatic, rgb, vae, again = (pixels for *_, pixels in at_step[:4])
        assert automatic == rgb == again != vae
        assert rgb != at_step[5][3]  # that of the other image
    assert {status for status, _ in refused} == {INPUT}
    assert [text for _, text in refused[:5]] == [
        "image 2: this call draws 2",
        f"image {NUL}: this call draws 2",
        *(f"unknown preview method {method}" for method in (3, 7, -1)),
    ]


def test_previews_without_latent_rgb(tmp_path: Path) -> None:
    """As SDXL's: the VAE computes them, and RGB is refused with the reason."""
    bundle = Path(shutil.copytree(SHAPES.bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "bundle.json").read_text())
    del manifest["model"]["latent_rgb"]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    seen: list[Any] = []

    def look(step: Any, _: int) -> int:
        seen.append([preview(step, 0, method) for method in (0, 1, 2)])
        return 1

    with NativePipeline(bundle) as pipeline:
        assert drawn(pipeline, small(), stepping(look)) == (OK, "")
    for automatic, rgb, vae in seen:
        assert automatic == vae
        assert rgb[0] == INPUT
        assert "has no latent_rgb: use LATENTRT_PREVIEW_VAE" in rgb[1]


@pytest.mark.parametrize(
    ("document", "status"),
    [
        (b"", SCHEDULER),
        (b"{}", SCHEDULER),
        (b"[" * 200_000, SCHEDULER),
        (b'{"format":' * 200_000, SCHEDULER),
        (b'{"format": "latentrt.plan/1", "timesteps": []}', SCHEDULER),
        (b"\xff\xfe", SCHEDULER),
        (b"a\0", SCHEDULER),
    ],
)
def test_documents_that_are_no_plans(document: bytes, status: int) -> None:
    out, error = c_void_p(5), c_void_p()
    length = c_size_t(len(document))
    assert library().latentrt_plan_from_memory(document, length, byref(out), byref(error)) == status
    assert not out
    assert library().latentrt_error_text(error)
    library().latentrt_error_free(error)


def test_names_of_bundles_that_are_none(tmp_path: Path) -> None:
    """Errors are UTF-8, whatever the name is."""
    for name in (b"", b"/nowhere", b"/dev/null", b"x" * 5000, bytes(tmp_path), b"/no\xff\xfewhere"):
        out, error = c_void_p(5), c_void_p()
        assert library().latentrt_open(name, None, byref(out), byref(error)) == BUNDLE, name
        assert not out
        assert library().latentrt_error_text(error).decode()
        library().latentrt_error_free(error)


CHILD = """
import ctypes, os, resource, sys
sys.path[:0] = sys.argv[1].split(":")
from support.native import NativePipeline, NativeError
from pathlib import Path
{work}
"""


def child(work: str, *words: object) -> str:
    """The output of a process that misuses the library."""
    paths = ":".join(map(str, (ROOT / "tests", ROOT / "typings", ROOT)))
    built()
    command = [sys.executable, "-c", CHILD.format(work=work), paths, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_out_of_memory_is_a_status() -> None:
    """A call that needs more than the process may have fails, and a smaller one succeeds, many times."""
    work = """
small = dict(num_inference_steps=1, height=64, width=64, seed=1)
with NativePipeline(Path(sys.argv[2])) as pipeline:
    expected = pipeline.draw("a circle", **small).pixels[0].tobytes()
    now = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (now + (40 << 20),) * 2)
    for _ in range(3):
        try:
            pipeline.draw(["a circle"] * 4, num_inference_steps=1, height=1024, width=1024)
        except NativeError as error:
            print(error.status, error)
        assert pipeline.draw("a circle", **small).pixels[0].tobytes() == expected
"""
    lines = child(work, SHAPES.bundle).splitlines()
    assert len(lines) == 3
    assert {line.split()[0] for line in lines} == {str(OUT_OF_MEMORY)}
    assert "this call needs more memory than there is" in lines[0]


def test_a_folder_without_permission(tmp_path: Path) -> None:
    """As another user than root, who may read everything."""
    bundle = Path(shutil.copytree(SHAPES.bundle, tmp_path / "bundle"))
    bundle.chmod(0)
    work = """
from support.native import library, onnxruntime_library
library(), onnxruntime_library()
if os.getuid() == 0: os.setuid(65534)
try:
    NativePipeline(Path(sys.argv[2]))
except NativeError as error:
    print(error.status, error)
"""
    try:
        said = child(work, bundle)
    finally:
        bundle.chmod(0o755)
    assert said.startswith(f"{BUNDLE} {bundle}/bundle.json cannot be used: Permission denied")


def test_what_on_step_throws_is_thrown_by_the_call() -> None:
    command = [built() / "tests" / "throwing", SHAPES.bundle, onnxruntime_library()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "enough after 2 steps\n5\n"), done.stderr
