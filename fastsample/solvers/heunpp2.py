"""Heun++: slopes one and two steps ahead, weighed by their levels, as ComfyUI has it."""

from __future__ import annotations

import math

from ..plan import Plan
from ._begin import build
from ._build import Builder
from ._churn import LARGEST, Churn
from ._flow import begin_in
from ._given import resolve
from ._stages import first_order, of_slopes, stages
from ._start import solver


@solver("A", comfyui="heunpp2")
def heunpp2(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    space=None,
    s_churn=0.0,
    s_tmin=0.0,
    s_tmax=math.inf,
    s_noise=1.0,
    max_gamma=LARGEST,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """y1 = y + (u1 - u)·f, y2 = y1 + (u2 - u1)·f1;  y' = y + (u1 - u)·(w f + w1 f1 + w2 f2),
    w1 = u1/(3 u_0), w2 = u2/(3 u_0), w = 1 - w1 - w2.

    u, u1, u2 are the next three levels and u_0 is the first of the run. y = x/alpha, u = rho =
    sigma/alpha, f = (y - x0)/rho on VP, VE and EDM (space "rho"); y = x/(alpha + sigma),
    u = sigma/(alpha + sigma), f = eps - x0 on Flow, TrigFlow and from alpha = 0 (space "flow");
    space overrides. In space "rho" the other words add noise first, as in `heun`. The last step but
    one has w1 = u1/(2 u_0), w = 1 - w1 and two evaluations, the last is Euler's with one, the
    others have three. Of first order: the weights depend on the level, not on the steps (of second
    only where u = u_0/2). Keeps two outputs. compat changes nothing here. Karras et al. 2022,
    arXiv:2206.00364, Alg. 2, with the weights of ComfyUI's heunpp2.
    """
    found = resolve(model, prediction)
    words = {"s_churn": s_churn, "s_tmin": s_tmin, "s_noise": s_noise, "max_gamma": max_gamma}
    churn = Churn.given("heunpp2", s_tmax=s_tmax, **words)
    words = {"start": start, "inpaint": inpaint, "clip": clip, "compat": compat}
    b, kind = begin_in("heunpp2", space, found, grid, s_churn=churn.s_churn, **words)
    times, step = b.t.tolist(), _flow_step if kind == "flow" else _rho_step
    for i in range(b.n):
        begin = times[i] if kind == "flow" else churn.lift(b, i)
        if i == b.n - 1:
            first_order(b, i, begin)
        else:
            step(b, i, begin, times[i + 1 : min(i + 3, b.n)])
    cite = "Karras, Aittala, Aila, Laine 2022, Elucidating the Design Space, arXiv:2206.00364"
    arguments = {"space": space, **churn.words(), "compat": compat}
    return build(b, "heunpp2", arguments, [1] * b.n, cite, consistent=churn.consistent)


def _rho_step(b: Builder, i: int, begin: float, ahead: list[float]) -> None:
    """(rho_b - rho_a)/rho_c is -expm1(lambda_b - lambda_a)·e^{lambda_c - lambda_b}."""
    h, shares = b.rise(begin, ahead[0]), [math.exp(-b.rise(float(b.t[0]), t)) for t in ahead]
    rows = [[0.0]]
    if len(ahead) == 2:
        rows.append([0.0, math.expm1(-b.rise(*ahead))])
    end = [
        -math.expm1(h) * math.exp(b.rise(ahead[0], t)) * share / (len(ahead) + 1)
        for t, share in zip(ahead, shares, strict=True)
    ]
    stages(b, i, [begin, *ahead, ahead[0]], of_slopes([*rows, [0.0, *end]]))


def _flow_step(b: Builder, i: int, begin: float, ahead: list[float]) -> None:
    """In s = sigma/(alpha + sigma), whose differences are those of `of_velocity`, over n'."""
    s = [b.level(t)[1] / sum(b.level(t)) for t in (float(b.t[0]), *ahead)]
    rows = [[1.0]]
    if len(ahead) == 2:
        width = [_width(b, *ends) for ends in ((begin, ahead[0]), ahead)]
        rows.append([part / sum(width) for part in width])
    late = [level / (s[0] * (len(ahead) + 1)) for level in s[1:]]
    stages(b, i, [begin, *ahead, ahead[0]], [*rows, [1.0 - sum(late), *late]])


def _width(b: Builder, s: float, t: float) -> float:
    """s - s' between two times: s (1 - s')·(1 - e^{-h})."""
    (alpha, sigma), (cleaner, less) = b.level(s), b.level(t)
    return sigma / (alpha + sigma) * cleaner / (cleaner + less) * -math.expm1(-b.rise(s, t))
