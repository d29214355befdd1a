"""Numbers of any plan, and its twins in lockstep: their end points and slopes are those of runs of
their own.
"""

import numpy as np
import pytest
import torch
from polishing import (
    DETERMINISTIC,
    KINDS,
    WORDS,
    moved,
    noise,
    polisher,
    run,
    slopes,
    solved,
    subject,
    target_of,
)

import fastsample as fs
from fastsample.optimize import _numbers
from fastsample.optimize._twins import Twins


@pytest.mark.parametrize(
    "name, schedule, prediction",
    [(name, *kind) for name in DETERMINISTIC for kind in KINDS[: 4 if name == "unipc" else 2]],
)
def test_twins_are_the_runs_of_their_plans(name, schedule, prediction):
    model = subject(schedule, prediction)
    plan, z = solved(name, model), noise(3)
    numbers = _numbers.Numbers(plan, model)
    numbers.check()
    assert numbers.plan_at(numbers.begin) == plan
    h = numbers.steps(numbers.begin, np.ones(len(numbers.all)))
    twins = Twins("polish", model, plan, z, WORDS, torch.float64)
    tables, rows = numbers.tables(numbers.begin, h), range(plan.rows - 1)
    states = twins.states(tables, torch.arange(3), rows, numbers.first).transpose(1, 2)
    assert twins.rows == 3 * numbers.evaluations()
    assert torch.equal(states[0], run(plan, model, z, trajectory=True)[1])
    for k, number in enumerate(numbers.all):
        _, other = run(moved(plan, model, number, h[k]), model, z, trajectory=True)
        assert torch.allclose(states[1 + k], other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name, schedule, prediction", [("unipc", "edm", "edm"), ("heun", "flow", "flow")]
)
def test_slopes_are_those_of_the_run(name, schedule, prediction):
    model = subject(schedule, prediction)
    plan, z = solved(name, model, 3), noise(5)
    target = target_of(model, z)
    p = polisher(plan, model, z, target, held=2)
    samples, theta, h = torch.arange(5), p.numbers.begin, p.state.steps
    slope, gap = slopes(plan, model, z), run(plan, model, z) - target
    r, exact = p._tangents(*p.numbers.tangents(theta, h), samples)
    assert torch.allclose(r, gap, atol=1e-13)
    near = 1e-6 * (1 + slope.abs().amax((1, 2), keepdim=True))
    assert ((exact - slope).abs() <= near).all()
    r, forward = p._differences(p.numbers.tables(theta, h), h, samples)
    assert torch.equal(r, gap)
    for k, number in enumerate(p.numbers.all):  # off by h/2 times the second derivative
        ends = [run(moved(plan, model, number, way * h[k]), model, z) for way in (1, -1)]
        bend = (ends[0] + ends[1] - 2 * run(plan, model, z)) / (2 * h[k])
        assert (forward[k] - slope[k] - bend).norm() <= 0.05 * slope[k].norm() + 1e-6


def test_a_weight_moves_x_by_a_hundredth_of_its_size():
    model = subject()
    plan, z = solved("dpmpp_3m", model), noise(6)
    p = polisher(plan, model, z, target_of(model, z), held=6 - 1)
    held, h = z[1:], p.state.steps
    for k, number in enumerate(p.numbers.all):
        assert number.kind != "scale" or h[k] == 0.01
        assert number.kind != "label" or abs(h[k]) == 0.02
        if number.kind == "weight":
            own, other = (
                fs.Sampler(q, model, state_dtype=torch.float64)(noise=held, trajectory=True)[1]
                for q in (plan, moved(plan, model, number, h[k]))
            )
            square = lambda x: x.square().flatten(1).mean(1)
            share = square((other - own)[number.row]) / square(own[number.row])
            assert share.mean().sqrt() == pytest.approx(0.01, rel=1e-6)


def test_labels_stay_within_the_schedule():
    model = subject()
    plan = fs.solvers.euler(model, [80.0, 1.0, 0.002, 0.0])
    numbers = _numbers.Numbers(plan, model)
    labels = [k for k, number in enumerate(numbers.all) if number.kind == "label"]
    h = numbers.steps(numbers.begin, np.ones(len(numbers.all)))
    assert [h[k] for k in labels] == [0.02, 0.02, -0.02]
    far = numbers.within(numbers.begin, 9.0 * (np.arange(len(h)) > -1))
    assert far[0] == numbers.begin[0] + 0.5
    assert [float(far[k] - numbers.begin[k]) for k in labels] == pytest.approx([1.0, 1.0, 0.0])
    assert (np.delete(far - numbers.begin, [0, *labels]) == 9.0).all()


def test_a_sample_that_ends_at_zero_is_polished_like_the_others():
    """As one of padding alone, of which a model says 0."""
    law, z, there = subject(), noise(8), (torch.arange(8) != 7)[:, None].double()
    model = fs.Model(lambda x, t, there: there * law.fn(x, t), law.schedule, "x0")
    plan, target = fs.solvers.euler(model, [5.0, 1.0, 0.0]), there * target_of(law, z)
    words = {"words": WORDS | {"cond": {"there": there}}, "held": 3}
    p = polisher(plan, model, z, target, **words)
    assert np.isfinite(p.state.steps).all() and p.advance() and np.isfinite(p.state.loss)


def test_a_model_that_writes_into_what_it_is_given_is_refused():
    law, z = subject(), noise(4)
    writes = fs.Model(lambda x, t: (law.fn(x, t), x.zero_())[0], law.schedule, "x0")
    plan = fs.solvers.euler(writes, [5.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="polish: the model changed its input in place; let it"):
        polisher(plan, writes, z, torch.zeros_like(z), held=1)


def test_a_plan_that_is_not_finite_is_told_and_not_taken_for_one_that_is_zero():
    """A mean square of NaN is NaN, whatever the twins' are; one of 0 is what 1 stands for."""
    model, z = subject(), noise(4)
    plan = fs.solvers.euler(model, [5.0, 1.0, 0.0])
    lost = torch.cat([z[:2] * torch.tensor([[torch.nan], [0.0]]), z[2:]])
    p = polisher(plan, model, z, target_of(model, z), held=1)
    probes, first = p.numbers.probes(), p.numbers.first
    square = Twins("polish", model, plan, lost, WORDS, torch.float64).squares(
        probes, torch.arange(4), first
    )
    assert square[0].isnan().any() and square[1:].isfinite().all()
    with pytest.raises(ValueError, match="polish: .* not finite"):
        polisher(plan, model, lost[[1, 2, 0]], target_of(model, z[:3]), held=1)
