"""What the options of a diffusers class say of the model's training: its levels, and all else that
another class has to keep (`moving`). Imports no diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ...schedules import Flow
from .edm import edm_levels
from .grids import CONVERSIONS, levels_of, noise_schedule
from .sources import BOUNDS, SOURCES, scale

FLOW_MATCH = "FlowMatchEulerDiscreteScheduler"
# one straight path from data to noise, along which the model is told T·sigma
FLOWS = (
    FLOW_MATCH,
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "LTXEulerAncestralRFScheduler",
)
EDMS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
# classes that have the word clip_sample and do not read it
UNCLIPPED = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "TCDScheduler")
INFINITE = 4095.0  # sigma/alpha from which on a level is diffusers' stand-in for pure noise
EPS = float(np.finfo(np.float32).eps)
SHIFTS = {
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
    "shift_terminal": None,
    "invert_sigmas": False,
}
GRIDS = {
    **dict.fromkeys(CONVERSIONS, False),
    "sigma_min": None,
    "sigma_max": None,
    "lambda_min_clipped": -math.inf,
    "final_sigmas_type": "zero",
}
# what stands where a class has no such option
NEUTRAL = {
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
    "timestep_type": "discrete",
    "use_flow_sigmas": False,
    "flow_sigmas": "match",
    **dict.fromkeys(BOUNDS, False),
    **GRIDS,
    **SHIFTS,
}


def training(name: str, words: Mapping) -> dict:
    """The options that say what a model was trained for, their values as the class acts on them."""
    flow = name in FLOWS or bool(words.get("use_flow_sigmas"))
    kind = words.get("prediction_type", NEUTRAL["prediction_type"])
    found = {
        "use_flow_sigmas": flow,
        "num_train_timesteps": words.get("num_train_timesteps"),
        "prediction_type": "flow_prediction" if name in FLOWS else kind,
    }
    for key, parts in BOUNDS.items():
        found[key] = bool(words.get(key)) and not (key == "clip_sample" and name in UNCLIPPED)
        found |= {k: words.get(k, usual) for k, usual in parts.items() if found[key]}
    if flow:
        found |= {k: words.get(k, usual) for k, usual in SHIFTS.items()}
        found["shift"] = words.get("shift", words.get("flow_shift", 1.0))
        if not found["use_dynamic_shifting"]:
            found["time_shift_type"] = SHIFTS["time_shift_type"]
        end = words.get("final_sigmas_type", "zero")
        found |= {"final_sigmas_type": end} if end != "zero" else {}
        return found | {k: True for k in CONVERSIONS if words.get(k)}
    found["rescale_betas_zero_snr"] = words.get("rescale_betas_zero_snr", False)
    continuous = words.get("timestep_type") == "continuous" and kind == "v_prediction"
    found["timestep_type"] = "continuous" if continuous else "discrete"
    found |= {k: words[k] for k in ("sigma_data", "rho") if k in words}
    grid = {k: words[k] for k, usual in GRIDS.items() if words.get(k, usual) != usual}
    # a conversion spaces all of the table's levels, and alone reads other ends
    idle = ("sigma_min", "sigma_max")
    if any(k in grid for k in CONVERSIONS):
        idle = ("lambda_min_clipped",)
    return found | {k: v for k, v in grid.items() if k not in idle}


def levels_at(name: str, words: Mapping) -> np.ndarray:
    """[T] at the training timesteps, data to noise: sigma/alpha, on flow scale sigma; EDM's
    falling, as many.
    """
    if name in FLOWS or words.get("use_flow_sigmas"):
        size = words["num_train_timesteps"]
        shift = words.get("shift", words.get("flow_shift", 1.0))
        shift = 1.0 if words.get("use_dynamic_shifting") else shift
        return Flow(shift).sigma(np.arange(1.0, size + 1.0) / size)
    if "sigma_data" in words:
        return edm_levels(words, words["num_train_timesteps"])
    on_sigma = name in SOURCES and scale(name, words) == "sigma"
    return levels_of(noise_schedule(words, finite=on_sigma))


def betas_of(levels: np.ndarray) -> list[float]:
    """Those of a table of sigma/alpha, data to noise."""
    table = 1.0 / (1.0 + levels**2)
    return (1.0 - table / np.append(1.0, table[:-1])).tolist()


def apart(a: np.ndarray, b: np.ndarray, told: bool) -> np.ndarray:
    """[T] bool, where levels differ by more than float32 leaves in them: it multiplies t+1 factors
    of alphas_cumprod, each of two roundings, and 1 - alphas_cumprod loses what they err by; told:
    the levels come from no table, but by a formula with powers up to 7.
    """
    if a.shape != b.shape:
        return np.ones(1, dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        slack = 32.0 if told else (np.arange(len(a)) + 2.0) * (1.0 + a**-2.0)
        return ~((np.abs(a - b) <= EPS * slack * b) | (np.minimum(a, b) >= INFINITE))


def on_betas(trained: dict) -> bool:
    return not trained["use_flow_sigmas"] and "sigma_data" not in trained


def own_ends(name: str) -> bool:
    """Are the levels of a flow spaced between its own ends, as FlowMatchEuler does it?"""
    return name in FLOWS or (name in SOURCES and SOURCES[name].family.flow in ("", "match"))
