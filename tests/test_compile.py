"""Compiled modes: the same bits as eager, one graph for every plan of a program. Inductor compiles once here; other cases are traced
only.
"""

from dataclasses import replace

import pytest
import torch
from cases import same
from torch._dynamo.utils import counters

from fastsample import grids, schedules
from fastsample.kernels import native
from fastsample.model import Model
from fastsample.sampler import Sampler
from fastsample.solvers import SOLVERS

SCHEDULE = schedules.Flow(shift=3.0)


def net(x, t, shift=0.0, label=None):
    label = 0.0 if label is None else label.view(-1, 1, 1) * 0.1
    return x * 0.3 + x * x * 0.05 * (t.view(-1, 1, 1) * 0.001 + 0.5) + shift + label


MODEL = Model(net, SCHEDULE, prediction="flow", time=1000)


def plan_of(name, n=4, **options):
    return SOLVERS[name](MODEL, grids.uniform(SCHEDULE, n), **options)


def unit(batch=2, seed=0):
    return torch.randn(batch, 3, 7, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without a code generator: what Dynamo captures, run as captured."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, **{**options, "backend": "eager"}))


def test_the_compiled_loop_gives_the_bits_of_eager_native_and_eager_reference():
    plan, z, label = plan_of("dpmpp_2m_sde"), unit(), torch.tensor([1.0, 2.0])
    call = {"noise": z, "seed": 9, "cond": {"label": label}, "uncond": {"label": label * 0}, "guidance": torch.tensor([1.5, 4.0])}
    compiled = Sampler(plan, MODEL, mode="compile-loop")
    x0, states = compiled(**call, trajectory=True)
    for backend in ["reference"] + ([] if native.MISSING else ["native"]):
        eager, eager_states = Sampler(plan, MODEL, backend=backend)(**call, trajectory=True)
        assert same(x0, eager) and same(states, eager_states)
    assert counters["stats"]["unique_graphs"] == 1
    other = SOLVERS["dpmpp_2m_sde"](MODEL, grids.uniform(SCHEDULE, 4) ** 1.5)
    assert other.program == plan.program
    call = {**call, "noise": unit(seed=3), "seed": 1, "guidance": 2.0}
    swapped, _ = compiled.for_plan(other)(**call, trajectory=True)
    assert same(swapped, Sampler(other, MODEL)(**call))
    assert counters["stats"]["unique_graphs"] == 1, "a plan of the same program must not compile again"


CASES = {
    "unipc": ("unipc", {}, {}),
    "heun": ("heun", {}, {}),
    "lcm": ("lcm", {}, {"noise_scale": 0.5}),
    "two calls": ("dpmpp_2m", {}, {"cond": {"shift": 0.3}, "uncond": {"shift": -0.2}, "guidance": 3.0, "batched_guidance": False}),
    "mask": ("euler_ancestral", {"inpaint": True}, {"mask": torch.rand(2, 3, 7), "known": unit(seed=4)}),
    "image": ("dpmpp_2m", {"start": 2}, {"noise": None, "latent": unit(seed=4)}),
    "image and its noise": ("dpmpp_2m", {"start": 2}, {"latent": unit(seed=4)}),
    "entry": ("heun", {}, {"noise": None, "latent": unit(seed=4), "start": 5}),
    "drawn": ("ddim", {"eta": 1.0}, {"noise": None, "shape": (2, 3, 7)}),
    "noise source": ("ddim", {"eta": 1.0}, {"noise_source": [unit(seed=k) for k in range(3)]}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_traced_loop_is_eager(case, traced):
    name, options, call = CASES[case]
    plan, call = plan_of(name, **options), {"noise": unit(), "seed": 2, **call}
    assert same(Sampler(plan, MODEL, mode="compile-loop")(**call), Sampler(plan, MODEL, backend="reference")(**call))
    assert counters["stats"]["unique_graphs"] == 1


def test_rows_that_ask_different_models_are_not_confused(traced):
    """Nested regions are re-used by their code; two models, and rows of different structure, must stay apart."""
    plan = plan_of("dpmpp_2m")
    call = plan.call.copy()
    call[3:5] = 1
    two, models = replace(plan, call=call), [MODEL, lambda x, t: net(x, t) * 0.5]
    assert same(Sampler(two, models, mode="compile-loop")(noise=unit()), Sampler(two, models)(noise=unit()))


def test_a_bad_output_and_a_bad_sample_are_reported(traced):
    with pytest.raises(Exception, match=r"the model returned \[1, 3, 7\]"):
        Sampler(plan_of("euler"), lambda x, t: x[:1] * 2, mode="compile-loop")(noise=unit())
    poison = torch.tensor([0.0, torch.nan]).view(2, 1, 1)
    with pytest.raises(FloatingPointError, match="sample 1 became non-finite at row 1"):
        Sampler(plan_of("euler"), lambda x, t, p: x + p, mode="compile-loop")(noise=unit(), cond={"p": poison})


def test_the_compiled_model_in_an_eager_loop(traced):
    plan, z = plan_of("unipc"), unit()
    sampler = Sampler(plan, MODEL, mode="compile-model")
    assert same(sampler(noise=z), Sampler(plan, MODEL)(noise=z))
    assert counters["stats"]["unique_graphs"] == 1
    gradients = Sampler(plan, MODEL, mode="compile-model", differentiable=True)
    assert same(gradients(noise=z.requires_grad_()).detach(), sampler(noise=z.detach()))


def test_a_loop_in_one_graph_takes_no_callback():
    with pytest.raises(ValueError, match="callback and progress need mode='eager' or 'compile-model'"):
        Sampler(plan_of("euler"), MODEL, mode="compile-loop")(noise=unit(), callback=print)
