"""TCD: a deterministic jump to a lower level than asked, then forward noise up to it."""

from __future__ import annotations

import numpy as np

from ..plan import Plan
from ..schedules import DiscreteVP
from ._begin import begin, build, number
from ._renoise import Level, Step
from ._start import solver


@solver("A", diffusers="TCDScheduler")
def tcd(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    gamma=0.3,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x_s = alpha_s·x0 + sigma_s·eps at the time s = (1 - gamma)·t',
    x' = (alpha'/alpha_s)·x_s + sigma' sqrt(1 - k²)·n,  k = e^{lambda' - lambda_s}.

    gamma in [0, 1] (diffusers: eta): 0 is ddim, 1 on a schedule with sigma = 0 at t = 0 noises x0.
    A step to t' <= 0 draws nothing. For trajectory consistency models; one evaluation a step,
    stores nothing. compat="diffusers" takes whole times on DiscreteVP, floor((1 - gamma)·t').
    Zheng et al. 2024, arXiv:2402.19159 (strategic stochastic sampling).
    """
    gamma = number("tcd: gamma", gamma, 0.0, 1.0)
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    lower = np.where(b.t > 0.0, (1.0 - gamma) * b.t, b.t)
    if compat == "diffusers" and isinstance(b.schedule, DiscreteVP):
        lower = np.where(b.t > 0.0, np.floor(lower), b.t)
    at, deeper = Level.on(b), b.schedule.half_log_snr(lower)
    for i in range(b.n):
        s, t = at[i], at[i + 1]
        still = t.sigma == 0.0 or lower[i + 1] == b.t[i + 1]
        kappa = 0.0 if still else float(deeper[i + 1]) - t.half_log_snr
        x = Step.of(s, t, kappa).over(b.noise(i))
        b.row(b.t[i], to=b.t[i + 1], x=x)
    cite = (
        "Zheng, Hu, Fan, Wang, Ding, Tao, Cham 2024, Trajectory Consistency Distillation, "
        "arXiv:2402.19159"
    )
    return build(b, "tcd", {"gamma": gamma, "compat": compat}, [1] * b.n, cite)
