"""The levels and words of EDM, as diffusers' EDMEuler and EDMDPMSolverMultistep have them: sigma
itself from sigma_max to sigma_min, then 0, with no table; the model is told 0.25 log(sigma).
Karras et al. 2022, arXiv:2206.00364, eq. 5 and 7. Imports no diffusers.

A config has them where it has sigma_data, the standard deviation of x0. Where it has clip_denoised
it is CMStochasticIterative's: the model is told 250 log(sigma), a run stands on some of as many
levels as there are training timesteps, and ends at sigma_min. CosineDPMSolverMultistep's is told
2/pi·arctan(sigma).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ...grids import _rules as rules
from ...grids._checks import refuse_rising
from ...model import Model
from ...plan.given import numbers
from ...schedules import EDM
from .grids import CONVERSIONS, Points, checked, convert, count, falling

# which of our words for spacings is theirs
SPACINGS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas"}
RHO = 7.0  # of "karras", the one that CONVERSIONS has


def as_ours(words: Mapping) -> dict:
    """The options of an EDM class in the words that the other classes have for levels."""
    kept = {k: v for k, v in words.items() if k not in ("sigma_schedule", "rho")}
    spaced = {key: words["sigma_schedule"] == kind for kind, key in SPACINGS.items()}
    other = {"rho": words["rho"]} if words["rho"] != RHO else {}
    return kept | spaced | other


def edm_levels(config: Mapping, n: int) -> np.ndarray:
    """sigma [n], falling."""
    config = as_ours(config) if "sigma_schedule" in config else config
    rho = config.get("rho", RHO)
    if "clip_denoised" in config or (rho != RHO and config.get("use_karras_sigmas")):
        return rules.karras(config["sigma_min"], config["sigma_max"], n, rho)
    key = next(key for key in CONVERSIONS if config.get(key))
    return convert(key, config, config["sigma_min"], config["sigma_max"], n)


def is_angle(config: Mapping) -> bool:
    """Is the model told 2/pi·arctan(sigma)? CosineDPMSolverMultistep's, the one class of EDM's with
    a solver_order and no choice of algorithms.
    """
    own = "sigma_schedule" in config and "solver_order" in config
    return own and "algorithm_type" not in config


def told(config: Mapping, sigma: np.ndarray) -> np.ndarray:
    """What the model is told at sigma."""
    if is_angle(config):
        return np.arctan(sigma) * (2.0 / math.pi)
    return _of_log(config) * np.log(sigma)


def told_at(config: Mapping, labels: np.ndarray) -> np.ndarray:
    """sigma where the model is told these labels."""
    if is_angle(config):
        return np.tan(labels * (math.pi / 2.0))
    return np.exp(labels / _of_log(config))


def edm_points(config: Mapping, steps: int | None, timesteps=None, sigmas=None) -> Points:
    """The grid of `steps` steps, or of these timesteps [n] (`told`), or of these sigma
    [n+1], their end included. CMStochasticIterative's timesteps count its levels, the lowest 0,
    but that it gives them in the other order.
    """
    if "clip_denoised" in config and sigmas is None:
        return _of_levels(config, steps, timesteps)
    if timesteps is not None:
        times = numbers("FsScheduler.set_timesteps: timesteps", timesteps)
        refuse_rising("FsScheduler.set_timesteps: timesteps", times)
        if is_angle(config) and not ((times > 0.0) & (times < 1.0)).all():
            raise ValueError(
                f"FsScheduler.set_timesteps: timesteps {times.tolist()!r:.60}; falling numbers "
                "between 0 and 1, ends excluded, are accepted"
            )
        with np.errstate(over="ignore"):
            grid = np.append(told_at(config, times), 0.0)
        if not (np.isfinite(grid).all() and grid[:-1].all()):
            low, high = told(config, np.array([config["sigma_min"], config["sigma_max"]]))
            raise ValueError(
                f"FsScheduler.set_timesteps: timesteps {times.tolist()!r:.60}; what the model is "
                f"told is accepted, ln(sigma)/4: {high:.4g} at sigma_max, {low:.4g} at sigma_min"
            )
        count(steps, len(grid) - 1)
    elif sigmas is not None:
        grid = falling("sigmas", sigmas, math.inf)
        count(steps, len(grid) - 1)
    else:
        kept = config.get("final_sigmas_type", "zero") == "sigma_min"
        grid = edm_levels(config, count(steps) + kept)
        grid = grid if kept else np.append(grid, 0.0)
    return checked(grid, told(config, grid[:-1]))


def edm_model(config: Mapping) -> Model:
    schedule = EDM(config["sigma_min"], config["sigma_max"], config["sigma_data"])
    own = is_angle(config) or "clip_denoised" in config
    time = (lambda sigma: told(config, sigma)) if own else None
    return Model(None, schedule, "edm", time=time, model_id="unknown")


def _of_log(config: Mapping) -> float:
    return 250.0 if "clip_denoised" in config else 0.25


def _of_levels(config: Mapping, steps: int | None, timesteps) -> Points:
    """Those of CMStochasticIterative: at every (T//n)-th of its T levels from the highest, or at
    those that stand as far from it as these are from 0, and at sigma_min, which may be the last.
    """
    size = config["num_train_timesteps"]
    if timesteps is not None:
        places = falling("timesteps", timesteps, size - 1.0)[::-1]
    elif count(steps) <= size:
        places = np.arange(steps) * float(size // steps)
    else:
        raise ValueError(
            f"FsScheduler.set_timesteps: {steps} steps of {size} timesteps; at most {size} are "
            "accepted"
        )
    ramp, low, power = places / max(size - 1, 1), config["sigma_min"], 1.0 / config["rho"]
    ends = low**power, config["sigma_max"] ** power
    levels = np.maximum((ends[1] + ramp * (ends[0] - ends[1])) ** config["rho"], low)
    return Points(np.append(levels, low), 250.0 * np.log(levels))
