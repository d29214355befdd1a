"""ER-SDE: the extended reverse-time SDE, solved over rho = sigma/alpha.

    y_t = (phi(rho_t)/phi(rho_s))·y_s + phi(rho_t) ∫_{rho_t}^{rho_s} phi'/phi² x0(rho) drho
        + sqrt(rho_t² - rho_s² phi(rho_t)²/phi(rho_s)²)·n,   y = x/alpha

(Cui et al. 2023, arXiv:2309.06169; phi sets the noise: rho gives the ODE, rho² the reverse SDE).
With x0 the polynomial through past predictions in u = (rho - rho_s)/(rho_s - rho_t), which runs
from 0 to -1, the integral is over J_j = phi(rho_t) ∫ phi'/phi² u^j drho: by parts

    J_0 = 1 - phi_t/phi_s,  J_j = j ∫_{-1}^0 u^{j-1} (phi_t/phi(u) - 1) du

whose integrand has one sign, so nothing cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from ..plan import Plan
from ._begin import begin, build, choice, number
from ._build import Builder, Lin, M, R
from ._exponential import gain
from ._multistep import Form, Levels, history
from ._renoise import Level, Step, rise
from ._start import solver

# Gauss-Legendre on panels of ln rho no wider than 1: exact to rounding for the phi of here
NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)
POINTS = 200  # of ComfyUI's sums
Rise = Callable[[np.ndarray, np.ndarray], np.ndarray]


@solver("A", comfyui="er_sde")
def er_sde(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    order=3,
    eta=None,
    s_noise=1.0,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x' = (alpha'/alpha)(phi'/phi)·x + alpha' [J_0 m + J_1 f_01 + (J_2 - u_1 J_1) f_012]
         + alpha' sqrt(rho'² - rho² (phi'/phi)²) s_noise·n

    over divided differences f of the predictions in u = (r - rho)/(rho - rho') of a level r, and
    J_j = phi' ∫ (dphi/dr)/phi² u^j dr from rho' to rho, phi' = phi(rho'). phi(rho) =
    rho (exp(rho^.3) + 10) as published; eta >= 0 given: phi = rho^(1+eta), whose noise is
    that of the reverse SDE for 1 and none, an ODE, for 0. order 1 to 3: outputs read; steps start
    at 1, and one from alpha = 0 or to sigma = 0 is of order 1. s_noise scales the noise, and other
    values than 1 leave the schedule by design. With noise of weak order 2 at most. One evaluation a
    step, two outputs kept.

    The paper's order 3 leaves out u_1 J_1: it takes the difference f_01 for the slope at rho, and
    is of second order. compat="comfyui" does so, and puts its sums of 200 points for J_1 and J_2.
    """
    choice("er_sde: order", order, (1, 2, 3))
    eta = None if eta is None else number("er_sde: eta", eta)
    s_noise = number("er_sde: s_noise", s_noise)
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    orders = _rows(b, int(order), eta, s_noise, compat == "comfyui")
    words = {"order": int(order), "eta": eta, "s_noise": s_noise, "compat": compat}
    cite = "Cui, Zhang, Bao, Liao 2023, ER-SDE-Solvers, arXiv:2309.06169"
    quiet = eta == 0.0
    said = {"order": min(max(orders), 2) if quiet else 1, "consistent": s_noise == 1.0 or quiet}
    return build(b, "er_sde", words, orders, cite, **said)


def _rows(b: Builder, most: int, eta: float | None, s_noise: float, summed: bool) -> list[int]:
    """The rows of every step; returns their orders."""
    grows: Rise = _er5 if eta is None else lambda low, x: (1.0 + eta) * x
    at, levels, orders = Level.on(b), Levels.of(b), []
    rises = [rise(s, t) for s, t in pairwise(at)]
    inner = [i for i, h in enumerate(rises) if 0.0 < h < math.inf]
    h = np.array([rises[i] for i in inner])
    low = np.array([at[i + 1].sigma / at[i + 1].alpha for i in inner])
    more = dict(zip(inner, np.maximum(0.0, grows(low, h) - h).tolist(), strict=True))
    sums = (_sums if summed else _integrals)(grows, low, h) if most > 1 else h[:, None]
    terms = dict(zip(inner, sums.tolist(), strict=True))
    for i, (s, t) in enumerate(pairwise(at)):
        seen = history(levels, Form(), i, most if i in terms else 1)
        # what is lost beside what the ODE loses: ln(phi_s/phi_t) - h, k = (phi_t/phi_s)·e^h
        lost = more.get(i, math.inf if math.isinf(rises[i]) and t.sigma and eta != 0.0 else 0.0)
        x = Step.of(s, t, lost).over(s_noise * b.noise(i))
        if len(seen) > 1:
            x = x + t.alpha * _correction(at, i, seen, *terms[i], summed)
        orders.append(len(seen))
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": M})
    return orders


def _er5(low: np.ndarray, x: np.ndarray) -> np.ndarray:
    """ln phi(low·e^x) - ln phi(low), x >= 0, of phi = rho (e^p + 10), p = rho^.3: with
    d = p - p_low, x + d + ln(1 - (1 - e^{-d})·10/(e^{p_low} + 10)).
    """
    p = low**0.3
    d = p * np.expm1(0.3 * x)
    with np.errstate(over="ignore"):
        share = 10.0 / (np.exp(p) + 10.0)
    return x + d + np.log1p(share * np.expm1(-d))


def _correction(
    at: list[Level], i: int, seen: list[int], first: float, second: float, summed: bool
) -> Lin:
    """The terms of the row beyond J_0·m, over what is stored; first and second are J_1 and J_2."""
    whole = gain(rise(at[i], at[i + 1]))
    back = [at[i].half_log_snr - at[j].half_log_snr for j in seen[1:]]
    u = [math.expm1(b) / whole for b in back]  # (rho_j - rho_s)/(rho_s - rho_t)
    older = [R(f"m{j}") - M for j in seen[1:]]  # differences, whose weights need not cancel
    if len(u) == 1:
        return (first / u[0]) * older[0]
    apart = math.exp(back[0]) * math.expm1(back[1] - back[0]) / whole  # u_2 - u_1
    second -= 0.0 if summed else u[0] * first
    return (first - second / apart) / u[0] * older[0] + second / (u[1] * apart) * older[1]


def _integrals(grows: Rise, low: np.ndarray, h: np.ndarray) -> np.ndarray:
    """J_1 and J_2 [n, 2] of steps to rho = low over h [n], by quadrature in w = ln(rho_s/rho),
    where u = -(1 - e^{-w})/(1 - e^{-h}): all panels of all steps at once.
    """
    count = np.ceil(h).astype(int)
    step, ends = np.repeat(np.arange(len(h)), count), np.cumsum(count)
    place = np.arange(len(step)) - np.repeat(ends - count, count)
    half = 0.5 * (h / count)[step, None]
    w, whole = half * (2.0 * place[:, None] + 1.0 + NODES), -np.expm1(-h)[step, None]
    u, weight = np.expm1(-w) / whole, half * WEIGHTS * np.exp(-w) / whole
    lost = np.expm1(-grows(low[step, None], h[step, None] - w)) * weight
    sums = np.stack([lost.sum(1), 2.0 * (u * lost).sum(1)], axis=1)
    return np.add.reduceat(sums, ends - count) if len(h) else sums


def _sums(grows: Rise, low: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The same by left sums over rho, from rho_t up."""
    u = np.arange(POINTS) / POINTS - 1.0
    kept = np.exp(-grows(low[:, None], np.log1p((1.0 + u) * np.expm1(h)[:, None])))
    return np.stack([kept.mean(1) - 1.0, 1.0 + 2.0 * (u * kept).mean(1)], axis=1)
