"""Time grids: float64 arrays [n+1] of a schedule's times, strictly decreasing from the noise end to
the data end; n steps.

end="zero" (default) ends in the time at which sigma = 0 exactly, so that a run returns x0;
end="min" ends in schedule.t_min, where a little noise is left. Times are never rounded unless a
function is told so: a fractional index of a table of 1,000 levels is a level of its own. Anything
else than a strictly decreasing grid is a ValueError, never a repeated last level.

Where alpha(t_max) = 0 (Flow, TrigFlow, zero terminal SNR) sigma/alpha is infinite there; the grids
spaced in it then use s = sigma/(alpha + sigma) in [0, 1] instead, which is the sigma of rectified
flow, and uniform_half_log_snr starts at t_finite with its first time moved to t_max.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .plan.given import edged, integer, real, reals, within
from .schedules import EDM, DiscreteVP, Flow, Schedule

MAX_STEPS = 65_534  # a plan has at most 65,536 rows, two of them without a step
SHOWN = 12  # numbers of a list, in a sentence
# a level this close to the schedule's largest is the largest, through a logarithm and back
SAME_LEVEL = 1e-12
# published lists are rounded (14.615 for 14.61464): so much above the schedule's largest sigma is
# taken as the largest
ROUNDED_LIST = 1e-3


def uniform(schedule: Schedule, n: int, end: str = "zero") -> np.ndarray:
    """t_i = t_max + i/n (t_end - t_max), i = 0..n.

    Where sigma = 0 is a time apart (-1 of DiscreteVP and VE) the n levels are spread over
    t_max..t_min and it follows them.
    """
    n = _steps("uniform", schedule, n, end)
    if end == "min" or schedule.t_zero >= 0.0:
        last = schedule.t_zero if end == "zero" else schedule.t_min
        return check(schedule, np.linspace(schedule.t_max, last, n + 1))
    levels = np.linspace(schedule.t_max, schedule.t_min, n)
    return check(schedule, np.append(levels, schedule.t_zero))


def uniform_half_log_snr(schedule: Schedule, n: int, end: str = "zero") -> np.ndarray:
    """n levels evenly spaced in lambda = ln(alpha/sigma) from the noise end to t_min, then
    sigma = 0 (Lu et al. 2022, arXiv:2206.00927).
    """
    n = _steps("uniform_half_log_snr", schedule, n, end)
    noisiest = schedule.half_log_snr(schedule.t_finite)
    cleanest = schedule.half_log_snr(schedule.t_min)
    levels = np.linspace(noisiest, cleanest, n + (end == "min"))
    return _finish(schedule, schedule.time(levels), end)


def karras(schedule: Schedule, n: int, rho: float = 7.0, end: str = "zero") -> np.ndarray:
    """(s_max^{1/rho} + i/(n-1) (s_min^{1/rho} - s_max^{1/rho}))^rho for n levels s = sigma/alpha,
    then 0 (Karras et al. 2022, eq. 5).

    With alpha(t_max) = 0, s = sigma/(alpha + sigma).
    """
    n = _steps("karras", schedule, n, end)
    power = real(rho)
    if power is None or power <= 0.0:
        raise ValueError(f"grids.karras: rho = {rho!r}; a number > 0 is accepted")
    return _ramp(schedule, n, end, lambda s: s ** (1.0 / power), lambda s: s**power)


def exponential(schedule: Schedule, n: int, end: str = "zero") -> np.ndarray:
    """n levels evenly spaced in ln s, then 0; s as in `karras`."""
    return _ramp(schedule, _steps("exponential", schedule, n, end), end, np.log, np.exp)


def fine(schedule: Schedule, n: int) -> np.ndarray:
    """n steps for a teacher or a search: Karras' where sigma/alpha is finite at t_max, uniform in
    half_log_snr where alpha(t_max) = 0.

    40 steps of dpmpp_3m on the embedded model, dB to 320 of them, Karras' and the other: EDM 68 and
    64, VE 66 and 63, VP 67 and 67, DiscreteVP 67 and 60; Flow 30 and 58, TrigFlow 30 and 60, zero
    terminal SNR 35 and 63.
    """
    _schedule("fine", schedule)
    return (uniform_half_log_snr if _endless(schedule) else karras)(schedule, n)


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
    grid, parts = check(schedule, grid), _steps("refined", schedule, parts, name="parts")
    endless, times = _endless(schedule), []
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        clean = schedule.half_log_snr(b) == np.inf
        low, high = schedule.half_log_snr(np.array([a, schedule.t_min if clean else b]))
        cuts = np.empty(0)
        if high - low > SAME_LEVEL * abs(high):
            cuts = np.arange(1, parts) / (parts - (clean and parts > 2))
        if low == -np.inf:
            low = min(schedule.half_log_snr(schedule.t_finite), high - 1.0)
        if endless:
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
        raise ValueError(
            f"level: {level!r:.60}; a noise level sigma/alpha above {low:.6g} (the grid's end, "
            f"where an image stays as it is) up to {top:.6g} (its start) is accepted"
        )
    if found >= top * (1.0 - SAME_LEVEL):
        return grid
    first = float(schedule.time(-np.log(found)))
    last = n if log[-1] < np.inf else n - 1  # no further is the grid divided
    even = n > 1 and np.ptp(np.diff(grid)) <= SAME_LEVEL * np.abs(grid).max() * n
    last = n if even else last
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


def trailing(schedule: DiscreteVP, n: int, rounded: bool = False) -> np.ndarray:
    """t_i = T(1 - i/n) - 1, i = 0..n, T-1 to -1 (Lin et al. 2024, arXiv:2305.08891, table 2)."""
    size, n = _table("trailing", schedule), _steps("trailing", schedule, n)
    return _indices("trailing", schedule, size * (1.0 - np.arange(n) / n) - 1.0, rounded)


def leading(schedule: DiscreteVP, n: int, offset: float = 0, rounded: bool = False) -> np.ndarray:
    """t_i = (n-1-i)·floor(T/n) + offset, i = 0..n-1, then -1; the noise end is not reached
    (Lin et al. 2024, table 2).
    """
    size, n = _table("leading", schedule), _steps("leading", schedule, n)
    if n > size:
        raise ValueError(
            f"grids.leading: n = {n} for a table of {size} levels; n up to {size} is accepted"
        )
    moved = real(offset)
    if moved is None:
        raise ValueError(f"grids.leading: offset = {offset!r:.60}; a number of levels is accepted")
    return _indices("leading", schedule, np.arange(n)[::-1] * float(size // n) + moved, rounded)


def linspace(schedule: DiscreteVP, n: int, rounded: bool = False) -> np.ndarray:
    """t_i = (T-1)(1 - i/(n-1)), i = 0..n-1, then -1 (Lin et al. 2024, table 2)."""
    size, n = _table("linspace", schedule), _steps("linspace", schedule, n)
    return _indices("linspace", schedule, np.linspace(size - 1.0, 0.0, n), rounded)


def from_sigmas(schedule: Schedule, sigmas) -> np.ndarray:
    """The grid of these noise levels, as they are: sigma of x on Flow, sigma/alpha (the sigma of
    EDM and k-diffusion) elsewhere.

    The last one is where a run ends: put 0 there for x0. inf is the end with alpha = 0. A level
    that repeats the one before it, as rounded lists have them, is a step that changes nothing and
    asks for an evaluation: it is left out.
    """
    _schedule("from_sigmas", schedule)
    sigmas = edged(_list("from_sigmas", sigmas), 0.0)
    if (sigmas < 0.0).any():
        raise ValueError(
            f"grids.from_sigmas: {sigmas[sigmas < 0.0][0]:g} is negative; levels from 0 up are "
            "accepted"
        )
    sigmas = sigmas[np.append(True, sigmas[1:] != sigmas[:-1])[: len(sigmas)]]
    # here, for check would name times, numbers the caller never gave
    _decreasing("grids.from_sigmas", sigmas)
    if isinstance(schedule, EDM):
        return check(schedule, sigmas)
    if isinstance(schedule, Flow):
        top = float(schedule.sigma(schedule.t_max))
    else:
        top = float(np.exp(-schedule.half_log_snr(schedule.t_max)))
    if sigmas[0] > top * (1.0 + ROUNDED_LIST):
        raise ValueError(
            f"grids.from_sigmas: {sigmas[0]:g} is above the schedule's largest level; up to "
            f"{top:g} is accepted"
        )
    sigmas = np.minimum(sigmas, top)
    if isinstance(schedule, Flow):
        return check(schedule, sigmas / (schedule.shift - (schedule.shift - 1.0) * sigmas))
    with np.errstate(divide="ignore"):
        times = schedule.time(-np.log(sigmas))
    return check(schedule, np.where(sigmas >= top * (1.0 - SAME_LEVEL), schedule.t_max, times))


def from_timesteps(schedule: Schedule, timesteps, end: str = "zero") -> np.ndarray:
    """The grid that asks the model at these times of the schedule (indices of a DiscreteVP, t
    before the shift of Flow).

    end="zero" appends the time at which sigma = 0 unless the list ends in it; "keep" does not.
    """
    _schedule("from_timesteps", schedule)
    times = edges(schedule, _list("from_timesteps", timesteps))
    if end not in ("zero", "keep"):
        raise ValueError(f"grids.from_timesteps: end = {end!r}; 'zero' or 'keep' is accepted")
    if end == "zero" and times[-1] != schedule.t_zero:
        times = np.append(times, schedule.t_zero)
    return check(schedule, times)


def check(schedule: Schedule, grid) -> np.ndarray:
    """The grid as float64 [n+1], or a ValueError: one axis, 2 to 65,535 finite times, strictly
    decreasing, inside the schedule.
    """
    _schedule("check", schedule)
    grid = edges(schedule, _list("check", grid))
    if not 2 <= len(grid) <= MAX_STEPS + 1:
        raise ValueError(
            f"grid: {len(grid)} times; 2 to {MAX_STEPS + 1} are accepted, one more than the steps"
        )
    if not np.isfinite(grid).all():
        at = int(np.argmin(np.isfinite(grid)))
        raise ValueError(f"grid: entry {at} is {grid[at]:g}; finite times are accepted")
    levels = schedule.half_log_snr(grid)  # refuses a time outside the schedule
    _decreasing("grid", grid)
    steps = levels[1:] > levels[:-1]
    if not steps.all():
        at = int(np.argmin(steps))
        raise ValueError(
            f"grid: times {grid[at]!r} and {grid[at + 1]!r} are one noise level in float64; times "
            "further apart are accepted"
        )
    return grid


def edges(schedule: Schedule, times: np.ndarray) -> np.ndarray:
    """The times, with the schedule's end in place of what rounding alone put beyond it."""
    top = getattr(schedule, "t_top", getattr(schedule, "t_max", np.inf))
    return edged(times, getattr(schedule, "t_zero", -np.inf), top)


def _schedule(where: str, schedule) -> None:
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


def _endless(schedule: Schedule) -> bool:
    """Is sigma/alpha infinite at t_max?"""
    return schedule.half_log_snr(schedule.t_max) == -np.inf


def _decreasing(where: str, values: np.ndarray) -> None:
    steps = values[1:] < values[:-1]
    if len(values) > 1 and (values[1:] > values[:-1]).all():
        shown = ", ".join(f"{v:g}" for v in values[: -SHOWN - 1 : -1])
        more = ", ..." if len(values) > SHOWN else ""
        raise ValueError(
            f"{where}: the numbers rise from {values[0]:g} to {values[-1]:g}; the same list from "
            f"noise to data is accepted, [{shown}{more}]"
        )
    if not steps.all():
        at = int(np.argmin(steps))
        raise ValueError(
            f"{where}: entry {at + 1} is {values[at + 1]:g} after {values[at]:g}; strictly "
            "decreasing numbers are accepted"
        )


def _steps(where: str, schedule, n, end="zero", name: str = "n") -> int:
    """The number of steps, once it and what else a grid is made of are known to be sound."""
    _schedule(where, schedule)
    count = integer(n)
    if count is None or not 1 <= count <= MAX_STEPS:
        raise ValueError(
            f"grids.{where}: {name} = {n!r}; a whole number of steps from 1 to {MAX_STEPS} is "
            "accepted"
        )
    if end not in ("zero", "min"):
        raise ValueError(f"grids.{where}: end = {end!r}; 'zero' or 'min' is accepted")
    return count


def _list(where: str, values) -> np.ndarray:
    found = reals(values)
    if found is None:
        raise ValueError(f"grids.{where}: {values!r:.60}; a list of numbers is accepted")
    if found.ndim != 1 or found.size == 0 or np.isnan(found).any():
        raise ValueError(
            f"grids.{where}: shape {list(found.shape)}, {int(np.isnan(found).sum())} NaN; a list "
            "of numbers is accepted"
        )
    return found


def _ramp(schedule: Schedule, n: int, end: str, warp, unwarp) -> np.ndarray:
    """n levels evenly spaced in warp(s), s as in `karras`."""
    high, low = warp(_s(schedule, np.array([schedule.t_max, schedule.t_min])))
    s = unwarp(np.linspace(high, low, n + (end == "min")))
    return _finish(schedule, _at_s(schedule, s), end)


def _s(schedule: Schedule, t: np.ndarray) -> np.ndarray:
    """s of `karras` at times t."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return sigma / (alpha + sigma if _endless(schedule) else alpha)


def _at_s(schedule: Schedule, s: np.ndarray) -> np.ndarray:
    """The times at which s is this."""
    with np.errstate(divide="ignore"):
        log_alpha = np.log1p(-np.minimum(s, 1.0)) if _endless(schedule) else 0.0
        return schedule.time(log_alpha - np.log(s))


def _same(values: np.ndarray) -> np.ndarray:
    return values


def _even_in(schedule: Schedule, times: np.ndarray) -> tuple[Callable, Callable]:
    """Of t, ln s and s^(1/7), s as in `karras`, the function of t in which these are most even,
    and its inverse.
    """

    def unevenness(pair: tuple[Callable, Callable]) -> float:
        steps = np.diff(pair[0](times))
        return float(np.ptp(steps) / abs(steps.mean()))

    seventh = lambda t: _s(schedule, t) ** (1.0 / 7.0), lambda y: _at_s(schedule, y**7.0)
    logarithm = lambda t: np.log(_s(schedule, t)), lambda y: _at_s(schedule, np.exp(y))
    return min((seventh, (_same, _same), logarithm), key=unevenness)


def _finish(schedule: Schedule, times: np.ndarray, end: str) -> np.ndarray:
    """The times with their ends set exactly, and sigma = 0 after them where asked."""
    if len(times) > 1:
        times[-1] = schedule.t_min
    times[0] = schedule.t_max
    return check(schedule, np.append(times, schedule.t_zero) if end == "zero" else times)


def _table(where: str, schedule) -> int:
    if not isinstance(schedule, DiscreteVP):
        _schedule(where, schedule)
        raise ValueError(
            f"grids.{where}: schedule is a {type(schedule).__name__}; a DiscreteVP is accepted"
        )
    return len(schedule.alphas_cumprod)


def _indices(where: str, schedule: DiscreteVP, times: np.ndarray, rounded: bool) -> np.ndarray:
    if rounded:
        whole = np.round(times)
        same = whole[1:] == whole[:-1]
        if same.any():
            at = int(np.argmax(same))
            raise ValueError(
                f"grids.{where}: {len(times)} times rounded to whole ones repeat {whole[at]:g}; "
                "fewer steps, or rounded=False, are accepted"
            )
        times = whole
    return check(schedule, np.append(times, schedule.t_zero))
