"""DPM-Solver++(3M)."""

from __future__ import annotations

from ..plan import Plan
from ._begin import begin, build
from ._build import Lin, M
from ._exponential import Levels, gain, history, moments, multistep, nodes, weights
from ._start import solver


@solver(
    "A",
    diffusers="DPMSolverMultistepScheduler (solver_order=3)",
)
def dpmpp_3m(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    lower_order_final=False,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x' = (sigma'/sigma)·x + alpha' [h phi_1·m + h phi_2·D1 + 2 h phi_3·D2],
    phi_k = phi_k(-h), h = lambda' - lambda; m is x0.

    r0 = h_1/h, r1 = h_2/h, D10 = (m - m_1)/r0, D11 = (m_1 - m_2)/r1,
    D1 = D10 + r0/(r0 + r1)·(D10 - D11), D2 = (D10 - D11)/(r0 + r1): the parabola through the last
    three outputs, integrated exactly. Orders 1, 2, 3, 3, ...; a step to sigma = 0 is of first
    order, and outputs at alpha = 0 drop out (the limits). lower_order_final: orders 2 and 1 in the
    last two steps. One evaluation a step, two outputs kept. Started at order 1 the whole run is of
    second order. Lu et al. 2022, arXiv:2211.01095, app. B, with 2 h phi_3 where every
    implementation has h phi_3: D2 is half of h² times the second derivative.

    compat="diffusers": h phi_3, the midpoint weight in the second-order step, and lower_order_final
    for n < 15, as its default configuration. compat="k-diffusion": h phi_3, as in its 3M SDE.
    """
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    low = bool(lower_order_final) or (compat == "diffusers" and b.n < 15)
    at, orders = Levels.of(b), []
    for i in range(b.n):
        x, order = step(at, i, b.n - i if low else 3, compat)
        orders.append(order)
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": M})
    cite = "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver++, app. B (3M), arXiv:2211.01095"
    words = {"lower_order_final": bool(lower_order_final), "compat": compat}
    return build(b, "dpmpp_3m", words, orders, cite, order=min(2, max(orders)))


def step(at: Levels, i: int, most: int = 3, compat: str = "exact") -> tuple[Lin, int]:
    """(x', order) of the step from point i, of order `most` at most."""
    level = at.half_log_snr
    asked = 1 if at.sigma[i + 1] == 0.0 else min(3, i + 1, most)
    seen = history(level, i, asked)
    h = float(level[i + 1] - level[i])
    places = nodes(level, seen, h)
    if compat == "exact" or len(seen) == 1:
        found = weights(places, h)
    else:
        found = _as_published(places, h, asked == 2 and compat == "diffusers")
    return multistep(at, i, seen, found), len(seen)


def _as_published(at: list[float], h: float, midpoint: bool) -> list[float]:
    """The weights as implementations have them: half that of D2 (which leaves a second-order step),
    diffusers' midpoint at order 2.
    """
    total, first, second = moments(h, 3)  # h phi_1, h phi_2, 2 h phi_3
    r0 = -at[1]
    if len(at) == 2:
        w = (0.5 * gain(h) if midpoint else first) / r0
        return [total + w, -w]
    r1 = at[1] - at[2]
    k = first * r0 / (r0 + r1) + 0.5 * second / (r0 + r1)  # of D10 - D11
    of_10, of_11 = (first + k) / r0, -k / r1
    return [total + of_10, -of_10 + of_11, -of_11]
