"""FsScheduler in place of IPNDMScheduler: its levels are no table's, and its model predicts v."""

import copy
import math

import numpy as np
import pytest
import torch

import fastsample
from tests.oracle.pipelines import loop, network, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FsScheduler, IPNDM = fastsample.FsScheduler, diffusers.IPNDMScheduler
SINES = [1.0, 0.9, 0.6, 0.35, 0.1, 0.0]


def calm(x, t):
    return 0.3 * network(x, t)


@pytest.mark.parametrize(("config", "n"), [({}, 7), ({}, 50), ({"trained_betas": SINES}, 5)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_runs_are_the_class_s_own(config, n, kind, tmp_path):
    peer, x = IPNDM(**config), start(2, 3, 4, 4).to(kind)
    ours = FsScheduler.from_config(peer)
    ends = [loop(s, x, n, calm) for s in (peer, ours)]
    eps = 2.0**-24 if kind == torch.float32 else 2.0**-8
    # alpha' = .03 at the first of 50 steps: what x is rounded by there is enlarged 30-fold
    assert (ends[0] - ends[1]).abs().max() <= 64 * eps * ends[0].abs().max() * math.sqrt(n)
    assert ends[1].dtype == kind and torch.equal(ours.timesteps, peer.timesteps)
    ours.save_pretrained(tmp_path)
    for made in (FsScheduler.from_pretrained(tmp_path), copy.deepcopy(ours)):
        assert torch.equal(loop(made, x, n, calm), ends[1])
    assert IPNDM.from_config(ours.config).config.trained_betas == config.get("trained_betas")


def test_an_exact_run_asks_for_the_data_where_there_is_noise_alone():
    """The class's first step takes x0 = 0 there, whatever the model says; v there is -x0."""
    peer = IPNDM()
    compat, exact = (FsScheduler.from_config(peer, compat=c) for c in ("diffusers", None))
    x = start(1, 4)
    for scheduler in (peer, compat, exact):
        scheduler.set_timesteps(6)
    t = exact.timesteps[0]
    firsts = [s.step(-2.0 * torch.ones(1, 4), t, x).prev_sample for s in (peer, compat, exact)]
    sine = math.sin(math.pi / 2 * 5 / 6) ** 2
    assert torch.allclose(firsts[0], sine * x) and torch.allclose(firsts[1], sine * x)
    assert torch.allclose(firsts[2], math.sqrt(1 - sine**2) * 2.0 + sine * x)
    plan = exact.plan
    grid = np.arcsin(np.sin(np.linspace(math.pi / 2, 0.0, 7)) ** 2)
    table = fastsample.schedules.TrigFlow(t_min=1e-9)
    again = fastsample.solvers.ipndm(table, grid, prediction="v")
    assert plan.note["solver"] == "ipndm" and np.allclose(plan.M, again.M, rtol=1e-9, atol=1e-9)
    told = np.round(plan.t[:6, 0] * math.pi / 2 - grid[:-1], 7)
    assert not told.any()


def test_lists_are_angles_and_levels():
    """Of an exact run; a plan made for these levels is held against the class."""
    exact = FsScheduler.from_config(IPNDM(), compat=None)
    exact.set_timesteps(timesteps=[1.0, 0.5, 0.25])
    assert exact.timesteps.tolist() == [1.0, 0.5, 0.25]
    angles = np.array([math.pi / 2, math.pi / 4, math.pi / 8, 0.0])
    assert np.allclose(exact.plan.sigma[1:], np.sin(angles))
    exact.set_timesteps(sigmas=[5.0, 1.0, 0.0])
    assert exact.timesteps.tolist() == pytest.approx([2 / math.pi * math.atan(5.0), 0.5])
    image, noise = start(2, 4), start(2, 4, seed=1)
    noised = exact.add_noise(image, noise, torch.tensor([0.5, 0.5]))
    assert torch.allclose(noised, (image + noise) * math.sqrt(0.5))
    model = fastsample.Model(None, fastsample.schedules.TrigFlow(t_min=1e-9), "v", time=2 / math.pi)
    plan = fastsample.solvers.ipndm(model, angles)
    FsScheduler.from_plan(plan, like=IPNDM()).set_timesteps(3)
    with pytest.raises(ValueError, match="prediction"):
        other = fastsample.Model(None, model.schedule, "trigflow", time=2 / math.pi)
        FsScheduler.from_plan(fastsample.solvers.ipndm(other, angles), like=IPNDM())


def test_nobody_shares_its_levels():
    said = "IPNDMScheduler would have its own, sigma = .*; source='DDIMScheduler' is accepted"
    with pytest.raises(ValueError, match=said):
        FsScheduler.from_config(diffusers.DDIMScheduler(), source="IPNDMScheduler")
    with pytest.raises(ValueError, match="no table of noise levels, and no other class runs"):
        FsScheduler.from_config(IPNDM(), source="DDIMScheduler")
