"""Flow sigmas as diffusers' configs name them, in float64: x = (1 - sigma) x0 + sigma eps. Pure
data: no torch, no diffusers.

sigma = shift·s / (1 + (shift-1) s) (Esser et al. 2024, arXiv:2403.03206, eq. 23) from the class's
own s, or a given one; labels T·sigma. With invert_sigmas (FlowMatchEuler) the class counts
1 - sigma in place of sigma, its labels are T·(1 - sigma), its model's output x0 - eps.
"""

from __future__ import annotations

import math

import numpy as np

from ...grids import _rules as rules
from .grids import (
    CONVERSIONS,
    SAME,
    Family,
    Points,
    checked,
    convert,
    count,
    falling,
    levels_of,
    noise_schedule,
)


def flow_points(
    family: Family,
    config: dict,
    steps: int | None,
    *,
    timesteps=None,
    sigmas=None,
    mu: float | None = None,
) -> Points:
    """The grid of `steps` steps, or of the given s [n] (sigmas), or of timesteps [n]. The end is 0:
    a list that ends there gives a last step of length 0, as repeated levels do. With
    final_sigmas_type = "sigma_min" it is the last of n + 1 levels.

    FlowMatchEuler's s already runs down to the shifted 1/T, so its shift enters twice there: that
    is the grid published results use. Its timesteps are labels: s where no sigmas stand beside
    them is t/T, shifted like any other. Elsewhere a timestep is a level, sigma = t/T. mu: the
    dynamic shift.
    """
    size, match = config["num_train_timesteps"], family.flow == "match"
    kept = family.kept or config.get("final_sigmas_type", "zero") == "sigma_min"
    still = match and not family.apart
    given = None if sigmas is None else falling("sigmas", sigmas, 1.0, repeats=still)
    told = (
        None if timesteps is None else falling("timesteps", timesteps, float(size), repeats=still)
    )
    steps = count(steps, None if told is None else len(told), None if given is None else len(given))
    shift = _shift(family, config, mu)
    if given is not None:
        s = _shifted(shift, given)
    elif told is not None:
        s = _shifted(shift, told / size) if match else told / size
    else:
        s = _shifted(shift, _own(family, config, steps + kept))
    key = next((key for key in CONVERSIONS if config.get(key)), None)
    if config.get("shift_terminal") and (match or key is None):
        s = _stretched(s, config["shift_terminal"])
    s = _converted(family, config, key, s)
    if kept and len(s) == steps:
        raise ValueError(
            "FsScheduler.set_timesteps: a list beside final_sigmas_type = 'sigma_min' repeats its "
            "last level; a number of steps, or 'zero', is accepted"
        )
    if not still and steps > 1 and s[-1] == 0.0:  # multistep solvers end there
        s = s[:-1]
    grid = s if kept else np.append(s, 0.0)
    if config.get("invert_sigmas"):
        told = (1.0 - s) * size
    labels = (s * size if told is None else told)[: len(grid) - 1]
    return Points(grid, labels) if still else checked(grid, labels)


# -- inside ----------------------------------------------------------------------------------------
def _own(family: Family, config: dict, n: int) -> np.ndarray:
    """s before the shift [n]."""
    size = config["num_train_timesteps"]
    if family.flow == "match":
        shift = 1.0 if config.get("use_dynamic_shifting") else config["shift"]
        return np.linspace(1.0, _shifted(shift, 1.0 / size), n)
    if family.flow == "unipc":
        return np.linspace(1.0, 1.0 / size, n + 1)[:-1]
    return (1.0 - 1.0 / size) * np.linspace(1.0, 0.0, n + 1)[:-1]


def _shift(family: Family, config: dict, mu: float | None) -> float:
    """The factor of the shift: shift or flow_shift; with dynamic shifting e^mu, or mu where
    time_shift_type is linear.
    """
    if not config.get("use_dynamic_shifting"):
        own = config["flow_shift" if "flow_shift" in config else "shift"]
        return config.get("set_shift", own)
    linear = config["time_shift_type"] == "linear"
    if mu is None or not math.isfinite(mu) or (linear and mu <= 0.0):
        kind = "number > 0" if linear else "number"
        raise ValueError(
            f"FsScheduler.set_timesteps: mu = {mu} with use_dynamic_shifting=True; a {kind} is "
            "accepted"
        )
    return mu if linear else math.exp(mu)


def _shifted(shift: float, s):
    return shift * s / (1.0 + (shift - 1.0) * s)


def _stretched(s: np.ndarray, last: float) -> np.ndarray:
    """s stretched from 1 down, wherever it begins, so that it ends at this level."""
    if s[-1] > 1.0 - SAME:
        raise ValueError(
            f"FsScheduler.set_timesteps: shift_terminal = {last:g} and {len(s)} step"
            f"{'s' * (len(s) > 1)} from sigma 1 to 1, which cannot end at {last:g}; two levels or "
            "more, or shift_terminal=None, are accepted"
        )
    return 1.0 - rules.stretched(1.0 - s, last)


def _converted(family: Family, config: dict, key: str | None, s: np.ndarray) -> np.ndarray:
    n = len(s)
    if key is None:
        return s
    if family.flow == "match":
        return convert(key, config, s[-1], s[0], n) if s[-1] < s[0] else s
    # Karras on the beta table's levels rho, as sigma = rho/(1 + rho)
    rho = levels_of(noise_schedule(config))
    rho = convert(key, config, rho[0], rho[-1], n)
    return rho / (1.0 + rho)
