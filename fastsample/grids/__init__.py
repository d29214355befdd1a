"""Time grids: float64 arrays [n+1] of a schedule's times, strictly decreasing from the noise end to
the data end; n steps.

end="zero" (default) ends in the time at which sigma = 0 exactly, so that a run returns x0;
end="min" ends in schedule.t_min, where a little noise is left. Times are never rounded unless a
function is told so: a fractional index of a table of 1,000 levels is a level of its own. Anything
else than a strictly decreasing grid is a ValueError, never a repeated last level.

Where alpha(t_max) = 0 (Flow, TrigFlow, zero terminal SNR) sigma/alpha is infinite there; the grids
spaced in it then use s = sigma/(alpha + sigma) in [0, 1] instead, which is the sigma of rectified
flow, and uniform_half_log_snr starts at t_finite with its first time moved to t_max.

GRIDS has those that a schedule and n make, by name. What other libraries call them is in their
docstrings; of two libraries' different grids of one name, each stands under both names:
beta_diffusers and beta_comfyui.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ._checks import MAX_STEPS as MAX_STEPS
from ._checks import check as check
from ._checks import edges as edges
from ._levels import SAME_LEVEL as SAME_LEVEL
from .indexed import beta57 as beta57
from .indexed import beta_comfyui as beta_comfyui
from .indexed import ddim_uniform as ddim_uniform
from .indexed import leading as leading
from .indexed import linspace as linspace
from .indexed import normal as normal
from .indexed import sgm_uniform as sgm_uniform
from .indexed import simple as simple
from .indexed import trailing as trailing
from .lists import f_scheduler as f_scheduler
from .lists import from_sigmas as from_sigmas
from .lists import from_timesteps as from_timesteps
from .lists import laplace as laplace
from .lists import rfd4 as rfd4
from .lists import shift_terminal as shift_terminal
from .lists import shifted as shifted
from .lists import vp as vp
from .made_again import fine as fine
from .made_again import parted as parted
from .made_again import refined as refined
from .made_again import starting_at as starting_at
from .spaced import beta_diffusers as beta_diffusers
from .spaced import bong_tangent as bong_tangent
from .spaced import exponential as exponential
from .spaced import karras as karras
from .spaced import kl_optimal as kl_optimal
from .spaced import linear_quadratic as linear_quadratic
from .spaced import polyexponential as polyexponential
from .spaced import time_quadratic as time_quadratic
from .spaced import uniform as uniform
from .spaced import uniform_half_log_snr as uniform_half_log_snr

# those that are made of a schedule and a number of steps alone, by name
GRIDS: dict[str, Callable[..., np.ndarray]] = {
    made.__name__: made
    for made in (
        uniform,
        uniform_half_log_snr,
        karras,
        exponential,
        polyexponential,
        time_quadratic,
        beta_diffusers,
        kl_optimal,
        linear_quadratic,
        bong_tangent,
        trailing,
        leading,
        linspace,
        simple,
        normal,
        sgm_uniform,
        ddim_uniform,
        beta_comfyui,
        beta57,
        vp,
        laplace,
        rfd4,
        fine,
    )
}

# type checkers read the imports
if not TYPE_CHECKING:
    __all__ = ["GRIDS", "MAX_STEPS", "SAME_LEVEL", "check", "edges", "f_scheduler", "from_sigmas"]
    __all__ += [
        "from_timesteps",
        "parted",
        "refined",
        "shift_terminal",
        "shifted",
        "starting_at",
        *GRIDS,
    ]
