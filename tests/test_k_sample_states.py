"""k_sample on the state of flow models, lists of levels as people have them, and the words eta and
s_noise.
"""

import importlib.util
import math

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import solvers
from fastsample.grids import from_sigmas, uniform
from fastsample.interop import k_sample
from fastsample.schedules import EDM, VP, Flow
from tests.oracle import peers

MEAN, STD = 0.7, 0.5
ROUNDING = 1e-13  # of float64 states that were made in two ways
ABSENT = importlib.util.find_spec("k_diffusion") is None


def noise(seed=0, n=64):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wide(level, x):
    return level.double().view(-1, *[1] * (x.dim() - 1))


def denoiser(x, s):
    """E[x0 | x] of x0 ~ N(MEAN, STD²), x = (1 - s) x0 + s eps."""
    s = wide(s, x)
    gain = (1 - s) * STD**2 / ((1 - s) ** 2 * STD**2 + s**2)
    return (MEAN + gain * (x - (1 - s) * MEAN)).to(x.dtype)


def bent(x, s):
    """A denoiser of the flow state that is not linear in it."""
    return denoiser(x, s) + 0.3 * torch.sin(3 * x + wide(s, x)).to(x.dtype)


def flow_model(x, t):
    """The velocity (x - x0) / s of that denoiser at the times of Flow(3)."""
    s = 3 * t / (1 + 2 * t)
    return (x - bent(x, s)) / wide(s, x)


def lent(*given):
    """A noise_sampler that hands these over, one after the other."""
    each = iter(given)
    return lambda *_: next(each)


# -- flow states -----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Flow(), Flow(3.0), EDM(0.002, 200.0), VP()], ids=repr)
def test_a_flow_state_ends_at_the_data(schedule):
    """The exact flow of a normal distribution keeps each sample's quantile: x0 = MEAN + STD z,
    whatever schedule the plan was made for; below s = 1 the start has its share of the data.
    """
    plan = solvers.heun(fs.Model(None, schedule, "x0"), fs.grids.fine(schedule, 200))
    s, z = float(plan.sigma[1] / (plan.alpha[1] + plan.sigma[1])), noise()
    x = (1 - s) * MEAN + math.hypot((1 - s) * STD, s) * z
    end = k_sample(plan, denoiser, x, disable=True, state="flow")
    torch.testing.assert_close(end, MEAN + STD * z, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "unipc", "dpmpp_2m_sde", "euler_ancestral"])
def test_a_flow_plan_on_its_denoiser_is_the_plan_on_its_model(name):
    """The same end by two ways, from s = 1 exactly, and a callback that is shown what the denoiser
    was asked with.
    """
    model = fs.Model(flow_model, Flow(3.0), "flow")
    plan, z, seen, asked = solvers.SOLVERS[name](model, uniform(Flow(3.0), 7)), noise(), [], []
    draws = [noise(seed) for seed in range(1, 8)]

    def ask(x, s):
        asked.append((x.clone(), s.clone()))
        return bent(x, s)

    given = {"callback": seen.append, "disable": True, "state": "flow"}
    end = k_sample(plan, ask, z, noise_sampler=lent(*draws), **given)
    source = {"noise_source": lent(*draws)} if plan.L else {}
    run = fs.Run(plan, noise=z, **source)
    while not run.done:
        run.step(model(run.model_input, run.t))
    torch.testing.assert_close(end, run.x, rtol=0, atol=ROUNDING)
    assert float(asked[0][1][0]) == 1.0 and torch.equal(asked[0][0], z)
    for (x, s), shown in zip(asked, seen, strict=True):
        assert torch.equal(shown["x"], x) and torch.equal(shown["denoised"], bent(x, s))
        assert shown["sigma"] == shown["sigma_hat"] == s[0]
    assert [shown["i"] for shown in seen] == list(range(7))
    np.testing.assert_allclose([float(s[0]) for _, s in asked], plan.sigma[1:-1], rtol=1e-15)


def test_noise_samplers_and_churn_are_told_the_flow_levels():
    """Of a plan on EDM: s = sigma / (1 + sigma)."""
    levels, told, seen = [9.0, 3.0, 1.0, 0.0], [], []
    make = lambda name, **words: solvers.SOLVERS[name](EDM(), levels, prediction="x0", **words)

    def draw(s, s_next):
        told.append((float(s), float(s_next)))
        return noise(5)

    given = {"callback": seen.append, "disable": True, "state": "flow"}
    k_sample(make("euler_ancestral"), denoiser, noise() * 0.9, noise_sampler=draw, **given)
    assert told == [(0.9, 0.75), (0.75, 0.5)]
    churned = make("heun", s_churn=1.0)
    k_sample(churned, denoiser, noise() * 0.9, noise_sampler=draw, **given)
    hats = churned.sigma / (1 + churned.sigma)
    assert [float(v["sigma"]) for v in seen[-3:]] == pytest.approx([0.9, 0.75, 0.5], rel=1e-15)
    assert float(seen[-3]["sigma_hat"]) == pytest.approx(hats[1], rel=1e-15) and hats[1] > 0.9


def test_noise_of_another_scale_is_refused_on_a_flow_state_too():
    plan = solvers.euler(fs.Model(None, Flow(), "flow"), uniform(Flow(), 4))
    with pytest.raises(ValueError, match=r"x has a root mean square of .* where 1 is meant; unit"):
        k_sample(plan, denoiser, 14.6 * noise(), state="flow")
    with pytest.raises(ValueError, match='accepted, or state="flow" for a denoiser of'):
        k_sample(plan, denoiser, noise())
    with pytest.raises(ValueError, match="state is 'vp'; sigma or flow is accepted"):
        k_sample(plan, denoiser, noise(), state="vp")
    made = fs.Model(bent, Flow(), "x0")  # says what it is told and what it returns
    assert k_sample(plan, made, noise(), disable=True, state="flow").isfinite().all()
    with pytest.raises(ValueError, match="model is .*; a denoiser"):
        k_sample(plan, fs.Model(bent, EDM(), "x0"), noise(), state="flow")


# -- lists -----------------------------------------------------------------------------------------


@pytest.mark.skipif(ABSENT, reason="k-diffusion, the peer, is not installed")
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_a_list_that_repeats_levels_ends_where_the_peer_does(name):
    sigmas = [14.6, 6.0, 6.0, 2.0, 0.7, 0.7, 0.7, 0.0]
    ask = lambda x, s: x / (1 + wide(s, x) ** 2) + 0.1 * torch.sin(x)
    peer = getattr(peers.k_diffusion(), f"sample_{name}")
    x = noise() * 14.6
    expected = peer(ask, x, torch.tensor(sigmas, dtype=torch.float64), disable=True)
    plan = solvers.SOLVERS[name](EDM(), from_sigmas(EDM(), sigmas), prediction="x0")
    torch.testing.assert_close(k_sample(plan, ask, x, disable=True), expected)
    again = solvers.dpmpp_2m(EDM(), from_sigmas(EDM(), sigmas), prediction="x0")
    assert k_sample(again, ask, x, disable=True).isfinite().all()  # NaN there


def test_the_reversed_list_that_is_shown_is_taken():
    with pytest.raises(ValueError, match="rise from 0 to 14.6") as raised:
        solvers.euler(EDM(), [0.0, 0.7, 2.0, 14.6], prediction="x0")
    shown = str(raised.value).rpartition("[")[2].rstrip("]")
    plan = solvers.euler(EDM(), [float(v) for v in shown.split(",")], prediction="x0")
    assert plan.sigma[1:-1].tolist() == [14.6, 2.0, 0.7]


# -- eta and s_noise -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde", "ddim"])
@pytest.mark.parametrize("start", [None, 1])
def test_eta_and_s_noise_are_those_of_the_solver(name, start):
    """As if the plan had been made with them; the plan itself stays as it was."""
    levels, asked = [9.0, 3.0, 1.0, 0.3, 0.0], {"eta": 0.4, "s_noise": 1.03}
    asked = asked if name != "ddim" else {"eta": 0.4}
    make = lambda **words: solvers.SOLVERS[name](
        EDM(), levels, prediction="x0", start=start, **words
    )
    plan, x = make(), noise() * (levels[start or 0])
    draws = lambda: lent(*(noise(k) for k in range(2, 9)))
    ask = lambda x, s: x / (1 + wide(s, x) ** 2)
    run = lambda plan, **words: k_sample(plan, ask, x, noise_sampler=draws(), disable=True, **words)
    before = run(plan)
    assert torch.equal(run(plan, **asked), run(make(**asked)))
    assert torch.equal(run(plan), before) and not torch.equal(before, run(plan, **asked))
    own = plan.note["arguments"]
    assert torch.equal(run(plan, eta=own["eta"]), before)


def test_eta_of_a_plan_that_has_none_is_refused():
    plan = solvers.dpmpp_2m(EDM(), [9.0, 3.0, 0.0], prediction="x0")
    with pytest.raises(ValueError, match="eta = 0.5 for a plan of dpmpp_2m, which has none"):
        k_sample(plan, denoiser, noise() * 9, eta=0.5)
    with pytest.raises(ValueError, match="s_noise = 1.1 for a plan of dpmpp_2m"):
        k_sample(plan, denoiser, noise() * 9, s_noise=1.1)
