"""`latentrt generate --jobs`: outputs, errors, file names, exit status; and the flags for prompts."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.exports import Exported

from latentrt.runtime import Pipeline
from latentrt.runtime.cli.jobs import run_jobs
from latentrt.runtime.cli.main import main
from latentrt.runtime.jobs import JOB_KEYS
from latentrt.runtime.request import OPTIONS

SIZE: dict[str, Any] = {"num_inference_steps": 2, "height": 32, "width": 32}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(jobs: list[Any]) -> None:
    lines = [job if isinstance(job, str) else json.dumps(job) for job in jobs]
    Path("jobs.jsonl").write_text("\n".join(lines), encoding="utf-8")


def pictures() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*.png"))


def run(bundle: Path, *arguments: str) -> int:
    flags = ["--steps", "2", "--height", "32", "--width", "32"]
    return main(["generate", "--jobs", "jobs.jsonl", "--bundle", str(bundle), *flags, *arguments])


@pytest.mark.usefixtures("folder")
def test_jobs_draw_what_single_calls_draw(sd1: Exported, pipe: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        [
            {"prompt": "a cat", "seed": 4, "negative_prompt": "dull", "out": "cats/one.png"},
            "",
            {"prompt": ["a dog", "a (red:1.4) dog"], "prompt_syntax": "web-ui", "scheduler": "euler_a", "width": 40},
            {"prompt": "a cat", "num_images_per_prompt": 2, "seed": 9, "out": "cats/two.png"},
        ]
    )
    assert run(sd1.bundle, "--seed", "5", "-o", "new/pic.png") == 0
    two, many = ["cats/two-0.png", "cats/two-1.png"], ["new/pic-0003-0.png", "new/pic-0003-1.png"]
    assert pictures() == ["cats/one.png", *two, *many]
    captured = capsys.readouterr()
    assert [line.split(" (line ")[0] for line in captured.out.splitlines()] == ["cats/one.png", *many, *two]
    assert captured.err == ""  # no progress bar in a pipe
    expected = [
        *pipe("a cat", seed=4, negative_prompt="dull", **SIZE).images,
        *pipe("a cat", seed=9, num_images_per_prompt=2, **SIZE).images,
        *pipe(
            ["a dog", "a (red:1.4) dog"], prompt_syntax="web-ui", scheduler="euler_a", seed=5, **{**SIZE, "width": 40}
        ).images,
    ]
    for name, image in zip(pictures(), expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(name)), np.asarray(image)), name


@pytest.mark.usefixtures("folder")
def test_failures_are_told_at_the_end_and_stop_nothing(sd1: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        [
            {"prompt": "a", "seeed": 1},
            {"prompt": "a", "output_type": "np"},
            "{'prompt': 'a'}",
            '["a"]',
            {"seed": 1},
            '{"prompt": "a", "prompt": "b"}',
            {"prompt": "a", "height": 33},
            {"prompt": "a", "height": "tall"},
            {"prompt": "a", "out": "x.jpg"},
            {"prompt": "a", "out": 5},
            {"prompt": "a", "latents": [1]},
            {"prompt": "a", "out": "jobs.jsonl/x.png"},
            {"prompt": "fine", "out": "fine.png"},
        ]
    )
    assert run(sd1.bundle) == 1
    assert pictures() == ["fine.png"]
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "latentrt: 12 of 13 jobs failed"
    reasons = [
        "line 1: unknown key 'seeed'; did you mean 'seed'?",
        "line 2: unknown key 'output_type'; ",
        "line 3: invalid JSON: ",
        "line 4: expected an object such as",
        'line 5: expected a "prompt"',
        "line 6: invalid JSON: duplicate key among ",
        "line 7: height=33: expected a multiple of 4",
        "line 8: height='tall': expected an integer",
        "line 9: x.jpg does not end in .png",
        'line 10: expected a "prompt"',
        "line 11: latents have the shape (1,); expected (1, 4, ",
        "line 12: ",
    ]
    assert all(line.strip().startswith(reason) for line, reason in zip(rest, reasons, strict=True)), rest


@pytest.mark.usefixtures("folder")
def test_no_job_writes_over_another(sd1: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        [
            {"prompt": "a", "out": "p-0002.png", "seed": 1},
            {"prompt": "b"},
            {"prompt": "c", "out": "d/../p-0002.png"},
            {"prompt": "d", "out": "p-0006.png", "num_images_per_prompt": 2},
            {"prompt": "e", "out": "p-0006-1.png"},
        ]
    )
    assert run(sd1.bundle, "-o", "p.png") == 1
    assert pictures() == ["p-0002.png", "p-0006-0.png", "p-0006-1.png"]
    err = capsys.readouterr().err
    assert 'line 2: p-0002.png was already written by line 1: set another file name with "out"' in err
    assert "line 3: d/../p-0002.png was already written by line 1" in err
    assert "line 5: p-0006-1.png was already written by line 4" in err
    assert json.loads(Image.open("p-0002.png").text["latentrt"])["prompt"] == "a"


@pytest.mark.usefixtures("folder")
def test_jobs_come_from_stdin(
    sd1: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = b'\xef\xbb\xbf{"prompt": "\xe2\x98\x86 star"}\r\n{"prompt": "\xff"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    flags = ["--bundle", str(sd1.bundle), "--steps", "1", "--height", "32", "--width", "32"]
    assert main(["generate", "--jobs", "-", *flags]) == 1
    assert json.loads(Image.open("out-0001.png").text["latentrt"])["prompt"] == "☆ star"
    assert "line 2: invalid JSON" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_a_fault_of_the_backend_does_not_lose_the_next_job(capsys: pytest.CaptureFixture[str], pipe: Pipeline) -> None:
    class Faulty:
        def stream(self, **options: Any) -> Any:
            if options["prompt"] == "bad":
                raise MemoryError("allocation of 2 TB")
            return pipe.stream(**options, **SIZE)

    lines = [b'{"prompt": "bad"}', b'{"prompt": "good"}']
    assert run_jobs(Faulty(), lines, {}, Path("out.png")) == 1  # type: ignore[arg-type]
    assert pictures() == ["out-0002.png"]
    assert "line 1: MemoryError: allocation of 2 TB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass either a prompt, --like FILE.png (and a prompt, to change it) or --jobs FILE"),
        (
            ["a cat", "--jobs", "jobs.jsonl"],
            "pass either a prompt, --like FILE.png (and a prompt, to change it) or --jobs FILE",
        ),
        (["--jobs", "none.jsonl"], "none.jsonl cannot be read: No such file"),
        (["--jobs", "empty.jsonl"], 'there are no jobs: write one JSON object per line, such as {"prompt": "a cat"'),
        (["--jobs", "empty.jsonl", "-o", "x.jpg"], "x.jpg does not end in .png"),
    ],
)
def test_wrong_commands_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (folder / "empty.jsonl").write_text("\n  \n")
    assert main(["generate", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_jobs_know_every_option_with_a_flag() -> None:
    flags = {name for name, option in OPTIONS.items() if option.flag is not None}
    assert flags == {*JOB_KEYS} - {"prompt", "out"}


@pytest.mark.usefixtures("folder")
def test_the_prompts_flags(sd1: Exported, pipe: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "a (red:1.4) star BREAK on blue, " + "with dots, " * 30
    command = ["generate", prompt, "--bundle", str(sd1.bundle), "--steps", "2", "--height", "32", "--width", "32"]
    assert main([*command, "--seed", "8", "--prompt-syntax", "web-ui", "--long-prompt", "chunk", "-o", "a.png"]) == 0
    expected = pipe(prompt, seed=8, prompt_syntax="web-ui", long_prompt="chunk", **SIZE).images[0]
    assert np.array_equal(np.asarray(Image.open("a.png")), np.asarray(expected))
    assert main([*command, "--prompt-2", "b"]) == 1
    assert "prompt_2 is for models with two text encoders" in capsys.readouterr().err
