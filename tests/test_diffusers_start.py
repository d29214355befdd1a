"""Where an FsScheduler's run begins: noise times init_scale, once, by the pipeline or by the first
step; images as add_noise made them.
"""

import copy
import math

import pytest
import torch

import fastsample as fs
from fastsample import grids, solvers
from fastsample.schedules import EDM, VP, Flow
from tests.cases import louder

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FLOW = Flow(shift=3.0)
Z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def scheduler_of(plan, **given):
    scheduler = fs.FsScheduler.from_plan(plan)
    scheduler.set_timesteps(plan.nfe, **given)
    return scheduler


def first_state(scheduler, x, at=0):
    """The state a step at `at` begins from, read off its result with a zero output: x' = a·x."""
    t, zero = scheduler.timesteps[at], torch.zeros_like(x)
    row = scheduler.plan.remake(at) if at else scheduler.plan
    m = row.p[1] * row.M[1, 0, 1 + row.S]
    return scheduler.step(zero, t, x).prev_sample.double() / (row.M[1, 0, 0] + m)


def flow_plan(make=solvers.euler):
    return louder(make(fs.Model(None, FLOW, "flow", time=1000), grids.uniform(FLOW, 6)[1:]))


@pytest.mark.parametrize("make", [solvers.euler, solvers.dpmpp_2m, solvers.heun])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_flow_noise_is_multiplied_by_the_first_step(make, dtype):
    """init_noise_sigma stays 1 on flow scale. What add_noise or scale_noise made is taken as it is,
    packed and cast as pipelines do.
    """
    plan, few = flow_plan(make), 8 * torch.finfo(dtype).eps
    close = lambda a, b: torch.allclose(a.double(), b.double(), rtol=few, atol=1e-6)
    scheduler, z = scheduler_of(plan), Z.to(dtype)
    assert scheduler.init_noise_sigma == 1.0 and plan.init_scale != 1.0
    scaled = z.double() * plan.init_scale
    assert close(scheduler.scale_model_input(z, scheduler.timesteps[0]), scaled)
    assert close(first_state(scheduler, z), scaled)
    image = torch.ones_like(z)
    noisy = plan.alpha[1] + plan.sigma[1] * z.double()
    for noising in (
        lambda s: s.scale_noise(image, s.timesteps[:1], z),
        lambda s: s.add_noise(image, z, s.timesteps[:1].repeat(2)),
        lambda s: (s.set_begin_index(0), s.scale_noise(image, s.timesteps[3:4], z))[1],
    ):
        for after in (
            lambda v: v,
            torch.clone,
            lambda v: v.unflatten(3, (4, 2)).permute(0, 2, 4, 3, 1).reshape(2, 4, 48),
            lambda v: v[1:],
        ):
            scheduler = scheduler_of(plan)
            x = after(noising(scheduler)).to(dtype)
            twin = copy.deepcopy(scheduler)
            assert twin.scale_model_input(x, twin.timesteps[0]) is x
            assert all(close(first_state(s, x), after(noisy)) for s in (scheduler, twin))
    scheduler.set_timesteps(plan.nfe)  # a new loop knows nothing of what came before it
    assert close(first_state(scheduler, z), scaled)


def test_nothing_is_multiplied_above_the_first_step():
    """A begin index above 0, a first timestep further on, the second step, and noise taken to
    another level than the first.
    """
    plan = flow_plan()
    for at, begin in ((2, True), (2, False), (1, True)):
        scheduler = scheduler_of(plan)
        if begin:
            scheduler.set_begin_index(at)
        assert torch.allclose(first_state(scheduler, Z, at), Z, rtol=1e-6)
    scheduler = scheduler_of(plan)
    scheduler.scale_noise(Z, scheduler.timesteps[2:3], Z)  # of something else
    x = scheduler.step(torch.zeros_like(Z), scheduler.timesteps[0], Z).prev_sample
    assert torch.allclose(x, Z * plan.init_scale * float(plan.M[1, 0, 0]), rtol=1e-6)
    y = scheduler.step(torch.zeros_like(Z), scheduler.timesteps[1], x).prev_sample
    assert torch.allclose(y, x * float(plan.M[2, 0, 0]), rtol=1e-6)


def test_a_first_step_that_was_refused_may_come_again():
    plan = flow_plan(solvers.euler_ancestral)
    ends = []
    for refused in (False, True):
        scheduler = scheduler_of(plan)
        t = scheduler.timesteps[0]
        if refused:
            with pytest.raises(ValueError, match="noise_source gave"):
                scheduler.step(Z, t, Z, variance_noise=Z[:1])
        assert torch.allclose(scheduler.scale_model_input(Z, t), Z * plan.init_scale, rtol=1e-12)
        ends.append(scheduler.step(Z, t, Z, variance_noise=Z).prev_sample)
    assert torch.equal(*ends)


@pytest.mark.parametrize("amplitude", [1.0, 1.3, 0.7])
@pytest.mark.parametrize(("schedule", "kind"), [(EDM(), "edm"), (VP(), "eps"), (VP(), "v")])
def test_elsewhere_init_noise_sigma_is_init_scale(schedule, kind, amplitude):
    """On vp and sigma scale, where step multiplies nothing: before set_timesteps too, and through a
    saved config.
    """
    plan = louder(solvers.dpmpp_2m(schedule, grids.karras(schedule, 5), prediction=kind), amplitude)
    scheduler = scheduler_of(plan)
    again = fs.FsScheduler.from_config(scheduler.config)
    assert scheduler.init_noise_sigma == again.init_noise_sigma == plan.init_scale
    x = Z * plan.init_scale
    assert torch.equal(scheduler.scale_model_input(x, scheduler.timesteps[0]), x * float(plan.c[0]))
    run = fs.Run(plan, noise=Z, state_dtype=Z.dtype)
    run.step(Z)
    end = scheduler.step(Z, scheduler.timesteps[0], x).prev_sample
    assert torch.allclose(end, run.x, rtol=1e-12)
    image = scheduler_of(plan.remake(0))
    assert image.init_noise_sigma == image.plan.sigma[1]


@pytest.mark.parametrize("schedule", [EDM(), VP(), FLOW])
def test_one_draw_stands_for_the_churn_of_the_first_step(schedule):
    """A pipeline asks its model before step could draw more: hypot(init_scale, churn) is as much;
    without an amplitude it is sigma.
    """
    levels = [s / (1 + s) if schedule is FLOW else s for s in (9.0, 3.0, 1.0, 0.3)]
    grid = grids.from_sigmas(schedule, levels)
    usual = solvers.heun(schedule, grid, prediction="x0", s_churn=1.0, space="rho")
    for plan in (usual, louder(usual, 0.8)):
        scheduler, churn = scheduler_of(plan), float(plan.M[0, 0, 3 + plan.S + plan.G])
        x = Z * scheduler.init_noise_sigma
        asked = scheduler.scale_model_input(x, scheduler.timesteps[0])
        both = math.hypot(plan.init_scale, churn)
        assert churn > 0 and torch.allclose(asked, Z * both, rtol=1e-12)
        assert scheduler.init_noise_sigma == 1 or asked is x
    assert math.hypot(usual.init_scale, churn) == pytest.approx(usual.sigma[1], rel=1e-12)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"])
def test_compat_begins_as_the_source_does(name):
    """A plan compiled from a config has no amplitude: with compat nothing is multiplied; else by
    the first level, .999 of DPM-Solver++.
    """
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    config = {} if name.startswith("Flow") else config
    peer = getattr(diffusers, f"{name}Scheduler")(**config)
    for compat in ("diffusers", None):
        scheduler = fs.FsScheduler.from_config(peer, compat=compat)
        scheduler.set_timesteps(6)
        factor = 1.0 if compat else scheduler.plan.init_scale
        assert scheduler.init_noise_sigma == 1.0
        asked = scheduler.scale_model_input(Z, scheduler.timesteps[0])
        assert torch.allclose(asked, Z * factor, rtol=1e-12)
        assert torch.allclose(first_state(scheduler, Z), Z * factor, rtol=1e-9)
    assert factor == (pytest.approx(0.999, abs=1e-9) if name == "DPMSolverMultistep" else 1.0)
