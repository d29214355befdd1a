"""Grids spaced by a rule between the ends of any schedule."""

from __future__ import annotations

import numpy as np

from ..schedules import Schedule
from . import _rules as rules
from ._checks import check, steps
from ._levels import above, at_s, finish, ruled, s_of


def uniform(schedule: Schedule, n: int, end: str = "zero") -> np.ndarray:
    """t_i = t_max + i/n (t_end - t_max), i = 0..n.

    Where sigma = 0 is a time apart (-1 of DiscreteVP and VE) the n levels are spread over
    t_max..t_min and it follows them.
    """
    n = steps("uniform", schedule, n, end)
    if end == "min" or schedule.t_zero >= 0.0:
        last = schedule.t_zero if end == "zero" else schedule.t_min
        return check(schedule, np.linspace(schedule.t_max, last, n + 1))
    levels = np.linspace(schedule.t_max, schedule.t_min, n)
    return check(schedule, np.append(levels, schedule.t_zero))


def time_quadratic(schedule: Schedule, n: int, rho: float = 2.0, end: str = "zero") -> np.ndarray:
    """n times evenly spaced in t^(1/rho) from t_max to t_min, then sigma = 0 (Song et al. 2021,
    arXiv:2010.02502, app. D, quadratic; DPM-Solver's time_quadratic, end="min").
    """
    n, rho = steps("time_quadratic", schedule, n, end), above("time_quadratic", "rho", rho)
    times = rules.karras(schedule.t_min, schedule.t_max, n + (end == "min"), rho)
    return finish(schedule, times, end)


def uniform_half_log_snr(schedule: Schedule, n: int, end: str = "zero") -> np.ndarray:
    """n levels evenly spaced in lambda = ln(alpha/sigma) from the noise end to t_min, then
    sigma = 0 (Lu et al. 2022, arXiv:2206.00927). DPM-Solver's logSNR; diffusers' lu_lambdas.
    """
    n = steps("uniform_half_log_snr", schedule, n, end)
    noisiest = schedule.half_log_snr(schedule.t_finite)
    cleanest = schedule.half_log_snr(schedule.t_min)
    levels = np.linspace(noisiest, cleanest, n + (end == "min"))
    return finish(schedule, schedule.time(levels), end)


def karras(schedule: Schedule, n: int, rho: float = 7.0, end: str = "zero") -> np.ndarray:
    """(s_max^{1/rho} + i/(n-1) (s_min^{1/rho} - s_max^{1/rho}))^rho for n levels s = sigma/alpha,
    then 0 (Karras et al. 2022, eq. 5). end="min": n + 1 levels, without the 0.

    With alpha(t_max) = 0, s = sigma/(alpha + sigma).
    """
    return ruled("karras", schedule, n, end, rules.karras, above("karras", "rho", rho))


def exponential(schedule: Schedule, n: int, end: str = "zero") -> np.ndarray:
    """n levels evenly spaced in ln s, then 0; s as in `karras`."""
    return ruled("exponential", schedule, n, end, rules.exponential)


def polyexponential(schedule: Schedule, n: int, rho: float = 1.0, end: str = "zero") -> np.ndarray:
    """ln s = ln s_min + u^rho (ln s_max - ln s_min) for n places u even from 1 to 0, then 0; s as
    in `karras`. k-diffusion's get_sigmas_polyexponential.
    """
    power = above("polyexponential", "rho", rho)
    return ruled("polyexponential", schedule, n, end, rules.polyexponential, power)


def beta_diffusers(
    schedule: Schedule, n: int, alpha: float = 0.6, beta: float = 0.6, end: str = "zero"
) -> np.ndarray:
    """s = s_min + (s_max - s_min)·q, q the quantiles of Beta(alpha, beta) at n even places from 1
    to 0, then 0; s as in `karras`. diffusers' use_beta_sigmas, after Lee et al. 2024
    (arXiv:2407.12173), who space indices: `beta_comfyui`. ImportError without scipy.
    """
    shape = above("beta_diffusers", "alpha", alpha), above("beta_diffusers", "beta", beta)
    return ruled("beta_diffusers", schedule, n, end, rules.beta, *shape)


def kl_optimal(schedule: Schedule, n: int, end: str = "zero") -> np.ndarray:
    """s = tan(arctan(s_max) + i/(n-1)·(arctan(s_min) - arctan(s_max))), then 0; s as in `karras`.
    Sabour et al. 2024 (arXiv:2404.14507, theorem 3.1); ComfyUI's kl_optimal.
    """
    return ruled("kl_optimal", schedule, n, end, rules.kl_optimal)


def linear_quadratic(
    schedule: Schedule, n: int, threshold: float = 0.025, linear_steps: int | None = None
) -> np.ndarray:
    """s = s_max (1 - f(i)), i = 0..n: f = threshold·i/linear_steps in the first linear_steps (n//2)
    steps, then the parabola that leaves them with the same slope and ends in f(n) = 1; s as in
    `karras`. Movie Gen (Polyak et al. 2024, arXiv:2410.13720); Mochi's and ComfyUI's constants.
    """
    n, threshold = steps("linear_quadratic", schedule, n), _share("threshold", threshold)
    linear = n // 2 if linear_steps is None else steps("linear_quadratic", schedule, linear_steps)
    if linear > n:
        raise ValueError(
            f"grids.linear_quadratic: linear_steps = {linear} of n = {n}; up to n are accepted"
        )
    levels = rules.linear_quadratic(n, threshold, linear) if linear else np.array([1.0, 0.0])
    return _of_top(schedule, levels)


def bong_tangent(
    schedule: Schedule,
    n: int,
    middle: float = 0.5,
    pivots: tuple[float, float] = (0.6, 0.6),
    slopes: tuple[float, float] = (0.2, 0.2),
) -> np.ndarray:
    """s/s_max from 1 to middle and from there to 0, each part an arctan of the step's number with
    its steepest place at a share `pivots` of the n + 2 and a slope of 40/(n + 2) times `slopes` a
    step; s as in `karras`. RES4LYF's bong_tangent.
    """
    n = steps("bong_tangent", schedule, n)
    _share("middle", middle, "bong_tangent")
    for name, pair in (("pivots", pivots), ("slopes", slopes)):
        if len(pair) != 2:
            raise ValueError(f"grids.bong_tangent: {name} = {pair!r:.60}; two numbers are accepted")
        for value in pair:
            above("bong_tangent", name, value)
    if n == 1:
        return _of_top(schedule, np.array([1.0, 0.0]))
    return _of_top(schedule, rules.arctan_falls(n, middle, pivots, slopes))


def _share(name: str, value, where: str = "linear_quadratic") -> float:
    found = above(where, name, value)
    if found >= 1.0:
        raise ValueError(f"grids.{where}: {name} = {value!r}; a number inside (0, 1) is accepted")
    return found


def _of_top(schedule: Schedule, shares: np.ndarray) -> np.ndarray:
    """The grid of these shares of s_max, 1 to 0."""
    top = s_of(schedule, np.array(schedule.t_max))
    times = at_s(schedule, top * shares[1:-1])
    return check(schedule, [schedule.t_max, *times, schedule.t_zero])
