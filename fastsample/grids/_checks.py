"""What is checked of a grid and of the arguments it is made of."""

from __future__ import annotations

import numpy as np

from ..plan.given import edged, integer, reals
from ..schedules import Schedule

MAX_STEPS = 65_534  # a plan has at most 65,536 rows, two of them without a step
SHOWN = 12  # numbers of a list, in a sentence


def check(schedule: Schedule, grid) -> np.ndarray:
    """The grid as float64 [n+1], or a ValueError: what is `falling`, inside the schedule, with no
    two times at one noise level.
    """
    grid = falling(schedule, grid)
    apart(grid, schedule.half_log_snr(grid))  # refuses a time outside the schedule
    return grid


def falling(schedule: Schedule, grid) -> np.ndarray:
    """The grid as float64 [n+1], or a ValueError: one axis, 2 to 65,535 finite times, strictly
    decreasing.
    """
    schedule_or_refuse("check", schedule)
    grid = edges(schedule, listed("check", grid))
    if not 2 <= len(grid) <= MAX_STEPS + 1:
        raise ValueError(
            f"grid: {len(grid)} times; 2 to {MAX_STEPS + 1} are accepted, one more than the steps"
        )
    if not np.isfinite(grid).all():
        at = int(np.argmin(np.isfinite(grid)))
        raise ValueError(f"grid: entry {at} is {grid[at]:g}; finite times are accepted")
    decreasing("grid", grid)
    return grid


def apart(grid: np.ndarray, levels: np.ndarray) -> None:
    """ValueError for two times of a grid whose half_log_snr, levels [n+1], is the same."""
    steps = levels[1:] > levels[:-1]
    if not steps.all():
        at = int(np.argmin(steps))
        raise ValueError(
            f"grid: times {grid[at]!r} and {grid[at + 1]!r} are one noise level in float64; times "
            "further apart are accepted"
        )


def edges(schedule: Schedule, times: np.ndarray) -> np.ndarray:
    """The times, with the schedule's end in place of what rounding alone put beyond it."""
    top = getattr(schedule, "t_top", getattr(schedule, "t_max", np.inf))
    return edged(times, getattr(schedule, "t_zero", -np.inf), top)


def schedule_or_refuse(where: str, schedule) -> None:
    """Refuses anything that has not what grids read of a schedule; names the commonest slip."""
    read = ("half_log_snr", "t_max", "t_min", "t_zero")
    if isinstance(schedule, type):
        found = f"the class {schedule.__name__}"
    elif not all(hasattr(schedule, name) for name in read):
        found = f"a {type(schedule).__name__}"
    else:
        return
    accepted = "a schedule of fastsample.schedules is accepted"
    if hasattr(schedule, "schedule"):
        accepted = "pass model.schedule"
    raise ValueError(f"grids.{where}: schedule is {found}; {accepted}")


def endless(schedule: Schedule) -> bool:
    """Is sigma/alpha infinite at t_max?"""
    return schedule.half_log_snr(schedule.t_max) == -np.inf


def refuse_rising(where: str, values: np.ndarray) -> None:
    """ValueError, with the list the other way round, for numbers [n] of which each is more than
    the one before.
    """
    if len(values) > 1 and (values[1:] > values[:-1]).all():
        shown = ", ".join(f"{v:g}" for v in values[: -SHOWN - 1 : -1])
        more = ", ..." if len(values) > SHOWN else ""
        raise ValueError(
            f"{where}: the numbers rise from {values[0]:g} to {values[-1]:g}; the same list from "
            f"noise to data is accepted, [{shown}{more}]"
        )


def decreasing(where: str, values: np.ndarray) -> None:
    refuse_rising(where, values)
    steps = values[1:] < values[:-1]
    if not steps.all():
        at = int(np.argmin(steps))
        raise ValueError(
            f"{where}: entry {at + 1} is {values[at + 1]:g} after {values[at]:g}; strictly "
            "decreasing numbers are accepted"
        )


def steps(where: str, schedule, n, end="zero", name: str = "n") -> int:
    """The number of steps, once it and what else a grid is made of are known to be sound."""
    schedule_or_refuse(where, schedule)
    count = integer(n)
    if count is None or not 1 <= count <= MAX_STEPS:
        raise ValueError(
            f"grids.{where}: {name} = {n!r}; a whole number of steps from 1 to {MAX_STEPS} is "
            "accepted"
        )
    if end not in ("zero", "min"):
        raise ValueError(f"grids.{where}: end = {end!r}; 'zero' or 'min' is accepted")
    return count


def listed(where: str, values) -> np.ndarray:
    found = reals(values)
    if found is None:
        raise ValueError(f"grids.{where}: {values!r:.60}; a list of numbers is accepted")
    if found.ndim != 1 or found.size == 0 or np.isnan(found).any():
        raise ValueError(
            f"grids.{where}: shape {list(found.shape)}, {int(np.isnan(found).sum())} NaN; a list "
            "of numbers is accepted"
        )
    return found
