"""A model on a device: its pipeline, lent to the dispatcher, and the cache of its prompts."""

from collections.abc import Callable
from pathlib import Path

from latentrt.runtime import Pipeline
from latentrt.runtime.bundle import Bundle, ControlBundle, EngineList
from latentrt.runtime.control.fit import check_fit
from latentrt.runtime.errors import InputError
from latentrt.runtime.pipeline import embedded_bundle
from latentrt.runtime.protocols import Trajectory
from latentrt.runtime.request import Request
from latentrt.runtime.text.cache import EncoderCache
from latentrt.serve.messages import DispatcherOptions, Job, LoraSet, ModelSpec
from latentrt.serve.places import named
from latentrt.serve.served_model import Limits, ServedModel, sizes_of_engines

from .queue import Group, Weights


class LoadedModel:
    """A model that is ready to draw."""

    def __init__(self, spec: ModelSpec, pipeline: Pipeline) -> None:
        """The pipeline is the dispatcher's from now on."""
        self.name, self.backend = spec.name, pipeline.backend
        self.served = served_model(spec, pipeline.bundle)
        self.stages = pipeline.lend()
        self.stages.private = True
        self._texts = EncoderCache(self.stages.run)

    def group(self, job: Job) -> Group:
        """The group of a job's images."""
        return Group(Weights(self.name, job.loras), self.served.bucket(job.request))

    def trajectories(self, request: Request) -> list[Trajectory]:
        """Texts and pictures, encoded under the weights that are in."""
        return self.stages.trajectories(request, run_encoder=self._texts)

    def put_in(self, loras: LoraSet) -> None:
        """Change the weights."""
        files: dict[Path | str, float] = {self.served.lora_file(name): weight for name, weight in loras}
        try:
            self.stages.loras_of(files)()
        except InputError as error:  # clients must not learn of the server's folders
            why = str(error)
            for file in files:
                why = why.replace(f"{Path(file).parent}/", "")
            raise InputError(f"the LoRAs {', '.join(name for name, _ in loras)} cannot be used: {why}") from error
        self._texts.weights = loras

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) that clients may ask for."""
        return list(self.served.sizes)


def served_model(spec: ModelSpec, bundle: Bundle | None = None, limits: Limits | None = None) -> ServedModel:
    """The model as the front end knows it; opens the bundle where it is not given."""
    for what, folder in (("engines", spec.engines), ("loras", spec.loras)):
        if folder is not None and not folder.is_dir():
            raise InputError(f"the {what} of {spec.name}: {folder} is not a folder")
    bundle = bundle or Bundle.open(embedded_bundle() if spec.path is None else spec.path)
    sizes = spec.sizes
    if sizes is None and spec.backend in ("auto", "tensorrt", "tensorrt_rtx"):
        sizes = sizes_of_engines(bundle, EngineList.of_bundle(bundle, spec.engines).engines)
    controls = {name: ControlBundle.open(folder) for name, folder in spec.controls}
    check_fit(bundle, controls)
    manifests = {name: control.manifest for name, control in controls.items()}
    return ServedModel(spec.name, bundle, sizes=sizes, lora_folder=spec.loras, limits=limits, controls=manifests)


def load_pipeline(spec: ModelSpec, device: str | None) -> Pipeline:
    """The pipeline of a model on a device."""
    return Pipeline.load(
        spec.path,
        backend=spec.backend,
        device=device,
        engines=spec.engines,
        trust_engines=spec.trust_engines,
        controls=dict(spec.controls),
    )


def load_model(spec: ModelSpec, options: DispatcherOptions) -> LoadedModel:
    """Load a model with the loader of the options."""
    loader: Callable[[ModelSpec, str | None], Pipeline] = named(options.loader)
    return LoadedModel(spec, loader(spec, options.device))
