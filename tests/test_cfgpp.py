"""CFG++: the guided prediction, the direction of the base branch; against loops of their own."""

from __future__ import annotations

import interpreter
import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from fastsample.guidance import guided
from fastsample.interop.k_diffusion import k_sample
from fastsample.plan import PlanError
from fastsample.schedules import EDM, VP, Flow
from fastsample.solvers import SOLVERS, Builder, F, M, R, X

SCALE = 0.6
NOISE = np.random.default_rng(5).standard_normal((9, 12))
START = np.random.default_rng(6).standard_normal(12)


def branches(x, alpha, sigma):
    """(conditional, unconditional) x0 of a smooth model."""
    y = x / np.hypot(alpha, sigma)
    return np.tanh(1.3 * y + 0.4), 0.8 * np.tanh(y - 0.1)


def denoised(x, alpha, sigma):
    """(guided, unconditional)."""
    given, free = branches(x, alpha, sigma)
    return free + SCALE * (given - free), free


def euler(schedule, t, eta):
    """Alg. 2 of the paper: x' = alpha' D + sigma_down eps_u + noise, in k-diffusion's split."""
    x = START * schedule.sigma(t[0])
    for i, (s, e) in enumerate(zip(t[:-1], t[1:], strict=True)):
        alpha, sigma, target = schedule.alpha(s), schedule.sigma(s), schedule.alpha(e)
        D, free = denoised(x, alpha, sigma)
        eps = (x - alpha * free) / sigma
        rho, lower = sigma / alpha if alpha else np.inf, schedule.sigma(e) / target
        up = min(lower, eta * lower * np.sqrt(1 - (lower / rho) ** 2))
        x = target * (D + np.sqrt(lower**2 - up**2) * eps + up * NOISE[i])
    return x


def two_steps(schedule, t):
    """dpmpp_2m with the kept output, and the one subtracted, of the base (ComfyUI's form)."""
    x, old, gap = START * schedule.sigma(t[0]), None, None
    for s, e in zip(t[:-1], t[1:], strict=True):
        alpha, sigma = schedule.alpha(s), schedule.sigma(s)
        D, free = denoised(x, alpha, sigma)
        h = schedule.half_log_snr(e) - schedule.half_log_snr(s)
        y = x / alpha if alpha else 0.0
        y = D + (np.exp(-h) * (y - free) if np.isfinite(h) else 0.0)
        if alpha == 0.0:  # e^{-h}/alpha = sigma'/(alpha' sigma)
            y = y + schedule.sigma(e) / (schedule.alpha(e) * sigma) * x
        if old is not None and np.isfinite(h) and np.isfinite(gap):
            y = y - np.expm1(-h) * h / (2 * gap) * (D - old)
        x, old, gap = schedule.alpha(e) * y, free, h
    return x


def two_stages(schedule, t, eta):
    """dpmpp_2s_ancestral in y = x/alpha and rho, from y + D - D_u (ComfyUI's form)."""
    x = START * schedule.sigma(t[0])
    for i, (s, e) in enumerate(zip(t[:-1], t[1:], strict=True)):
        alpha, sigma = schedule.alpha(s), schedule.sigma(s)
        D, free = denoised(x, alpha, sigma)
        rho, lower = sigma / alpha if alpha else np.inf, schedule.sigma(e) / schedule.alpha(e)
        up = min(lower, eta * lower * np.sqrt(1 - (lower / rho) ** 2))
        down = np.sqrt(lower**2 - up**2)
        if down == 0.0 or not alpha:
            x = schedule.alpha(e) * (D + down * (x - alpha * free) / sigma + up * NOISE[i])
            continue
        y, middle = x / alpha + D - free, np.sqrt(rho * down)
        a = schedule.time(-np.log(middle))
        inner = middle / rho * y + (1 - middle / rho) * D
        late, _ = denoised(schedule.alpha(a) * inner, schedule.alpha(a), schedule.sigma(a))
        x = schedule.alpha(e) * (down / rho * y + (1 - down / rho) * late + up * NOISE[i])
    return x


def refined(schedule, t, eta):
    """RES of two steps in y and rho, by D_u from y + D - D_u, with ComfyUI's c_2: from its second
    step on.
    """
    x, back, old = START * schedule.sigma(t[0]), None, None
    for i, (s, e) in enumerate(zip(t[:-1], t[1:], strict=True)):
        alpha, sigma = schedule.alpha(s), schedule.sigma(s)
        D, free = denoised(x, alpha, sigma)
        rho, lower = sigma / alpha if alpha else np.inf, schedule.sigma(e) / schedule.alpha(e)
        up = min(lower, eta * lower * np.sqrt(1 - (lower / rho) ** 2))
        down = np.sqrt(lower**2 - up**2)
        h = np.log(rho / down) if down else np.inf
        if back is None or np.isinf(h):
            y = D + down * (x - alpha * free) / sigma
        else:
            phi = -np.expm1(-h) / h
            b2 = 0.0 if np.isinf(back) else (phi - 1) / -h / (-back / h)
            y = np.exp(-h) * (x / alpha + D - free) + h * ((phi - b2) * free + b2 * old)
        x, back, old = schedule.alpha(e) * (y + up * NOISE[i]), h, free
    return x


def estimated(schedule, t, gamma):
    """ComfyUI's: Euler's and (gamma - 1)(d - d_1) dt, in x/n, n = alpha + sigma on a flow."""
    x, old = START * schedule.sigma(t[0]), None
    flow = isinstance(schedule, Flow)
    scale = lambda at: schedule.alpha(at) + (schedule.sigma(at) if flow else 0.0)
    for s, e in zip(t[:-1], t[1:], strict=True):
        alpha, sigma, n = schedule.alpha(s), schedule.sigma(s), scale(s)
        D, free = denoised(x, alpha, sigma)
        d = (x - n * free) / sigma
        dt = schedule.sigma(e) / scale(e) - sigma / n
        x = schedule.alpha(e) * D + schedule.sigma(e) * (x - alpha * free) / sigma
        if old is not None and schedule.sigma(e):
            x = x + scale(e) * (gamma - 1) * (d - old) * dt
        old = d
    return x


def run(plan, schedule):
    """The guided plan on the same model; it predicts x0."""

    def model(x, t, row, call):
        return list(branches(x, plan.alpha[row], plan.sigma[row]))

    noise = lambda k: NOISE[k - 1]
    return interpreter.run(plan, START, model, noise, scale=(SCALE,))


CASES = [
    ("euler_cfgpp", {}, lambda schedule, t: euler(schedule, t, 0.0)),
    ("euler_cfgpp", {"eta": 1.0}, lambda schedule, t: euler(schedule, t, 1.0)),
    ("dpmpp_2m_cfgpp", {}, two_steps),
    ("dpmpp_2s_ancestral_cfgpp", {}, lambda schedule, t: two_stages(schedule, t, 1.0)),
    ("dpmpp_2s_ancestral_cfgpp", {"eta": 0.5}, lambda schedule, t: two_stages(schedule, t, 0.5)),
    ("res_multistep_cfgpp", {}, lambda schedule, t: refined(schedule, t, 0.0)),
    ("res_multistep_cfgpp", {"eta": 0.6}, lambda schedule, t: refined(schedule, t, 0.6)),
    ("gradient_estimation_cfgpp", {}, lambda schedule, t: estimated(schedule, t, 2.0)),
]


@pytest.mark.parametrize("schedule", [EDM(), VP(), Flow(3.0)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name, options, loop", CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_equals_its_loop_with_two_branches(name, options, loop, schedule):
    t = grids.karras(schedule, 7)
    plan = SOLVERS[name](schedule, t, prediction="x0", **options)
    found = run(guided(plan), schedule)
    np.testing.assert_allclose(found, loop(schedule, t), rtol=1e-11, atol=1e-11)
    assert (
        np.abs(found - run(guided(SOLVERS["euler"](schedule, t, prediction="x0")), schedule)).max()
        > 1e-2
    )


@pytest.mark.parametrize("branches", [2, 3])
@pytest.mark.parametrize("interval", [None, (-1.0, 2.0)])
@pytest.mark.parametrize("name", ["euler_cfgpp", "dpmpp_2m_cfgpp"])
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
