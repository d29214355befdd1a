"""Grids made of grids: cut finer, or made again to start at a level."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..plan.given import within
from ..schedules import Schedule
from ._checks import check, endless, schedule_or_refuse, steps
from ._levels import SAME_LEVEL, at_s, s_of
from .spaced import karras, uniform_half_log_snr


def fine(schedule: Schedule, n: int) -> np.ndarray:
    """n steps for a teacher or a search: Karras' where sigma/alpha is finite at t_max, uniform in
    half_log_snr where alpha(t_max) = 0.

    40 steps of dpmpp_3m on the embedded model, dB to 320 of them, Karras' and the other: EDM 68 and
    64, VE 66 and 63, VP 67 and 67, DiscreteVP 67 and 60; Flow 30 and 58, TrigFlow 30 and 60, zero
    terminal SNR 35 and 63.
    """
    schedule_or_refuse("fine", schedule)
    return (uniform_half_log_snr if endless(schedule) else karras)(schedule, n)


def refined(schedule: Schedule, grid, parts: int) -> np.ndarray:
    """The grid with every interval cut in `parts` equal ones, its own times bit for bit among them.

    They are equal in the variable of `fine`: (sigma/alpha)^(1/7) where that is finite at t_max,
    else half_log_snr, which starts at t_finite for an interval from alpha = 0. An interval to
    sigma = 0 is cut down to t_min, its last part the step from there; where it starts at t_min or
    below it stays whole, as every solver takes that step in one of first order. (Cut on towards 0
    in the same variable, 40 steps of dpmpp_3m made 80 fall from 66 to 41 dB on EDM, and from 64 to
    26 on DiscreteVP: steps that long in lambda are unstable.) Of two parts the last begins half way
    to t_min: begun there, the other is as long as the whole, and one step from noise to 0 agreed to
    60 dB with such two, 9 dB from the truth.
    """
    grid, parts = check(schedule, grid), steps("refined", schedule, parts, name="parts")
    infinite, times = endless(schedule), []
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        clean = schedule.half_log_snr(b) == np.inf
        low, high = schedule.half_log_snr(np.array([a, schedule.t_min if clean else b]))
        cuts = np.empty(0)
        if high - low > SAME_LEVEL * abs(high):
            cuts = np.arange(1, parts) / (parts - (clean and parts > 2))
        if low == -np.inf:
            low = min(schedule.half_log_snr(schedule.t_finite), high - 1.0)
        if infinite:
            inside = schedule.time(low + cuts * (high - low))
        else:
            first, last = np.exp(-low / 7.0), np.exp(-high / 7.0)
            inside = schedule.time(-7.0 * np.log(first + cuts * (last - first)))
        times += [a, *np.where(cuts == 1.0, schedule.t_min, inside)]
    return check(schedule, np.append(times, grid[-1]))


def starting_at(schedule: Schedule, grid, level: float) -> np.ndarray:
    """The grid made again to start at the noise level sigma/alpha = level, with as many steps.

    The grid is read as a function of its index, at even places from the one where it meets the
    level; between its points it is linear in that of t, ln s and s^(1/7) in which they are most
    even, so that a grid of this module comes out as its own rule makes it from that level. s as in
    `karras`. The interval to sigma = 0 stays one step, unless all of the grid is even in t; a level
    inside that interval gives times even in t. (Flow: a state at sigma has the level
    sigma/(1 - sigma).)
    """
    grid = check(schedule, grid)
    n, log = len(grid) - 1, schedule.half_log_snr(grid)
    top, low = np.exp(-log[[0, -1]])
    found = within(level, low, top)
    if found is None or found == low:
        high = f" up to {top:.6g} (its start)"
        high = high if top < np.inf else ", less than that of pure noise (strength=1),"
        raise ValueError(
            f"level: {level!r:.60}; a noise level sigma/alpha above {low:.6g} (the grid's end, "
            f"where an image stays as it is){high} is accepted"
        )
    if found >= top * (1.0 - SAME_LEVEL):
        return grid
    first = float(schedule.time(-np.log(found)))
    last, even = _divided(schedule, grid)
    if first <= grid[last] or last == 0:
        return check(schedule, np.linspace(first, grid[-1], n + 1))
    forward, back = (_same, _same) if even else _even_in(schedule, grid[: last + 1])
    values, places = forward(grid[: last + 1]), np.arange(last + 1.0)
    begin = np.interp(-forward(np.array([first])), -values, places)[0]
    inside = np.linspace(begin, last, last + 1)
    times = back(np.interp(inside, places, values))
    whole = inside == np.round(inside)
    times[whole] = grid[inside[whole].astype(int)]
    times[0] = first
    return check(schedule, np.append(times, grid[last + 1 :]))


def parted(schedule: Schedule, grid, level: float, steps: Sequence[int]) -> np.ndarray:
    """The grid made again with a point at the noise level sigma/alpha = level, steps[0] steps from
    its start down to there and steps[1] from there to its end.

    It is read as by `starting_at`; the interval to sigma = 0 stays one step.
    """
    grid = check(schedule, grid)
    last, even = _divided(schedule, grid)
    first = float(schedule.time(-np.log(level)))
    if not grid[last] < first < grid[0]:
        low, top = np.exp(-schedule.half_log_snr(grid[[last, 0]]))
        raise ValueError(
            f"level: {level:.6g}; a noise level sigma/alpha between {low:.6g} and {top:.6g}, where "
            "the grid has steps to divide, is accepted"
        )
    forward, back = (_same, _same) if even else _even_in(schedule, grid[: last + 1])
    values, places = forward(grid[: last + 1]), np.arange(last + 1.0)
    at = np.interp(-forward(np.array([first])), -values, places)[0]
    above = back(np.interp(np.linspace(0.0, at, steps[0] + 1), places, values))
    whole = last == len(grid) - 1
    below = back(np.interp(np.linspace(at, last, steps[1] + whole), places, values))
    above[0], below[0] = grid[0], first
    if len(below) > 1 or whole:
        below[-1] = grid[last]
    return check(schedule, np.concatenate([above[:-1], below, grid[last + 1 :]]))


def _divided(schedule: Schedule, grid: np.ndarray) -> tuple[int, bool]:
    """How many of its steps a grid is divided in, all but one to sigma = 0, or all where they are
    even in t; and whether they are.
    """
    n = len(grid) - 1
    even = bool(n > 1 and np.ptp(np.diff(grid)) <= SAME_LEVEL * np.abs(grid).max() * n)
    return n if even or schedule.half_log_snr(grid[-1]) < np.inf else n - 1, even


def _same(values: np.ndarray) -> np.ndarray:
    return values


def _even_in(schedule: Schedule, times: np.ndarray) -> tuple[Callable, Callable]:
    """Of t, ln s and s^(1/7), s as in `karras`, the function of t in which these are most even,
    and its inverse.
    """

    def unevenness(pair: tuple[Callable, Callable]) -> float:
        steps = np.diff(pair[0](times))
        return float(np.ptp(steps) / abs(steps.mean()))

    seventh = lambda t: s_of(schedule, t) ** (1.0 / 7.0), lambda y: at_s(schedule, y**7.0)
    logarithm = lambda t: np.log(s_of(schedule, t)), lambda y: at_s(schedule, np.exp(y))
    return min((seventh, (_same, _same), logarithm), key=unevenness)
