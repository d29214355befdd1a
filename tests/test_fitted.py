"""Rows that a search fitted: those that leave the schedule begin from noise alone, and say at every
door which can do more; those that stay on it start anywhere. The weight of a row.
"""

import numpy as np
import pytest
import torch
from test_provenance import FLOW, MODEL, SHAPE, Z, plan_for

import fastsample as fs
from fastsample import grids, solvers
from fastsample.plan.consistency import heaviest, weights

GRID = grids.uniform(FLOW, 4)
FREE = [[0.9, 0.05], [0.5, 0.3, 0.1], [0.4, -0.2, 0.1, 0.5], [0.0, 0.1, 0.2, -0.3, 1.1]]


def fitted(rows, weights, **words):
    return solvers.fitted(MODEL, GRID, weights=weights, rows=rows, **words)


def on_schedule():
    """Euler's rows, with a third of the difference of the two newest predictions beside."""
    a, b = (v.tolist() for v in solvers.jump(FLOW, GRID[:-1], GRID[1:]))
    return [[a[0], b[0]], *([a, -0.3 * b, 1.3 * b] for a, b in zip(a[1:], b[1:], strict=True))]


LEAVES = fitted("free", FREE)
ENTERED = [[1.0, 0.1], [0.4, 0.3], [0.3, 0.4], [0.0, 1.0]]  # no history: every row is an entry


def begun(plan, **words):
    run = fs.Run(plan, noise=Z)
    run.restart(**words)


IMAGE = {"latent": Z, "start": 2}
MASK = {"noise": Z, "mask": torch.ones(1, 1, 4, 4), "known": Z}
SENTENCE = "^{}: .* of a plan whose rows leave the schedule .*rows='consistent'"
REFUSED = {
    "Run": lambda plan: fs.Run(plan, **IMAGE),
    "Run, masked": lambda plan: fs.Run(plan, **MASK),
    "Run, begun again": lambda plan: begun(plan, **IMAGE),
    "Run, an image": lambda plan: fs.Run(plan, latent=Z),
    "Run, of a Sampler": lambda plan: fs.Sampler(plan, MODEL)(**IMAGE),
    "Run, of a masked Sampler": lambda plan: fs.Sampler(plan, MODEL)(**MASK),
    "Run, with gradients": lambda plan: fs.Sampler(plan, MODEL, differentiable=True)(**IMAGE),
    "Engine.submit": lambda plan: fs.Engine(MODEL, SHAPE).submit(plan, latent=Z[:1], start=2),
    "Engine.submit, masked": lambda plan: fs.Engine(MODEL, SHAPE).submit(
        plan, seed=1, mask=MASK["mask"], known=Z[:1]
    ),
    "remake": lambda plan: plan.remake(2),
    "remake, by strength": lambda plan: plan.remake(strength=0.5),
    "remake, to hold an image": lambda plan: plan.remake(inpaint=True),
}


def learned():
    """A solver's plan with other numbers."""
    plan = plan_for(FLOW, "flow", time=1000)
    return plan.with_numbers(M=np.append(plan.M[:-1] * 1.01, plan.M[-1:], 0))


@pytest.mark.parametrize("door", REFUSED)
def test_rows_that_leave_the_schedule_begin_from_noise_alone(door):
    where = door.split(",")[0]
    # numbers that are not the solver's have no remake, as it says itself
    for plan in [fitted("free", ENTERED), *([] if where == "remake" else [learned()])]:
        with pytest.raises(ValueError, match=SENTENCE.format(where)):
            REFUSED[door](plan)


def test_they_run_from_noise_and_say_what_they_are():
    assert LEAVES.note["consistent"] is False and LEAVES.consistency() > 0.1
    assert "consistent     False" in LEAVES.describe()
    x0 = fs.Sampler(LEAVES, MODEL)(noise=Z)
    assert torch.equal(fs.Sampler(LEAVES, MODEL)(latent=LEAVES.init_scale * Z, start=1), x0)
    assert LEAVES.remake(None) == LEAVES and LEAVES.entries == (0, 1)
    with pytest.raises(ValueError, match="fitted: rows='free', start=2, inpaint=False; 'consist"):
        fitted("free", FREE, start=2)
    assert fs.Run(solvers.lcm(MODEL, GRID, inpaint=True), latent=Z, start=2).row == 2


def test_consistent_rows_start_anywhere():
    """The exact model of one point takes its noised image there, from every start."""
    plan = fitted("consistent", on_schedule())
    x0 = torch.linspace(-1, 1, 16).view(1, 1, 4, 4).expand(2, -1, -1, -1).double()

    def exact(x, t):
        sigma = t.view(-1, 1, 1, 1) / 1000
        return (x - x0) / sigma  # eps - x0 on a flow

    for begin in ({"start": 1}, {"start": 2}, {"start": 3}, {"strength": 0.5}):
        made = plan.remake(**begin)
        assert made.note["consistent"] and made.consistency() < 1e-15
        end = fs.Sampler(made, exact, state_dtype=torch.float64)(latent=x0, seed=3)
        assert (end - x0).abs().max() < 1e-12
    assert plan.remake(2).remake(None) == plan == fs.Plan.from_bytes(plan.to_bytes()).remake(None)
    masked = fitted("consistent", on_schedule(), inpaint=True)
    assert plan.remake(inpaint=True) == masked == masked.remake()
    assert masked.remake(inpaint=False) == plan
    words = {"mask": torch.ones(1, 1, 4, 4), "known": x0}
    end = fs.Sampler(masked, exact, state_dtype=torch.float64)(noise=Z.double(), **words)
    assert (end - x0).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"weights": FREE[:3]}, r"weights of \[2, 3, 4\] numbers for a grid of 4 steps"),
        ({"weights": [[1.0, 1.0, 1.0], *FREE[1:]]}, r"weights of \[3, 3, 4, 5\] numbers"),
        ({"weights": [[1.0], *FREE[1:]]}, r"weights of \[1, 3, 4, 5\] numbers"),
        ({"rows": "any"}, "rows='any'"),
        ({"rows": "consistent"}, "rows leave the schedule by"),
    ],
)
def test_fitted_refuses(given, sentence):
    with pytest.raises(ValueError, match=f"fitted: {sentence}"):
        solvers.fitted(MODEL, GRID, **{"weights": FREE, **given})


def test_the_heaviest_row():
    """sum |w_l| as they were given; of Euler, alpha' |expm1(-h)|, whatever it stores."""
    np.testing.assert_allclose(weights(LEAVES), [np.abs(w[1:]).sum() for w in FREE], rtol=1e-12)
    assert heaviest(LEAVES) == pytest.approx(1.7, rel=1e-12)
    _, b = solvers.jump(FLOW, GRID[:-1], GRID[1:])
    for make in (solvers.euler, solvers.ddim):
        np.testing.assert_allclose(weights(make(MODEL, GRID)), b, rtol=1e-9)
    noisy = solvers.euler_ancestral(MODEL, GRID)
    assert 0 < heaviest(noisy) < 2 and heaviest(solvers.lcm(MODEL, GRID)) == pytest.approx(1.0)
