"""Noise schedules: x_t = alpha(t)·x0 + sigma(t)·eps, eps ~ N(0, I), and the half log-SNR
lambda = ln(alpha/sigma).

Every schedule has
    alpha(t), sigma(t), half_log_snr(t)   float64, any shape; half_log_snr is +inf where sigma = 0
                                          and -inf where alpha = 0, both exact
    time(half_log_snr)                    the inverse
    t_max                                 noise end (larger t = noisier)
    t_min                                 smallest time with sigma > 0 that grids use
    t_zero                                the time at which sigma = 0 exactly (below t_min)
    t_finite                              largest time with alpha > 0 that grids spaced in
                                          half_log_snr use (t_max unless alpha(t_max) = 0)
    label(t)                              the noise level a network is usually told: t itself,
                                          sigma for Flow
    shifted(log_snr)                      the schedule with its log-SNR moved by a constant
Times are numbers and lists of Python, NumPy or torch; what rounding alone puts outside the range
(1.57080 for pi/2) is its edge, what is further out a ValueError.
`from_functions` makes a schedule of two functions alpha(t) and sigma(t). Floor 0: NumPy only.

Sources: Song et al. 2021 (arXiv:2011.13456, VP and VE), Ho et al. 2020 (2006.11239, linear),
Rombach et al. 2022 (2112.10752, scaled linear), Nichol & Dhariwal 2021 (2102.09672, eq. 17,
cosine), Karras et al. 2022 (2206.00364, EDM), Liu et al. 2023 (2209.03003, flow), Esser et al. 2024
(2403.03206, shift), Lu & Song 2025 (2410.11081, TrigFlow), Lin et al. 2024 (2305.08891, Alg. 1,
zero terminal SNR).
"""

from __future__ import annotations

from ._schedule import SCHEDULES, Schedule, Shifted
from .continuous import EDM, VE, VP, Cosine, CosmosRFlow, Flow, TrigFlow
from .discrete import DiscreteVP
from .functions import FromFunctions, from_functions

SCHEDULES.update(
    {
        made.__name__: made
        for made in (
            VP,
            DiscreteVP,
            VE,
            EDM,
            Flow,
            TrigFlow,
            Cosine,
            CosmosRFlow,
            Shifted,
            FromFunctions,
        )
    }
)
from_json = Schedule.from_json

__all__ = ["SCHEDULES", "Schedule", "from_functions", "from_json", "VP", "DiscreteVP", "VE", "EDM"]
__all__ += ["Flow", "TrigFlow", "Cosine", "CosmosRFlow", "Shifted", "FromFunctions"]
