"""Coefficients from the exact solution of the probability-flow ODE (and its SDE), in 50 digits.

With x = alpha x0 + sigma eps, lambda = ln(alpha/sigma), h = lambda_t - lambda_s, and noise of
strength rate = 1 + eta >= 1, the step s -> t solves

    x_t = (sigma_t/sigma_s) e^{-(rate-1) h} x_s
          + alpha_t int_s^t rate e^{rate (lambda - lambda_t)} x0(lambda) dlambda
          + sigma_t sqrt(1 - e^{-2(rate-1)h}) n

(Lu et al. 2022b, eq. 9 for rate 1; Xue et al. 2023, eq. 6 with rate = 1 + tau^2). A solver replaces
x0(lambda) by its Lagrange polynomial. A node at lambda = -infinity (alpha = 0) drops out of that
polynomial, a step to lambda = +infinity (sigma = 0) ends in the newest prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

from .linear import mp
from .marginals import Point


def lagrange(nodes: Sequence, k: int, origin) -> list:
    """Monomial coefficients, in powers of (lambda - origin), of the basis polynomial that is 1 at
    node k and 0 at the others.
    """
    poly = [mp.mpf(1)]
    for j, node in enumerate(nodes):
        if j != k:
            shift, scale = origin - node, 1 / (nodes[k] - node)
            same, higher = [*poly, mp.mpf(0)], [mp.mpf(0), *poly]
            poly = [scale * (shift * a + b) for a, b in zip(same, higher, strict=True)]
    return poly


def moments(h, rate, count: int) -> list:
    """int_{-h}^0 rate e^{rate z} z^j dz for j < count, by parts; h may be infinite."""
    end = mp.mpf(0) if h == mp.inf else mp.exp(-rate * h)
    out = [1 - end]
    for j in range(1, count):
        out.append((0 if h == mp.inf else -((-h) ** j) * end) - j / rate * out[-1])
    return out


def exact_weights(nodes: Sequence, lo, hi, rate=1) -> list:
    """Weights W_k with alpha_t sum_k W_k x0_k = alpha_t int_lo^hi rate e^{rate(lambda - hi)}
    P(lambda) dlambda, P through (nodes_k, x0_k).
    """
    if hi == mp.inf:
        if len(nodes) != 1:
            raise ValueError("exact_weights: only one node has a limit at sigma = 0")
        return [mp.mpf(1)]
    kept = [k for k, node in enumerate(nodes) if mp.isfinite(node)] or [0]
    if len(kept) == 1:
        basis = {kept[0]: [mp.mpf(1)]}
    else:
        finite = [nodes[k] for k in kept]
        basis = {k: lagrange(finite, j, hi) for j, k in enumerate(kept)}
    integral = moments(hi - lo, mp.mpf(rate), len(kept))
    whole = {
        k: sum((c * i for c, i in zip(poly, integral, strict=True)), mp.mpf(0))
        for k, poly in basis.items()
    }
    return [whole.get(k, mp.mpf(0)) for k in range(len(nodes))]


def quadrature_weights(nodes: Sequence, lo, hi, rate=1) -> list:
    """The same weights by adaptive quadrature of the integral itself: checks `exact_weights`."""

    def integral(k: int):
        poly = lagrange(nodes, k, hi)[::-1]
        f = lambda z: rate * mp.exp(rate * z) * mp.polyval(poly, z)
        return mp.quad(f, mp.linspace(lo - hi, 0, 5))

    return [integral(k) for k in range(len(nodes))]


def transfer(s: Point, t: Point, rate=1) -> tuple:
    """(a, c): factor of x and of the noise in the exact solution."""
    h = step(s, t)
    damp = mp.mpf(1) if rate == 1 else mp.exp(-(rate - 1) * h)
    return t.sigma / s.sigma * damp, t.sigma * mp.sqrt(1 - damp**2)


def step(s: Point, t: Point):
    """h = lambda_t - lambda_s, infinite where either end is."""
    return mp.inf if s.alpha == 0 or t.sigma == 0 else t.lam - s.lam


def gain(s: Point, t: Point, rate=1):
    """1 - e^{-rate h}: the weight of a constant prediction."""
    h = step(s, t)
    return mp.mpf(1) if h == mp.inf else -mp.expm1(-rate * h)


def midpoint_weights(older: Point | None, s: Point, t: Point, rate=1) -> list:
    """[W_0, W_1]: the gain times (1 + 1/(2r), -1/(2r)), r = h_prev/h: half the first difference,
    for its first-order weight (Lu et al. 2022b, algorithm 2).
    """
    g = gain(s, t, rate)
    if older is None:
        return [g]
    half = mp.mpf(0) if older.alpha == 0 else step(s, t) / (2 * step(older, s))
    return [g * (1 + half), -g * half]


def half_third_weights(points: Sequence[Point], t: Point, rate=1) -> list:
    """Weights of DPM-Solver++(3M) as published: the Taylor form of three nodes with phi_3 f''/2
    where phi_3 f'' is due.

    The exact weights are E f + phi_2 f' + 2 phi_3 (f''/2); the published code drops the 2. points:
    newest first.
    """
    exact = exact_weights([p.lam for p in points], points[0].lam, t.lam, rate)
    if not all(mp.isfinite(p.lam) for p in points):
        return exact
    h, h1, h2 = step(points[0], t), step(points[1], points[0]), step(points[2], points[1])
    H = rate * h
    phi3 = (mp.expm1(-H) / H + 1) / H - mp.mpf(1) / 2
    # h^2 f''/2 as a combination of the three values: second divided difference
    second = [h**2 / (h1 * (h1 + h2)), -(h**2) / (h1 * h2), h**2 / (h2 * (h1 + h2))]
    return [w + phi3 * d for w, d in zip(exact, second, strict=True)]


def unipc_system(nodes: Sequence, target, variant: str, corrector: bool) -> list:
    """Weights over (m_0, m_1, .., [m_t]) from UniPC's own linear system, halves hard-coded as in
    its code (Zhao et al. 2023, theorem 3.1).

    nodes: half log-SNR of m_0, m_1, .. (newest first), target: of t. Sum_k rho_k (m_k - m_0)/r_k
    with R rho = b/B.
    """
    h = target - nodes[0]
    hh = -h
    B = hh if variant == "bh1" else mp.expm1(hh)
    r = [(node - nodes[0]) / h for node in nodes[1:]] + ([mp.mpf(1)] if corrector else [])
    weights = [-mp.expm1(hh)] + [mp.mpf(0)] * len(r)
    if not r:
        return weights
    b, g, factorial = [], mp.expm1(hh) / hh - 1, 1
    for i in range(1, len(r) + 1):
        b.append(g * factorial / B)
        factorial *= i + 1
        g = g / hh - mp.mpf(1) / factorial
    system = mp.matrix([[rk**i for rk in r] for i in range(len(r))])
    rho = [mp.mpf(1) / 2] if len(r) == 1 else list(mp.lu_solve(system, mp.matrix(b)))
    for k, value in enumerate(rho):
        weights[1 + k] -= B * value / r[k]
        weights[0] += B * value / r[k]
    return weights


def unipc_weights(history: Sequence[Point], t: Point, variant: str, corrector: bool) -> list:
    """Weights over (m_0, .., m_{p-1}[, m_t]): Lagrange through the nodes, except where UniPC
    hard-codes rho = 1/2 (one difference only): there the difference gets B/2, which is h/2 for bh1
    and (1 - e^{-h})/2 for bh2; "vary" keeps Lagrange there too.
    """
    nodes = [p.lam for p in history] + ([t.lam] if corrector else [])
    s = history[0]
    if len(nodes) != 2 or variant == "vary":
        return exact_weights(nodes, s.lam, t.lam)
    g, h = gain(s, t), step(s, t)
    slope = (h if variant == "bh1" else g) / 2
    if not corrector and history[1].alpha == 0:
        return [g, mp.mpf(0)]
    ratio = mp.mpf(1) if corrector else step(history[1], s) / -h
    return [g - slope / ratio, slope / ratio]
