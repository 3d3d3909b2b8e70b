"""Carries out what the policy decides, on the pipelines of one device. One thread runs all of it.

Knows stages, slots and events; knows nothing of clients, order or fairness.
"""

import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from latentrt.runtime.arrays import DTYPES
from latentrt.runtime.bundle import shape_at
from latentrt.runtime.loop.resident import Passed, Resident, Ticket
from latentrt.runtime.protocols import Slots
from latentrt.runtime.scheduler import REGISTERS
from latentrt.serve.messages import Called, Event, Job, Progress, Started

from .costs import MeasuredCosts
from .drawing import Drawing, PendingPreview
from .models import LoadedModel, owner_of
from .pictures import PictureSender
from .policy import Action, Call, CloseSlots, Decode, Encode, Swap
from .queue import Group, Image, QueuedJob

# Jobs whose part of an action failed, and why.
Failures = Mapping[QueuedJob, Exception]


class Executor:
    """The device's side of a dispatcher."""

    def __init__(
        self,
        models: Mapping[str, LoadedModel],
        costs: MeasuredCosts,
        sender: PictureSender,
        emit: Callable[[Event | Called], None],
        *,
        deterministic: bool = False,
    ) -> None:
        self.models, self._costs, self._sender, self._emit = models, costs, sender, emit
        self._deterministic = deterministic
        self.drawings: dict[str, Drawing] = {}
        self._open: dict[Group, tuple[Slots, Resident]] = {}
        self._tickets: dict[Image, Ticket] = {}
        self._previews: list[PendingPreview] = []
        self._last_call = 0.0

    def model(self, group: Group) -> LoadedModel:
        """What draws a group: a model, or its refiner."""
        name = group.weights.model
        model = self.models[owner_of(name)]
        return next(one for one in model.passes() if one.name == name)

    def add(self, job: Job) -> None:
        """Keep a job that was accepted."""
        self.drawings[job.id] = Drawing(job)

    def run(self, action: Action) -> Failures:
        """Carry out an action. What fails for one job alone is returned; what fails for all is raised."""
        match action:
            case Encode(_, jobs):
                return self._encode(jobs)
            case Call(group, joining, images):
                self._call(group, joining, images)
            case Decode(group, images):
                return self._decode(group, images)
            case Swap(weights):
                start = time.perf_counter()
                self.models[weights.model].put_in(weights.loras)  # a refiner has no sets
                self._costs.observe_swap(weights.model, _since(start))
            case CloseSlots(group):
                self.close_slots(group)
        return {}

    def leave(self, images: Iterable[Image]) -> None:
        """Free the slots of images that are not drawn to the end."""
        for image in images:
            ticket, opened = self._tickets.pop(image, None), self._open.get(image.job.group)
            if ticket is not None and opened is not None:
                opened[1].leave(ticket)

    def begin_again(self, images: Iterable[Image]) -> None:
        """Images start anew from noise."""
        for image in images:
            self._tickets.pop(image, None)
            self.drawings[image.job.id].latents.pop(image.index, None)

    def probe(self) -> None:
        """Run a small graph of each model; raises where the device does not work any more."""
        for model in (one for of_model in self.models.values() for one in of_model.passes()):
            graph = model.served.bundle.graph("time")
            sizes = dict.fromkeys("BGhwSn", 1)
            inputs = {spec.name: np.zeros(shape_at(spec, sizes), DTYPES[spec.dtype].numpy) for spec in graph.inputs}
            model.stages.run("time", inputs)

    def forget(self, job: str) -> None:
        """A job is over."""
        self.drawings.pop(job, None)

    def close_slots(self, group: Group) -> None:
        """Give the slots of a group back."""
        if (opened := self._open.pop(group, None)) is not None:
            self._tickets = {i: ticket for i, ticket in self._tickets.items() if i.job.group != group}
            self._previews = [preview for preview in self._previews if preview.image.job.group != group]
            opened[0].close()

    def close_model(self, model: LoadedModel, groups: Iterable[Group]) -> None:
        """Close a model that has no work."""
        for group in groups:
            self.close_slots(group)
        model.close()

    def close(self) -> None:
        """Give all slots back, and close the pipelines."""
        for group in list(self._open):
            self.close_slots(group)
        for model in self.models.values():
            model.close()

    # --- stages -------------------------------------------------------------------------------------------------------

    def _encode(self, jobs: Iterable[QueuedJob]) -> Failures:
        failures: dict[QueuedJob, Exception] = {}
        for job in jobs:
            start, drawing = time.perf_counter(), self.drawings[job.id]
            try:
                drawing.trajectories = self.model(job.group).trajectories(drawing.request, drawing.generators)
            except Exception as error:  # of this job alone: its texts, its picture, or its memory
                failures[job] = error
                continue
            took = _since(start)
            drawing.add("encode", took)
            self._costs.observe_encode(job, took)
        return failures

    def _call(self, group: Group, joining: Iterable[Image], images: tuple[Image, ...]) -> None:
        resident = self._resident(group)
        for image in joining:
            self._join(resident, image)
        start = time.perf_counter()
        gap = start - self._last_call if self._last_call else 0.0
        passed = resident.step()
        self._show_previews()
        by_ticket = {self._tickets[image]: image for image in images}
        for call in passed:
            self._passed(by_ticket[call.ticket], call)
        took = _since(start)
        self._last_call = time.perf_counter()
        self._costs.observe_call(group, len(images), took)
        factor = self.model(group).served.bundle.manifest.model.vae_scale_factor
        size = factor * group.bucket.width, factor * group.bucket.height
        cap = self._costs.cap(group)
        self._emit(Called(group.weights.model, *size, len(images), cap, took / 1000, gap))

    def _resident(self, group: Group) -> Resident:
        if group not in self._open:
            slots = self.model(group).stages.slots(group.bucket, self._costs.cap(group))
            self._open[group] = slots, Resident(slots, padded=self._deterministic)
        return self._open[group][1]

    def _join(self, resident: Resident, image: Image) -> None:
        drawing = self.drawings[image.job.id]
        assert drawing.trajectories is not None
        self._tickets[image] = resident.join(drawing.trajectories[image.index])
        if drawing.started is None:
            drawing.started = time.monotonic()
            queued = 1000 * (drawing.started - drawing.submitted) - drawing.spent.get("encode", 0.0)
            drawing.add("queue", max(0.0, queued))
            self._emit(Started(drawing.job.id))
        if drawing.begun is None:
            drawing.begun = time.monotonic()

    def _passed(self, image: Image, call: Passed) -> None:
        drawing = self.drawings[image.job.id]
        made = drawing.before + call.index + 1
        self._emit(Progress(drawing.job.id, image.index, made, drawing.job.calls))
        if call.finished:
            del self._tickets[image]
            drawing.latents[image.index] = call.fetch(0)
            if len(drawing.latents) == drawing.job.images and drawing.begun is not None:
                drawing.add("denoise", 1000 * (time.monotonic() - drawing.begun))
        elif drawing.wants_preview(made):
            self._previews.append(PendingPreview(drawing, image, made, call.fetch(REGISTERS - 1)))

    def _show_previews(self) -> None:
        """Send previews of the call before the last one, whose copies have arrived by now."""
        pending, self._previews = self._previews, []
        for preview in pending:
            job = preview.drawing.job
            if job.id in self.drawings and job.previews is not None:
                latents = preview.latents.result()[None]
                stages = self.model(preview.image.job.group).stages
                pixels = stages.preview(latents, job.previews.method, tiling=preview.drawing.tiling())
                self._sender.preview(preview.drawing, preview.image.index, preview.call, pixels[0])

    def _decode(self, group: Group, images: tuple[Image, ...]) -> Failures:
        self._show_previews()
        failures: dict[QueuedJob, Exception] = {}
        for tiling in (False, True):
            chosen = [image for image in images if self.drawings[image.job.id].tiling() == tiling]
            goes_on = [image for image in chosen if image.job.second is not None]
            pixels = [image for image in chosen if self.drawings[image.job.id].job.output.format != "latents"]
            pixels = [image for image in pixels if image not in goes_on]
            for image in chosen:
                if image not in pixels:
                    self._take_latents(image, failures, send=image not in goes_on)
            if pixels:
                self._decode_alike(group, pixels, tiling, failures)
        return failures

    def _take_latents(self, image: Image, failures: dict[QueuedJob, Exception], *, send: bool) -> None:
        """Latents that are not decoded: they are sent, or stay for the next pass."""
        drawing, stages = self.drawings[image.job.id], self.model(image.job.group).stages
        if np.isfinite(drawing.latents[image.index].result()).all():
            if send:
                self._sender.send(drawing, image.index, None, stages)
        else:
            failures[image.job] = stages.overflowed([image.index], drawing.job.images)

    def _decode_alike(
        self, group: Group, images: list[Image], tiling: bool, failures: dict[QueuedJob, Exception]
    ) -> None:
        """Decode images together; where that fails, one by one, so that each fails alone."""
        start, stages = time.perf_counter(), self.model(group).stages
        drawings = [self.drawings[image.job.id] for image in images]
        try:
            latents = np.stack([d.latents[image.index].result() for d, image in zip(drawings, images, strict=True)])
            pixels, bad = stages.decode(latents, tiling=tiling)
        except Exception as error:
            if len(images) == 1:
                failures[images[0].job] = error
            for image in images if len(images) > 1 else ():
                self._decode_alike(group, [image], tiling, failures)
            return
        took = _since(start)
        self._costs.observe_decode(group, len(images), took)
        for row, (image, drawing) in enumerate(zip(images, drawings, strict=True)):
            drawing.add("decode", took / len(images))
            if bad[row]:
                failures[image.job] = stages.overflowed([image.index], drawing.job.images)
            else:
                own = self.models[drawing.job.model].stages  # the text in a picture is that of the first pass
                self._sender.send(drawing, image.index, pixels[row], own)


def _since(start: float) -> float:
    return 1000 * (time.perf_counter() - start)
