"""What is given and would not be read is refused, and what the sentences advise holds."""

import json
import re

import numpy as np
import pytest
import torch
from cases import same
from choosing import EDM, FLOW, net, plan_of, unit

import fastsample as fs
from fastsample import trajectories
from fastsample.guidance import guided
from fastsample.interop.k_diffusion import k_sample
from fastsample.model import Model


def low(x, t):
    return 0.1 * x


def test_a_model_that_no_row_asks_is_refused_and_the_advice_makes_two_experts():
    plan, z = plan_of("euler", n=4, model=FLOW), unit(3, 8)
    for models in ([net, low], (net, low, low)):
        with pytest.raises(ValueError, match=r"fs\.solvers\.experts\(plan, boundary=") as error:
            fs.Sampler(plan, models)
    said = str(error.value)
    assert "3 models are given and the plan asks model 0 alone" in said and "\n" not in said
    call = json.loads(re.search(r"call=(\[.*?\])", said).group(1))
    assert call == plan.call.tolist()
    two = fs.solvers.experts(plan, boundary=0.875)
    assert {*two.call.tolist()} == {-1, 0, 1}
    got = fs.Sampler(two, [net, low])(noise=z)
    run = fs.Run(plan, noise=z)
    while not run.done:
        run.step((low if plan.sigma[run.row] < 0.875 else net)(run.model_input, run.t))
    assert same(got, run.x)
    with pytest.raises(ValueError, match="3 models are given and the plan asks model 0, 1 alone"):
        fs.Sampler(two, [net, low, low])
    with pytest.raises(TypeError, match=r"1 model\(s\) for a plan that asks model 1"):
        fs.Sampler(two, net)
    resumed = plan.with_numbers(call=[-1 if c < 0 else 1 for c in call])
    fs.Sampler(resumed, [net, low])  # what is left of two experts, numbered as they were
    with pytest.raises(ValueError, match="model 0 alone"):
        fs.Sampler(two, [net, low]).for_plan(plan)
    with pytest.raises(ValueError, match="the plan asks model 1 and one model is given"):
        list(trajectories.visits(two, Model(net, FLOW.schedule, "flow", time=1000), z))


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize(
    "scale", [0.667, 2, torch.tensor([1.0, 0.5, 1.0]), np.full(3, 0.1)], ids=str
)
def test_a_noise_scale_that_scales_nothing_is_refused(scale, differentiable):
    plan, z = plan_of("dpmpp_2m", n=4), unit(3, 8)
    sampler = fs.Sampler(plan, net, differentiable=differentiable)
    with pytest.raises(ValueError, match="Run: noise_scale is .* no row of this plan draws noise"):
        sampler(noise=z, noise_scale=scale)
    stochastic = fs.Sampler(plan_of("euler_ancestral", n=4), net, differentiable=differentiable)
    assert stochastic(noise=z, seed=1, noise_scale=scale).shape == z.shape


def test_the_advice_of_a_start_of_another_size_holds():
    plan, z = plan_of("dpmpp_2m", n=4), unit(3, 8)
    got = fs.Sampler(plan, net)(latent=0.667 * plan.init_scale * z, start=1)
    run = fs.Run(plan, latent=0.667 * plan.init_scale * z, start=1)
    while not run.done:
        run.step(net(run.model_input, run.t))
    assert same(got, run.x) and not same(got, fs.Sampler(plan, net)(noise=z))


@pytest.mark.parametrize("differentiable", [False, True])
def test_a_noise_source_that_is_not_even_asked_for_the_start_is_refused(differentiable):
    asked = lambda row, name: unit(3, 8, seed=row)
    sampler = fs.Sampler(plan_of("dpmpp_2m", n=4), net, differentiable=differentiable)
    with pytest.raises(ValueError, match="noise_source is a callable, no row.*or pass noise= too"):
        sampler(shape=(3, 8), seed=1, noise_source=asked)
    with pytest.raises(ValueError, match="noise_source holds 1 draws.*or 0 tensors"):
        sampler(noise=unit(3, 8), noise_source=[unit(3, 8)])
    assert same(sampler(noise=asked(0, 0), noise_source=asked), sampler(noise=unit(3, 8)))


def test_a_backend_where_no_kernel_runs_is_refused():
    plan = plan_of("dpmpp_2m", n=4)
    with pytest.raises(ValueError, match="backend='native' with differentiable=True"):
        fs.Sampler(plan, net, differentiable=True, backend="native")
    with pytest.raises(ValueError, match="backend='reference' with mode='compile-loop'"):
        fs.Sampler(plan, net, "compile-loop", backend="reference")
    fs.Sampler(plan, net, differentiable=True, backend="reference")  # the definition
    fs.Sampler(plan, net, "compile-model", backend="reference")


def test_guidance_without_a_second_branch_is_refused_everywhere():
    plan, z, edm = plan_of("dpmpp_2m", n=4), unit(3, 8), Model(net, EDM.schedule, "edm")
    for call in (
        lambda: fs.Sampler(plan, net)(noise=z, guidance=3.0),
        lambda: fs.Run(plan, noise=z, guidance=3.0),
        lambda: fs.Engine(net, (8,)).submit(plan, seed=1, guidance=3.0),
        lambda: list(trajectories.visits(plan, edm, z, guidance=3.0)),
    ):
        with pytest.raises(ValueError, match="guidance"):
            call()
    with pytest.raises(ValueError, match="guidance is missing"):
        fs.Run(guided(plan), noise=z)


def test_what_is_common_and_changes_nothing_is_taken():
    """Seeds, stages and neutral scales of a plan that draws nothing; k-diffusion's noise_sampler,
    also where a plan has room for noise that no row draws.
    """
    plan, z = plan_of("dpmpp_2m", n=4), unit(3, 8)
    sampler = fs.Sampler(plan, net)
    plain = sampler(noise=z)
    for words in (
        {"seed": 3},
        {"seed": [1, 2, 3], "stage": 4},
        {"noise_scale": 0},
        {"noise_scale": 1.0},
        {"noise_scale": torch.tensor([0.0, 1.0, 1.0])},
        {"batched_guidance": False},
        {"device": "cpu"},
        {"noise_source": []},
    ):
        assert same(sampler(noise=z, **words), plain)
    ask, x = (lambda x, sigma: 0.1 * x), z * plan.init_scale
    for other in (plan, plan.padded(L=1)):
        assert same(k_sample(other, ask, x, noise_sampler=lambda *_: x), k_sample(plan, ask, x))
