"""A job as a document that draws the same pictures later, and back: every default, the seeds, the plan, and hashes.

Knows models and requests. Knows nothing of where documents are kept, and nothing of drawing.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from latentrt.runtime.bundle.manifest import MANIFEST
from latentrt.runtime.errors import LatentRTError
from latentrt.runtime.files import sha256_of_file
from latentrt.runtime.request import OPTIONS, Request
from latentrt.serve.messages import Job, Output, Previews
from latentrt.serve.served_model import ServedModel

from .given_values import Inputs, Read, hashes_in, kept, restored
from .store import KeptJob, NewJob

JOB_FORMAT = "latentrt.job/1"
_TEXT = 1 << 16  # bytes that a picture's format and its text take at most, besides the prompts
_PIXEL = 4  # bytes of one pixel at most, in any format, compressed or not


class ModelChangedError(LatentRTError):
    """A kept job cannot be drawn as it was accepted: its model or a LoRA is another one now, or not there."""


def values_of(request: Request) -> dict[str, Any]:
    """The prompt and all options that are not off, as a call that draws the same would give them."""
    # With a compiled plan or custom steps, no steps were given; a plan has its strength, too.
    own = {
        "seed": request.seeds,
        "height": request.height,
        "width": request.width,
        "num_inference_steps": request.num_inference_steps,
        "strength": None if request.scheduler is None else request.strength,
    }
    values = {"prompt": _prompts(request), **request.options, **own}
    return {name: value for name, value in values.items() if value is not None}


def _prompts(request: Request) -> list[str] | None:
    """One text for each prompt; None where embeddings were given."""
    if request.options["prompt_embeds"] is not None:
        return None
    per_prompt = request.options["num_images_per_prompt"] or 1
    return [text.text for text in request.positive.texts[0][::per_prompt]]


class Resolver:
    """Writes and reads the documents of jobs. Hashes of LoRA files are remembered while the files stay the same."""

    def __init__(self, models: Callable[[], Mapping[str, ServedModel]]) -> None:
        """`models`: those of the server now, by name."""
        self._models = models
        self._bundles: WeakKeyDictionary[ServedModel, str] = WeakKeyDictionary()
        self._files: dict[Path, tuple[tuple[int, ...], str]] = {}

    def new_job(self, job: Job, *, now: float) -> NewJob:
        """What a store keeps of a job. Reads files; takes longest where a LoRA is hashed for the first time."""
        inputs: Inputs = {}
        model, request = self._models()[job.model], job.request
        options = values_of(request)
        if model.refiner is not None:  # left out it would ask for the refiner
            options.setdefault("refiner_start", 1)
        document = {
            "format": JOB_FORMAT,
            "bundle": self._bundle(model),
            "loras": [
                {"name": name, "weight": weight, "sha256": self._sha256(model.lora_file(name))}
                for name, weight in job.loras
            ],
            "prompt": options.pop("prompt", None),
            "options": {name: _as_json(name, value, inputs) for name, value in options.items()},
            "plan": kept(request.plan, inputs),
            "second_plan": None if job.second is None else kept(job.second.plan, inputs),
            "output": dataclasses.asdict(job.output),
            "previews": None if job.previews is None else dataclasses.asdict(job.previews),
            "client_jobs": job.client_jobs,
        }
        text = json.dumps(document)
        return NewJob(
            id=job.id,
            client=job.client,
            model=job.model,
            document=text,
            images=job.images,
            reserve=job.images * (request.height * request.width * _PIXEL + len(text) + _TEXT),
            inputs=inputs,
            weight=job.weight,
            priority=job.priority,
            deadline=None if job.deadline is None else now + job.deadline,
        )

    def job(self, kept_job: KeptJob, read: Read, *, now: float) -> Job:
        """The job again; raises `ModelChangedError`, or what `read` raises for an input that is not there."""
        document = json.loads(kept_job.document)
        model = self._unchanged(kept_job.model, document)
        options = {name: restored(value, read) for name, value in document["options"].items()}
        try:
            call = model.call(document["prompt"], options)
            loras = model.loras({lora["name"]: lora["weight"] for lora in document["loras"]})
        except LatentRTError as error:
            raise ModelChangedError(f"{kept_job.model} does not take this job any more: {error}") from error
        previews, second = document["previews"], call.second
        return Job(
            id=kept_job.id,
            model=kept_job.model,
            # The plan that was accepted, where another version or another numpy would compile another one.
            request=dataclasses.replace(call.first, plan=restored(document["plan"], read)),
            second=second and dataclasses.replace(second, plan=restored(document["second_plan"], read)),
            loras=loras,
            client=kept_job.client,
            weight=kept_job.weight,
            client_jobs=document.get("client_jobs"),
            priority=kept_job.priority,
            deadline=None if kept_job.deadline is None else kept_job.deadline - now,
            output=Output(**document["output"]),
            previews=None if previews is None else Previews(**previews),
            alone=kept_job.alone,
        )

    def inputs_of(self, kept_job: KeptJob) -> set[str]:
        """The hashes of all that `job` will read."""
        return hashes_in(json.loads(kept_job.document))

    def _unchanged(self, name: str, document: Mapping[str, Any]) -> ServedModel:
        model = self._models().get(name)
        if model is None:
            raise ModelChangedError(f"the server has no model {name} any more")
        if self._bundle(model) != document["bundle"]:
            raise ModelChangedError(f"{name} is another bundle than the one that this job was accepted for")
        known = model.lora_names()
        for lora in document["loras"]:
            if lora["name"] not in known:
                raise ModelChangedError(f"the LoRA {lora['name']} is not there any more")
            if self._sha256(model.lora_file(lora["name"])) != lora["sha256"]:
                raise ModelChangedError(f"the LoRA {lora['name']} is another file than when this job was accepted")
        return model

    def _bundle(self, model: ServedModel) -> str:
        """The hash of the manifest, which holds the hashes of all other files; as it was when the model came."""
        if model not in self._bundles:
            self._bundles[model] = "+".join(
                sha256_of_file(one.bundle.path / MANIFEST) for one in (model, model.refiner) if one is not None
            )
        return self._bundles[model]

    def _sha256(self, file: Path) -> str:
        status = file.stat()
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if file not in self._files or self._files[file][0] != version:
            self._files[file] = (version, sha256_of_file(file))
        return self._files[file][1]


def _as_json(name: str, value: Any, inputs: Inputs) -> Any:
    noted = kept(value, inputs)
    if noted is value and OPTIONS[name].json:
        return OPTIONS[name].kind.to_json(value)
    return noted


def shown_request(document: str) -> dict[str, Any] | None:
    """Prompt, options and LoRAs of a document for whoever asked for it; None once the document has expired."""
    if not document:
        return None
    values = json.loads(document)
    options = {name: value for name, value in values["options"].items() if not hashes_in(value)}
    options |= {name: value["value"] for name, value in options.items() if isinstance(value, Mapping)}
    loras = {lora["name"]: lora["weight"] for lora in values["loras"]}
    return {"prompt": values["prompt"], **options, "loras": loras}
