"""A model on a device: its pipeline, lent to the dispatcher, and the cache of its prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path

from latentrt.runtime import Pipeline
from latentrt.runtime.bundle import Bundle, ControlBundle, EngineList
from latentrt.runtime.control.fit import check_fit
from latentrt.runtime.errors import InputError
from latentrt.runtime.pipeline import embedded_bundle
from latentrt.runtime.protocols import Trajectory
from latentrt.runtime.request import Request
from latentrt.runtime.stages import Generators, Stages
from latentrt.runtime.text.cache import EncoderCache
from latentrt.serve.messages import DispatcherOptions, Job, LoraSet, ModelSpec
from latentrt.serve.places import named
from latentrt.serve.served_model import Limits, ServedModel, sizes_of_engines, usual_sizes

from .queue import Group, Weights

_REFINER = "+refiner"  # no name of a model has a +


def refiner_name(model: str) -> str:
    """What the refiner of a model is called in groups, costs and metrics."""
    return model + _REFINER


def owner_of(name: str) -> str:
    """The model of a name in a group, which may be that of its refiner."""
    return name.removesuffix(_REFINER)


class LoadedModel:
    """A model that is ready to draw, and its refiner, which comes and goes with it."""

    def __init__(
        self, name: str, backend: str, served: ServedModel, stages: Stages, refiner: "LoadedModel | None" = None
    ) -> None:
        """The stages are the dispatcher's from now on."""
        self.name, self.backend, self.served, self.stages, self.refiner = name, backend, served, stages, refiner
        self.stages.private = True
        self._texts = EncoderCache(self.stages.run)

    @classmethod
    def of_pipeline(cls, spec: ModelSpec, pipeline: Pipeline) -> "LoadedModel":
        """The pipeline is the dispatcher's from now on."""
        served, stages, second = served_model(spec, pipeline.bundle), pipeline.lend(), pipeline.lend_refiner()
        refiner = None
        if second is not None and served.refiner is not None:
            refiner = cls(refiner_name(spec.name), pipeline.backend, served.refiner, second)
        return cls(spec.name, pipeline.backend, served, stages, refiner)

    def passes(self) -> "list[LoadedModel]":
        """What draws: itself, and the refiner where it has one."""
        return [self] if self.refiner is None else [self, self.refiner]

    def group(self, job: Job) -> Group:
        """The group of a job's images, in the first pass."""
        return Group(Weights(self.name, job.loras), self.served.bucket(job.request))

    def second_group(self, job: Job) -> Group | None:
        """The group of its second pass, None where it has one pass. LoRAs are of the first."""
        if job.second is None or self.refiner is None:
            return None
        return Group(Weights(self.refiner.name), self.refiner.served.bucket(job.second))

    def trajectories(self, request: Request, generators: Sequence[Generators] | None = None) -> list[Trajectory]:
        """Texts and pictures, encoded under the weights that are in; see `Stages.trajectories`."""
        return self.stages.trajectories(request, run_encoder=self._texts, generators=generators)

    def close(self) -> None:
        """Free all memory."""
        for model in self.passes():
            model.stages.close()

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
    second = None
    if spec.refiner is not None:
        own = bundle.manifest.defaults
        second = _refiner(spec, sizes or usual_sizes(own.width, own.height), limits)
        sizes = second.sizes
    return ServedModel(
        spec.name, bundle, sizes=sizes, lora_folder=spec.loras, limits=limits, controls=manifests, refiner=second
    )


def _refiner(spec: ModelSpec, sizes: Sequence[tuple[int, int]], limits: Limits | None) -> ServedModel:
    """The second pass, of those sizes of the first one that it has engines for. Raises `InputError` for none."""
    assert spec.refiner is not None
    bundle = Bundle.open(spec.refiner)
    own = None
    if spec.backend in ("auto", "tensorrt", "tensorrt_rtx"):
        own = sizes_of_engines(bundle, EngineList.of_bundle(bundle, None).engines)
    both = sizes if own is None else [size for size in sizes if size in own]
    if not both:
        raise InputError(
            f"the refiner of {spec.name}, {spec.refiner}, has engines of other sizes: build them for the same sizes"
        )
    return ServedModel(refiner_name(spec.name), bundle, sizes=both, limits=limits)


def load_pipeline(spec: ModelSpec, device: str | None) -> Pipeline:
    """The pipeline of a model on a device."""
    return Pipeline.load(
        spec.path,
        backend=spec.backend,
        device=device,
        engines=spec.engines,
        trust_engines=spec.trust_engines,
        controls=dict(spec.controls),
        refiner=spec.refiner,
    )


def load_model(spec: ModelSpec, options: DispatcherOptions) -> LoadedModel:
    """Load a model with the loader of the options."""
    loader: Callable[[ModelSpec, str | None], Pipeline] = named(options.loader)
    return LoadedModel.of_pipeline(spec, loader(spec, options.device))
