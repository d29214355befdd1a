"""mean, std and log_prob of a step's output: every source that draws x every way of making its
steps, held against twins of the scheduler that are given noise 0 and noise 1.
"""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import fastsample as fs

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()

X = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
N = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
FLOW = {"stochastic_sampling": True, "shift": 3.0}
SOURCES = {
    "ddim": ("DDIMScheduler", SD),
    "ddim clipped": ("DDIMScheduler", SD | {"clip_sample": True}),
    "ddpm": ("DDPMScheduler", SD),
    "ddpm large": ("DDPMScheduler", SD | {"variance_type": "fixed_large"}),
    "ddpm learned": ("DDPMScheduler", SD | {"variance_type": "learned_range"}),
    "ddpm thresholded": ("DDPMScheduler", SD | {"thresholding": True}),
    "sde 1": (MULTI, SD | {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}),
    "sde 2": (MULTI, SD | {"algorithm_type": "sde-dpmsolver++"}),
    "sde 3": (MULTI, SD | {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    "sde of noise": (
        MULTI,
        SD | {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "sde of a flow": (
        MULTI,
        {
            "algorithm_type": "sde-dpmsolver++",
            "use_flow_sigmas": True,
            "prediction_type": "flow_prediction",
        },
    ),
    "sde single": (SINGLE, SD | {"algorithm_type": "sde-dpmsolver++"}),
    "ancestral": ("EulerAncestralDiscreteScheduler", SD),
    "lcm": ("LCMScheduler", SD),
    "flow": ("FlowMatchEulerDiscreteScheduler", FLOW),
    "tokens": ("FlowMatchEulerDiscreteScheduler", FLOW),
}
STILL = {
    "euler": ("EulerDiscreteScheduler", SD),
    "unipc": ("UniPCMultistepScheduler", SD),
    "pndm": ("PNDMScheduler", SD | {"skip_prk_steps": True}),
    "plain tokens": ("FlowMatchEulerDiscreteScheduler", {}),
}


def made(what, compat):
    name, config = (SOURCES | STILL)[what]
    return fs.FsScheduler.from_config(getattr(diffusers, name)(**config), compat=compat)


def told(what, scheduler, t):
    """What else a step is told."""
    if what.startswith("ddim"):
        return {"eta": 0.7}
    if "tokens" not in what:
        return {}
    # tokens at the timestep, between two and near the end
    at = torch.stack([t, 0.6 * t, 0.2 * t]).double()
    return {"per_token_timesteps": at.repeat(2, 2)}


def output(what, x):
    f = 0.3 * torch.tanh(x) + 0.1
    return torch.cat([f, 0.4 * torch.cos(x)], 1) if "learned" in what else f


def density(x, mean, std):
    """log p [B], number by number."""
    std = std if std.dim() > 1 else std.view(-1, 1, 1)
    z = ((x - mean) / std).double()
    each = -0.5 * z**2 - torch.log(std.double() * math.sqrt(2.0 * math.pi))
    return each.flatten(1).sum(1)


def check(scheduler, step, noise):
    """One step, its moments, and whether it drew."""
    zero, one = (copy.deepcopy(scheduler) for _ in range(2))
    out = step(scheduler, noise)
    x, mean, std = out.prev_sample, out.mean, out.std
    still, moved = (step(s, v).prev_sample for s, v in ((zero, 0 * noise), (one, 0 * noise + 1)))
    wide = std if std.dim() > 1 else std.view(-1, 1, 1)
    eps = torch.finfo(x.dtype).eps * float(x.abs().max() + noise.abs().max())
    near = lambda a, b: float((a - b).abs().max()) <= 8 * eps
    assert near(mean, still) and near(wide.expand_as(x), moved - still)
    assert near(mean + wide * noise, x) and mean.dtype == x.dtype
    assert std.dtype == torch.promote_types(x.dtype, torch.float32)
    if bool((std > 0).all()):
        right = density(mean.double() + wide.double() * noise, mean.double(), wide.double())
        assert out.log_prob.dtype == torch.float64
        off = (out.log_prob - right).abs().max()
        assert float(off) <= 1e-9 + 1e3 * eps / float(std.min())
    else:
        assert out.log_prob is None
    return x, bool(std.any())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("compat", "begin", "dtype"),
    [
        ("auto", 0, torch.float32),
        ("diffusers", 2, torch.float64),
        (None, 0, torch.float64),
        (None, 2, torch.float32),
    ],
)
@pytest.mark.parametrize("what", [*SOURCES, *STILL])
def test_the_moments_of_every_step_are_those_of_the_noise(what, compat, begin, dtype):
    scheduler = made(what, compat)
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(begin)
    x, noise, drew = X.to(dtype), N.to(dtype), []
    for t in scheduler.timesteps[begin:]:
        f, words = output(what, x), told(what, scheduler, t)
        step = lambda s, n, f=f, t=t, x=x, words=words: s.step(f, t, x, variance_noise=n, **words)
        x, drawn = check(scheduler, step, noise)
        drew.append(drawn)
    assert any(drew) == (what in SOURCES)
    assert drew[-1] == (what == "sde of noise")  # which ends above sigma 0


@pytest.mark.parametrize("compat", ["diffusers", None])
def test_tokens_that_end_at_0_have_no_density(compat):
    """And each has the deviation of the level that it goes to."""
    scheduler = made("tokens", compat)
    scheduler.set_timesteps(4)
    t, size = scheduler.timesteps[1], 1000
    tokens = torch.tensor([[0.0, 100.0, 500.0, float(t), 999.0, 1000.0]]).expand(2, -1)
    out = scheduler.step(0.1 * X, t, X, variance_noise=N, per_token_timesteps=tokens)
    levels = np.sort(scheduler.sigmas.double().numpy())
    below = [max([s for s in levels if s < float(v) / size - 1e-6], default=0.0) for v in tokens[0]]
    assert torch.allclose(out.std[1, :, 0], torch.tensor(below, dtype=torch.float64), atol=1e-6)
    assert out.std.shape == X.shape and out.log_prob is None
    assert torch.equal(out.mean[:, 0], out.prev_sample[:, 0])


def test_gradients_reach_the_moments_of_tokens():
    scheduler = made("tokens", None)
    scheduler.set_timesteps(4)
    t = scheduler.timesteps[0]
    f = (0.1 * X).requires_grad_()
    tokens = t.view(1, 1).expand(2, 6)
    out = scheduler.step(f, t, X, variance_noise=N, per_token_timesteps=tokens)
    (slope,) = torch.autograd.grad(out.log_prob.sum(), f)
    s, to = float(t) / 1000, float(scheduler.sigmas[1])
    assert torch.allclose(slope, N / to * (1 - to) * s, rtol=1e-6, atol=0)


def test_a_step_that_draws_nothing_has_no_moments_of_an_earlier_one():
    """DDIM with eta 0 after a step with eta 1, and after a run of them."""
    for compat in ("diffusers", None):
        scheduler = made("ddim", compat)
        scheduler.set_timesteps(4)
        for again in range(2):
            t = scheduler.timesteps[again if compat else 0]
            drawn = scheduler.step(0.1 * X, scheduler.timesteps[0], X, eta=1.0)
            assert drawn.std.all()
            if compat is None:
                scheduler._step_index = None
            out = scheduler.step(0.1 * X, t, X)
            assert not out.std.any() and out.log_prob is None
            assert torch.equal(out.mean, out.prev_sample)
            scheduler._step_index = None


def test_rows_that_ask_no_model_add_their_noise():
    """x'' = 2 x' + 3 n2 after x' of a row that drew: two rows of one step."""
    plan = fs.solvers.euler_ancestral(
        fs.Model(None, fs.schedules.EDM(), "x0"), [9.0, 3.0, 1.0, 0.0]
    )
    at, arrays = plan.layout, {}
    assert (at.S, at.L) == (0, 1)
    for name in ("M", "call", "reads", "branches", "preview"):
        arrays[name] = getattr(plan, name).copy()
    M, n = arrays["M"], at.noise(0)
    M[2] = 0.0
    M[2, 0, 0], M[2, 0, n] = 2.0, 3.0
    arrays["call"][2], arrays["reads"][2], arrays["branches"][2] = -1, 1 | 1 << n, 0
    arrays["preview"][2] = 1.0, 0.0
    plan = replace(plan, **arrays)
    scheduler = fs.FsScheduler.from_plan(plan)
    scheduler.set_timesteps(plan.nfe)
    x, t, zero = X, scheduler.timesteps[0], copy.deepcopy(scheduler)
    draws = iter([N, -N])
    scheduler._noise = lambda *_: next(draws)
    out = scheduler.step(0.1 * x, t, x)
    first, second = float(plan.M[1, 0, n]), 3.0
    assert float(out.std[0]) == pytest.approx(math.hypot(2.0 * first, second), rel=1e-12)
    still = zero.step(0.1 * x, t, x, variance_noise=0 * N).prev_sample
    assert torch.allclose(out.mean, still, rtol=0, atol=1e-12)
    assert torch.allclose(out.prev_sample, still + (2.0 * first - second) * N, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_deviation_is_not_rounded_to_half_precision(dtype):
    """Euler ancestral's, by its formula in float64; so that a trainer's own density has it too."""
    peer = diffusers.EulerAncestralDiscreteScheduler()
    scheduler = fs.FsScheduler.from_config(peer)
    scheduler.set_timesteps(5)
    high, low = scheduler.sigmas[:2].double().tolist()
    right = low * math.sqrt(1.0 - (low / high) ** 2)
    x = torch.ones(2, 3, 8, 8, dtype=dtype)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = scheduler.step(0.1 * x, scheduler.timesteps[0], x, variance_noise=noise)
    assert out.std.tolist() == pytest.approx([right, right], rel=1e-6)
    normal = -0.5 * noise.double().square() - math.log(right * math.sqrt(2.0 * math.pi))
    assert out.log_prob.tolist() == pytest.approx(normal.flatten(1).sum(1).tolist(), rel=1e-6)
