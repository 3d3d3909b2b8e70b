"""ControlNets and adapters on the simulated GPU: the same latents as on ONNX Runtime, and nothing that waits."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from against_diffusers.test_control import blots
from support.exports import Exported
from support.simulator import Machine, machine
from support.steps import launches_of
from support.trajectories import alone, coming_and_going, error, steered, trajectories

from latentrt.runtime import BackendError, Pipeline
from latentrt.runtime.protocols import Bucket

BUCKET = Bucket(2, 8, 6, 77)
NETS = {"first": "sd1-net", "second": "sd1-bgr"}
SIZES = {"height": ["32"], "width": ["24"], "batch": ["1", "4"]}
RTX = "tensorrt_rtx"


@pytest.fixture(scope="module")
def bundles(exported: Callable[[str], Exported], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies with engines for one image and for four."""
    folder = tmp_path_factory.mktemp("control")
    names = {"checkpoint": "sd1-ports-fp32", **NETS}
    with machine() as gpu:
        for name, source in names.items():
            shutil.copytree(exported(source).bundle, folder / name)
            gpu.build(folder / name, RTX, SIZES)
    return {name: folder / name for name in names}


@pytest.fixture(params=[RTX, "onnxruntime"])
def there(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> Iterator[tuple[Machine, Pipeline]]:
    on_gpu: dict[str, Any] = {"onnxruntime": {}} if request.param == "onnxruntime" else {}
    with machine(**on_gpu) as gpu:
        nets = {name: bundles[name] for name in NETS}
        with Pipeline.load(bundles["checkpoint"], backend=request.param, device="cuda", controls=nets) as pipe:
            yield gpu, pipe
        assert not any(gpu.cuda.held.values()), gpu.cuda.held


@pytest.fixture(scope="module")
def cpu(bundles: dict[str, Path]) -> Iterator[Pipeline]:
    nets = {name: bundles[name] for name in NETS}
    with Pipeline.load(bundles["checkpoint"], backend="onnxruntime", device="cpu", controls=nets) as pipe:
        yield pipe


def test_a_changing_batch_draws_what_each_draws_alone(there: tuple[Machine, Pipeline], cpu: Pipeline) -> None:
    _, pipe = there
    masks = pipe.backend.startswith("onnxruntime")
    wanted = steered(pipe, trajectories(pipe, BUCKET, 10, seed=31, masks=masks), seed=5)
    with closing(pipe.slots(BUCKET, 4)) as slots:
        got = coming_and_going(slots, wanted, seed=2)
    for number, trajectory in enumerate(wanted):
        assert error(got[number], alone(cpu, trajectory)) < 2e-5, number


def test_nothing_waits_in_the_loop(there: tuple[Machine, Pipeline]) -> None:
    """Nets and UNet are one launch; each net costs one upload more."""
    gpu, pipe = there
    options: dict[str, Any] = {"height": 32, "width": 24, "num_inference_steps": 20, "output_type": "latent"}
    options["control_image"] = {"first": blots(1, (32, 24)), "second": blots(2, (32, 24))}
    pipe("a cat", **options)
    steps = pipe.stream("a cat", **options)
    launches = launches_of(gpu, steps, 18)
    if "tensorrt" in pipe.backend:
        assert launches == 18
    steps.close()


def test_a_picture(there: tuple[Machine, Pipeline], cpu: Pipeline) -> None:
    _, pipe = there
    options: dict[str, Any] = {"height": 32, "width": 24, "num_inference_steps": 5, "output_type": "latent", "seed": 3}
    options |= {"control_image": {"second": blots(8, (32, 24))}, "control_guidance_end": 0.7}
    for _ in range(2):  # the second time with captured graphs
        assert error(pipe("a cat", **options).latents, cpu("a cat", **options).latents) < 2e-5


def test_without_an_engine_of_a_net_the_command_is_named(
    bundles: dict[str, Path], exported: Callable[[str], Exported]
) -> None:
    said = pytest.raises(BackendError, match=r"no usable tensorrt_rtx engine of hint.* latentrt build .*sd1-net")
    with machine(), said:
        Pipeline.load(bundles["checkpoint"], backend=RTX, controls={"net": exported("sd1-net").bundle})


def test_an_unused_net_takes_no_memory(there: tuple[Machine, Pipeline]) -> None:
    gpu, pipe = there
    plain, one, *_ = steered(pipe, trajectories(pipe, BUCKET, 2, seed=1), seed=1)
    with closing(pipe.slots(BUCKET, 1)) as slots:
        slots.fill(0, plain)
        slots.call(np.int32([0]))
        before = gpu.cuda.held["device"]
        slots.fill(0, one)
        slots.call(np.int32([0]))
        assert gpu.cuda.held["device"] > before
