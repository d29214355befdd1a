"""Flow SDE: the stochastic sampler of Flow-GRPO, Euler-Maruyama on a flow."""

from __future__ import annotations

import math
from itertools import pairwise

from ..plan import Plan
from ._begin import begin, build, number
from ._build import M, X
from ._renoise import Level, rise
from ._start import solver


@solver("A")
def flow_sde(
    model, grid, *, prediction=None, start=None, a=0.7, inpaint=False, clip=0.0, compat="exact"
) -> Plan:
    """y' = y + (s' - s)·[v + g²/(2s)·(y + (1 - s)·v)] + g sqrt(s - s')·n,  g = a sqrt(s/(1 - s))

    in y = x/(alpha + sigma), s = sigma/(alpha + sigma), v = eps - x0, which are x, sigma and the
    velocity on Flow; over x0, with D = 1 - s'/s:

        y' = (1 - D - D a²/(2 (1 - s)))·y + D (1 + a²/2)·x0 + g sqrt(s - s')·n

    a >= 0, the paper's noise level; 0: euler. From alpha = 0, where g is infinite, 1 - s is that of
    the next point, as in the paper's code; a step to sigma = 0 is Euler's, without noise, where the
    code would leave g sqrt(s) of it in the sample. Of weak order 1; the step follows the schedule
    to that order only (note: consistent). One evaluation a step, stores nothing; `Run.log_prob`
    gives the density of each step. Liu et al. 2025, arXiv:2505.05470. compat changes nothing here.
    """
    a = number("flow_sde: a", a)
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    at = Level.on(b)
    for i, (s, t) in enumerate(pairwise(at)):
        if t.sigma == 0.0:
            b.row(b.t[i], to=b.t[i + 1], x=t.alpha * M)
            continue
        n, target = s.alpha + s.sigma, t.alpha + t.sigma
        fall = t.alpha * -math.expm1(-rise(s, t)) / target  # 1 - s'/s
        left = s.alpha / n or t.alpha / target  # 1 - s
        kept = target / n * (t.sigma * n / (target * s.sigma) - fall * a * a / (2.0 * left))
        spread = target * a * s.sigma / n * math.sqrt(fall / left)
        mean = kept * X + (target * fall * (1.0 + (s.alpha / n) * a * a / (2.0 * left))) * M
        b.row(b.t[i], to=b.t[i + 1], x=mean + spread * b.noise(i) if spread else mean)
    cite = "Liu, Liu, Liang, Li, Liu, Wang, Wan, Zhang, Ouyang 2025, Flow-GRPO, arXiv:2505.05470"
    words = {"a": a, "compat": compat}
    return build(b, "flow_sde", words, [1] * b.n, cite, consistent=a == 0.0)
