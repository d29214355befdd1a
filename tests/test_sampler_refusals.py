"""Sampler: plans of another model, arguments of the wrong kind and models that write into their
input are refused; nothing given is silently cut off from its gradient.
"""

import copy

import numpy as np
import pytest
import torch
from cases import same
from test_sampler import MODEL, SCHEDULE, net, plan_of, unit

from fastsample import grids, schedules
from fastsample.model import Model
from fastsample.plan import Plan
from fastsample.runtime.sampler import Sampler
from fastsample.solvers import SOLVERS

DISCRETE = schedules.DiscreteVP.scaled_linear()
ROUNDED = schedules.DiscreteVP(np.asarray(DISCRETE.alphas_cumprod, np.float32).astype(np.float64))


def made_for(schedule, prediction, **words):
    model = Model(None, schedule, prediction, **words)
    return SOLVERS["euler"](model, grids.uniform(schedule, 4))


@pytest.mark.parametrize(
    ("plan", "model", "word"),
    [
        (made_for(SCHEDULE, "flow"), MODEL, "time"),
        (made_for(schedules.VP(), "eps"), Model(net, SCHEDULE, "eps"), "schedule"),
        (made_for(schedules.VP(), "v"), Model(net, schedules.VP(beta_max=10.0), "v"), "schedule"),
        (made_for(SCHEDULE, "flow"), Model(net, schedules.Flow(shift=1.0), "flow"), "schedule"),
        # what a network told sigma sees is the same; the grid is not
        (made_for(schedules.Flow(), "flow", time=1000), MODEL, "schedule"),
        (made_for(SCHEDULE, "flow", time=lambda t: 1000 * t), MODEL, "time"),
        (made_for(SCHEDULE, "flow").with_note(schedule="mine", model=[3]), MODEL, "time"),
        (
            made_for(schedules.EDM(), "eps", time=1),
            Model(net, schedules.EDM(), "eps", time=1, input_scale="vp"),
            "input_scale",
        ),
        (
            made_for(schedules.EDM(), "edm"),
            Model(net, schedules.EDM(), "edm", sigma_data=1.0),
            "sigma_data",
        ),
    ],
)
def test_a_plan_of_another_model_is_refused(plan, model, word):
    sentence = (
        f"Sampler: the plan was made for {word} = .* and the model's is .*; make it for this model"
    )
    with pytest.raises(ValueError, match=sentence) as said:
        Sampler(Plan.from_json(plan.to_json()), [model])
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("plan", "model"),
    [
        (made_for(SCHEDULE, "flow"), Model(net, SCHEDULE, "flow")),
        (made_for(schedules.EDM(), "edm"), Model(net, schedules.EDM(), "edm", time="log_sigma")),
        (made_for(ROUNDED, "eps"), Model(net, DISCRETE, "eps")),
        (made_for(SCHEDULE, "flow", time=lambda t: 1000 * SCHEDULE.label(t)), MODEL),
        # eps knows no sigma_data
        (made_for(schedules.VP(), "eps"), Model(net, schedules.VP(), "eps", sigma_data=1.0)),
        (made_for(schedules.VP(), "eps"), net),
        (made_for(SCHEDULE, "flow", time=1000).with_note(schedule="mine", model=[3]), MODEL),
    ],
)
def test_other_words_for_the_same_model_are_accepted(plan, model):
    assert Sampler(Plan.from_json(plan.to_json()), model).plan.nfe == plan.nfe


@pytest.mark.parametrize(
    "call",
    [{}, {"cond": {}, "uncond": {}, "guidance": 2.0, "batched_guidance": False}],
    ids=["one", "two calls"],
)
@pytest.mark.parametrize(
    "write", [lambda x, t: x.add_(0.1), lambda x, t: t.mul_(1000.0)], ids=["x", "t"]
)
def test_a_model_that_writes_into_its_input_is_refused(write, call):
    asked = []

    def model(x, t, **cond):
        asked.append(1)
        if len(asked) == 3:
            write(x, t)
        return x * 0.3

    row = 2 if call else 3
    with pytest.raises(
        ValueError,
        match=f"Sampler: the model changed its input in place at row {row}; let it work on a copy",
    ):
        Sampler(plan_of(), model)(noise=unit(), **call)
    with torch.inference_mode():
        assert Sampler(plan_of(), net)(noise=unit()).shape == (3, 2, 5)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "value", "options"),
    [
        (
            "guidance",
            scalar(2.0),
            {"cond": {"shift": 0.3}, "uncond": {"shift": -0.2}, "batched_guidance": False},
        ),
        ("noise_scale", scalar(0.5), {}),
        (
            "known",
            unit(seed=8, dtype=torch.float64),
            {"mask": torch.full((3, 2, 5), 0.5, dtype=torch.float64)},
        ),
        (
            "mask",
            torch.full((3, 2, 5), 0.5, dtype=torch.float64),
            {"known": unit(seed=8, dtype=torch.float64)},
        ),
        ("noise_source", unit(seed=9, dtype=torch.float64), {}),
    ],
)
def test_gradients_reach_what_is_given_and_a_run_refuses_them(name, value, options):
    """Against a central difference along ones: error of order step^2 beside rounding / step."""
    plan = plan_of("euler_ancestral", 3, inpaint="known" in {name, *options})
    given = lambda v: (lambda row, k: v) if name == "noise_source" else v
    call = {"noise": unit(dtype=torch.float64), "seed": 3, **options}
    learned, step = value.clone().requires_grad_(), 2.0**-17
    sampler = Sampler(plan, MODEL, differentiable=True, state_dtype=torch.float64)
    (gradient,) = torch.autograd.grad(
        sampler(**call, **{name: given(learned)}).square().sum(), learned
    )
    ends = [
        sampler(**call, **{name: given(value + sign * step)}).square().sum().item()
        for sign in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / (2 * step)
    assert slope != 0
    assert abs(slope - float(gradient.sum())) <= 1e-6 * max(1.0, abs(slope), abs(ends[0]))
    with pytest.raises(
        RuntimeError,
        match=f"Run: {name} requires grad, and a Run keeps none; .*differentiable=True",
    ):
        Sampler(plan, MODEL, state_dtype=torch.float64)(**call, **{name: given(learned)})


@pytest.mark.parametrize("mode", ["eager", "compile-loop"])
@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"state_dtype": torch.float16}, TypeError, "Sampler: state_dtype torch.float16"),
        ({"model_dtype": torch.int64}, TypeError, "Sampler: .*model_dtype torch.int64"),
        (
            {"backend": "bogus"},
            ValueError,
            "Sampler: backend='bogus'; accepted are native, triton, reference",
        ),
    ],
)
def test_options_are_refused_when_the_sampler_is_made(options, error, sentence, mode):
    with pytest.raises(error, match=sentence):
        Sampler(plan_of(), MODEL, mode, **options)


def test_calls_of_the_wrong_kind_are_refused():
    with pytest.raises(TypeError, match="Sampler: callback is a int; a callable"):
        Sampler(plan_of(), MODEL)(noise=unit(), callback=3)
    with pytest.raises(ValueError, match="Sampler: table is a list; a tensor torch.float32"):
        Sampler(plan_of(), MODEL, differentiable=True)(noise=unit(), table=[[1.0]])
    for last in (0, 4):
        with pytest.raises(ValueError, match="Run: x holds NaN or Inf in sample 0, 1, 2; finite"):
            Sampler(plan_of(), MODEL)(
                noise=unit(),
                callback=lambda step, x, x0, at=last: x * torch.nan if step == at else None,
            )


def test_a_copy_of_a_sampler_is_itself():
    sampler = Sampler(plan_of(), MODEL)
    assert copy.deepcopy({"pipe": sampler})["pipe"] is sampler


def test_a_state_of_the_trajectory_enters_at_the_next_row():
    plan = plan_of("heun")
    x0, states = Sampler(plan, MODEL)(noise=unit(), trajectory=True)
    assert len(states) == plan.nfe + 1
    for k in (e - 1 for e in plan.entries if e > 0):
        assert same(Sampler(plan, MODEL)(latent=states[k], start=k + 1), x0)
