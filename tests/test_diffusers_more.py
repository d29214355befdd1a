"""FsScheduler in place of the rarer classes, where a step is no table of coefficients: noises,
strengths and what else a step is told, beside the class itself.
"""

import numpy as np
import pytest
import test_diffusers
import torch

import fastsample
from tests.oracle.pipelines import loop, start

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FsScheduler = fastsample.FsScheduler
SD, KARRAS = test_diffusers.SD, test_diffusers.KARRAS


def pair(name, compat="diffusers", **config):
    peer = getattr(diffusers, f"{name}Scheduler")(**config)
    return peer, FsScheduler.from_config(peer, compat=compat)


@pytest.mark.parametrize("config", [{}, KARRAS, {"prediction_type": "v_prediction"}])
@pytest.mark.parametrize("seed", [3, [3, 5]])
def test_a_seed_of_dpm_solver_sde_draws_the_same_path(config, seed):
    """One path for the batch or one for each sample; a generator is taken in its place."""
    pytest.importorskip("torchsde")
    schedulers = pair("DPMSolverSDE", **SD, noise_sampler_seed=seed, **config)
    x = 14.0 * start(2, 3, 4, 4)
    theirs, ours = (loop(s, x, 6) for s in schedulers)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    drawn = [loop(schedulers[1], x, 6, generator=torch.Generator().manual_seed(1)) for _ in "ab"]
    assert torch.equal(*drawn) and not torch.allclose(drawn[0], ours, rtol=1e-3)
    schedulers[1].set_timesteps(6)
    with pytest.raises(
        ValueError, match="s_noise = 0.5 of DPMSolverSDEScheduler is not reproduced"
    ):
        schedulers[1].step(x, schedulers[1].timesteps[0], x, s_noise=0.5)


@pytest.mark.parametrize("tau", [None, lambda t: 0.5 if t > 300 else 0.0, lambda t: 1.3])
def test_tau_of_sa_solver_is_that_of_the_timestep(tau):
    """A function of it, which no file says; what it says is a number from 0 up."""
    config = SD | {"tau_func": tau}
    with test_diffusers.in_double("SASolver"):
        peer, ours = pair("SASolver", **config)
        exact = test_diffusers.table(peer, 8, torch.float64)
        assert np.abs(test_diffusers.table(ours, 8, torch.float64) - exact).max() < 1e-12
    wrong = FsScheduler(source="SASolverScheduler", tau_func=lambda t: -1.0, compat=None)
    with pytest.raises(ValueError, match="what tau_func says = -1.0; a number from 0 up"):
        wrong.set_timesteps(4)


@pytest.mark.parametrize("eta", [None, 0.0, 0.7, 1.0])
def test_eta_of_tcd_is_its_own(eta):
    """.3 where nobody says one; the second of what step returns there is no x0, and left out."""
    given = {} if eta is None else {"eta": eta}
    peer, ours = pair("TCD")
    x, ends = start(2, 3, 4, 4), []
    for scheduler in (peer, ours):
        ends.append(loop(scheduler, x, 5, generator=torch.Generator().manual_seed(3), **given))
    assert torch.allclose(*ends, rtol=1e-4, atol=1e-5)
    ours.set_timesteps(5)
    assert len(ours.step(x, ours.timesteps[0], x, return_dict=False)) == 1
    ours.set_timesteps(5)
    with pytest.raises(ValueError, match="tcd: gamma = 1.5; a number from 0 to 1"):
        ours.step(x, ours.timesteps[0], x, eta=1.5)


def test_the_order_of_lms_is_its_own():
    _, ours = pair("LMSDiscrete", **SD)
    ours.set_timesteps(4)
    x = start(1, 4)
    with pytest.raises(ValueError, match="order = 2 of LMSDiscreteScheduler is not reproduced; 4"):
        ours.step(x, ours.timesteps[0], x, order=2)
    assert ours.step(x, ours.timesteps[0], x, 4).prev_sample.shape == x.shape


@pytest.mark.parametrize(
    ("name", "config", "solver"),
    [
        ("DEISMultistep", {"solver_order": 3, "lower_order_final": False}, "deis"),
        ("LMSDiscrete", {}, "lms"),
        ("KDPM2Discrete", {}, "dpm_2"),
        ("KDPM2AncestralDiscrete", {}, "dpm_2_ancestral"),
        ("DPMSolverSDE", {}, "dpmpp_sde"),
        ("TCD", {}, "tcd"),
    ],
)
def test_exact_runs_are_the_solvers_own(name, config, solver):
    """Rows of the registry's solver on the exact grid, the model told the label of every call."""
    _, ours = pair(name, None, **config)
    ours.set_timesteps(6)
    plan = ours.plan
    assert plan.note["solver"] == solver and plan.note["compat"] == "exact"
    maker = getattr(fastsample.solvers, solver)
    table = fastsample.schedules.from_json(plan.note["schedule"])
    words = {k: v for k, v in plan.note["arguments"].items() if k != "space"}
    again = maker(table, plan.note["grid"], prediction=plan.note["prediction"], **words)
    assert np.array_equal(plan.M, again.M) and np.array_equal(plan.sigma, again.sigma)
    if name != "TCD":  # levels and labels belong together
        betas = fastsample.interop.diffusers.grids.noise_schedule(ours.config)
        calls = np.flatnonzero(plan.call >= 0)
        level = np.exp(-betas.half_log_snr(plan.t[calls - 1, 0]))
        assert np.allclose(level, plan.sigma[calls] / plan.alpha[calls], rtol=2e-3)


@pytest.mark.parametrize("name", ["DDIM", "DDPM"])
def test_a_parallel_class_is_the_one_it_is_made_of(name):
    """Saved and loaded too; its batch_step_no_noise is none of ours."""
    config = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    peer, ours = pair(f"{name}Parallel", **SD, **config)
    assert ours.config.source == f"{name}Scheduler" and ours.config.timestep_spacing == "trailing"
    x, ends = start(2, 3, 4, 4), []
    for scheduler in (peer, ours, FsScheduler.from_config(ours.config)):
        ends.append(loop(scheduler, x, 5, generator=torch.Generator().manual_seed(3)))
    assert torch.allclose(*ends[:2], rtol=1e-4, atol=1e-5) and torch.equal(*ends[1:])
