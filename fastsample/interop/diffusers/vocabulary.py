"""The words that options take, and those that contradict each other. Pure data: no torch, no
diffusers.
"""

from __future__ import annotations

import math

from ...plan.given import real

# options whose value is a finite number above this one, and those of a class with sigma_schedule
ABOVE = {"shift": 0.0, "flow_shift": 0.0, "clip_sample_range": 0.0, "snr_shift_scale": 0.0}
ABOVE |= {"scaler": 0.0, "s": -1.0}
LEVELS = {"sigma_min": 0.0, "sigma_max": 0.0, "rho": 0.0}
# variance_type of DDPM -> the noise of its rows (`steps.posterior`). diffusers takes the root of a
# logarithm for fixed_large_log, and has no case of its own for None
VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    None: "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned": "learned",
    "learned_range": "learned_range",
}


def check_words(config: dict) -> None:
    """ValueError for options that contradict each other, and for words that no class knows."""
    asked = [f"use_{kind}_sigmas" for kind in ("karras", "exponential", "beta")]
    asked = [key for key in (*asked, "use_lu_lambdas") if config.get(key)]
    if len(asked) > 1:
        raise ValueError(
            f"FsScheduler: {' and '.join(asked)} = True at once; one of them is accepted"
        )
    for key, accepted in (
        ("final_sigmas_type", ("zero", "sigma_min")),
        ("time_shift_type", ("exponential", "linear")),
        ("timestep_spacing", ("linspace", "leading", "trailing")),
        ("variance_type", tuple(VARIANCES)),
        ("flow_sigmas", ("match", "unipc", "dpm")),
        ("sigma_schedule", ("karras", "exponential")),
    ):
        if key in config and config[key] not in accepted:
            raise ValueError(
                f"FsScheduler: {key} = {config[key]!r}; {' or '.join(map(repr, accepted))} is "
                "accepted"
            )
    moved = "sigma_data" in config and "sigma_schedule" not in config
    if moved and config.get("final_sigmas_type", "zero") != "zero":
        raise ValueError(
            "FsScheduler: final_sigmas_type = 'sigma_min' with EDM's levels repeats the last one; "
            "'zero' is accepted"
        )
    if config.get("invert_sigmas") and config.get("stochastic_sampling"):
        raise ValueError(
            "FsScheduler: invert_sigmas and stochastic_sampling = True at once, which ends in "
            "noise in diffusers; one of them is accepted"
        )
    last = config.get("shift_terminal") or 0.0
    if isinstance(last, bool) or not 0.0 <= float(last) < 1.0:
        raise ValueError(
            f"FsScheduler: shift_terminal = {last!r}; a number from 0 up to, but not, 1, or None, "
            "is accepted"
        )


def check_numbers(config: dict) -> None:
    """ValueError for an option that is no finite number above the lowest that it may not be."""
    own = LEVELS if "sigma_schedule" in config else {}  # elsewhere they may be None
    for key, low in (ABOVE | own).items():
        number = real(config.get(key, low + 1.0))
        if number is None or not low < number < math.inf:
            raise ValueError(
                f"FsScheduler: {key} = {config[key]!r:.60}; a number > {low:g} is accepted"
            )
