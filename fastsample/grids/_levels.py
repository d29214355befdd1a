"""Levels of a schedule in the variable that the rules space, and back to its times."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..plan.given import real
from ..schedules import Schedule
from ._checks import check, endless, steps

# a level this close to the schedule's largest is the largest, through a logarithm and back
SAME_LEVEL = 1e-12


def ruled(where: str, schedule: Schedule, n, end: str, rule: Callable, *numbers) -> np.ndarray:
    """The grid of the levels s that rule(low, high, n, *numbers) spaces between the schedule's
    ends, s as in `karras`.
    """
    n = steps(where, schedule, n, end)
    high, low = s_of(schedule, np.array([schedule.t_max, schedule.t_min]))
    return finish(schedule, at_s(schedule, rule(low, high, n + (end == "min"), *numbers)), end)


def s_of(schedule: Schedule, t: np.ndarray) -> np.ndarray:
    """s of `karras` at times t."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return sigma / (alpha + sigma if endless(schedule) else alpha)


def at_s(schedule: Schedule, s: np.ndarray) -> np.ndarray:
    """The times at which s is this."""
    with np.errstate(divide="ignore"):
        log_alpha = np.log1p(-np.minimum(s, 1.0)) if endless(schedule) else 0.0
        return schedule.time(log_alpha - np.log(s))


def finish(schedule: Schedule, times: np.ndarray, end: str) -> np.ndarray:
    """The times with their ends set exactly, and sigma = 0 after them where asked."""
    if len(times) > 1:
        times[-1] = schedule.t_min
    times[0] = schedule.t_max
    return check(schedule, np.append(times, schedule.t_zero) if end == "zero" else times)


def above(where: str, name: str, value, least: float = 0.0) -> float:
    """A number > least, or a ValueError."""
    found = real(value)
    if found is None or found <= least:
        raise ValueError(f"grids.{where}: {name} = {value!r}; a number > {least:g} is accepted")
    return found
