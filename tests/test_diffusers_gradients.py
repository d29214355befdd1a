"""Gradients through FsScheduler.step, and the distribution that a step draws from."""

import copy
import math

import pytest
import torch

import fastsample as fs

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FREE = SD | {"clip_sample": False}
SDE = SD | {"algorithm_type": "sde-dpmsolver++"}
PLAIN = [
    ("DDIM", FREE),
    ("EulerDiscrete", SD),
    ("HeunDiscrete", SD),
    ("DPMSolverMultistep", SD),
    ("DPMSolverSinglestep", SD),
    ("UniPCMultistep", SD),
    ("PNDM", SD | {"skip_prk_steps": True}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    ("DDIM", SD | {"thresholding": True, "sample_max_value": 1.5}),
]
DRAWING = [
    ("EulerAncestralDiscrete", SD, {}),
    ("DDPM", FREE, {}),
    ("DDIM", FREE, {"eta": 0.7}),
    ("DPMSolverMultistep", SDE, {}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0, "stochastic_sampling": True}, {}),
]
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def both(name, config, compat="diffusers"):
    peer = getattr(diffusers, f"{name}Scheduler")(**config)
    return peer, fs.FsScheduler.from_config(peer, compat=compat)


def walk(scheduler, x, w, steps=5, **given):
    """The end of a loop whose model is tanh(w x)."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        asked = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        words = {k: v() if callable(v) else v for k, v in given.items()}
        x = scheduler.step(torch.tanh(w * asked), t, x, **words).prev_sample
    return x


def gradients(scheduler, x, **given):
    x, w = x.clone().requires_grad_(), torch.tensor(0.5, dtype=x.dtype, requires_grad=True)
    end = walk(scheduler, x, w, **given)
    assert end.requires_grad
    return end.detach(), *torch.autograd.grad(end.square().sum(), (x, w))


def close(a, b, rtol):
    return bool((a - b).abs().max() <= rtol * b.abs().max())


@pytest.mark.parametrize(("name", "config"), PLAIN)
def test_gradients_are_central_differences(name, config):
    """In float64, through a whole loop, to the sample and to the model's own number."""
    _, ours = both(name, config, compat=None)
    end, by_x, by_w = gradients(ours, X)
    loss = lambda x, w: float(walk(ours, x, torch.tensor(w, dtype=x.dtype)).square().sum())
    with torch.no_grad():
        assert close(walk(ours, X, torch.tensor(0.5, dtype=X.dtype)), end, 1e-12)
        h, v = 1e-5, torch.randn(X.shape, generator=torch.Generator().manual_seed(1)).double()
        along = (loss(X + h * v, 0.5) - loss(X - h * v, 0.5)) / (2 * h)
        assert float((by_x * v).sum()) == pytest.approx(along, rel=1e-5)
        across = (loss(X, 0.5 + h) - loss(X, 0.5 - h)) / (2 * h)
        assert float(by_w) == pytest.approx(across, rel=1e-5)


@pytest.mark.parametrize(("name", "config", "given"), [(*case, {}) for case in PLAIN] + DRAWING)
def test_gradients_are_the_sources_own(name, config, given):
    draws = bool(given) or any(n == name and c == config for n, c, _ in DRAWING)
    ends = []
    for scheduler in both(name, config):
        chance = torch.Generator().manual_seed(5)
        words = given | ({"generator": lambda chance=chance: chance} if draws else {})
        ends.append(gradients(scheduler, X.float(), **words))
    for theirs, ours in zip(*ends, strict=True):
        assert close(ours, theirs, 2e-4)


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_steps_alone(name, dtype):
    """Steps without a graph, then steps with one: the same states, bit for bit, and the gradient of
    what the history holds fixed. A copy goes on by itself.
    """
    _, ours = both(name, SD)
    x = X.to(dtype)
    ours.set_timesteps(6)
    plain, right = copy.deepcopy(ours), []
    for t in plain.timesteps:
        f = torch.tanh(0.5 * (x if not right else right[-1]))
        right.append(plain.step(f, t, x if not right else right[-1]).prev_sample)
    w = torch.tensor(0.5, dtype=dtype, requires_grad=True)
    for k, t in enumerate(ours.timesteps):
        with torch.set_grad_enabled(k >= 4):
            x = ours.step(torch.tanh(w * x), t, x).prev_sample
        assert x.requires_grad == (k >= 4) and torch.equal(x.detach(), right[k])
        if k == 4:
            twin, other = copy.deepcopy(ours), x
    by_w = torch.autograd.grad(x.float().sum(), w, retain_graph=True)
    end = twin.step(torch.tanh(w * other), twin.timesteps[5], other).prev_sample
    assert torch.equal(torch.autograd.grad(end.float().sum(), w)[0], by_w[0])
    assert bool(by_w[0].isfinite()) and float(by_w[0].abs()) > 0


def test_no_graph_is_made_where_none_is_asked_for():
    _, ours = both("DPMSolverMultistep", SD)
    ours.set_timesteps(4)
    x = X.float().requires_grad_()
    with torch.no_grad():
        y = ours.step(torch.tanh(x), ours.timesteps[0], x).prev_sample
    assert not y.requires_grad and type(ours._loops.get()._run) is fs.Run
    with torch.inference_mode():
        z = ours.step(torch.tanh(y), ours.timesteps[1], y).prev_sample
    assert not z.requires_grad and type(ours._loops.get()._run) is fs.Run


# -- the distribution ------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "config", "given"), DRAWING)
@pytest.mark.parametrize("compat", ["diffusers", None])
def test_mean_std_and_log_prob(name, config, given, compat):
    """x' = mean + std n for the noise given, or drawn; torch's own density; one more noise has the
    same mean.
    """
    _, ours = both(name, config, compat)
    ours.set_timesteps(5)
    x, f = X.clone(), torch.tanh(0.5 * X)
    for t in ours.timesteps[:-1]:
        ends = []
        for seed in range(2):
            n = torch.randn(X.shape, generator=torch.Generator().manual_seed(seed)).double()
            out = copy.deepcopy(ours).step(f, t, x, variance_noise=n, **given)
            ends.append(out)
            assert out.std.shape == (2,) and float(out.std.min()) > 0
            again = out.mean + out.std.view(-1, 1, 1, 1) * n
            assert torch.allclose(again, out.prev_sample, rtol=0, atol=1e-12)
            normal = torch.distributions.Normal(out.mean, out.std.view(-1, 1, 1, 1))
            right = normal.log_prob(out.prev_sample).flatten(1).sum(1)
            assert torch.allclose(out.log_prob, right, rtol=1e-12)
        assert close(ends[0].mean, ends[1].mean, 1e-13)
        out = ours.step(f, t, x, generator=torch.Generator().manual_seed(3), **given)
        assert close(out.mean, ends[0].mean, 1e-13)
        x = out.prev_sample


def test_std_is_the_sources_own():
    peer, ours = both("DDPM", FREE)
    for scheduler in (peer, ours):
        scheduler.set_timesteps(10)
    t = ours.timesteps[4]
    for s in ours.timesteps[:4]:
        ours.step(X, s, X)
    assert float(ours.step(X, t, X).std[0]) == pytest.approx(float(peer._get_variance(t)) ** 0.5)


def test_deterministic_steps_have_no_density():
    for name, config in PLAIN:
        _, ours = both(name, config)
        ours.set_timesteps(4)
        for t in ours.timesteps[:3]:
            out = ours.step(0.1 * X, t, X)
            assert out.log_prob is None and out.mean is out.prev_sample
            assert out.std.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("name", "config", "given"), DRAWING)
def test_policy_gradients(name, config, given):
    """d/df log p of the sample that was drawn = (x' - mean)/std² · d mean/df, and the density of an
    earlier sample under a new output through mean and std.
    """
    _, ours = both(name, config)
    ours.set_timesteps(5)
    f = torch.tanh(0.5 * X).requires_grad_()
    n = torch.randn(X.shape, generator=torch.Generator().manual_seed(0)).double()
    out = copy.deepcopy(ours).step(f, ours.timesteps[0], X, variance_noise=n, **given)
    (by_f,) = torch.autograd.grad(out.log_prob.sum(), f, retain_graph=True)
    (slope,) = torch.autograd.grad(out.mean.sum(), f)
    std = out.std.view(-1, 1, 1, 1)
    assert close(by_f, n / std * slope, 1e-9)


def test_learned_deviations():
    """std [B,*] is the model's, and gradients reach it."""
    _, ours = both("DDPM", FREE | {"variance_type": "learned_range"})
    ours.set_timesteps(5)
    f = torch.cat([0.5 * X, torch.tanh(X)], 1).requires_grad_()
    n = torch.randn(X.shape, generator=torch.Generator().manual_seed(0)).double()
    out = ours.step(f, ours.timesteps[0], X, variance_noise=n)
    assert out.std.shape == X.shape
    assert torch.allclose(out.mean + out.std * n, out.prev_sample, rtol=0, atol=1e-12)
    right = -0.5 * n.square() - out.std.log() - 0.5 * math.log(2 * math.pi)
    assert torch.allclose(out.log_prob, right.flatten(1).sum(1), rtol=1e-12)
    (by_f,) = torch.autograd.grad(out.log_prob.sum(), f)
    assert by_f[:, 3:].abs().max() > 0
