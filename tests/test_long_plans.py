"""Plans of 50 and of 1,000 steps: rows of every solver, with every option that changes one, finite
and on the schedule, on every schedule. `make soak` runs them; minutes.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle.cases import grid
from test_solvers import EVERY, SCHEDULES, every_solver

from fastsample.plan.consistency import is_sound
from fastsample.schedules import SCHEDULES as KINDS
from fastsample.schedules import VP, Cosine, CosmosRFlow, from_functions
from fastsample.solvers import SOLVERS

WORLDS = SCHEDULES | {
    "Cosine": Cosine(),
    "CosmosRFlow": CosmosRFlow(),
    "VP shifted": VP().shifted(log_snr=-1.0),
    "functions": from_functions(np.cos, np.sin, t_max=1.5),
}


@pytest.mark.soak
@pytest.mark.parametrize("n", [50, 1000])
@every_solver
def test_rows_are_finite_and_stay_on_the_schedule(name, options, n):
    """From alpha = 0 where the schedule has it and to sigma = 0; with default options between two
    finite levels too.
    """
    for world, schedule in WORLDS.items():
        for whole in (True, False) if options == EVERY[name][0] else (True,):
            plan = SOLVERS[name](
                schedule, grid(schedule, n, whole=whole), prediction="v", **options
            )
            off = [word for word, array in plan.numbers().items() if not np.isfinite(array).all()]
            assert not off, (world, whole)
            assert is_sound(plan), (world, whole)


def test_it_has_every_solver_and_every_kind_of_schedule():
    assert set(EVERY) == set(SOLVERS)
    assert {type(schedule).__name__ for schedule in WORLDS.values()} >= set(KINDS)
