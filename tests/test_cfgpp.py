"""CFG++: the guided prediction, the direction of the base branch (rows: test_peers_rules.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle.probe import states

import fastsample as fs
from fastsample import grids
from fastsample.guidance import guided
from fastsample.interop.k_diffusion import k_sample
from fastsample.plan import PlanError
from fastsample.schedules import EDM, VP, Flow
from fastsample.solvers import SOLVERS, Builder, F, M, R, X

SCALE = 0.6
CFGPP = [name for name in SOLVERS if name.endswith("_cfgpp")]


@pytest.mark.parametrize("name", CFGPP)
def test_from_alpha_0_the_direction_is_x_itself(name):
    """x' = alpha' D + sigma' x/sigma, whatever D_u: over the start, D's branch and the base's."""
    schedule, quiet = Flow(3.0), {} if name.startswith(("dpmpp_2m", "gradient")) else {"eta": 0.0}
    t = grids.karras(schedule, 4)
    plan = guided(SOLVERS[name](schedule, t, prediction="x0", **quiet))
    found = states(plan, raw=True, scale=(SCALE,))
    alpha, sigma = schedule.alpha(t[1]), schedule.sigma(t[1])
    wanted = [sigma, alpha * SCALE, alpha * (1 - SCALE)]
    np.testing.assert_allclose(found.states[1][:3], wanted, rtol=1e-14)
    assert not found.states[1][3:].any() and schedule.alpha(t[0]) == 0.0


@pytest.mark.parametrize("branches", [2, 3])
@pytest.mark.parametrize("interval", [None, (-1.0, 2.0)])
@pytest.mark.parametrize("name", [name for name in CFGPP if "_2s_" not in name])
def test_guidance_comes_off_again(name, interval, branches):
    """Outside the interval there is one branch, whose output is the base's too."""
    plan = SOLVERS[name](VP(), grids.karras(VP(), 6), prediction="v")
    wide = guided(plan, branches, interval)
    assert wide.unguided() == plan and wide.consistency() <= 1e-14
    last = wide.layout.branch(branches - 1)
    reads = [row for row in range(wide.rows) if wide.reads[row] >> last & 1]
    full = [row for row in range(wide.rows) if wide.branches[row] == (1 << branches) - 1]
    assert set(reads) <= set(full) and len(reads) >= len(full) - 1 > 0


def test_a_sampler_guides_it_as_any_other():
    schedule = EDM()
    net = lambda x, t, shift: torch.tanh(x / torch.sqrt(1 + t.view(-1, 1) ** 2) + shift)
    model = fs.Model(net, schedule, "x0")
    t = grids.karras(schedule, 6)
    z = torch.randn(3, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    words = {"cond": {"shift": 0.4}, "uncond": {"shift": -0.3}, "guidance": 0.7}
    end = fs.Sampler(fs.solvers.euler_cfgpp(model, t), model)(noise=z, **words)
    x = z * t[0]
    for s, e in zip(t[:-1], t[1:], strict=True):
        at = torch.full((3,), s, dtype=torch.float64)
        given, free = net(x, at, 0.4), net(x, at, -0.3)
        x = free + 0.7 * (given - free) + e / s * (x - free)
    torch.testing.assert_close(end, x, rtol=1e-12, atol=1e-12)


def test_other_plans_that_read_one_branch_are_refused_as_before():
    b = Builder(EDM(), [4.0, 2.0, 0.0], prediction="x0")
    b.row(4.0, to=2.0, x=0.5 * X + 0.5 * F(0))
    b.row(2.0, to=0.0, x=F(0))
    with pytest.raises(PlanError, match="reads a single branch's raw output"):
        guided(b.build("mine", order=1))
    plan = SOLVERS["euler_cfgpp"](EDM(), [4.0, 2.0, 0.0], prediction="x0")
    with pytest.raises(ValueError, match="reads the model's raw output"):
        k_sample(plan, lambda x, sigma: x, torch.zeros(1, 4))


def test_an_anchor_is_not_written_over_an_output_that_is_gone():
    """After the row F(0) is the next row's output: the anchor would be made of that."""
    b = Builder(EDM(), [4.0, 2.0, 0.0], prediction="x0")
    b.row(4.0, to=2.0, x=0.5 * X + 0.5 * F(0), anchor=X)
    b.row(2.0, to=0.0, x=R("anchor") + M)
    with pytest.raises(PlanError, match="comes back to an anchor that is gone"):
        b.build("mine", order=1, consistent=False)
    b = Builder(EDM(), [4.0, 2.0, 0.0], prediction="x0", inpaint=True)
    b.row(4.0, to=2.0, x=0.5 * X + 0.5 * F(0), anchor=X)
    b.row(2.0, to=0.0, x=R("anchor") + M)
    assert b.build("mine", order=1, consistent=False).S == 1
