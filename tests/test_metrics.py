"""Metrics: literal values, NumPy and torch alike, ends of the scale, teachers, the grids made by
hand.
"""

import math

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import metrics
from fastsample.models.analytic import GaussianMixture


def test_literal_values():
    a, b = np.zeros((2, 4)), np.array([[0.1] * 4, [0.2] * 4])
    assert metrics.mse(a, b) == pytest.approx(0.025, rel=1e-15)
    assert metrics.max_abs(a, b) == pytest.approx(0.2, rel=1e-15)
    assert metrics.psnr(a, b) == pytest.approx(10 * math.log10(4 / 0.025), rel=1e-15)
    narrow = metrics.psnr(a, b, data_range=1.0)
    assert narrow == pytest.approx(10 * math.log10(1 / 0.025), rel=1e-15)
    got = metrics.psnr_quartiles(np.zeros((3, 1)), np.array([[0.2], [0.02], [0.002]]))
    want = (10 * math.log10(4 / 0.0202), 40.0, 10 * math.log10(4 / 0.000202))
    assert got == pytest.approx(want, rel=1e-12)


def test_torch_and_numpy_agree_and_half_precision_is_widened():
    a, b = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 2, 5)
    assert metrics.psnr(a, b) == metrics.psnr(a.numpy(), b.numpy()) == metrics.psnr(a, b.numpy())
    assert metrics.mse(a.bfloat16(), b) == metrics.mse(a.bfloat16().double().numpy(), b)
    assert metrics.mse(a.requires_grad_(), b) > 0


def test_ends_of_the_scale():
    a = np.ones((2, 3))
    assert metrics.psnr(a, a) == math.inf and metrics.psnr_quartiles(a, a) == (math.inf,) * 3
    assert metrics.psnr(a, a * np.inf) == -math.inf
    assert math.isnan(metrics.psnr(a, np.array([[1, 1, 1], [1, np.nan, 1]])))


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: metrics.psnr(np.zeros((2, 3)), np.zeros((1, 3))), r"shapes \[2, 3\] and \[1, 3\]"),
        (lambda: metrics.mse(np.zeros((0, 3)), np.zeros((0, 3))), "at least one element"),
        (lambda: metrics.psnr(np.ones(2), np.zeros(2), data_range=0), "data_range=0"),
        (lambda: metrics.psnr(np.ones(2), np.zeros(2), data_range=math.nan), "data_range=nan"),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def problem(B=6):
    draw = np.random.default_rng(1)
    law = GaussianMixture(draw.standard_normal((3, 4)), np.ones(3), 0.3)
    z = torch.tensor(draw.standard_normal((B, 4)))
    return law.model(fs.schedules.EDM(sigma_max=10.0), "x0"), z


def test_score_is_the_psnr_of_a_run_and_judges_see_the_end_points():
    model, z = problem()
    plan, finer = (fs.solvers.euler(model, fs.grids.karras(model.schedule, n)) for n in (4, 8))
    target = metrics.run(finer, model, z)
    got = metrics.score(plan, model, z, target, judges={"mean": lambda x: x.mean()})
    assert got.nfe == 4 and got.seconds > 0
    end = fs.Sampler(plan, model, state_dtype=torch.float64)(noise=z)
    assert got.psnr == metrics.psnr(end, target)
    assert got.quartiles == metrics.psnr_quartiles(got.end, target)
    assert got.judged == {"mean": float(got.end.mean())}


def test_chunks_change_nothing():
    """Words and seeds are cut with the samples: a stochastic plan in chunks equals the whole."""
    model, z = problem(B=7)
    shift = torch.linspace(-1, 1, 7)[:, None].double()
    fn = lambda x, t, shift: model.fn(x, t) + shift
    moved = fs.Model(fn, schedule=model.schedule, prediction="x0")
    plan = fs.solvers.euler_ancestral(model, fs.grids.karras(model.schedule, 4))
    cond = {"shift": shift}
    whole = metrics.run(plan, moved, z, seed=11, cond=cond)
    assert torch.equal(metrics.run(plan, moved, z, seed=11, cond=cond, batch_size=3), whole)
    assert not torch.equal(metrics.run(plan, moved, z, seed=12, cond=cond), whole)


def test_teachers():
    model, z = problem()
    plan, agreement, end = metrics.find_teacher(model, z, nfe=16)
    finer = fs.solvers.dpmpp_3m(model, fs.grids.karras(model.schedule, 2 * plan.nfe))
    assert agreement >= 60 and metrics.psnr(end, metrics.run(finer, model, z)) == agreement
    # The first that passes.
    half = fs.solvers.dpmpp_3m(model, fs.grids.karras(model.schedule, plan.nfe // 2))
    assert plan.nfe == 16 or metrics.psnr(end, metrics.run(half, model, z)) < 60
    with pytest.raises(RuntimeError, match="200 dB is needed"):
        metrics.find_teacher(model, z, nfe=8, at_least=200, most=32)
    # It would agree to 60 dB, 9 dB from the truth.
    with pytest.raises(ValueError, match="^find_teacher: nfe=1; at least 2"):
        metrics.find_teacher(model, z, nfe=1)


@pytest.mark.parametrize(
    "schedule",
    [
        fs.schedules.EDM(),
        fs.schedules.VP(),
        fs.schedules.VE(),
        fs.schedules.Flow(shift=3.0),
        fs.schedules.TrigFlow(),
        fs.schedules.DiscreteVP.linear(),
    ],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("nfe", [1, 2, 5])
def test_hand_made_grids_are_grids_of_that_many_steps(schedule, nfe):
    made = metrics.hand_made(schedule, nfe)
    assert len(made) >= 8
    assert {f"{name}, not to zero" for name in ("Karras", "log-uniform", "uniform t")} <= set(made)
    for name, grid in made.items():
        fs.grids.check(schedule, grid)
        assert len(grid) == nfe + 1, name
        assert grid[-1] == (schedule.t_min if "not to zero" in name else schedule.t_zero)
        if "from" not in name:
            assert grid[0] == schedule.t_max
        else:
            level = float(name.split("from ")[1].split(",")[0])
            start = schedule.sigma(grid[0]) / schedule.alpha(grid[0])
            assert start == pytest.approx(level, rel=1e-9)


def test_hand_made_karras_and_log_uniform_are_those_of_grids():
    schedule = fs.schedules.EDM()
    made = metrics.hand_made(schedule, 6)
    np.testing.assert_allclose(made["Karras"], fs.grids.karras(schedule, 6), rtol=1e-12)
    np.testing.assert_allclose(made["log-uniform"], fs.grids.exponential(schedule, 6), rtol=1e-12)


def test_best_by_hand_is_the_best():
    model, z = problem()
    teacher = fs.solvers.dpmpp_3m(model, fs.grids.karras(model.schedule, 40))
    target = metrics.run(teacher, model, z)
    best = metrics.best_hand_made(model, z, 4, target, screen=3, finalists=100)
    figures = [
        metrics.psnr(metrics.run(fs.solvers.euler(model, grid), model, z), target)
        for grid in metrics.hand_made(model.schedule, 4).values()
    ]
    assert best.note["found"]["psnr"] == max(figures) and best.nfe == 4
