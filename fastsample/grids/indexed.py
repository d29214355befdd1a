"""Grids of the indices of a table, as diffusers and ComfyUI space them."""

from __future__ import annotations

import numpy as np

from ..plan.given import real
from ..schedules import EDM, VE, DiscreteVP, Schedule
from . import _rules as rules
from ._checks import check, schedule_or_refuse, steps
from ._levels import above

ENTRIES = 1000  # of the table that ComfyUI makes of a schedule without one


def trailing(schedule: DiscreteVP, n: int, rounded: bool = False) -> np.ndarray:
    """t_i = T(1 - i/n) - 1, i = 0..n, T-1 to -1 (Lin et al. 2024, arXiv:2305.08891, table 2)."""
    size, n = _table("trailing", schedule), steps("trailing", schedule, n)
    return _indices("trailing", schedule, rules.trailing(size, n), rounded)


def leading(
    schedule: DiscreteVP, n: int, offset: float = 0, rounded: bool = False, extra: bool = False
) -> np.ndarray:
    """t_i = (n-1-i)·floor(T/n) + offset, i = 0..n-1, then -1; the noise end is not reached
    (Lin et al. 2024, table 2). extra: of n + 1 of them the cleanest is left out, as diffusers'
    multistep classes do.
    """
    size, n = _table("leading", schedule), steps("leading", schedule, n)
    if n + bool(extra) > size:
        raise ValueError(
            f"grids.leading: n = {n} for a table of {size} levels; n up to {size - bool(extra)} is "
            "accepted"
        )
    moved = real(offset)
    if moved is None:
        raise ValueError(f"grids.leading: offset = {offset!r:.60}; a number of levels is accepted")
    return _indices("leading", schedule, rules.leading(size, n, bool(extra), moved), rounded)


def linspace(
    schedule: DiscreteVP, n: int, rounded: bool = False, extra: bool = False
) -> np.ndarray:
    """t_i = (T-1)(1 - i/(n-1)), i = 0..n-1, then -1 (Lin et al. 2024, table 2). extra as in
    `leading`: t_i = (T-1)(1 - i/n).
    """
    size, n = _table("linspace", schedule), steps("linspace", schedule, n)
    return _indices("linspace", schedule, rules.linspace(size, n, bool(extra)), rounded)


def simple(schedule: Schedule, n: int) -> np.ndarray:
    """Entry T-1 - floor(i·T/n) of the table, i = 0..n-1, then sigma = 0. ComfyUI's simple.

    The table, here and in the four that follow, is the schedule's own where it is a DiscreteVP;
    else ComfyUI's of 1,000 entries: on EDM and VE evenly in ln sigma, elsewhere t_max·k/1000,
    k = 1..1000.
    """
    table, n = _entries(schedule, "simple"), steps("simple", schedule, n)
    at = np.array([int(i * (len(table) / n)) for i in range(n)])
    return _indices("simple", schedule, table[::-1][at], False)


def ddim_uniform(schedule: Schedule, n: int) -> np.ndarray:
    """Every floor(T/n)-th entry of the table of `simple` from its second up, noise to data, then
    sigma = 0: n steps, or some more where n does not divide T. ComfyUI's ddim_uniform.
    """
    table, n = _entries(schedule, "ddim_uniform"), steps("ddim_uniform", schedule, n)
    return _indices("ddim_uniform", schedule, table[1 :: max(len(table) // n, 1)][::-1], False)


def normal(schedule: Schedule, n: int) -> np.ndarray:
    """n times evenly from the label of the noisiest entry of the table of `simple` to that of its
    cleanest, then sigma = 0; on EDM and VE n levels evenly in ln sigma. ComfyUI's normal.

    The label of Flow is its shifted sigma and the times are taken as before the shift, so a shift
    enters twice at the clean end: the published grid.
    """
    return _labelled("normal", schedule, n, 0)


def sgm_uniform(schedule: Schedule, n: int) -> np.ndarray:
    """The first n of n + 1 times of `normal`, then sigma = 0. ComfyUI's sgm_uniform."""
    return _labelled("sgm_uniform", schedule, n, 1)


def beta_comfyui(schedule: Schedule, n: int, alpha: float = 0.6, beta: float = 0.6) -> np.ndarray:
    """Entry round((T-1)·q) of the table of `simple`, q the quantiles of Beta(alpha, beta) at
    1 - i/n, i = 0..n-1, one that repeats left out, then sigma = 0: n steps or fewer. Lee et al.
    2024, arXiv:2407.12173; ComfyUI's beta. ImportError without scipy.
    """
    table, n = _entries(schedule, "beta_comfyui"), steps("beta_comfyui", schedule, n)
    shape = above("beta_comfyui", "alpha", alpha), above("beta_comfyui", "beta", beta)
    at = rules.quantiles(1.0 - np.arange(n) / n, *shape) * (len(table) - 1)
    return _indices(
        "beta_comfyui", schedule, table[np.unique(np.rint(at).astype(int))[::-1]], False
    )


def beta57(schedule: Schedule, n: int) -> np.ndarray:
    """`beta_comfyui` with alpha = .5, beta = .7. RES4LYF's beta57."""
    return beta_comfyui(schedule, n, 0.5, 0.7)


def _entries(schedule: Schedule, where: str) -> np.ndarray:
    """The times of the table of `simple`, data to noise."""
    schedule_or_refuse(where, schedule)
    if isinstance(schedule, DiscreteVP):
        return np.arange(len(schedule.alphas_cumprod), dtype=np.float64)
    if not isinstance(schedule, (EDM, VE)):
        return schedule.t_max * (np.arange(1.0, ENTRIES + 1.0) / ENTRIES)
    ends = schedule.half_log_snr(np.array([schedule.t_min, schedule.t_max]))
    times = schedule.time(np.linspace(*ends, ENTRIES))
    times[[0, -1]] = schedule.t_min, schedule.t_max
    return times


def _labelled(where: str, schedule: Schedule, n: int, more: int) -> np.ndarray:
    table, n = _entries(schedule, where), steps(where, schedule, n)
    if isinstance(schedule, (EDM, VE)):
        ends = schedule.half_log_snr(table[[-1, 0]])
        times = schedule.time(np.linspace(*ends, n + more))[:n]
        times[0] = schedule.t_max
    else:
        times = np.linspace(*(schedule.label(t) for t in table[[-1, 0]]), n + more)[:n]
    return _indices(where, schedule, times, False)


def _table(where: str, schedule) -> int:
    if not isinstance(schedule, DiscreteVP):
        schedule_or_refuse(where, schedule)
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
