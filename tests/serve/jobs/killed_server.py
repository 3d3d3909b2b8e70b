"""A server of jobs without HTTP, made to be killed: for each line on stdin it forks a child that accepts and draws.

A line is: folder, file for the ids of accepted jobs, first number, seed. The child's process id is answered.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from latentrt.serve.jobs.runner import Runner, RunnerOptions
from latentrt.serve.jobs.sqlite import store_in_folder
from latentrt.serve.messages import Job

from .fakes import FakeService, job_for, shapes_model

MODEL = shapes_model()


def job_number(number: int) -> Job:
    """The job of this number, the same in every process. Some share a picture to begin from."""
    from PIL import Image

    picture = {"image": Image.new("RGB", (32, 32), (number % 3, 0, 0))} if number % 2 else {}
    return job_for(MODEL, f"job{number}", prompt=f"prompt {number}", options={"seed": number, **picture})


async def serve(folder: Path, accepted: Path, first: int, seed: int) -> None:
    """Accept jobs and draw them until killed."""
    rng = random.Random(seed)
    runner = Runner(
        FakeService(MODEL, pause=0.002), store_in_folder(folder), options=RunnerOptions(window=3, sweep=0.01)
    )
    runner.start()
    with accepted.open("a") as file:
        for number in range(first, first + 1000):
            await runner.accept(job_number(number))
            file.write(f"{number}\n")  # the client has got its 202
            file.flush()
            await asyncio.sleep(rng.random() * 0.02)


def main() -> None:
    """Fork a child for each line."""
    print("ready", flush=True)
    for line in sys.stdin:
        folder, accepted, first, seed = line.split()
        if (child := os.fork()) == 0:
            asyncio.run(serve(Path(folder), Path(accepted), int(first), int(seed)))
            os._exit(0)
        print(child, flush=True)
        os.waitpid(child, 0)
        print("gone", flush=True)


if __name__ == "__main__":
    main()
