"""Every solver of the registry from an image on a grid that begins at the noise end, by start=,
strength= and level=.
"""

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from fastsample.schedules import VP, DiscreteVP, Flow
from fastsample.solvers import SOLVERS

SCHEDULES = ((Flow(), "flow"), (DiscreteVP.linear().zero_terminal_snr(), "v"), (VP(), "eps"))
IMAGE = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).view(2, 3)


@pytest.mark.parametrize(("schedule", "prediction"), SCHEDULES, ids=("Flow", "zero_snr", "VP"))
@pytest.mark.parametrize("name", SOLVERS)
def test_an_image_stands_at_its_level_and_the_model_is_asked_as_told(name, schedule, prediction):
    """As often as a plan of the grid that is left asks: level= has as many steps as the whole grid,
    whose first, from alpha = 0, may have asked once.
    """
    grid, asked = grids.uniform(schedule, 5), []

    def fn(x, t):
        asked.append(t[0].item())
        return torch.tanh(x)

    model = fs.Model(fn, schedule, prediction)
    whole = SOLVERS[name](model, grid)
    for words, rest in (
        ({"start": 2}, grid[2:]),
        ({"level": 0.9}, grids.starting_at(schedule, grid, 0.9)),
    ):
        del asked[:]
        plan, again = SOLVERS[name](model, grid, **words), SOLVERS[name](model, rest)
        assert plan == whole.remake(**words)
        level = float(np.exp(-schedule.half_log_snr(rest[0])))
        assert plan.sigma[1] == pytest.approx(level * plan.alpha[1], rel=1e-9)
        end = fs.Sampler(plan, model)(latent=IMAGE, seed=1)
        assert end.isfinite().all() and len(asked) == plan.nfe == again.nfe
        assert asked == plan.t[np.flatnonzero(plan.call >= 0) - 1, 0].tolist()
    assert SOLVERS[name](model, grid, strength=0.6) == SOLVERS[name](model, grid, start=2)
