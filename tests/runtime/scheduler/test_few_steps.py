"""The recipes of docs/few-steps.md: each row of its table against diffusers' scheduler, set up as the model's card
says, and its commands and calls against the table."""

import argparse
import ast
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from support.exports import ROOT
from support.scheduler_reference import difference, run_diffusers, run_plan

from latentrt.export import cli as export
from latentrt.export.checkpoint.public_configs import PUBLIC_CONFIGS
from latentrt.runtime.cli import generate, schedule
from latentrt.runtime.cli.flags import given_options
from latentrt.runtime.scheduler import Plan, resolve
from latentrt.runtime.scheduler.naming import options_taken_by

DOC = (ROOT / "docs" / "few-steps.md").read_text()
TRAILING = {"timestep_spacing": "trailing"}

# scheduler_config.json of the public checkpoints.
_BETAS = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000}
_STABLE_DIFFUSION = {
    **_BETAS,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
_TURBO = {
    **_STABLE_DIFFUSION,
    "_diffusers_version": "0.24.0.dev0",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "trailing",
}
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "SD 1.5": {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", **_STABLE_DIFFUSION},
    "SD 2 base": {"_class_name": "PNDMScheduler", **_STABLE_DIFFUSION},
    "SDXL": {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.19.0.dev0",
        **_STABLE_DIFFUSION,
        "interpolation_type": "linear",
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
    "SDXL-Turbo": {"_class_name": "EulerAncestralDiscreteScheduler", **_TURBO},
    "SD-Turbo": {
        "_class_name": "EulerDiscreteScheduler",
        **_TURBO,
        "sigma_max": None,
        "sigma_min": None,
        "timestep_type": "discrete",
        "use_karras_sigmas": False,
    },
    "LCM_Dreamshaper_v7": {
        "_class_name": "LCMScheduler",
        "_diffusers_version": "0.22.0.dev0",
        **_BETAS,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "dynamic_thresholding_ratio": 0.995,
        "original_inference_steps": 50,
        "prediction_type": "epsilon",
        "rescale_betas_zero_snr": False,
        "sample_max_value": 1.0,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "thresholding": False,
        "timestep_spacing": "leading",
        "trained_betas": None,
    },
}
SINGLE_FILES = {"SD 1.5": "sd1", "SD 2 base": "sd2-base", "SDXL": "sdxl"}


@dataclass(frozen=True)
class Card:
    """What a model's card does: `class_name.from_config(config, **changes)`, `set_timesteps(**steps)`, and the call.

    `class_name` None is the checkpoint's own. `guidance` is from the least to the most that the card allows.
    """

    steps: Mapping[str, Any]
    class_name: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    eta: float = 0.0
    guidance: tuple[float, float] = (0.0, 1.0)


def _steps(count: int) -> dict[str, Any]:
    return {"num_inference_steps": count}


_EULER, _EULER_A, _DDIM = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DDIMScheduler"
_LCM, _TCD = "LCMScheduler", "TCDScheduler"
_PHASED = {**TRAILING, "clip_sample": False, "set_alpha_to_one": False}
CARDS = {
    # SimianLuo/LCM_Dreamshaper_v7; latent-consistency/lcm-lora-sdv1-5, lcm-lora-sdxl
    "LCM, distilled UNet": Card(_steps(4), guidance=(8, 8)),
    "LCM-LoRA, SD 1.5": Card(_steps(4), _LCM, guidance=(0, 2)),
    "LCM-LoRA, SDXL": Card(_steps(4), _LCM, guidance=(0, 2)),
    # stabilityai/sdxl-turbo, sd-turbo, and diffusers' guide for the single file
    "SDXL-Turbo, folder": Card(_steps(1)),
    "SDXL-Turbo, folder, 4 steps": Card(_steps(4)),
    "SDXL-Turbo, single file": Card(_steps(1), _EULER_A, TRAILING),
    "SD-Turbo, folder": Card(_steps(1)),
    "SD-Turbo, folder, 4 steps": Card(_steps(4)),
    "SD-Turbo, single file": Card(_steps(1), _EULER, TRAILING),
    # ByteDance/SDXL-Lightning
    "SDXL-Lightning, 1 step": Card(_steps(1), _EULER, {**TRAILING, "prediction_type": "sample"}),
    "SDXL-Lightning, 2 steps": Card(_steps(2), _EULER, TRAILING),
    "SDXL-Lightning, 4 steps": Card(_steps(4), _EULER, TRAILING),
    "SDXL-Lightning, 8 steps": Card(_steps(8), _EULER, TRAILING),
    # ByteDance/Hyper-SD
    "Hyper-SD, UNet, SDXL": Card({"timesteps": [800]}, _LCM),
    "Hyper-SD, UNet with `tcd`, SDXL": Card({"timesteps": [800]}, _TCD),
    "Hyper-SD, 2-step LoRA, SDXL": Card(_steps(2), _DDIM, TRAILING),
    "Hyper-SD, 4-step LoRA, SDXL": Card(_steps(4), _DDIM, TRAILING),
    "Hyper-SD, 8-step LoRA, SDXL": Card(_steps(8), _DDIM, TRAILING),
    "Hyper-SD, 8-step LoRA, SD 1.5": Card(_steps(8), _DDIM, TRAILING),
    "Hyper-SD, 8-step CFG LoRA, SD 1.5": Card(_steps(8), _DDIM, TRAILING, guidance=(5, 8)),
    "Hyper-SD, unified LoRA, 1 step, SDXL": Card(_steps(1), _TCD, eta=1.0),
    "Hyper-SD, unified LoRA, 4 steps, SDXL": Card(_steps(4), _TCD, eta=0.3),
    "Hyper-SD, unified LoRA, 4 steps, SD 1.5": Card(_steps(4), _TCD, eta=0.3),
    # tianweiy/DMD2
    "DMD2, 4 steps": Card({"timesteps": [999, 749, 499, 249]}, _LCM),
    "DMD2, 1 step": Card({"timesteps": [399]}, _LCM),
    # wangfuyun/PCM_Weights
    "PCM, small CFG, 2 steps, SDXL": Card(_steps(2), _DDIM, _PHASED, guidance=(1, 2)),
    "PCM, small CFG, 4 steps, SD 1.5": Card(_steps(4), _DDIM, _PHASED, guidance=(1, 2)),
    "PCM, small CFG, 4 steps, SDXL": Card(_steps(4), _DDIM, _PHASED, guidance=(1, 2)),
    "PCM, normal CFG, 4 steps, SD 1.5": Card(_steps(4), _DDIM, _PHASED, guidance=(2.5, 3.5)),
    "PCM, normal CFG, 8 steps, SDXL": Card(_steps(8), _DDIM, _PHASED, guidance=(3, 6)),
    "PCM, LCM-like, SDXL": Card(_steps(4), _LCM),
    # h1t/TCD-SD15-LoRA, TCD-SDXL-LoRA
    "TCD, SD 1.5": Card(_steps(4), _TCD, eta=0.3),
    "TCD, SDXL": Card(_steps(4), _TCD, eta=0.3),
}


@dataclass(frozen=True)
class Recipe:
    """A row of the document's table."""

    name: str
    checkpoint: str
    scheduler: str | None
    steps: int
    timesteps: list[float] | None
    eta: float | None
    guidance_scale: float

    @property
    def options(self) -> dict[str, Any]:
        """The options of `Plan.from_config`."""
        count = self.steps if self.timesteps is None else None
        return {"num_inference_steps": count, "timesteps": self.timesteps, "eta": self.eta}

    def plan(self, config: Mapping[str, Any]) -> Plan:
        return Plan.from_config(resolve(self.scheduler, config), **self.options)


def recipes() -> Iterator[Recipe]:
    (table,) = re.findall(r"^\| recipe \|.*\n\|[-|]+\n((?:\|.*\n)+)", DOC, re.MULTILINE)
    for line in table.splitlines():
        name, checkpoint, scheduler, steps, timesteps, eta, guidance = (cell.strip() for cell in line.split("|")[1:-1])
        yield Recipe(
            name,
            checkpoint,
            None if scheduler == "its own" else re.fullmatch("`(.+)`", scheduler)[1],  # type: ignore[index]
            int(steps),
            [float(t) for t in timesteps.split(",")] if timesteps else None,
            float(eta) if eta else None,
            float(guidance),
        )


RECIPES = {recipe.name: recipe for recipe in recipes()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CARDS)
def test_plans_are_what_diffusers_computes_as_the_cards_say(name: str) -> None:
    import diffusers

    recipe, card = RECIPES[name], CARDS[name]
    config = CHECKPOINTS[recipe.checkpoint]
    scheduler = getattr(diffusers, card.class_name or config["_class_name"]).from_config(config, **card.changes)
    scheduler.set_timesteps(**card.steps)
    plan = recipe.plan(config)
    assert not difference(run_plan(plan, wide=False), run_diffusers(scheduler, card.eta, wide=False))
    assert len(plan) == recipe.steps
    assert card.guidance[0] <= recipe.guidance_scale <= card.guidance[1]


def test_every_recipe_is_of_a_card_and_of_a_section() -> None:
    assert list(RECIPES) == list(CARDS)
    of = [section for recipe in RECIPES for section in SECTIONS if recipe.startswith(section)]
    assert len(of) == len(RECIPES)
    assert set(of) == set(SECTIONS)


@pytest.mark.parametrize("checkpoint", SINGLE_FILES)
def test_single_files_have_the_same_plans_as_folders(checkpoint: str) -> None:
    config = PUBLIC_CONFIGS[SINGLE_FILES[checkpoint]]["scheduler"]
    compared = [recipe for recipe in RECIPES.values() if recipe.checkpoint == checkpoint]
    assert compared
    for recipe in compared:
        folder = recipe.plan(CHECKPOINTS[checkpoint]).to_arrays()
        for name, array in recipe.plan(config).to_arrays().items():
            np.testing.assert_array_equal(array, folder[name], f"{name} of {recipe.name}")


def test_timesteps_in_the_text_are_those_of_plans() -> None:
    for scheduler, steps, text in (
        ("euler", 4, "751, 501, 251, 1 for 4 steps"),
        ("euler", 1, "1 alone for one step"),
        ("ddim", 4, "751, 501, 251, 1 for 4 steps"),
        ("euler:timestep_spacing=trailing", 4, "999, 749, 499, 249 for 4 steps"),
        ("ddim:timestep_spacing=trailing", 4, "999, 749, 499, 249 for 4 steps"),
        ("lcm", 4, "999, 759, 499, 259 for 4 steps"),
        ("lcm", 1, "999 for one"),
        ("euler_sgm_uniform", 4, "999, 749.25, 499.5, 249.75"),
    ):
        assert text in " ".join(DOC.split()), text
        told = [float(number) for number in re.findall(r"[\d.]+", text)][:steps]
        for checkpoint in ("SD 1.5", "SDXL") if scheduler != "euler" else ("SDXL",):
            plan = Plan.from_config(resolve(scheduler, CHECKPOINTS[checkpoint]), steps)
            np.testing.assert_allclose(plan.timesteps, told, rtol=1e-6)
    trailing = Plan.from_config(resolve("euler:timestep_spacing=trailing", CHECKPOINTS["SDXL"]), 4)
    uniform = Plan.from_config(resolve("euler_sgm_uniform", CHECKPOINTS["SDXL"]), 4)
    assert 0.5 < np.abs(trailing.timesteps - uniform.timesteps).max() < 1


def test_what_the_text_says_of_tcd_and_ddim() -> None:
    assert "where 3 % of the predicted noise remain" in " ".join(DOC.split())
    for scheduler in ("tcd", "ddim:timestep_spacing=trailing"):
        output = Plan.from_config(resolve(scheduler, CHECKPOINTS["SDXL"]), 1).noise_levels[-1]
        np.testing.assert_allclose(output, [1, 0.03], atol=1e-3)
    one = [Plan.from_config(resolve("tcd", CHECKPOINTS["SDXL"]), 1, eta=eta).to_arrays() for eta in (0, 1)]
    assert "Without effect on one step" in DOC
    assert all(np.array_equal(one[0][name], one[1][name]) for name in one[0])
    assert "`ddim` takes no timesteps" in " ".join(DOC.split())
    assert {name: "timesteps" in options_taken_by(name) for name in ("ddim", "lcm", "tcd")} == {
        "ddim": False,
        "lcm": True,
        "tcd": True,
    }


SECTIONS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", DOC, re.MULTILINE | re.DOTALL))


def commands(text: str) -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [shlex.split(line[2:]) for line in lines]


def parsed(words: list[str]) -> argparse.Namespace:
    """What `latentrt WORDS` would be run with; a flag must be spelled out."""
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    for module in (generate, schedule, export):
        module.add_parser(subparsers)
    known = set(re.findall(r"(?<!\w)--?[a-z][\w-]*", subparsers.choices[words[0]].format_help()))
    assert {word for word in words if word.startswith("-")} <= known
    return parser.parse_args(words)


def test_commands_are_those_of_three_programs() -> None:
    every = commands(DOC)
    assert {words[0] for words in every} == {"latentrt", "hf", "mv"}
    assert sum(words[0] == "latentrt" for words in every) >= 25
    in_sections = [words for text in SECTIONS.values() for words in commands(text)]
    elsewhere = [words for words in every if words not in in_sections and words[0] == "latentrt"]
    (arguments,) = [parsed(words[1:]) for words in elsewhere]
    for name in arguments.names:
        assert len(Plan.from_config(resolve(name, CHECKPOINTS["SDXL"]), arguments.steps)) == 4


@pytest.mark.parametrize("section", SECTIONS)
def test_commands_and_calls_are_recipes_of_their_section(section: str) -> None:
    rows = [recipe for name, recipe in RECIPES.items() if name.startswith(section)]
    exported, drawn, called = set(), 0, 0
    for words in commands(SECTIONS[section]):
        if words[0] != "latentrt":
            continue
        arguments = parsed(words[1:])
        if words[1] == "export":
            assert any((arguments.steps, arguments.guidance_scale) == (r.steps, r.guidance_scale) for r in rows), words
            exported.add(arguments.out.as_posix())
        else:
            assert arguments.prompt
            assert arguments.bundle.as_posix() in exported
            assert_recipe(given_options(arguments), rows)
            drawn += 1
    for bundle, options in calls(SECTIONS[section]):
        assert bundle in exported
        assert_recipe(options, rows)
        called += 1
    assert exported
    assert drawn
    assert called


def calls(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The bundle and the options of every call of a pipeline in the Python blocks."""
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        assert max(map(len, block.splitlines())) <= 120
        names: dict[str, Any] = {}
        for statement in ast.parse(block).body:
            if isinstance(statement, ast.Assign):
                (target,) = statement.targets
                names[ast.unparse(target)] = ast.literal_eval(statement.value)
            elif isinstance(statement, ast.With):
                opened = statement.items[0].context_expr
                assert isinstance(opened, ast.Call)
                assert ast.unparse(opened.func) == "Pipeline.load"
                bundle = ast.literal_eval(opened.args[0])
                inside = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
                for call in (node for node in inside if ast.unparse(node.func) == "pipe"):
                    given = {k.arg or "": k.value for k in call.keywords}
                    yield bundle, {k: names.get(ast.unparse(v)) or ast.literal_eval(v) for k, v in given.items()}
            else:
                assert ast.unparse(statement) == "from latentrt.runtime import Pipeline"


def assert_recipe(given: Mapping[str, Any], rows: list[Recipe]) -> None:
    """Whether a call's options are a row's: the same plan, and the same guidance, of which there is none up to 1."""
    count, timesteps = given.get("num_inference_steps"), given.get("timesteps")
    options = {"num_inference_steps": count, "timesteps": timesteps, "eta": given.get("eta")}

    def fits(row: Recipe) -> bool:
        config = CHECKPOINTS[row.checkpoint]
        same_scheduler = resolve(given.get("scheduler"), config) == resolve(row.scheduler, config)
        same_guidance = max(given["guidance_scale"], 1) == max(row.guidance_scale, 1)
        return same_scheduler and same_guidance and options == row.options

    assert any(map(fits, rows)), given
