"""The library under Clang's sanitizers: many threads, many openings, and all inputs of the fuzz targets.

Clang's warnings are errors here, as GCC's are in `make native`.

Each kind of fault is also planted, in a copy of one source file, and must be seen by the same set-up.
"""

import functools
import os
import subprocess
from pathlib import Path

import pytest
from support.exports import ROOT, SHAPES
from support.fuzzing import FUZZ, TARGETS, replayed
from support.native import built, onnxruntime_library

pytestmark = pytest.mark.slow
NATIVE = ROOT / "native"
FLAGS = "-O0 -g1"  # the builds take most of the time
ENVIRONMENT = {
    # What ONNX Runtime's own threads do with its own memory cannot be seen, as it is not compiled so.
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1",
    "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
SANITIZERS = {"thread": "thread", "address": "address,undefined"}
PROGRAMS = ("threads", "open_close")


@functools.cache
def build_with(kind: str) -> Path:
    """The folder of a build with sanitizers, kept in out/."""
    folder: Path = ROOT / "out" / f"sanitize-{kind}"
    options = (
        *(
            "-DLATENTRT_TESTS=ON",
            "-DLATENTRT_WERROR=ON",
            f"-DLATENTRT_SANITIZE={SANITIZERS[kind]}",
            f"-DCMAKE_CXX_FLAGS={FLAGS}",
        ),
        *("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_COMPILER=clang++-19", "-DCMAKE_C_COMPILER=clang-19"),
    )
    targets = [*PROGRAMS, "fake_onnxruntime", *(["replay", "latentrt-draw"] if kind == "address" else [])]
    run(["cmake", "--log-level=WARNING", "-S", NATIVE, "-B", folder, f"-DHEADERS={built() / 'include'}", *options])
    run(["cmake", "--build", folder, "--parallel", "2", "--target", *targets])
    return folder


def run(command: list[object], *, fails: bool = False) -> str:
    """What a command says; it must succeed, or fail."""
    words = list(map(str, command))
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, timeout=500)
    said = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, f"{' '.join(words)}: {said[-6000:]}"
    return said


def engine(build: Path, name: str) -> Path:
    """The stand-in for ONNX Runtime, or the library itself."""
    return build / "tests" / "libfake_onnxruntime.so" if name == "fake" else onnxruntime_library()


@pytest.mark.parametrize(("name", "rounds"), [("fake", 2), ("real", 1)])
@pytest.mark.parametrize("kind", SANITIZERS)
def test_eight_threads(kind: str, name: str, rounds: int) -> None:
    build = build_with(kind)
    said = run([build / "tests" / "threads", SHAPES.bundle, engine(build, name), rounds])
    assert "Sanitizer" not in said
    assert "other 0" in said


@pytest.mark.parametrize(("name", "rounds"), [("fake", 10), ("real", 10)])
def test_opening_and_closing_leaks_nothing(name: str, rounds: int) -> None:
    build = build_with("address")
    said = run([build / "tests" / "open_close", SHAPES.bundle, engine(build, name), rounds])
    assert "Sanitizer" not in said


@pytest.mark.parametrize("target", TARGETS)
def test_corpora(target: str) -> None:
    replayed(build_with("address"), target)


def planted(kind: str, program: str, source: str, old: str, new: str, folder: Path) -> Path:
    """A program of the build with a fault in one of the library's source files."""
    build, file = build_with(kind), NATIVE / "src" / source
    text = file.read_text()
    assert old in text
    # Beside the build's folder, so that relative includes of its headers are found.
    copy, changed = folder / file.name, text.replace(old, new)
    for line in text.splitlines():
        if line.startswith('#include "'):
            header = (file.parent / line.split('"')[1]).resolve()
            changed = changed.replace(line, f'#include "{header}"')
    copy.write_text(changed)
    objects = [*build.glob("CMakeFiles/inside.dir/src/**/*.o"), *build.glob("CMakeFiles/latentrt.dir/src/api/*.o")]
    if program == "replay":
        objects = [*build.glob("CMakeFiles/inside.dir/src/**/*.o"), *build.glob("tests/fuzz/CMakeFiles/**/*.o")]
    else:
        objects += build.glob(f"tests/CMakeFiles/{program}.dir/*.o")
    others = [one for one in objects if not str(one).endswith(f"{source}.o")]
    assert len(others) == len(objects) - 1
    headers = [
        f"-I{NATIVE / 'include'}",
        f"-isystem{built() / 'include'}",
        f"-isystem{built() / 'include/onnxruntime'}",
    ]
    flags = [*FLAGS.split(), "-std=c++17", f"-fsanitize={SANITIZERS[kind]}", "-fno-sanitize-recover=all"]
    defined = ['-DLATENTRT_VERSION="0"', "-DLATENTRT_BUILDING"]
    output = folder / program
    run(["clang++-19", *flags, *headers, *defined, copy, *others, "-ldl", "-pthread", "-o", output])
    return output


LOCK = "    const std::lock_guard<std::mutex> lock(mutex_);\n"
FAULTS = {
    "a race on what is kept": ("thread", "loop/time_features.cpp", LOCK, "", "data race"),
    "a race on the count of draws": ("thread", "pipeline.cpp", LOCK, "", "data race"),
    "pictures that are not freed": ("address", "api/images.cpp", "{ delete images; }", "{ (void)images; }", "LeakSan"),
    "a row behind the last": (
        "address",
        "loop/denoising.cpp",
        "[done_ * table]",
        "[(done_ + 1) * table]",
        "AddressSan",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault: str, tmp_path: Path) -> None:
    kind, source, old, new, report = FAULTS[fault]
    program = planted(kind, "threads", source, old, new, tmp_path)
    assert report in run([program, SHAPES.bundle, engine(build_with(kind), "fake"), 2], fails=True)


def test_planted_undefined_behaviour_is_seen(tmp_path: Path) -> None:
    """A value that an enum has not is read as one."""
    old, new = (
        "std::memcpy(&value, given_value, sizeof value)",
        "value = *static_cast<const latentrt_rng*>(given_value)",
    )
    program = planted("address", "replay", "request/request.cpp", old, new, tmp_path)
    said = run([program, "request", FUZZ / "corpus" / "request" / "value-not-of-enum"], fails=True)
    assert "UndefinedBehaviorSanitizer" in said
