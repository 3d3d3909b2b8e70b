"""docs/embedding.md: its programs compile, its commands exist."""

import re
import subprocess
from pathlib import Path

import pytest
from support.exports import ROOT
from support.native import built

GUIDE = (ROOT / "docs" / "embedding.md").read_text()
INCLUDE = ROOT / "native" / "include"
# What the parts of a program refer to.
CPP = """#include <latentrt/latentrt.hpp>
#include <cstdio>
void show(const std::uint8_t* pixels, int height, int width);
extern const std::string churn_json;
extern const std::uint8_t *const pixels, *const mask;
void part(latentrt::Pipeline& pipeline, latentrt::Request& request);
void part(latentrt::Pipeline& pipeline, latentrt::Request& request) {
    (void)pipeline, (void)request;
"""
C = """#include <latentrt/latentrt.h>
#include <stdio.h>
void part(latentrt_pipeline *pipeline);
void part(latentrt_pipeline *pipeline) {
"""


def blocks(language: str) -> list[str]:
    """The code of one language."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("compiler", "standard", "beginning", "code"),
    [
        *(("g++", "c++17", CPP, code) for code in blocks("cpp")),
        *(("gcc", "c11", C, code) for code in blocks("c")),
    ],
)
def test_programs_compile(compiler: str, standard: str, beginning: str, code: str, tmp_path: Path) -> None:
    source = tmp_path / ("guide.cpp" if standard == "c++17" else "guide.c")
    source.write_text(code if "int main" in code else f"{beginning}{code}}}\n")
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", f"-I{INCLUDE}"]
    done = subprocess.run([compiler, f"-std={standard}", *flags, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_there_are_programs_in_both_languages() -> None:
    assert len(blocks("cpp")) >= 7
    assert len(blocks("c")) == 1


def test_flags_of_the_program_exist() -> None:
    """Those of the guide, and all of `latentrt generate` that the library covers."""
    from latentrt.runtime.request.options import OPTIONS, flag_of

    usage = subprocess.run([built() / "latentrt-draw", "--help"], capture_output=True, text=True, check=True).stdout
    words = [word for line in re.findall(r"(?m)^\$ latentrt-draw .*$", GUIDE) for word in line.split()]
    assert all(word in usage for word in words if word.startswith("--"))
    uncovered = {"eta", "timesteps", "sigmas", "denoising_start", "denoising_end", "latents"}
    for name, option in OPTIONS.items():
        if option.flag is not None and option.native and name not in uncovered:
            flag = option.flag or flag_of(name)
            assert flag in usage or flag.replace("--negative-", "--") in usage, flag


def test_bad_arguments_of_the_program() -> None:
    def refused(*words: str) -> str:
        done = subprocess.run([built() / "latentrt-draw", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        return done.stderr

    assert "--bundle is needed" in refused("a prompt")
    assert "--seed 7x: not a number" in refused("a prompt", "--bundle", "x", "--seed", "7x")
    assert "--seed needs a value" in refused("a prompt", "--bundle", "x", "--seed")
    assert "unknown argument --sneed" in refused("a prompt", "--bundle", "x", "--sneed", "7")
    assert "expected one of plain, web-ui" in refused("a prompt", "--bundle", "x", "--prompt-syntax", "webui")
    assert "must end in .png" in refused("a prompt", "--bundle", "x", "-o", "x.jpg")
    assert "either a prompt, --verify or --schedulers" in refused("a prompt", "--verify", "--bundle", "x")
