"""Grids of given levels and times, and of levels that a rule gives whatever the schedule."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..plan.given import edged, real
from ..schedules import EDM, Flow, Schedule
from . import _rules as rules
from ._checks import check, decreasing, edges, listed, schedule_or_refuse, steps
from ._levels import SAME_LEVEL, above

# published lists are rounded (14.615 for 14.61464): so much above the schedule's largest sigma is
# taken as the largest
ROUNDED_LIST = 1e-3
# of a segment of `f_scheduler`
SEGMENTS = {
    "karras": rules.karras,
    "exponential": rules.exponential,
    "linear": lambda low, high, n: np.linspace(high, low, n),
}


def from_sigmas(schedule: Schedule, sigmas: Any) -> np.ndarray:
    """The grid of these noise levels, as they are: sigma of x on Flow, sigma/alpha (the sigma of
    EDM and k-diffusion) elsewhere.

    The last one is where a run ends: put 0 there for x0. inf is the end with alpha = 0. A level
    that repeats the one before it, as rounded lists have them, is a step that changes nothing and
    asks for an evaluation: it is left out.
    """
    schedule_or_refuse("from_sigmas", schedule)
    sigmas = edged(listed("from_sigmas", sigmas), 0.0)
    if (sigmas < 0.0).any():
        raise ValueError(
            f"grids.from_sigmas: {sigmas[sigmas < 0.0][0]:g} is negative; levels from 0 up are "
            "accepted"
        )
    sigmas = sigmas[np.append(True, sigmas[1:] != sigmas[:-1])[: len(sigmas)]]
    # here, for check would name times, numbers the caller never gave
    decreasing("grids.from_sigmas", sigmas)
    if not isinstance(schedule, Flow):
        return _of_ratios("from_sigmas", schedule, sigmas)
    sigmas = _up_to("from_sigmas", float(schedule.sigma(schedule.t_max)), sigmas)
    return check(schedule, sigmas / (schedule.shift - (schedule.shift - 1.0) * sigmas))


def from_timesteps(schedule: Schedule, timesteps: Any, end: str = "zero") -> np.ndarray:
    """The grid that asks the model at these times of the schedule (indices of a DiscreteVP, t
    before the shift of Flow).

    end="zero" appends the time at which sigma = 0 unless the list ends in it; "keep" does not.
    """
    schedule_or_refuse("from_timesteps", schedule)
    times = edges(schedule, listed("from_timesteps", timesteps))
    if end not in ("zero", "keep"):
        raise ValueError(f"grids.from_timesteps: end = {end!r}; 'zero' or 'keep' is accepted")
    if end == "zero" and times[-1] != schedule.t_zero:
        times = np.append(times, schedule.t_zero)
    return check(schedule, times)


def vp(
    schedule: Schedule, n: int, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3
) -> np.ndarray:
    """sigma/alpha = sqrt(e^(beta_d t²/2 + beta_min t) - 1) for n times t even from 1 to eps_s, then
    0: those of VP(beta_min, beta_min + beta_d) put on this schedule. k-diffusion's get_sigmas_vp.
    """
    n, numbers = steps("vp", schedule, n), {"beta_d": beta_d, "beta_min": beta_min, "eps_s": eps_s}
    numbers = [above("vp", name, value) for name, value in numbers.items()]
    return _of_ratios("vp", schedule, np.append(rules.vp(n, *numbers), 0.0))


def laplace(schedule: Schedule, n: int, mu: float = 0.0, beta: float = 0.5) -> np.ndarray:
    """sigma/alpha = e^(mu - beta·sign(½ - u)·ln(1 - 2|½ - u| + 1e-5)) for n places u = 0..1, held
    between the schedule's ends (at t_finite where alpha(t_max) = 0), then 0. Those held at one end
    are one: n steps or fewer. The first is t_max. Hang et al. 2024, arXiv:2407.03297; ComfyUI's
    get_sigmas_laplace, with 0 behind it.
    """
    n, center = steps("laplace", schedule, n), real(mu)
    if center is None:
        raise ValueError(f"grids.laplace: mu = {mu!r:.60}; a number is accepted")
    level = -np.log(rules.laplace(n, center, above("laplace", "beta", beta)))
    level = np.clip(level, *schedule.half_log_snr(np.array([schedule.t_finite, schedule.t_min])))
    times = schedule.time(np.unique(level))
    times[0] = schedule.t_max
    return check(schedule, np.append(times, schedule.t_zero))


def rfd4(
    schedule: Schedule, n: int, mode: str = "log", tail_steps: int = 0, tail_multiplier: int = 2
) -> np.ndarray:
    """s = sigma/(alpha + sigma) from .999 to 0: s = (u - .01)/(u_0 - .01 + .001) with u from
    u_0 = 10^.001 to .01 evenly in ln u ("log"), or 1 - s evenly in its root ("power"). The last
    tail_steps of the n steps are tail_multiplier times as fine as the rest. diffusers'
    RFD4ProteinaScheduler, whose own tail_steps is 10.
    """
    n, finer = steps("rfd4", schedule, n), steps("rfd4", schedule, tail_multiplier)
    tail = steps("rfd4", schedule, tail_steps) if tail_steps else 0
    if mode not in ("log", "power"):
        raise ValueError(f"grids.rfd4: mode = {mode!r:.60}; 'log' or 'power' is accepted")
    if tail and not (finer > 1 and n >= finer * tail):
        raise ValueError(
            f"grids.rfd4: n = {n} with tail_steps = {tail} and tail_multiplier = {finer}; n of "
            "their product or more, and a multiplier of 2 or more, are accepted"
        )
    levels = rules.falls_to_data(n, mode, tail, finer)
    return _of_ratios("rfd4", schedule, levels / (1.0 - levels))


def f_scheduler(schedule: Schedule, segments) -> np.ndarray:
    """The grid of the levels of several segments, one after the other, each (rule, n, high, low):
    n steps from level high to level low by "karras" (rho 7), "exponential" or "linear" spacing of
    the level. A segment begins where the one before it ends. Levels as in `from_sigmas`; a run
    ends at the last, 0 or not. Li 2025, arXiv:2510.02390.

        f_scheduler(schedule, [("karras", 3, 14.61, 1.0), ("exponential", 2, 1.0, 0.1)])
    """
    schedule_or_refuse("f_scheduler", schedule)
    levels: list[float] = []
    for segment in segments:
        if len(segment) != 4 or segment[0] not in SEGMENTS:
            raise ValueError(
                f"grids.f_scheduler: segment {segment!r:.60}; (rule, n, high, low) with one of "
                f"{', '.join(SEGMENTS)} is accepted"
            )
        rule, n, *ends = segment
        n = steps("f_scheduler", schedule, n)
        high, low = listed("f_scheduler", ends)
        if levels and high != levels[-1]:
            raise ValueError(
                f"grids.f_scheduler: a segment from {high:g} after one to {levels[-1]:g}; segments "
                "that begin where the one before ends are accepted"
            )
        if not high > low >= 0.0 or (low == 0.0 and rule == "exponential"):
            raise ValueError(
                f"grids.f_scheduler: {rule} from {high:g} to {low:g}; falling levels, to more than "
                "0 by 'exponential', are accepted"
            )
        levels += SEGMENTS[rule](low, high, n + 1).tolist()[bool(levels) :]
        levels[-1] = low
    return from_sigmas(schedule, levels)


def shifted(schedule: Schedule, grid, log_snr: float) -> np.ndarray:
    """The times of the grid moved along the schedule to where ln(alpha²/sigma²) is greater by
    log_snr (noisier where that is negative); alpha = 0 and sigma = 0 stay. The network is told the
    new times: `Schedule.shifted` has which is meant when. A flow shift s is log_snr = -2 ln s.
    """
    grid, move = check(schedule, grid), real(log_snr)
    if move is None:
        raise ValueError(f"grids.shifted: log_snr = {log_snr!r:.60}; a number is accepted")
    level = schedule.half_log_snr(grid)
    lowest, wanted = float(schedule.half_log_snr(schedule.t_max)), level + 0.5 * move
    if (edged(wanted, lowest) < lowest).any():
        raise ValueError(
            f"grids.shifted: log_snr = {move:g} moves half_log_snr to {wanted.min():g}; down to "
            f"{lowest:g}, the schedule's end, is accepted"
        )
    times = schedule.time(np.maximum(wanted, lowest))
    return check(schedule, np.where(np.isfinite(level), times, grid))


def shift_terminal(schedule: Schedule, grid, level: float) -> np.ndarray:
    """The grid stretched from the schedule's noise end s_max so that its last level before
    sigma = 0 is `level`: s' = s_max - (s_max - s)(s_max - level)/(s_max - s_last),
    s = sigma/(alpha + sigma), the sigma of a flow. diffusers' shift_terminal (LTX-Video), where
    s_max = 1.
    """
    grid = check(schedule, grid)
    end = len(grid) - (schedule.sigma(grid[-1]) == 0.0)
    times = np.append(schedule.t_max, grid[:end])
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    first, *clean = alpha / (alpha + sigma)
    found = real(level)
    if found is None or not 0.0 < found < 1.0 - first:
        raise ValueError(
            f"grids.shift_terminal: level = {level!r:.60}; a number inside (0, {1.0 - first:g}) is "
            "accepted"
        )
    if clean[-1] <= first:
        raise ValueError(
            "grids.shift_terminal: a grid of the noise end alone before sigma = 0, which stays "
            "where it is; two levels or more are accepted"
        )
    clean = rules.stretched(np.array(clean), found, first)
    with np.errstate(divide="ignore"):
        times = schedule.time(np.log(clean) - np.log1p(-clean))
    times = np.where(clean <= first, schedule.t_max, times)
    return check(schedule, np.append(times, grid[end:]))


def _of_ratios(where: str, schedule: Schedule, ratios: np.ndarray) -> np.ndarray:
    """The grid of these sigma/alpha."""
    if isinstance(schedule, EDM):
        return check(schedule, ratios)
    top = float(np.exp(-schedule.half_log_snr(schedule.t_max)))
    ratios = _up_to(where, top, ratios)
    with np.errstate(divide="ignore"):
        times = schedule.time(-np.log(ratios))
    return check(schedule, np.where(ratios >= top * (1.0 - SAME_LEVEL), schedule.t_max, times))


def _up_to(where: str, top: float, levels: np.ndarray) -> np.ndarray:
    """The levels, the largest of the schedule in place of one rounded up from it."""
    if levels[0] > top * (1.0 + ROUNDED_LIST):
        raise ValueError(
            f"grids.{where}: {levels[0]:g} is above the schedule's largest level; up to {top:g} is "
            "accepted"
        )
    return np.minimum(levels, top)
