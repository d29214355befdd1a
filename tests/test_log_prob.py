"""Run.mean, Run.std and Run.log_prob: held against a closed form in float64 that is written out
here, against numerical derivatives, and against what a whole training step needs of them.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import BACKENDS, same

from fastsample import grids, guidance, schedules, solvers
from fastsample.kernels import normal
from fastsample.model import Model
from fastsample.runtime import density
from fastsample.runtime.run import Run

VP = Model(None, schedules.VP(), prediction="eps", time=1000)
EDM = Model(None, schedules.EDM(), prediction="edm")
FLOW = Model(None, schedules.Flow(shift=3.0), prediction="flow", time=1000)


def unit(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ddim(n=6, eta=1.0):
    return solvers.ddim(VP, grids.uniform(VP.schedule, n), eta=eta)


PLANS = {
    "ddim": ddim,
    "ddim eta .3": lambda: ddim(eta=0.3),
    "euler_ancestral": lambda: solvers.euler_ancestral(EDM, grids.karras(EDM.schedule, 6)),
    "euler_ancestral on a flow": lambda: solvers.euler_ancestral(
        FLOW, grids.uniform(FLOW.schedule, 6)
    ),
    "dpmpp_2m_sde": lambda: solvers.dpmpp_2m_sde(EDM, grids.karras(EDM.schedule, 6)),
    "lcm": lambda: solvers.lcm(VP, grids.uniform(VP.schedule, 4)),
    "flow_sde": lambda: solvers.flow_sde(FLOW, grids.uniform(FLOW.schedule, 6)),
    "dpmpp_sde": lambda: solvers.dpmpp_sde(EDM, grids.karras(EDM.schedule, 4)),
}


def by_numbers(plan, row, x, f, slots):
    """mean and std of the row's x' from the plan's numbers, by NumPy in float64. slots: those that
    the row reads.
    """
    at = plan.layout
    m = plan.p[row] * x + plan.q[row] * f
    mean = plan.M[row, 0, 0] * x + plan.M[row, 0, at.m] * m + plan.M[row, 0, at.f] * f
    for s, value in slots.items():
        mean = mean + plan.M[row, 0, at.slot(s)] * value
    weights = [plan.M[row, 0, at.noise(k)] for k in range(at.L) if plan.ids[row, k] > 0]
    return mean, math.hypot(*weights)


def log_density(x, mean, std):
    """Number by number, in float64 and by math alone."""
    each = [
        -((a - b) ** 2) / (2 * std**2) - math.log(std * math.sqrt(2 * math.pi))
        for a, b in zip(x.ravel(), mean.ravel(), strict=True)
    ]
    return math.fsum(each)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLANS)
def test_the_log_probability_of_every_row_is_the_closed_form(name, backend):
    plan, z = PLANS[name](), unit(3, 2, 5)
    run = Run(plan, noise=z, seed=4, state_dtype=torch.float64, backend=backend)
    rows = 0
    while not run.done:
        f = 0.3 * run.model_input + 0.1
        if not run.std.any():
            run.step(f)
            continue
        rows += 1
        before = run.x.clone()
        read = plan.program.rows[run.row].slots_read(plan.layout)
        slots = {s: run._pool.slots[s].numpy().copy() for s in read}
        mean, std = by_numbers(plan, run.row, before.numpy(), f.numpy(), slots)
        told = run.log_prob(f)
        assert np.allclose(run.mean(f).numpy(), mean, rtol=1e-13, atol=1e-13)
        assert np.allclose(run.std.numpy(), std, rtol=1e-14)
        again = unit(3, 2, 5, seed=run.row)
        other = run.log_prob(f, again)
        assert torch.equal(run.x, before)  # nothing advanced
        run.step(f)
        for b in range(3):
            right = log_density(run.x[b].numpy(), mean[b], std)
            assert math.isclose(float(told[b]), right, rel_tol=1e-11, abs_tol=1e-9)
            right = log_density(again[b].numpy(), mean[b], std)
            assert math.isclose(float(other[b]), right, rel_tol=1e-11, abs_tol=1e-9)
    assert rows >= 2


def test_ancestral_and_ddim_rows_are_their_papers_formulas():
    """From the levels alone: Karras et al.'s ancestral split of sigma, and DDIM's eq. 16."""
    x, f = unit(2, 7, seed=1), unit(2, 7, seed=2)
    plan = PLANS["euler_ancestral"]()
    for row in range(1, plan.rows - 2):
        s, to = plan.sigma[row], plan.sigma[row + 1]
        up = math.sqrt(to**2 * (s**2 - to**2) / s**2)
        c_skip, c_out = 0.25 / (s**2 + 0.25), s * 0.5 / math.sqrt(s**2 + 0.25)
        x0 = c_skip * x + c_out * f
        mean = x + (math.sqrt(to**2 - up**2) - s) * (x - x0) / s
        assert_row(plan, row, x, f, mean, up)
    plan = ddim()
    for row in range(1, plan.rows - 2):
        a, to = plan.alpha[row] ** 2, plan.alpha[row + 1] ** 2
        std = math.sqrt((1 - to) / (1 - a) * (1 - a / to))
        x0 = (x - math.sqrt(1 - a) * f) / math.sqrt(a)
        mean = math.sqrt(to) * x0 + math.sqrt(1 - to - std**2) * f
        assert_row(plan, row, x, f, mean, std)


def assert_row(plan, row, x, f, mean, std):
    run = Run(plan, latent=x, start=row, seed=1, state_dtype=torch.float64)
    assert run.mean(f).sub(mean).abs().max() < 1e-12 * (1 + mean.abs().max())
    assert run.std.sub(std).abs().max() < 1e-13 * std
    right = torch.distributions.Normal(mean, std).log_prob(x).sum(1)
    assert run.log_prob(f, x).sub(right).abs().max() < 1e-10 * right.abs().max()


@pytest.mark.parametrize("scale", [None, [0.5, 2.0]], ids=["plain", "noise scale a sample"])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m_sde", "guided"])
def test_the_gradient_is_the_numerical_derivative(name, scale):
    """In every model output, at a row that reads history, and in the state asked about."""
    plan = guidance.guided(ddim()) if name == "guided" else PLANS[name]()
    words = {"guidance": torch.tensor([3.0, -1.0])} if name == "guided" else {}
    words["noise_scale"] = None if scale is None else torch.tensor(scale)
    run = Run(plan, noise=unit(2, 4), seed=4, state_dtype=torch.float64, copies=plan.G, **words)
    for _ in range(2):
        run.step(0.3 * run.model_input)
    f, x = unit(2 * plan.G, 4, seed=7).requires_grad_(), unit(2, 4, seed=8).requires_grad_()
    told = run.log_prob(f, x)
    assert told.dtype == torch.float64 and told.requires_grad
    by_f, by_x = torch.autograd.grad(told.sum(), (f, x))
    assert torch.autograd.gradcheck(lambda f, x: run.log_prob(f, x), (f, x))
    h, flat = 1e-5, f.detach().flatten()
    for k in range(flat.numel()):  # central differences of the value without gradients
        ends = []
        for sign in (1, -1):
            moved = flat.clone()
            moved[k] += sign * h
            ends.append(float(run.log_prob(moved.view_as(f), x.detach()).sum()))
        assert math.isclose((ends[0] - ends[1]) / (2 * h), by_f.flatten()[k], rel_tol=1e-6)
    assert by_x.isfinite().all() and by_x.abs().min() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLANS)
def test_a_mean_with_gradients_has_the_bits_of_the_one_without(name, backend):
    plan = PLANS[name]()
    run = Run(plan, noise=unit(2, 3, 8, dtype=torch.float32), seed=4, backend=backend)
    while not run.done:
        f = 0.3 * run.model_input
        assert same(run.mean(f), run.mean(f.clone().requires_grad_()).detach())
        run.step(f)


def test_a_policys_gradient_over_a_whole_run_is_right():
    """One backward pass after the run, through networks that were asked in its own memory: what a
    later step writes must not reach what an earlier one's gradient needs.
    """
    plan = PLANS["euler_ancestral"]()
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    net = lambda x, w: (w * x * x + x).tanh()

    def total(w, path=None):
        """The path's log-probability and the states it went through (path: other states, fixed)."""
        run = Run(plan, noise=unit(3, 6), seed=2, state_dtype=torch.float64)
        told, states = 0.0, [run.x.clone()]
        while bool(run.std.any()):
            f = net(run.model_input, w)
            told = told + run.log_prob(f, None if path is None else path[len(states)]).sum()
            run.step(f.detach())
            if path is not None:
                run.x = path[len(states)]
            states.append(run.x.clone())
        return told, states

    told, path = total(w)
    again, _ = total(w, path)
    assert torch.equal(told, again)
    (by_w,) = torch.autograd.grad(again, w)
    with torch.no_grad():
        ends = [float(total(w + h, path)[0]) for h in (1e-6, -1e-6)]
    assert math.isclose(float(by_w), (ends[0] - ends[1]) / 2e-6, rel_tol=1e-7)


def test_the_ratio_of_two_policies_is_exact_where_their_sum_is_large():
    """65,536 numbers: what PPO takes is a difference of two sums of this size."""
    x, mean, std = unit(1, 65536), unit(1, 65536, seed=1), torch.tensor([0.7])
    moved = mean + 1e-6
    ratio = density.log_prob(x, moved, std) - density.log_prob(x, mean, std)
    right = math.fsum(((x - mean) ** 2 - (x - moved) ** 2).flatten().tolist()) / (2 * 0.7**2)
    assert math.isclose(float(ratio), right, rel_tol=2e-7)  # 0.7 in float32
    one = density.log_prob(x[0, :3], mean[0, :3], std.expand(3))  # samples of one number
    assert torch.equal(one, density.log_prob(x[0, :3, None], mean[0, :3, None], std.expand(3)))


def test_what_has_no_density_is_refused():
    plan = ddim(4)
    run = Run(plan, noise=unit(2, 3, dtype=torch.float32), seed=1)
    f = 0.1 * run.model_input
    for bad, said in (
        (unit(2, 4), "a torch.strided tensor of [2, 4]"),
        ([0.0], "x is a list"),
        (unit(1, 3), "[1, 3]"),
    ):
        with pytest.raises(ValueError, match="Run.log_prob: x is ") as error:
            run.log_prob(f, bad)
        assert said in str(error.value)
    while run.std.any():
        run.step(0.1 * run.model_input)
    with pytest.raises(ValueError, match=r"row 4 adds no noise to sample 0.*run.std > 0"):
        run.log_prob(f)
    run.step(f)
    for ask in (run.mean, run.log_prob):
        with pytest.raises(IndexError, match="the run is done"):
            ask(f)
    assert hasattr(run, "std") and not run.std.any()
    still = Run(plan, noise=unit(2, 3, dtype=torch.float32), seed=1, noise_scale=[1.0, 0.0])
    with pytest.raises(ValueError, match="no noise to sample 1"):
        still.log_prob(f)
    drawn = lambda row, name: unit(2, 3, seed=row)
    theirs = Run(plan, noise=unit(2, 3, dtype=torch.float32), noise_source=drawn)
    with pytest.raises(ValueError, match="noise_source is a callable.*pass x="):
        theirs.log_prob(f)
    assert theirs.log_prob(f, f).shape == (2,)
    ids = [int(k) for k in plan.ids[plan.ids > 0]]
    given = Run(plan, noise=unit(2, 3), seed=1, noise_source=[unit(2, 3, seed=k) for k in ids])
    told = given.log_prob(f.double())
    mean, std = given.mean(f.double()), given.std
    given.step(f.double())
    assert torch.equal(told, density.log_prob(given.x, mean, std))


def test_noise_that_an_earlier_row_drew_belongs_to_the_mean():
    """A known image is noised with the noise that the run began with: the mean is refused, and std
    is that of what is new.
    """
    plan = solvers.ddim(VP, grids.uniform(VP.schedule, 5), eta=1.0, inpaint=True)
    mask, known = torch.zeros(2, 3), unit(2, 3)
    run = Run(plan, noise=unit(2, 3), seed=1, mask=mask.double(), known=known)
    right = by_numbers(plan, 1, 0.0, 0.0, {})[1]
    assert run.std.tolist() == pytest.approx([right] * 2, rel=1e-6)
    for row in range(1, 5):
        words = rf"row {row} noises the known image with noise 0 of an earlier row, .*; .*accepted"
        for ask in (run.mean, run.log_prob):
            with pytest.raises(ValueError, match=words):
                ask(0.1 * run.model_input)
        run.step(0.1 * run.model_input)
    expected = run.mean(0.1 * run.model_input)  # at the end there is no noise to put there
    run.step(0.1 * run.model_input)
    assert torch.equal(expected, run.x)
    Run(plan, noise=unit(2, 3), seed=1).log_prob(unit(2, 3))  # as the sentence has it


def test_a_row_that_draws_an_earlier_noise_again_is_refused_in_words_of_its_own():
    plan = solvers.ddim(VP, grids.uniform(VP.schedule, 5), eta=1.0)
    ids = plan.ids.copy()
    ids[3] = ids[1]
    run = Run(plan.with_numbers(ids=ids), noise=unit(2, 3), seed=1)
    for _ in range(2):
        run.log_prob(0.1 * run.model_input)
        run.step(0.1 * run.model_input)
    with pytest.raises(ValueError, match="row 3 re-uses noise 1 of an earlier row, and its mean"):
        run.mean(0.1 * run.model_input)


def test_a_row_that_no_call_stands_before_is_refused():
    """Row 2 runs in one step with row 1, whose x' nobody sees."""
    plan = solvers.ddim(VP, grids.uniform(VP.schedule, 5), eta=1.0)
    names = ("M", "call", "reads", "branches", "preview")
    M, call, reads, branches, preview = (getattr(plan, name).copy() for name in names)
    M[2], call[2], reads[2], branches[2], preview[2] = 0.0, -1, 1, 0, (1.0, 0.0)
    M[2, 0, 0] = 2.0
    arrays = dict(zip(names, (M, call, reads, branches, preview), strict=True))
    run = Run(replace(plan, **arrays), noise=unit(2, 3), seed=1)
    for ask in (run.mean, run.log_prob):
        with pytest.raises(ValueError, match=r"row 2 asks no model .* row 1, .*; .* is accepted"):
            ask(0.1 * run.model_input)
    run.step(0.1 * run.model_input)
    assert run.row == 3 and run.log_prob(0.1 * run.model_input).shape == (2,)


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp", "trace"])
def test_a_transform_is_refused_in_one_sentence(transform):
    run = Run(ddim(), noise=unit(2, 3, dtype=torch.float32), seed=1)
    f = 0.1 * run.model_input.clone()
    ask = {
        "vmap": lambda g: torch.vmap(g)(f.expand(2, 2, 3)),
        "grad": lambda g: torch.func.grad(lambda v: g(v).sum())(f),
        "jvp": lambda g: torch.func.jvp(g, (f,), (f,)),
        "trace": lambda g: torch.jit.trace(g, f, check_trace=False),
    }[transform]
    for method in (run.mean, run.log_prob, lambda v: run.log_prob(f, v)):
        before = run.x.clone()
        with pytest.raises(RuntimeError, match=r"Run\.(mean|log_prob): called under") as error:
            ask(method)
        assert str(error.value).count("\n") == 0
        assert torch.equal(run.x, before)


def test_a_draw_told_ahead_is_the_draw_of_the_step():
    plan = ddim()
    run = Run(plan, noise=unit(3, 6), seed=9)
    f = 0.1 * run.model_input
    told, mean, std, row = run.log_prob(f), run.mean(f), run.std, run.row
    run.step(f)
    n = normal(torch.arange(9, 12), torch.full((3,), int(plan.ids[row, 0])), 6)
    right = torch.distributions.Normal(0.0, 1.0).log_prob(n.double()).sum(1)
    right = right - 6 * std.double().log()
    assert told.sub(right).abs().max() < 1e-4 * right.abs().max()
    assert torch.equal(told, density.log_prob(run.x, mean, std))


def test_a_step_says_where_gradients_may_go():
    run = Run(ddim(), noise=unit(2, 3, dtype=torch.float32), seed=1)
    f = (0.1 * run.model_input).requires_grad_()
    with pytest.raises(RuntimeError, match=r"detach it \(mean and log_prob take it as it is\)"):
        run.step(f)
    assert run.mean(f).requires_grad and run.log_prob(f).requires_grad
    run.step(f.detach())
    assert run.row == 2
