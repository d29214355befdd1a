"""Restart: Heun, which goes back up with new noise and comes down again."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..grids import check
from ..plan import Plan
from ..plan.given import integer
from ._begin import build, number
from ._build import Builder, N
from ._churn import raise_to
from ._flow import begin_in
from ._given import resolve
from ._heun import flow_step, rho_step
from ._start import solver

CURVE = 7.0  # of the levels of an interval: Karras et al. 2022, eq. 5


class Interval(NamedTuple):
    steps: int
    times: int
    low: float
    high: float


@solver("A")
def restart(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    intervals=(),
    s_noise=1.0,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """heun; where it reaches `low` of an interval, `times` times

        y = y + sqrt(high² - low²) s_noise·n,  then `steps` Heun steps from high down to low

    intervals: [(steps, times, low, high)], in rho = sigma/alpha, y = x/alpha; none: heun. low is
    the grid's point nearest to it below the first and above sigma = 0, as in the authors' code, and
    high lies above that point and on the schedule; the levels between are Karras et al.'s with
    exponent 7. (The authors give the number of levels, one more than the steps.) Second order; two
    evaluations a step, one for a last step to sigma = 0. A plan made with start= goes through the
    intervals below its start. Keeps one output. s_noise other than 1 leaves the schedule by design;
    compat changes nothing here. Xu et al. 2023, arXiv:2306.14878, Alg. 1.
    """
    found = resolve(model, prediction)
    s_noise = number("restart: s_noise", s_noise)
    wanted = [_interval(each) for each in _listed(intervals)]
    grid = check(found.schedule, grid)
    words = {"start": start, "inpaint": inpaint, "clip": clip, "compat": compat}
    b, space = begin_in("restart", None, found, grid, **words)
    at = _places(b, wanted)
    step, drawn = flow_step if space == "flow" else rho_step, 1
    for i in range(1, len(b.grid)):
        inside = i > (b.start or 0)
        if inside:
            step(b, b.grid[i - 1], b.grid[i])
        for each in (each for place, each in zip(at, wanted, strict=True) if place == i):
            if inside:
                _again(b, step, b.grid[i], each, s_noise, drawn)
            drawn += each.times
    words = {"intervals": [list(each) for each in wanted], "s_noise": s_noise, "compat": compat}
    orders = [1 if b.sigma[i + 1] == 0.0 else 2 for i in range(b.n)]
    cite = (
        "Xu, Deng, Cheng, Tian, Liu, Jaakkola 2023, Restart Sampling for Improving Generative "
        "Processes, Alg. 1, arXiv:2306.14878"
    )
    return build(b, "restart", words, orders, cite, consistent=s_noise == 1.0 or not wanted)


def _again(b: Builder, step, t: float, each: Interval, s_noise: float, drawn: int) -> None:
    """Up from time t to the interval's high level and down again, as often as it says; the draws
    have the ids from `drawn` on.
    """
    alpha, sigma = b.level(t)
    top, low = each.high ** (1 / CURVE), float(sigma / alpha) ** (1 / CURVE)
    share = np.arange(each.steps) / each.steps
    times = b.schedule.time(-CURVE * np.log(top + share * (low - top)))
    b.visit(times)
    path = [*times.tolist(), t]
    rise = -b.rise(t, path[0])
    for k in range(each.times):
        raise_to(b, t, path[0], rise, s_noise * N(drawn + k))
        for start, end in zip(path[:-1], path[1:], strict=True):
            step(b, start, end)


def _places(b: Builder, wanted: list[Interval]) -> list[int]:
    """Index into the grid of the point that each interval goes up from, or a ValueError."""
    levels, top = b.schedule.half_log_snr(b.grid), b.schedule.half_log_snr(b.grid[0])
    end = b.schedule.t_max if b.schedule.t_top is None else b.schedule.t_top
    highest, found = -float(b.schedule.half_log_snr(end)), []
    inner = np.flatnonzero(np.isfinite(levels) & (np.arange(len(levels)) > 0) & (levels > top))
    for each in wanted:
        rho = np.exp(-levels[inner])
        near = int(np.argmin(np.abs(rho - each.low))) if len(inner) else None
        if near is None or not rho[near] < each.high:
            said = "no point between its ends" if near is None else f"{rho[near]:g} nearest to it"
            raise ValueError(
                f"restart: intervals: {list(each)} on a grid with {said}; low < high, with a point "
                "of the grid near low, is accepted"
            )
        if math.log(each.high) > highest:
            raise ValueError(
                f"restart: intervals: high = {each.high:g} above the schedule's "
                f"{math.exp(highest):g}; a level of the schedule is accepted"
            )
        found.append(int(inner[near]))
    return found


def _listed(intervals) -> list:
    try:
        return [tuple(each) for each in intervals]
    except TypeError:
        raise ValueError(
            f"restart: intervals = {intervals!r:.60}; a list of (steps, times, low, high) is "
            "accepted"
        ) from None


def _interval(each: tuple) -> Interval:
    """(steps, times, low, high), checked."""
    if len(each) != 4:
        raise ValueError(f"restart: intervals: {each!r:.60}; (steps, times, low, high) is accepted")
    counts = [integer(value) for value in each[:2]]
    if any(count is None or count < 1 for count in counts):
        raise ValueError(
            f"restart: intervals: steps = {each[0]!r:.40}, times = {each[1]!r:.40}; whole numbers "
            "from 1 up are accepted"
        )
    low = number("restart: intervals: low", each[2])
    high = number("restart: intervals: high", each[3])
    if not 0.0 < low < high:
        raise ValueError(
            f"restart: intervals: low = {low:g}, high = {high:g}; 0 < low < high is accepted"
        )
    return Interval(*counts, low, high)
