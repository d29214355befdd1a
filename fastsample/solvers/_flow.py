"""Flow coordinates on any schedule: y = x/n, s = sigma/n, n = alpha + sigma, in which
dy/ds = v = eps - x0 is finite at both ends.
"""

from __future__ import annotations

import math

import numpy as np

from ..grids import check
from ..schedules import Flow, TrigFlow
from ._build import Builder

# alpha + sigma = 1 on Flow, but for the rounding of two quotients
ROUNDING = 4.0 * np.finfo(np.float64).eps


def is_flow(schedule, grid) -> bool:
    """Is the velocity the thing to carry: on a flow, and wherever the grid begins at alpha = 0."""
    if isinstance(schedule, (Flow, TrigFlow)):
        return True
    return float(schedule.alpha(check(schedule, grid)[0])) == 0.0


def velocity_step(b: Builder, i: int, level: np.ndarray) -> tuple[float, float]:
    """(a, e) of x' = a·x + e·v from grid point i to i+1: a = n'/n,
    e = n'(s' - s) = (alpha'·sigma/n)·expm1(lambda - lambda').
    """
    n, target = b.alpha[i : i + 2] + b.sigma[i : i + 2]
    a = target / n
    e = float(b.alpha[i + 1] * b.sigma[i] / n) * math.expm1(level[i] - level[i + 1])
    return 1.0 if abs(a - 1.0) <= ROUNDING else float(a), e
