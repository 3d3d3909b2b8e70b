"""Words of `serve run` and values of YAML become the settings of an application."""

from pathlib import Path
from typing import Any

import pytest
from support.exports import ROOT

from latentrt.runtime.errors import InputError
from latentrt.serve.messages import ModelSpec
from latentrt.serve.ray.settings import Application, application

SHAPES = ROOT / "engines" / "shapes"
OPEN = {"auth": "false"}


def made(**arguments: Any) -> Application:
    return application(OPEN | arguments, {})


def test_words_and_yaml_say_the_same() -> None:
    words = made(
        models=f"a={SHAPES},b={SHAPES}", max_wait="1m", sizes="64x64,128x64", cpus="0.5", max_replicas="3", lazy="true"
    )
    yaml = made(
        models=[{"name": "a", "path": str(SHAPES)}, {"name": "b", "path": str(SHAPES)}],
        max_wait=60, sizes=["64x64", "128x64"], cpus=0.5, max_replicas=3, lazy=True, auth=False,
    )  # fmt: skip
    assert words == yaml
    assert yaml.settings.models[1] == ModelSpec("b", SHAPES, sizes=((64, 64), (128, 64)))


def test_files_and_variables_are_weaker(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('max_wait = "10s"\nmax_batch = 3\nmax_queue = 5\n')
    environ = {"LATENTRT_SERVE_MAX_WAIT": "20", "LATENTRT_SERVE_MAX_BATCH": "4"}
    result = application(OPEN | {"config": str(file), "max_wait": "30"}, environ).settings
    assert (result.max_wait, result.max_batch, result.max_queue) == (30, 4, 5)


def test_what_follows_from_the_batch() -> None:
    application = made(max_batch=4)
    assert (application.cap, application.ongoing, application.target) == (4, 16, pytest.approx(2.8))
    application = made(max_batch=4, batch=2, ongoing=1)
    assert (application.cap, application.ongoing, application.target) == (2, 1, 1.0)


def test_replicas_and_devices() -> None:
    assert (made().most_replicas, made(min_replicas=0).most_replicas, made(min_replicas=2).most_replicas) == (1, 1, 2)
    assert (made().gpus, made(devices="cpu").gpus, made(devices="cuda").gpus) == (0.0, 0.0, 1.0)
    assert (made(devices="cuda:0", gpus=0.25).gpus, made(devices="cpu").device) == (0.25, "cpu")


def test_models_are_multiplexed_where_a_replica_holds_fewer() -> None:
    models = f"a={SHAPES},b={SHAPES}"
    assert [made(models=models, **extra).multiplexed for extra in ({}, {"loaded": 2}, {"loaded": 1})] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": "80"}, "port='80': not on Ray Serve; the proxies of Ray Serve listen: see http_options"),
        ({"root_path": "/draw"}, "route_prefix"),
        ({"max_waits": 3}, "did you mean 'max_wait'"),
        ({"max_wait": "soon"}, "^max_wait='soon': expected a time"),
        ({"cpus": "many"}, "^cpus='many': expected a number from 0"),
        ({"min_replicas": -1}, "^min_replicas=-1: expected an integer from 0"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas=2: expected at least min_replicas, which is 3"),
        ({"devices": "cuda:0,cuda:1"}, "a replica has one device"),
        ({"state": "jobs"}, "on Ray Serve native jobs need state=postgresql://"),
        ({"state": "postgresql://x@y/z"}, "state-files"),
        ({"state": "postgresql://x@y/z", "state_files": "/z", "min_replicas": 0}, "kept jobs start no replica"),
        ({"auth": "true"}, "keys=FILE, or auth=false"),
        ({"models": [{"nme": "a"}]}, "did you mean 'name'"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(**arguments)
