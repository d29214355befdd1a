"""Calls under a transform whose arguments, model or batch another part made ready: conditions, a
compiled model, seeds, tables.
"""

import numpy as np
import pytest
import torch
from cases import BACKENDS
from test_sampler import MODEL, plan_of, unit
from test_transforms import TRACED, W, Wrapped, Z, central, dual, near
from torch.autograd import forward_ad

from fastsample import shared
from fastsample.kernels import cost_gather, cost_matrix, moments
from fastsample.runtime import sources
from fastsample.runtime.run import Run
from fastsample.runtime.sampler import Sampler

pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)


@pytest.mark.parametrize("mode", ["eager", "compile-model", "compile-loop"])
@pytest.mark.parametrize(
    "leaf",
    [lambda v: {"label": v}, lambda v: {"a": [{"label": v}]}, lambda v: {"a": shared({"w": v})}],
    ids=["flat", "nested", "shared"],
)
def test_tangents_of_conditions_are_refused_before_the_model_is_asked(mode, leaf):
    """A compiled graph drops them, and its output looks like any other."""
    sampler = Sampler(
        plan_of("euler", 2),
        lambda x, t, **cond: pytest.fail("asked"),
        mode,
        state_dtype=torch.float64,
    )
    with (
        forward_ad.dual_level(),
        pytest.raises(RuntimeError, match="^Sampler: called under forward-mode differentiation"),
    ):
        sampler(noise=Z, cond=leaf(forward_ad.make_dual(torch.ones(3), torch.ones(3))))


def test_a_compiled_model_is_asked_as_it_is_under_a_transform(monkeypatch):
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiler(f, backend="aot_eager"))
    plan, label = plan_of("dpmpp_2m", 2), torch.ones(3).double()
    eager, compiled = (
        Sampler(plan, MODEL, mode, differentiable=True, state_dtype=torch.float64)
        for mode in ("eager", "compile-model")
    )
    for f in (
        lambda s: lambda x: s(noise=x, cond={"label": label}),
        lambda s: lambda v: s(noise=Z, cond={"label": v.sum(1)}),
    ):
        for name in ("torch.jit.trace", "make_fx"):
            assert torch.equal(TRACED[name](f(compiled), Z.clone())(W), f(eager)(W))
        assert near(dual(f(compiled), Z, W), central(f(eager), Z, W))


@pytest.mark.parametrize(("name", "guided"), [("torch.export", True), ("make_fx symbolic", False)])
def test_an_open_batch_stays_open(name, guided):
    """Traced with 3 samples, run with 7: neither seeds that nothing draws from nor the lengths of
    conditions close it.
    """
    sampler = Sampler(plan_of("unipc", 2), MODEL, differentiable=True, state_dtype=torch.float64)

    def call(x):
        tell = {"uncond": {"label": x[:, 0]}, "guidance": 2.0} if guided else {}
        return sampler(noise=x, cond={"label": x[:, 1]}, **tell)

    if name == "torch.export":
        traced = torch.export.export(
            Wrapped(call), (Z,), dynamic_shapes=[{0: torch.export.Dim("batch")}]
        ).module()
    else:
        traced = TRACED[name](call, Z)
    many = unit(7, 2, seed=4, dtype=torch.float64)
    assert torch.equal(traced(many), call(many))


def test_a_graph_around_the_call_draws_seeds_as_the_call_does():
    """A fresh one each time, under torch.manual_seed, past where int64 ends."""
    compiled = torch.compile(lambda: sources.seeds(None, 2, torch.device("cpu"), True))
    for seed in range(3):
        torch.manual_seed(seed)
        got = compiled()
        torch.manual_seed(seed)
        assert torch.equal(got, sources.seeds(None, 2, torch.device("cpu"), True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_default_device_changes_nothing(backend):
    """Neither the tables of a plan, made anew here, nor what a kernel writes goes there."""
    call = {
        "noise": Z,
        "cond": {"label": np.ones(3)},
        "uncond": {"label": Z[:, 0]},
        "guidance": 2.0,
        "noise_scale": 0.5,
        "seed": 3,
    }
    c, star = torch.ones(1, 3, 4).double(), torch.tensor([0, 2, 1, 0])
    X = torch.ones(1, 4, Z[0].numel()).double()
    flat = Z.flatten(1)[None]

    def step():
        run = Run(plan_of("unipc"), noise=Z, state_dtype=torch.float64, backend=backend)
        run.step(Z), run.step(Z)
        return torch.cat([run.x, run.x0, run.status()[:, None].expand_as(Z)])

    roads = {
        "Sampler": lambda: Sampler(
            plan_of("euler_ancestral", 3), MODEL, state_dtype=torch.float64, backend=backend
        )(**call),
        "differentiable": lambda: Sampler(
            plan_of("euler_ancestral", 3), MODEL, differentiable=True, state_dtype=torch.float64
        )(**call),
        "step": step,
        "moments": lambda: moments([Z], [Z], backend=backend)[0],
        "cost_matrix": lambda: cost_matrix([flat], c, X, backend=backend),
        "cost_gather": lambda: cost_gather([flat], c, star, backend=backend),
    }
    for road in roads.values():
        here = road()
        with torch.device("meta"):
            assert torch.equal(road(), here)
