"""What the dispatcher adds to a picture: the same call by `Pipeline` and through a dispatcher, in turns.

    python -m benchmarks.serving.overhead [--pairs 200] [--delay 50] [--steps 4]

UNet calls sleep for a fixed time, so that what is left is the server's own work. The last line is JSON.
"""

import argparse
import queue
import statistics

from benchmarks.common.harness import Measurement, Target, finish, interleaved, show_environment, show_table
from latentrt.serve.dispatcher.dispatcher import Dispatcher
from latentrt.serve.dispatcher.models import served_model
from latentrt.serve.messages import Called, DispatcherOptions, Done, Event, Failed, Job, ModelSpec, Output
from latentrt.serve.places import named

LOADER = "benchmarks.serving.delayed:load_delayed"
PROMPT = "a large red star on a blue background"
AT_MOST = 5.0  # milliseconds


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="What the dispatcher adds to a picture.")
    parser.add_argument("--pairs", type=int, default=200, help="default: 200")
    parser.add_argument("--delay", type=float, default=50, help="milliseconds of a UNet call; default: 50")
    parser.add_argument("--steps", type=int, default=4, help="default: 4")
    arguments = parser.parse_args()
    card = show_environment()
    spec = ModelSpec(f"delay-{arguments.delay:g}")
    ended: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def listen(event: Event | Called) -> None:
        if isinstance(event, Done | Failed):
            ended.put(event)

    dispatcher = Dispatcher([spec], DispatcherOptions(lazy=True, batch=4, loader=LOADER), listen)
    dispatcher.start()
    model, pipe = served_model(spec), named(LOADER)(spec, None)
    options = {"num_inference_steps": arguments.steps, "seed": 1}

    def alone() -> None:
        pipe(PROMPT, **options, output_type="np")

    def dispatched() -> None:
        dispatcher.submit(Job("job", model.name, model.request(PROMPT, options), output=Output("raw")))
        assert isinstance(ended.get(timeout=60), Done)

    seconds = interleaved({"Pipeline": alone, "dispatcher": dispatched}, arguments.pairs, warm_up=5)
    dispatcher.close()
    pipe.close()
    added = [1000 * (b - a) for a, b in zip(seconds["Pipeline"], seconds["dispatcher"], strict=True)]
    rows = [[name, f"{1000 * statistics.median(values):.2f}"] for name, values in seconds.items()]
    show_table(("", "median ms"), [*rows, ["added", f"{statistics.median(added):.2f}"]])
    target = Target("added by the dispatcher, median", statistics.median(added), AT_MOST, "ms")
    finish("serving overhead", card, {}, [target], [Measurement("added by the dispatcher", "ms", added)])


if __name__ == "__main__":
    main()
