"""Heun: an Euler step, a second evaluation where it lands, the mean of both slopes; with churn.

rho space (VP, VE, EDM), y = x/alpha, rho = sigma/alpha, d = (y - x0)/rho::

    rho^ = (1 + gamma) rho,  gamma = min(s_churn/n, sqrt(2) - 1) for s_tmin <= rho <= s_tmax, else 0
    y^   = y + sqrt(rho^² - rho²) s_noise·n
    y1   = y^ + (rho' - rho^)·d
    y'   = y1 + ½ (rho' - rho^)·(d1 - d)

flow space (Flow, TrigFlow, alpha = 0): the last two lines in y = x/(alpha + sigma),
s = sigma/(alpha + sigma) and v = eps - x0.

The stage's base is eliminated: x' = x1 + a multiple of (m1 - m), m = x0 in rho space and v in flow
space.
"""

from __future__ import annotations

import math

from ..grids import check
from ..plan import Plan
from ._begin import build, number
from ._build import Builder, M, R, X, resolve
from ._flow import begin_in
from ._stages import of_velocity
from ._start import solver

LARGEST_CHURN = math.sqrt(2.0) - 1.0  # Karras et al. 2022, Alg. 2
ROUNDING = 1e-12  # a rise of ln rho this small is the rounding of the schedule's end, not churn


@solver(
    "A",
    diffusers="HeunDiscreteScheduler, FlowMatchHeunDiscreteScheduler",
    k_diffusion="sample_heun",
    comfyui="heun",
)
def heun(
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
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """y' = y^ + ½ (rho' - rho^)·(d + d1), rho^ = (1 + gamma) rho the level after churn.

    gamma and flow space: in the module's docstring. rho^ stays within the schedule (only EDM goes
    above its sigma_max). space = "rho" or "flow" overrides. Second order, two evaluations a step,
    one for a last step to sigma = 0 (an Euler step): 2n - 1 in all. Keeps one output. s_noise other
    than 1 leaves the schedule by design; compat changes nothing here. Karras et al. 2022,
    arXiv:2206.00364, Alg. 1 and 2.
    """
    found = resolve(model, prediction)
    churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_noise": s_noise}
    churn = {name: number(f"heun: {name}", value) for name, value in churn.items()}
    endless = s_tmax is None or (isinstance(s_tmax, float) and s_tmax == math.inf)
    top = math.inf if endless else number("heun: s_tmax", s_tmax)
    grid = check(found.schedule, grid)
    words = {"start": start, "inpaint": inpaint, "clip": clip, "compat": compat}
    b, space = begin_in("heun", space, found, grid, s_churn=s_churn, **words)
    level = b.half_log_snr
    for i in range(b.n):
        if space == "flow":
            _flow_step(b, i)
        else:
            _step(b, i, _churned(b, i, **churn, s_tmax=top), level[i + 1])
    words = {"space": space, **churn, "s_tmax": None if top == math.inf else top, "compat": compat}
    orders = [1 if b.sigma[i + 1] == 0.0 else 2 for i in range(b.n)]
    cite = (
        "Karras, Aittala, Aila, Laine 2022, Elucidating the Design Space, Alg. 1 and 2, "
        "arXiv:2206.00364"
    )
    return build(b, "heun", words, orders, cite, consistent=s_noise == 1.0 or not s_churn)


def _churned(
    b: Builder, i: int, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> float:
    """The time the step starts from, after noise was added where churn asks for it."""
    t, alpha, rho = float(b.t[i]), b.alpha[i], b.sigma[i] / b.alpha[i]
    gamma = min(s_churn / b.n, LARGEST_CHURN) if s_tmin <= rho <= s_tmax else 0.0
    top = b.schedule.t_max if b.schedule.t_top is None else b.schedule.t_top
    room = -b.schedule.half_log_snr(top) - math.log(rho)
    rise = min(math.log1p(gamma), float(room))  # ln(rho^/rho)
    if rise <= ROUNDING:
        return t
    hotter = float(b.schedule.time(-math.log(rho) - rise))
    lifted = b.level(hotter)[0]
    added = lifted * rho * math.sqrt(math.expm1(2.0 * rise)) * s_noise
    b.pre(to=hotter, x=(lifted / alpha) * X + added * b.noise(i))
    return hotter


def _step(b: Builder, i: int, t: float, target: float) -> None:
    """One step in rho space from time t, where churn left x, to point i+1 at lambda = target."""
    alpha, sigma = b.alpha[i + 1], b.sigma[i + 1]
    if sigma == 0.0:
        b.row(t, to=b.t[i + 1], x=alpha * M)
        return
    h = target - float(b.schedule.half_log_snr(t))
    stage = (sigma / b.level(t)[1]) * X - alpha * math.expm1(-h) * M
    b.row(t, to=b.t[i + 1], x=stage, keep={f"m{i}": M})
    # The Euler step keeps d, so d = (y1 - x0)/rho' too: d1 - d = (x0 - x0_1)/rho', and
    # rho^/rho' = e^h. In x0 every term is of the size of x; over d the stage x^ + (rho' - rho^) d
    # would round at the size of rho^, and d1 raise that by 1/rho'.
    b.row(b.t[i + 1], to=b.t[i + 1], x=X + 0.5 * alpha * math.expm1(h) * (M - R(f"m{i}")))


def _flow_step(b: Builder, i: int) -> None:
    """One step in flow coordinates."""
    a, e = of_velocity(b, b.t[i], b.t[i + 1])
    if b.sigma[i + 1] == 0.0:
        b.row(b.t[i], to=b.t[i + 1], x=a * X + e * M)
        return
    b.row(b.t[i], to=b.t[i + 1], x=a * X + e * M, keep={f"m{i}": M})
    b.row(b.t[i + 1], to=b.t[i + 1], x=X + 0.5 * e * (M - R(f"m{i}")))
