"""Grids under the names of other libraries: against loops in float64 written from their formulas,
and against k-diffusion's and diffusers' own objects.
"""

import ast
import importlib.util
import math
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from oracle import peers

from fastsample import grids, solvers
from fastsample.schedules import EDM, VE, VP, Cosine, DiscreteVP, Flow, TrigFlow, from_functions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own
EPS = float(np.finfo(np.float64).eps)
SD = DiscreteVP.scaled_linear()
ALL = {
    "VP": VP(),
    "VE": VE(),
    "EDM": EDM(),
    "Flow": Flow(),
    "Flow(3)": Flow(3.0),
    "TrigFlow": TrigFlow(0.5),
    "SD": SD,
    "zero_snr": SD.zero_terminal_snr(),
    "Cosine": Cosine(),
    "VP shifted": VP().shifted(-1.0),
    "functions": from_functions(lambda t: 1.0 - t, lambda t: t),
}
OF_A_TABLE = ("trailing", "leading", "linspace")
FEWER, MORE = ("beta_comfyui", "beta57", "laplace"), ("ddim_uniform",)
BELOW_TOP = ("leading", "ddim_uniform", "vp", "rfd4")  # whose first level is not the noisiest


def rho(schedule, grid):
    """sigma/alpha, 0 at the end."""
    with np.errstate(divide="ignore"):
        return schedule.sigma(grid) / schedule.alpha(grid)


def near(found, wanted, ulps=512):
    return np.testing.assert_allclose(found, wanted, rtol=ulps * EPS, atol=0)


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", grids.GRIDS)
def test_every_grid_on_every_schedule(name):
    """From the noise end to sigma = 0 in n steps, or as many as the docstring says."""
    make = grids.GRIDS[name]
    for schedule in ALL.values():
        if name in OF_A_TABLE and not isinstance(schedule, DiscreteVP):
            continue
        top = {"vp": 152.0, "rfd4": 998.0}.get(name, 0.0)
        # EDM goes above its sigma_max
        if rho(schedule, schedule.t_max) < top and not isinstance(schedule, EDM):
            with pytest.raises(ValueError, match=f"grids.{name}: .* above the schedule's largest"):
                make(schedule, 4)
            continue
        for n in (1, 2, 3, 10, 57):
            grid = make(schedule, n)
            steps = len(grid) - 1
            assert steps == n or (name in FEWER and steps < n) or (name in MORE and n < steps)
            assert grid[-1] == schedule.t_zero and (np.diff(grid) < 0).all()
            assert (np.diff(schedule.half_log_snr(grid)) > 0).all()
            assert name in BELOW_TOP or grid[0] == schedule.t_max


# -- k-diffusion -----------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [2, 7, 30])
def test_k_diffusion(n, in_float64):
    sampling = peers.k_diffusion()
    low, high = 0.03, 14.6
    schedule = EDM(low, high)
    for ours, theirs in (
        (grids.karras(schedule, n), sampling.get_sigmas_karras(n, low, high)),
        (grids.karras(schedule, n, rho=5.0), sampling.get_sigmas_karras(n, low, high, rho=5.0)),
        (grids.exponential(schedule, n), sampling.get_sigmas_exponential(n, low, high)),
        (
            grids.polyexponential(schedule, n, rho=1.7),
            sampling.get_sigmas_polyexponential(n, low, high, rho=1.7),
        ),
        (grids.vp(EDM(), n), sampling.get_sigmas_vp(n)),
        (
            grids.vp(EDM(), n, beta_d=12.0, beta_min=0.3, eps_s=0.01),
            sampling.get_sigmas_vp(n, beta_d=12.0, beta_min=0.3, eps_s=0.01),
        ),
    ):
        near(ours, theirs.numpy(), ulps=8192)  # theirs cancels in e^x - 1


def test_vp_is_even_in_the_time_of_vp():
    """Its sigma = sqrt(e^(19.9 t²/2 + .1 t) - 1) is sigma/alpha of VP(.1, 20)."""
    near(grids.vp(VP(), 9)[:-1], np.linspace(1.0, 1e-3, 9))


def test_log_snr_by_its_two_names():
    """On a finite end exponential, polyexponential with rho 1 and uniform_half_log_snr are one."""
    for schedule in (VP(), EDM(), VE(), SD):
        wanted = schedule.half_log_snr(grids.uniform_half_log_snr(schedule, 9)[:-1])
        for make in (grids.exponential, grids.polyexponential):
            near(schedule.half_log_snr(make(schedule, 9)[:-1]), wanted, ulps=2048)


# -- diffusers -------------------------------------------------------------------------------------
def in_steps(module, name, n, **words):
    """A scheduler of diffusers after set_timesteps(n), all of it in float64."""
    table = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    peer = peers.scheduler(module, name, **table, **words)
    with peers._replaced(sys.modules[type(peer).__module__], **peers._in_double()):
        peer.set_timesteps(n)
    return peer


@pytest.mark.parametrize("n", [2, 5, 20])
@pytest.mark.parametrize(
    ("option", "make"),
    [
        ("use_karras_sigmas", grids.karras),
        ("use_exponential_sigmas", grids.exponential),
        ("use_beta_sigmas", grids.beta_diffusers),
    ],
)
def test_euler_of_diffusers(option, make, n):
    peer = in_steps("euler_discrete", "EulerDiscreteScheduler", n, **{option: True})
    # ends of its table, of which 1 - alphas_cumprod cancels
    np.testing.assert_allclose(rho(SD, make(SD, n)), peer.sigmas.numpy(), rtol=1e-11)


def test_lu_lambdas_of_diffusers():
    peer = in_steps("dpmsolver_multistep", "DPMSolverMultistepScheduler", 12, use_lu_lambdas=True)
    ours = rho(SD, grids.uniform_half_log_snr(SD, 12))
    np.testing.assert_allclose(ours, peer.sigmas.numpy(), rtol=1e-11)


@pytest.mark.parametrize("n", [3, 8, 30])
def test_timesteps_of_diffusers(n):
    for module, name, extra in (
        ("euler_discrete", "EulerDiscreteScheduler", False),
        ("dpmsolver_multistep", "DPMSolverMultistepScheduler", True),
    ):
        for spacing, words in (
            ("linspace", {"extra": extra}),
            ("leading", {"extra": extra, "offset": 1}),
            ("trailing", {}),
        ):
            peer = in_steps(module, name, n, timestep_spacing=spacing, steps_offset=1)
            whole = extra or spacing != "linspace"
            ours = getattr(grids, spacing)(SD, n, rounded=whole, **words)
            np.testing.assert_allclose(ours[:-1], peer.timesteps.numpy(), atol=4000 * EPS)


def of_source(module, name):
    """A function of a module, without what importing the module brings."""
    tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text())
    found = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    space = {"torch": torch}
    exec(compile(ast.Module([found], []), module, "exec"), space)
    return space[name]


@pytest.mark.parametrize(("n", "linear"), [(1, None), (2, None), (9, None), (64, None), (10, 3)])
def test_linear_quadratic_of_mochi(n, linear):
    theirs = of_source("diffusers.pipelines.mochi.pipeline_mochi", "linear_quadratic_schedule")
    if n > 1:
        near(
            grids.linear_quadratic(Flow(), n, linear_steps=linear)[:-1],
            theirs(n, 0.025, linear),
            ulps=2**14,  # theirs is 1 less a polynomial that reaches 1
        )
    assert grids.linear_quadratic(Flow(), n)[[0, -1]].tolist() == [1.0, 0.0]
    # s_max times it elsewhere
    scaled = rho(SD, grids.linear_quadratic(SD, n))
    np.testing.assert_allclose(
        scaled, scaled[0] * grids.linear_quadratic(Flow(), n), rtol=2**14 * EPS
    )


@pytest.mark.parametrize("mode", ["log", "power"])
@pytest.mark.parametrize(("n", "tail", "finer"), [(1, 0, 2), (8, 0, 2), (30, 10, 2), (30, 4, 5)])
def test_rfd4_of_diffusers(mode, n, tail, finer, in_float64):
    theirs = of_source("diffusers.schedulers.scheduling_rfd4_proteina", "_schedule")
    t = theirs(mode, n, start=1e-3, tail_steps=tail, tail_multiplier=finer).numpy()
    ours = grids.rfd4(Flow(), n, mode, tail, finer)
    np.testing.assert_allclose(ours, 1.0 - t, atol=16 * EPS)


@pytest.mark.parametrize("last", [0.1, 0.02])
def test_shift_terminal_of_diffusers(last):
    peer = diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=last)
    schedule = Flow(2.0)
    grid = grids.uniform(schedule, 8)
    wanted = peer.stretch_shift_to_terminal(torch.from_numpy(schedule.sigma(grid[:-1]))).numpy()
    made = grids.shift_terminal(schedule, grid, last)
    near(schedule.sigma(made), [*wanted, 0.0], ulps=64)
    assert (made[0], made[-1]) == (1.0, 0.0)
    part = grid[3:]  # one that begins below the noise end is stretched from there too
    wanted = peer.stretch_shift_to_terminal(torch.from_numpy(schedule.sigma(part[:-1]))).numpy()
    near(schedule.sigma(grids.shift_terminal(schedule, part, last))[:-1], wanted, ulps=64)
    for other in (VP(), SD, EDM(), TrigFlow(0.5), Cosine()):
        grid = grids.karras(other, 5)
        before, s = (
            (other.sigma(g) / (other.alpha(g) + other.sigma(g)))[:-1]
            for g in (grid, grids.shift_terminal(other, grid, last))
        )
        wanted = before[0] - (before[0] - before) * (before[0] - last) / (before[0] - before[-1])
        np.testing.assert_allclose(s, wanted, rtol=2**14 * EPS)


# -- the rest --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("grid", "wanted"),
    [
        # sqrt(t) even: 1, .7, .4 of t_min .16
        (grids.time_quadratic(Flow(t_min=0.16), 3), [1.0, 0.49, 0.16, 0.0]),
        (grids.time_quadratic(Flow(t_min=0.16), 2, end="min"), [1.0, 0.49, 0.16]),
        (grids.time_quadratic(Flow(t_min=0.008), 3, rho=3.0), [1.0, 0.216, 0.008, 0.0]),
        (grids.time_quadratic(SD, 4), [999.0, 444.0, 111.0, 0.0, -1.0]),
        # ln s from ln 16 to 0 as 1, ¼, 0
        (grids.polyexponential(EDM(1.0, 16.0), 3, rho=2.0), [16.0, 2.0, 1.0, 0.0]),
        # the median of a symmetric Beta is ½
        (grids.beta_diffusers(EDM(1.0, 5.0), 3), [5.0, 3.0, 1.0, 0.0]),
        (grids.beta_diffusers(EDM(1.0, 5.0), 2, end="min"), [5.0, 3.0, 1.0]),
        # Beta(1, 1) is uniform: .75·999 = 749.25
        (grids.beta_comfyui(SD, 4, 1.0, 1.0), [999.0, 749.0, 500.0, 250.0, -1.0]),
        (grids.kl_optimal(EDM(1 / math.sqrt(3), math.sqrt(3)), 3), [3**0.5, 1.0, 3**-0.5, 0.0]),
        (grids.linear_quadratic(Flow(), 4, 0.2, 2), [1.0, 0.9, 0.8, 0.55, 0.0]),
        (grids.simple(SD, 4), [999.0, 749.0, 499.0, 249.0, -1.0]),
        (grids.simple(Flow(), 4), [1.0, 0.75, 0.5, 0.25, 0.0]),
        (grids.ddim_uniform(SD, 4), [751.0, 501.0, 251.0, 1.0, -1.0]),
        (grids.normal(SD, 4), [999.0, 666.0, 333.0, 0.0, -1.0]),
        (grids.sgm_uniform(SD, 3), [999.0, 666.0, 333.0, -1.0]),
        (grids.normal(EDM(1.0, 16.0), 3), [16.0, 4.0, 1.0, 0.0]),
        (grids.sgm_uniform(EDM(1.0, 16.0), 2), [16.0, 4.0, 0.0]),
        (grids.leading(SD, 3, offset=1, extra=True), [751.0, 501.0, 251.0, -1.0]),
        (grids.linspace(SD, 3, extra=True), [999.0, 666.0, 333.0, -1.0]),
        (
            grids.f_scheduler(EDM(), [("linear", 2, 9.0, 3.0), ("exponential", 1, 3.0, 0.5)]),
            [9.0, 6.0, 3.0, 0.5],
        ),
        (grids.f_scheduler(EDM(), [("karras", 2, 2.0**7, 0.0)]), [128.0, 1.0, 0.0]),
        # twice the SNR of a flow halves sigma/alpha
        (grids.shifted(Flow(), [1.0, 0.5, 0.0], 2 * math.log(2.0)), [1.0, 1 / 3, 0.0]),
        (grids.shifted(EDM(), [8.0, 2.0, 0.0], -2 * math.log(3.0)), [24.0, 6.0, 0.0]),
        (grids.shift_terminal(Flow(), [1.0, 0.6, 0.2, 0.0], 0.4), [1.0, 0.7, 0.4, 0.0]),
    ],
)
def test_literal(grid, wanted):
    assert grid.dtype == np.float64
    near(grid, wanted, ulps=1024)


def test_a_shift_of_the_times_is_the_shift_of_a_flow():
    """What a network is told is sigma, so moving the times of Flow() is Flow(3)."""
    times = grids.shifted(Flow(), grids.uniform(Flow(), 7), -2.0 * math.log(3.0))
    near(Flow().sigma(times), Flow(3.0).sigma(grids.uniform(Flow(3.0), 7)), ulps=64)


def test_the_plan_of_segments_ends_with_noise_left():
    plan = solvers.dpmpp_2m(
        SD,
        grids.f_scheduler(SD, [("karras", 3, 14.6, 2.0), ("exponential", 2, 2.0, 0.1)]),
        prediction="eps",
    )
    assert plan.nfe == 5 and abs(plan.sigma[-1] / plan.alpha[-1] - 0.1) < 1e-12


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: grids.time_quadratic(VP(), 4, rho=0),
            "grids.time_quadratic: rho = 0; a number > 0",
        ),
        (lambda: grids.polyexponential(VP(), 4, rho="a"), "polyexponential: rho = 'a'; a number"),
        (lambda: grids.beta_diffusers(VP(), 4, beta=-1), "beta_diffusers: beta = -1; a number > 0"),
        (lambda: grids.beta_comfyui(VP(), 4, alpha=0), "beta_comfyui: alpha = 0; a number > 0"),
        (
            lambda: grids.kl_optimal(VP(), 4, end="x"),
            "grids.kl_optimal: end = 'x'; 'zero' or 'min'",
        ),
        (lambda: grids.linear_quadratic(VP(), 4, 1.5), "threshold = 1.5; a number inside"),
        (lambda: grids.linear_quadratic(VP(), 4, linear_steps=5), "linear_steps = 5 of n = 4; up"),
        (lambda: grids.bong_tangent(VP(), 4, middle=1), "middle = 1; a number inside"),
        (lambda: grids.bong_tangent(VP(), 4, pivots=(1,)), r"pivots = \(1,\); two numbers"),
        (lambda: grids.bong_tangent(VP(), 4, slopes=(0, 1)), "slopes = 0; a number > 0"),
        (lambda: grids.vp(VP(), 4, eps_s=0), "grids.vp: eps_s = 0; a number > 0"),
        (lambda: grids.laplace(VP(), 4, mu=None), "grids.laplace: mu = None; a number"),
        (lambda: grids.rfd4(VP(), 4, "root"), "grids.rfd4: mode = 'root'; 'log' or 'power'"),
        (lambda: grids.rfd4(Flow(), 9, tail_steps=5), "n = 9 with tail_steps = 5 and tail_multi"),
        (lambda: grids.rfd4(Flow(), 9, tail_steps=2, tail_multiplier=1), "a multiplier of 2 or"),
        (lambda: grids.simple(SD, 2000), "grid: entry 1 is 999 after 999"),
        (
            lambda: grids.leading(SD, 1000, extra=True),
            "n = 1000 for a table of 1000 levels; n up to 999",
        ),
        (
            lambda: grids.f_scheduler(SD, [("cosine", 2, 3, 1)]),
            "one of karras, exponential, linear",
        ),
        (lambda: grids.f_scheduler(SD, [("karras", 2, 3)]), r"segment \('karras', 2, 3\)"),
        (
            lambda: grids.f_scheduler(SD, [("karras", 2, 3, 1), ("karras", 2, 2, 1)]),
            "a segment from 2 after one to 1; segments that begin where",
        ),
        (
            lambda: grids.f_scheduler(SD, [("exponential", 2, 3, 0)]),
            "exponential from 3 to 0; fall",
        ),
        (lambda: grids.f_scheduler(SD, [("karras", 2, 1, 3)]), "karras from 1 to 3; falling"),
        (lambda: grids.f_scheduler(SD, [("karras", 0, 3, 1)]), "f_scheduler: n = 0"),
        (lambda: grids.f_scheduler(SD, []), r"grids.from_sigmas: shape \[0\]"),
        (
            lambda: grids.shifted(VP(), grids.uniform(VP(), 3), -1.0),
            "log_snr = -1 moves half_log_snr to -5.5.*; down to -5.0.*, the schedule's end",
        ),
        (lambda: grids.shifted(VP(), [1, 0], None), "grids.shifted: log_snr = None; a number"),
        (lambda: grids.shift_terminal(Flow(), [1, 0.5, 0], 0), "level = 0; a number inside .0, 1."),
        (
            lambda: grids.shift_terminal(Flow(), [1, 0], 0.1),
            "a grid of the noise end alone before sigma = 0",
        ),
    ],
)
def test_a_bad_grid_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ImportError, match=r"scipy; pip install 'fastsample\[optimize\]'"):
        grids.beta_comfyui(SD, 4)
