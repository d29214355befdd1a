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

from ._checks import MAX_STEPS, check, edges
from ._levels import SAME_LEVEL
from .indexed import (
    beta57,
    beta_comfyui,
    ddim_uniform,
    leading,
    linspace,
    normal,
    sgm_uniform,
    simple,
    trailing,
)
from .lists import (
    f_scheduler,
    from_sigmas,
    from_timesteps,
    laplace,
    rfd4,
    shift_terminal,
    shifted,
    vp,
)
from .made_again import fine, parted, refined, starting_at
from .spaced import (
    beta_diffusers,
    bong_tangent,
    exponential,
    karras,
    kl_optimal,
    linear_quadratic,
    polyexponential,
    time_quadratic,
    uniform,
    uniform_half_log_snr,
)

# those that are made of a schedule and a number of steps alone, by name
GRIDS = {
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
