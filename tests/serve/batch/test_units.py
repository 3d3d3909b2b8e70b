"""How jobs are put into units, before anything is drawn."""

import random
import socket
from pathlib import Path
from typing import Any

import pytest

from latentrt.runtime.errors import BackendError, InputError
from latentrt.runtime.jobs import Job, LocalFiles
from latentrt.serve.batch.cluster import actors_for, connected, shares, task_size
from latentrt.serve.batch.units import Unit, together, units_of


def units(jobs: list[dict[str, Any]], batch: int = 1, **defaults: Any) -> list[list[int]]:
    made = units_of([Job(i, job) for i, job in enumerate(jobs, 1)], defaults, Path("p.png"), LocalFiles(), batch)
    assert all(Unit.from_json(unit.to_json()) == unit for unit in made)
    assert all(unit.together == (batch > 1 and len(unit.jobs) > 1) for unit in made) or batch > 1
    return [[job.number for job in unit.jobs] for unit in made]


def test_a_job_is_a_unit() -> None:
    assert units([{"prompt": "a"}, {"prompt": ["a", "b"]}, {"prompt": 5}, {"prompt": "a"}]) == [[1], [2], [3], [4]]


def test_jobs_that_name_a_file_in_common_are_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert units(
        [
            {"prompt": "a", "out": "x.png"},
            {"prompt": "b"},
            {"prompt": "c", "out": "y/../x.png"},
            {"prompt": "d", "out": "p-0002.png"},
            {"prompt": "e", "out": "q.png", "num_images_per_prompt": 2},
            {"prompt": "f", "out": "q-1.png"},
            {"prompt": "g", "out": str(tmp_path / "q-1.png")},
            {"prompt": "h", "num_images_per_prompt": 10**15},
            {"prompt": 5, "out": "x.png"},
        ]
    ) == [[1, 3], [2, 4], [5, 6, 7], [8], [9]]


@pytest.mark.parametrize("seed", range(5))
def test_units_are_the_connected_components(seed: int) -> None:
    """Compared with sets that are merged until none overlap."""
    rng = random.Random(seed)
    jobs = [{"prompt": ["a"] * rng.choice([1, 1, 3]), "out": f"f{rng.randrange(40)}.png"} for _ in range(50)]
    jobs += [{"prompt": "b", "out": f"f{rng.randrange(40)}-{rng.randrange(3)}.png"} for _ in range(20)]
    sets = []
    for number, job in enumerate(jobs, 1):
        stem, count = str(job["out"]).removesuffix(".png"), len(job["prompt"]) if isinstance(job["prompt"], list) else 1
        sets.append(({number}, {f"{stem}.png"} if count == 1 else {f"{stem}-{i}.png" for i in range(count)}))
    merged = True
    while merged:
        merged = False
        for one in sets:
            for other in sets:
                if one is not other and one[1] & other[1]:
                    one[0].update(other[0])
                    one[1].update(other[1])
                    sets.remove(other)
                    merged = True
                    break
    assert sorted(units(jobs)) == sorted(sorted(numbers) for numbers, _ in sets)


def test_a_batch_takes_jobs_of_one_kind_in_order() -> None:
    a, b = {"prompt": "a", "seed": 1}, {"prompt": "b", "width": 32}
    assert units([a, b, a, a, b, a], 2) == [[1, 3], [2, 5], [4, 6]]
    assert units([a, b, a, a, b, a], 8) == [[1, 3, 4, 6], [2, 5]]
    # Given as a default or by the job itself, an option is the same.
    assert units([a, {**a, "width": 64}, {**a, "width": None}, {**a, "width": 32}], 8, width=64) == [[1, 2], [3], [4]]


@pytest.mark.parametrize(
    "job",
    [
        {"prompt": ["a", "b"]},
        {"prompt": "a", "num_images_per_prompt": 2},
        {"prompt": "a", "image": "a.png"},
        {"prompt": "a", "seed": [1]},
        {"prompt": "a", "negative_prompt": ["b"]},
        {"prompt": "a", "long_prompt": "chunk"},
        {"prompt": "a", "prompt_2": "b"},
    ],
)
def test_some_jobs_are_drawn_alone(job: dict[str, Any]) -> None:
    assert units([job, job], 4) == [[1], [2]]


def test_negative_prompts_share_a_call_only_with_others() -> None:
    """None is not "": some models take zeros for it."""
    with_one = {"prompt": "a", "negative_prompt": "n", "seed": 5}
    assert units([with_one, {"prompt": "b"}, {**with_one, "negative_prompt": ""}], 4) == [[1, 3], [2]]
    jobs = [Job(1, with_one), Job(3, {**with_one, "negative_prompt": "", "out": "x.png"})]
    options = {"prompt": ["a", "a"], "negative_prompt": ["n", ""], "seed": [5, 5], "width": 32}
    assert together(jobs, {"width": 32}) == options
    seeds = together([Job(1, {"prompt": "a"}), Job(2, {"prompt": "b"})], {})["seed"]
    assert len(set(seeds)) == 2  # as each had drawn its own


def test_shares_of_a_cluster() -> None:
    assert (shares(2, 2.0, 0).cpus, shares(2, 2.0, 0).gpus) == (1.0, 0)
    assert shares(3, 2.0, 0).cpus == 0.666  # rounded down: all of them fit
    assert shares(1, 64.0, 8).cpus == 1.0
    assert shares(8, 4.0, 8).gpus == 1
    with pytest.raises(InputError, match="9 workers: this Ray cluster has 8 GPUs"):
        shares(9, 64.0, 8)
    with pytest.raises(InputError, match="no CPU left"):
        shares(1, 0.0, 0)


@pytest.mark.parametrize(
    ("device", "count", "gpus", "expected"),
    [
        (None, None, 8.0, (8, 1)),  # one worker for each GPU
        ("cuda", 3, 8.0, (3, 1)),
        ("cpu", None, 8.0, (2, 0)),  # one for each machine that lives and has CPUs
        (None, None, 0.0, (2, 0)),
        (None, 6, 0.0, (6, 0)),
        (None, 500, 0.0, (100, 0)),  # not more than units
    ],
)
def test_workers_of_a_cluster(
    monkeypatch: pytest.MonkeyPatch, device: str | None, count: int | None, gpus: float, expected: tuple[int, int]
) -> None:
    machines = [(True, {"CPU": 16.0}), (True, {"CPU": 16.0}), (True, {}), (False, {"CPU": 16.0})]
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 32.0, "GPU": gpus})
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": alive, "Resources": r} for alive, r in machines])
    actors = actors_for(device, count, 100)
    assert (actors.count, actors.gpus) == expected
    assert actors.count * actors.cpus <= 32


def test_tasks_are_small_and_few() -> None:
    assert task_size(100, 2) == 1
    assert task_size(1000, 2) == 7
    assert task_size(10**6, 2) == 32


def test_an_address_without_a_cluster_is_refused_at_once() -> None:
    with socket.socket() as bound:  # but it does not listen
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        for given in (address, f"ray://{address}"):
            with (
                pytest.raises(BackendError, match=f"no Ray cluster at {given}: .*Start one with: ray start"),
                connected(given),
            ):
                pass
    with pytest.raises(BackendError, match="expected host:port, ray://host:port, auto or local"), connected("nonsense"):
        pass
