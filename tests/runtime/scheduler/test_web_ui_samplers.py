"""Samplers of web UIs against k-diffusion's functions, diffusers' iPNDM, or the formula written out here.

All in float64 on a nonlinear model, with the same draws and the plan's own sigmas; then `Plan.replay` in float32.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.k_diffusion import diffusers_sde, sampling

from latentrt.runtime.errors import SchedulerError
from latentrt.runtime.scheduler import Plan, resolve
from latentrt.runtime.scheduler.config import checked_options
from latentrt.runtime.scheduler.own_options import ALL_OPTIONS
from latentrt.runtime.scheduler.sigma_grids import GRIDS
from latentrt.runtime.scheduler.solving import Solved, solved
from latentrt.runtime.scheduler.spacings import Steps

Array = NDArray[np.float64]
Model = Callable[[Any, Any], Any]
Draw = Callable[..., Array]
Reference = Callable[[Model, Array, Array, Draw, dict[str, Any]], Array]

CHECKPOINT = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
}
SHAPE = (3, 5)
STEPS = (1, 2, 4, 10, 20, 50)
K = sampling()


def solution(name: str, steps: int, **changes: Any) -> tuple[Solved, dict[str, Any]]:
    options = checked_options(resolve({**resolve(name, CHECKPOINT), **changes}, CHECKPOINT))
    options |= {"strength": None, "denoising_start": None, "denoising_end": None, "eta": options.get("eta", 0.0)}
    return solved(options, Steps(steps)), options


class Denoiser:
    """The predicted clean latents of a nonlinear model, for a reference that makes the same calls as the plan."""

    def __init__(self, result: Solved) -> None:
        alphas, sigmas = result.schedule.levels.T
        self.calls = iter(zip(sigmas / alphas, result.schedule.timesteps, strict=True))

    @staticmethod
    def output(x: Any, t: Any) -> Array:
        return np.asarray(0.9 * np.tanh(0.7 * x + 0.001 * float(t)) + 0.1 * np.sin(3 * x))

    def __call__(self, x: Any, sigma: Any, **_: Any) -> Any:
        level, time = next(self.calls)
        assert abs(level / float(np.ravel(np.asarray(sigma))[0]) - 1) < 1e-9, "the plan has another sigma at this call"
        given = np.asarray(x, np.float64)
        clean = given - level * self.output(given / math.hypot(level, 1), time)
        return torch.from_numpy(clean) if isinstance(x, torch.Tensor) else clean


def rows_applied(result: Solved, noise: Array, draw: Draw) -> Array:
    """The plan before it is rounded, run in float64."""
    alpha, sigma = result.schedule.levels[0]
    state = np.zeros((7, *SHAPE))
    state[0] = noise / math.hypot(1, sigma / alpha)
    for table, call, time in zip(result.table, result.calls, result.schedule.timesteps, strict=True):
        fresh = draw() if call.draws else np.zeros(SHAPE)
        output = Denoiser.output(state[0], time)
        state = np.tensordot(table, np.concatenate([state, output[None], fresh[None]]), 1)
    return state[0]


def draws_of(seed: int) -> Draw:
    rng = np.random.default_rng(seed)
    return lambda *_: rng.standard_normal(SHAPE)


def of_k_diffusion(function: str, *, brownian: bool = False, **fixed: Any) -> Reference:
    def run(model: Model, x: Array, sigmas: Array, draw: Draw, options: dict[str, Any]) -> Array:
        path = Path(draw, middle=brownian)
        takes = inspect.signature(getattr(K, function)).parameters
        given = {key: options[key] for key in ("s_noise", "s_churn") if key in options and key in takes}
        if "noise_sampler" in takes:
            given["noise_sampler"] = lambda a, b: torch.from_numpy(path(float(a), float(b)))
            given["eta"] = options["eta"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(K.torch, "randn_like", lambda _: torch.from_numpy(draw()))
            result = getattr(K, function)(
                model, torch.from_numpy(x), torch.from_numpy(sigmas), disable=True, **given, **fixed
            )
        return np.asarray(result)

    return run


class Path:
    """Draws as increments of one Brownian motion in sigma, as k-diffusion's; the first part of a step comes first."""

    def __init__(self, draw: Draw, *, middle: bool) -> None:
        self.draw, self.middle = draw, middle
        self.first: tuple[float, float, Array] | None = None

    def __call__(self, begin: float, end: float) -> Array:
        if not self.middle:
            return self.draw()
        if self.first is None or self.first[0] != begin:
            self.first = (begin, end, self.draw())
            return self.first[2]
        share = (begin - self.first[1]) / (begin - end)
        return math.sqrt(share) * self.first[2] + math.sqrt(1 - share) * self.draw()


def slope(model: Model, x: Array, s: float) -> tuple[Array, Array]:
    clean = model(x, s)
    return clean, (x - clean) / s


def heunpp2(model: Model, x: Array, sigmas: Array, _draw: Draw, _options: dict[str, Any]) -> Array:
    last = len(sigmas) - 2
    for i in range(last + 1):
        ahead = min(last - i, 2) + 1  # slopes that count
        slopes, y = [], x
        for j in range(ahead):
            slopes.append(slope(model, y, sigmas[i + j])[1])
            if j < ahead - 1:
                y = y + (sigmas[i + j + 1] - sigmas[i + j]) * slopes[-1]
        weights = [sigmas[i + j] / (ahead * sigmas[0]) for j in range(1, ahead)]
        weights = [1 - sum(weights), *weights]
        x = x + (sigmas[i + 1] - sigmas[i]) * sum(w * d for w, d in zip(weights, slopes, strict=True))
    return x


def gradient_estimation(model: Model, x: Array, sigmas: Array, _draw: Draw, _options: dict[str, Any]) -> Array:
    before = None
    for s, s_next in itertools.pairwise(sigmas):
        clean, d = slope(model, x, s)
        if s_next == 0:
            return np.asarray(clean)
        estimate = d if before is None else 2 * d + (1 - 2) * before
        x, before = x + (s_next - s) * estimate, d
    return x


def ipndm(model: Model, x: Array, sigmas: Array, _draw: Draw, options: dict[str, Any]) -> Array:
    """diffusers' class on these sigmas; with variable steps zju-pi's weights, in the order of their brackets."""
    if options["variable_steps"]:
        return ipndm_v(model, x, sigmas)
    from diffusers import IPNDMScheduler

    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(len(sigmas) - 1)
    size = np.hypot(1, sigmas)
    scheduler.alphas, scheduler.betas = torch.from_numpy(1 / size), torch.from_numpy(sigmas / size)
    state = torch.from_numpy(x / size[0])
    for i, time in enumerate(scheduler.timesteps):
        a, b = float(scheduler.alphas[i]), float(scheduler.betas[i])
        noise = slope(model, np.asarray(state) / a, sigmas[i])[1]
        velocity = torch.from_numpy((noise - b * np.asarray(state)) / a)
        if sigmas[i + 1] == 0:
            scheduler.ets = []  # web UIs end with Euler's step
        state = scheduler.step(velocity, time, state).prev_sample
    return np.asarray(state)


def ipndm_v(model: Model, x: Array, sigmas: Array) -> Array:
    past: list[Array] = []
    for i, (s, s_next) in enumerate(itertools.pairwise(sigmas)):
        clean, d = slope(model, x, s)
        if s_next == 0:
            return np.asarray(clean)
        h = [sigmas[i + 1 - k] - sigmas[i - k] for k in range(min(i, 3) + 1)]
        weights = np.zeros(len(h))
        weights[0] = 1
        if len(h) > 1:
            weights[:2] += np.array([1, -1]) * h[0] / h[1] / 2
        if len(h) > 2:
            bend = 0.5 - h[0] / 6 / (h[0] + h[1]) * h[0] * (h[0] + h[1]) / h[1] / (h[1] + h[2])
            weights[:3] += bend * np.array([1, -1 - h[1] / h[2], h[1] / h[2]])
        if len(h) > 3:
            a, b, c, e = h
            bend = (0.5 - a / 6 / (a + b) + a / 6 / (a + b + c) * (1 - a / 2 / (a + b))) * (a * (a + b) * (a + b + c))
            bend /= b * (b + c) * (b + c + e)
            far = b * (b + c) / c / (c + e)
            weights += bend * np.array([1, -1 - b / c - far, b / c + far * (1 + c / e), -far * b / c])
        x = x + h[0] * sum(w * m for w, m in zip(weights, (d, *past), strict=False))
        past = [d, *past[:2]]
    return x


def restart(model: Model, x: Array, sigmas: Array, draw: Draw, options: dict[str, Any]) -> Array:
    """The paper's algorithm with one interval, on Heun steps; 0 to 2 repetitions."""
    n = len(sigmas) - 1
    times, again = (0, 0) if n < 20 else (1, 9) if n < 36 else (2, n // 4)
    if times:
        line = K.get_sigmas_karras(n - times * again, sigmas[-2], sigmas[0]).double().numpy()
        exact = np.linspace(sigmas[0] ** (1 / 7), sigmas[-2] ** (1 / 7), n - times * again) ** 7
        np.testing.assert_allclose(line[:-1], exact, rtol=1e-5)
        sigmas = np.append(exact, 0)
    low, high = (int(np.abs(sigmas - level).argmin()) for level in (0.1, 2))

    def heun(x: Array, s: float, s_next: float) -> Array:
        clean, d = slope(model, x, s)
        if s_next == 0:
            return clean
        d_2 = slope(model, x + (s_next - s) * d, s_next)[1]
        return x + (s_next - s) * (d + d_2) / 2

    for i in range(len(sigmas) - 1):
        x = heun(x, sigmas[i], sigmas[i + 1])
        for _ in range(times if i + 1 == low else 0):
            x = x + options["s_noise"] * math.sqrt(sigmas[high] ** 2 - sigmas[low] ** 2) * draw()
            loop = np.linspace(sigmas[high] ** (1 / 7), sigmas[low] ** (1 / 7), again + 1) ** 7
            for s, s_next in itertools.pairwise(loop):
                x = heun(x, s, s_next)
    return x


def dpm_fast(model: Model, x: Array, sigmas: Array, draw: Draw, options: dict[str, Any]) -> Array:
    result = K.sample_dpm_fast(
        model,
        torch.from_numpy(x),
        options["table"][0],
        sigmas[0],
        options["steps"],
        disable=True,
        eta=options["eta"],
        s_noise=options["s_noise"],
        noise_sampler=lambda *_: torch.from_numpy(draw()) if options["eta"] else 0.0,
    )
    return np.asarray(result)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def phi(k: int, z: float) -> float:
    """`integral of exp((1 - t) z) t**(k-1) / (k-1)!` over [0, 1], by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(30)
    t = (nodes + 1) / 2
    return float(weights @ (np.exp((1 - t) * z) * t ** (k - 1)) / 2 / math.factorial(k - 1))


def res_multistep(model: Model, x: Array, sigmas: Array, draw: Draw, options: dict[str, Any]) -> Array:
    """Equations of the paper in lambda = -log sigma; the previous prediction stands where it was made.

    With noise, ComfyUI measures from where the last step ended before its noise was added.
    """
    before: tuple[float, float, Array] | None = None
    for s, s_next in itertools.pairwise(sigmas):
        s_up = min(s_next, options["eta"] * math.sqrt(s_next**2 * (s**2 - s_next**2) / s**2))
        s_down = math.sqrt(s_next**2 - s_up**2)
        clean = model(x, s)
        if s_down == 0 or before is None:
            x = clean + (x - clean) * s_down / s
        else:
            h = math.log(s / s_down)
            node = (math.log(before[1]) - math.log(before[0])) / h
            second = phi(2, -h) / node
            x = math.exp(-h) * x + h * ((phi(1, -h) - second) * clean + second * before[2])
        if s_next > 0 and options["eta"]:
            x = x + s_up * options["s_noise"] * draw()
        before = (s, s_down, clean)
    return x


def er_sde(model: Model, x: Array, sigmas: Array, draw: Draw, options: dict[str, Any]) -> Array:
    """Appendix of arXiv:2309.06169, variance exploding."""
    past: list[tuple[float, Array]] = []

    def scale(s: Any) -> Any:
        return s * (np.exp(s**0.3) + 10)

    for s, s_next in itertools.pairwise(sigmas):
        clean = model(x, s)
        if s_next == 0:
            return np.asarray(clean)
        r = scale(s_next) / scale(s)
        x = r * x + (1 - r) * clean
        width = (s - s_next) / 200
        points = [s_next + k * width for k in range(200)]
        past = [(s, clean), *past[:2]]
        if len(past) > 1:
            first = (past[0][1] - past[1][1]) / (past[0][0] - past[1][0])
            x = x + (s_next - s + scale(s_next) * width * sum(1 / scale(p) for p in points)) * first
        if len(past) > 2:
            older = (past[1][1] - past[2][1]) / (past[1][0] - past[2][0])
            second = (first - older) / ((past[0][0] - past[2][0]) / 2)
            area = width * sum((p - s) / scale(p) for p in points)
            x = x + ((s_next - s) ** 2 / 2 + scale(s_next) * area) * second
        x = x + options["s_noise"] * math.sqrt(s_next**2 - s**2 * r**2) * draw()
    return x


def seeds(stages: int) -> Reference:
    """Exponential Runge-Kutta of the drift, and one Brownian motion in log-SNR for the noise of all stages."""

    def run(model: Model, x: Array, sigmas: Array, draw: Draw, options: dict[str, Any]) -> Array:
        eta = options["eta"]
        for s, s_next in itertools.pairwise(sigmas):
            clean = model(x, s)
            if s_next == 0:
                return np.asarray(clean)
            h = math.log(s / s_next)
            nodes = [1 / 3, 2 / 3] if stages == 3 else [options["stage"]]
            outputs, noise, at = [clean], np.zeros(SHAPE), 0.0
            for node in [*nodes, 1.0]:
                z = -node * h * (1 + eta)
                if len(outputs) == 1:
                    mean = -z * phi(1, z) * clean
                else:
                    second = -z * phi(2, z) / (nodes[len(outputs) - 2] / node)
                    if stages == 2 and options["solver_type"] == "phi_1":
                        second = -z * phi(1, z) / 2 / nodes[0]
                    mean = (-z * phi(1, z) - second) * clean + second * outputs[-1]
                passed = (node - at) * h * eta
                if eta:
                    noise = math.exp(-passed) * noise + math.sqrt(1 - math.exp(-2 * passed)) * (draw())
                at, level = node, s * math.exp(-node * h)
                y = math.exp(-node * h * (1 + eta)) * x + mean + level * options["s_noise"] * noise
                if node < 1 or (nodes[-1] == 1 and len(outputs) == 1):
                    outputs.append(model(y, level))
            x = y
        return x

    return run


def sa_solver_pece(model: Model, x: Array, sigmas: Array, draw: Draw, options: dict[str, Any]) -> Array:
    """Equations 15 and 18 with weights by quadrature, a second evaluation after each correction."""
    lam = -np.log(np.append(sigmas[:-1], sigmas[-1] or 1.0))
    table = options["table"]
    low, high = (math.exp(np.interp(t, np.arange(1000), np.log(table))) for t in (199.8, 799.2))
    past: list[Array] = []
    corrected, tau, noise = x, 0.0, np.zeros(SHAPE)
    n = len(sigmas) - 1
    for i in range(n):
        clean = model(x, sigmas[i])
        past = [clean, *past[:3]]
        if i:
            order = min(4, len(past), n - i if sigmas[-1] == 0 else 4)
            weights = lagrange(lam[[i - k for k in range(order)]], lam[i - 1], lam[i], tau)
            carry = sigmas[i] / sigmas[i - 1] * math.exp(-(tau**2) * (lam[i] - lam[i - 1]))
            x = carry * corrected + noise + sum(w * m for w, m in zip(weights, past, strict=False))
            clean = model(x, sigmas[i])
            past[0] = clean
        corrected = x
        if sigmas[i + 1] == 0:
            return np.asarray(clean)
        tau = options["eta"] if low <= sigmas[i + 1] <= high else 0.0
        order = min(3, len(past), n - 1 - i if sigmas[-1] == 0 else 3)
        h = lam[i + 1] - lam[i]
        weights = lagrange(lam[[i - k for k in range(order)]], lam[i], lam[i + 1], tau)
        fresh = draw() if tau else np.zeros(SHAPE)
        noise = options["s_noise"] * sigmas[i + 1] * math.sqrt(1 - math.exp(-2 * tau**2 * h)) * fresh
        carry = sigmas[i + 1] / sigmas[i] * math.exp(-(tau**2) * h)
        x = carry * corrected + noise + sum(w * m for w, m in zip(weights, past, strict=False))
    return x


def lagrange(nodes: Array, begin: float, end: float, tau: float) -> list[float]:
    """Integrals of the Lagrange polynomials times the solver's kernel, by quadrature."""
    points, weights = np.polynomial.legendre.leggauss(40)
    t = begin + (points + 1) / 2 * (end - begin)
    kernel = (1 + tau**2) * np.exp((1 + tau**2) * (t - end)) * weights * (end - begin) / 2
    others = [[n for j, n in enumerate(nodes) if j != k] for k in range(len(nodes))]
    return [
        float(kernel @ np.prod([(t - o) / (node - o) for o in rest] or [np.ones_like(t)], axis=0))
        for node, rest in zip(nodes, others, strict=True)
    ]


REFERENCES: dict[str, Reference] = {
    "euler": of_k_diffusion("sample_euler"),
    "euler_a": of_k_diffusion("sample_euler_ancestral"),
    "heun": of_k_diffusion("sample_heun"),
    "dpm2": of_k_diffusion("sample_dpm_2"),
    "dpm2_a": of_k_diffusion("sample_dpm_2_ancestral"),
    "lms": of_k_diffusion("sample_lms"),
    "dpm++_2m": of_k_diffusion("sample_dpmpp_2m"),
    "dpm++_2m_sde": of_k_diffusion("sample_dpmpp_2m_sde"),
    "dpm++_2m_sde_heun": of_k_diffusion("sample_dpmpp_2m_sde", solver_type="heun"),
    "dpm++_2s_a": of_k_diffusion("sample_dpmpp_2s_ancestral"),
    "dpm++_sde": of_k_diffusion("sample_dpmpp_sde", brownian=True),
    "dpm++_3m_sde": of_k_diffusion("sample_dpmpp_3m_sde"),
    "dpm_fast": dpm_fast,
    "heunpp2": heunpp2,
    "gradient_estimation": gradient_estimation,
    "ipndm": ipndm,
    "ipndm_v": ipndm,
    "restart": restart,
    "res_multistep": res_multistep,
    "res_multistep_a": res_multistep,
    "er_sde": er_sde,
    "seeds_2": seeds(2),
    "seeds_3": seeds(3),
    "exp_heun_2_x0": seeds(2),
    "exp_heun_2_x0_sde": seeds(2),
    "sa_solver_pece": sa_solver_pece,
}


def between_steps(name: str, steps: int, **changes: Any) -> Array:
    """The sigmas between steps: those of Euler's method in the same config, but for classes with steps of their own."""
    own = {"lms": 1, "dpm2": 2, "dpm2_a": 2, "dpm++_2m": 1, "dpm++_2m_sde": 1, "dpm++_2m_sde_heun": 1}
    result, _ = solution(name if name in own else "euler", steps, **changes)
    alphas, sigmas = result.schedule.levels[:: own.get(name, 1)].T
    return np.append(sigmas / alphas, result.schedule.targets[-1, 1])


def compare(name: str, steps: int, seed: int, **changes: Any) -> None:
    reference = REFERENCES[name]
    result, options = solution(name, steps, **changes)
    options |= {"steps": steps, "table": result.schedule.table.astype(np.float64)}
    layout = {k: v for k, v in changes.items() if not k.startswith("s_") and k not in ("eta", "stage", "solver_type")}
    sigmas = between_steps(name, steps, **layout)
    noise = np.random.default_rng(seed).standard_normal(SHAPE) * sigmas[0]
    denoiser = Denoiser(result)
    theirs = reference(denoiser, noise, sigmas, draws_of(seed), options)
    assert next(denoiser.calls, None) is None
    ours = rows_applied(result, noise, draws_of(seed))
    assert np.abs(ours - theirs).max() <= 1e-9 * np.abs(theirs).max()

    plan = Plan.from_config({**resolve(name, CHECKPOINT), **changes}, steps)
    alpha, sigma = result.schedule.levels[0]
    unit = (noise / math.hypot(1, sigma / alpha) / plan.initial[0, 0]).astype(np.float32)
    replayed = plan.replay(Denoiser.output, unit, draw=draws_of(seed))
    assert replayed.dtype == np.float32
    np.testing.assert_allclose(replayed, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", REFERENCES)
def test_rows_are_what_the_reference_computes(name: str, steps: int) -> None:
    if name in ("dpm++_3m_sde", "dpm++_2m_sde", "dpm++_2m_sde_heun") and steps == 1:  # k-diffusion's raise there
        result, _ = solution(name, 1)
        assert np.array_equal(result.calls[0].sample, result.calls[0].clean)
        return
    compare(name, steps, seed=steps)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("name", [name for name in REFERENCES if name != "dpm_fast"])
def test_every_schedule_type(name: str, kind: str) -> None:
    compare(name, 13, seed=3, schedule_type=kind)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (name, changes)
        for name in REFERENCES
        for changes in (
            {"s_noise": 1.01},
            {"eta": 0.0},
            {"eta": 0.4, "s_noise": 0.97},
            {"discard_next_to_last": True, "schedule_type": "karras"},
            {"sigma_min": 0.1, "sigma_max": 9.0, "use_karras_sigmas": True},
            {"stage": 0.7, "solver_type": "phi_2"},
        )
        if all(key in ALL_OPTIONS[resolve(name, CHECKPOINT)["_class_name"]] for key in changes)
    ],
)
def test_options(name: str, changes: dict[str, Any]) -> None:
    compare(name, 9, seed=5, **changes)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm2"])
@pytest.mark.parametrize(("steps", "churn"), [(9, 3.0), (4, 60.0)])
def test_churn(name: str, steps: int, churn: float) -> None:
    """k-diffusion also draws before the first call, where a plan begins with as much noise at once."""
    limits = {"s_churn": churn, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
    result, _ = solution(name, steps, **limits)
    sigmas = between_steps(name, steps)
    noise = draws_of(1)()
    first = sigmas[0] * (1 + min(churn / steps, math.sqrt(2) - 1))
    assert result.schedule.levels[0, 1] == pytest.approx(first, rel=1e-12)
    rises = iter([noise * (first - sigmas[0]) / math.sqrt(first**2 - sigmas[0] ** 2) / 1.003])
    draw = draws_of(2)
    with pytest.MonkeyPatch.context() as patch:
        raised = iter((sigmas[:-1] >= 0.05) & (sigmas[:-1] <= 50))

        def next_draw(_: Any) -> Any:
            if not next(raised):
                return torch.zeros(SHAPE)
            given = next(rises, None)
            return torch.from_numpy(draw() if given is None else given)

        patch.setattr(K.torch, "randn_like", next_draw)
        function = {"euler": K.sample_euler, "heun": K.sample_heun, "dpm2": K.sample_dpm_2}[name]
        theirs = function(
            Denoiser(result), torch.from_numpy(noise * sigmas[0]), torch.from_numpy(sigmas), disable=True, **limits
        )
    ours = rows_applied(result, noise * first, draws_of(2))
    assert np.abs(ours - np.asarray(theirs)).max() <= 1e-9 * np.abs(ours).max()


def test_a_part_begins_as_web_uis_do() -> None:
    """With strength, the sampler runs along the last sigmas as if they were all."""
    for name in ("dpm++_sde", "heunpp2", "restart", "res_multistep", "dpm++_3m_sde"):
        plan = Plan.from_config(resolve(name, CHECKPOINT), 40, strength=0.25)
        sigmas = between_steps(name, 40)[30:]
        alone = Plan.from_config(resolve(name, CHECKPOINT), sigmas=sigmas.tolist())
        np.testing.assert_allclose(plan.coefficients, alone.coefficients, rtol=1e-5, atol=1e-6)
        level = plan.noise_levels[0]
        np.testing.assert_allclose(plan.initial[0], level[::-1], rtol=1e-6)


@pytest.mark.parametrize("name", ["restart", "dpm_fast"])
def test_steps_of_their_own_are_not_cut_by_timesteps(name: str) -> None:
    with pytest.raises(SchedulerError, match="steps of its own, so denoising_start and denoising_end"):
        Plan.from_config(resolve(name, CHECKPOINT), 20, denoising_end=0.5)


def test_two_halves_hand_over() -> None:
    """A plan with denoising_end leaves what one with denoising_start goes on from."""
    config = resolve("dpm++_2s_a", CHECKPOINT)
    first, rest = (Plan.from_config(config, 12, eta=0.0, **{key: 0.5}) for key in ("denoising_end", "denoising_start"))
    whole = Plan.from_config(config, 12, eta=0.0)
    noise = draws_of(3)()
    half = first.replay(Denoiser.output, noise)
    expected = whole.replay(Denoiser.output, noise)
    assert len(first) + len(rest) == len(whole)
    np.testing.assert_allclose(rest.replay(Denoiser.output, noise, clean=half), expected, rtol=1e-4)


def test_diffusers_own_dpm_solver_sde() -> None:
    """Its class adds the increments of a Brownian tree, which only torchsde draws; here they come from `Path`."""
    module = diffusers_sde()
    for options in (
        {},
        {"use_karras_sigmas": True},
        {"timestep_spacing": "trailing"},
        {"use_exponential_sigmas": True},
    ):
        config = {**CHECKPOINT, "_class_name": "DPMSolverSDEScheduler", **options}
        del config["skip_prk_steps"]
        draw = draws_of(8)
        path = Path(lambda draw=draw: draw(), middle=True)  # type: ignore[misc]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                module,
                "BrownianTreeNoiseSampler",
                lambda *_, path=path, **__: lambda a, b: torch.from_numpy(path(float(a), float(b))),
            )
            scheduler = module.DPMSolverSDEScheduler(**{k: v for k, v in config.items() if k != "_class_name"})
            scheduler.set_timesteps(11)
            plan = Plan.from_config(config, 11)
            np.testing.assert_allclose(plan.timesteps, scheduler.timesteps, atol=2e-3)
            unit = np.random.default_rng(0).standard_normal(SHAPE)
            x = torch.from_numpy(unit) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                scaled = scheduler.scale_model_input(x, t)
                x = scheduler.step(torch.from_numpy(Denoiser.output(scaled.numpy(), t)), t, x).prev_sample
        ours = plan.replay(Denoiser.output, unit, draw=draws_of(8))
        np.testing.assert_allclose(ours, x.numpy(), atol=3e-5 * np.abs(ours).max())
