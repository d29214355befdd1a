"""The points of a plan: the grid that its steps run on, as its note has it, or its rows."""

from __future__ import annotations

import numpy as np

from ..plan import Plan
from ..plan.steps import begins, unasked
from ..schedules import Schedule, from_json

FLOW = 64 * np.finfo(np.float64).eps  # by so much at most alpha + sigma is not 1 on a flow


def noted(plan: Plan) -> tuple[Schedule, np.ndarray] | None:
    """The schedule and the times [n+1] that the plan's note names; None where it names none, or a
    schedule of somebody's own.
    """
    try:
        schedule = from_json(plan.note["schedule"])
        times = np.asarray(plan.note["times"], np.float64)
        schedule.alpha(times)
    except (KeyError, TypeError, ValueError):
        return None
    return (schedule, times) if times.ndim == 1 and len(times) > 1 else None


def points(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) [n+1] at which each step begins, before churn raises sigma, and of the end: at
    the note's times; where it names no schedule, those of the rows.
    """
    grid = noted(plan)
    if grid is not None:
        schedule, times = grid
        return schedule.alpha(times), schedule.sigma(times)
    rows = [*[1] * unasked(plan), *begins(plan), plan.rows - 1]
    return plan.alpha[rows], plan.sigma[rows]


def on_flow(alpha: np.ndarray, sigma: np.ndarray) -> bool:
    """Is x = (1 - sigma)·x0 + sigma·eps at all of these?"""
    return bool((np.abs(alpha + sigma - 1.0) <= FLOW).all())
