"""The rows of CMStochasticIterative, whose bound is one of D. No torch, no diffusers."""

from __future__ import annotations

from dataclasses import replace

from ...model import Model
from ...plan import Plan
from ...solvers._build import Builder
from ...solvers.lcm import rows

NAME = "CMStochasticIterativeScheduler"


def bounded(
    model: Model, grid, *, sigma_min: float, s_noise: float, bound: float, clip: float = 0.0
) -> Plan:
    """`solvers.cm` on levels that may repeat, with |D| <= bound; 0 for none. m is D, so that the
    clip of a row, which is one of m, bounds it. Song et al. 2023, arXiv:2303.01469, Alg. 1.
    """
    b = Builder(model, grid, stored="x0", clip=clip)
    rows(b, sigma_min, model.sigma_data, s_noise)
    cite = ["Song, Dhariwal, Chen, Sutskever 2023, Consistency Models, arXiv:2303.01469"]
    words = {"consistent": False, "order": 1, "orders": [1] * b.n, "citations": cite}
    plan = b.build("cm of diffusers", **words)
    own, m = plan.call >= 0, plan.layout.m  # alpha = 1: x' is D, and noise
    p, q, M, reads, most = (v.copy() for v in (plan.p, plan.q, plan.M, plan.reads, plan.clip))
    p[own] = M[own, 0, 0] + M[own, 0, m] * p[own]
    q[own], most[own] = M[own, 0, m] * q[own], bound
    M[own, 0, 0], M[own, 0, m] = 0.0, 1.0
    reads[own] = reads[own] & ~1 | 1 << m
    return replace(plan, p=p, q=q, M=M, reads=reads, clip=most)
