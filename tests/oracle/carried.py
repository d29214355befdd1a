"""What a multistep solver carries from point to point, and the weights of a polynomial through it:
in lambda and in the level (rho = sigma/alpha, or s = sigma/(alpha + sigma) for v) by parts, in time
by quadrature.
"""

from __future__ import annotations

import math

import numpy as np

from fastsample.schedules import DiscreteVP

from . import derivations as d
from .linear import extended, mp
from .marginals import Point, point


def scale(p: Point, carry: str):
    return p.alpha + p.sigma if carry == "v" else p.alpha


def level(p: Point, carry: str):
    """rho, or s."""
    return p.sigma / scale(p, carry) if scale(p, carry) else mp.inf


def value(x, m, p: Point, carry: str):
    """What the output x0 = m at x is carried as."""
    if carry == "x0":
        return m
    eps = (1 / p.sigma) * x - (p.alpha / p.sigma) * m
    return eps if carry == "eps" else eps - m


def weights(s: Point, t: Point, past, carry, variable, rate, schedule):
    """W_k = ∫_s^t l_k against the measure of what is carried, in units of x; past: the points of
    the outputs read, the newest, s, first.
    """
    if variable == "lambda":  # d rho = -e^{-lambda} d lambda is the measure of rate -1
        nodes, data = [p.lam for p in past], carry == "x0"
        found = d.exact_weights(nodes, s.lam, t.lam, rate if data else -1)
        return [(t.alpha if data else rate * t.sigma) * w for w in found]
    begin, end, n = level(s, carry), level(t, carry), scale(t, carry)
    if variable == "time":
        return [n * w for w in _over_time(s, t, past, carry, schedule)]
    nodes = [level(p, carry) for p in past]
    if variable == "index":  # as if the levels of the past lay as far apart as this step
        nodes = [begin - k * (end - begin) for k in range(len(past))]
    if len(past) == 1:
        return [n * (end - begin)]
    whole = [(end - begin) ** (j + 1) / (j + 1) for j in range(len(past))]
    each = [d.lagrange(nodes, k, begin) for k in range(len(past))]
    return [n * sum(c * w for c, w in zip(poly, whole, strict=True)) for poly in each]


def _over_time(s, t, past, carry, schedule):
    """By parts, over u = level less its value at t: -u_s of the newest, and -∫ l_k' u dtime, by
    Gauss's rule in long double; time from t on as a square, since u may begin as a root there.
    """
    span = np.longdouble(s.t) - np.longdouble(t.t)
    knots = [schedule.t_min]
    if isinstance(schedule, DiscreteVP):
        knots = range(math.ceil(t.t), math.ceil(s.t))
    inside = [np.sqrt(share) for k in knots if 0 < (share := (k - np.longdouble(t.t)) / span) < 1]
    edges = np.array([0, *inside, 1], np.longdouble)
    z, w = np.polynomial.legendre.leggauss(12 if inside[1:] else 60)
    half = np.diff(edges)[:, None] / 2
    z, w = (edges[:-1, None] + half * (1 + z)).ravel(), (half * w).ravel()
    time = t.t + span * z * z
    whole = level(s, carry) - level(t, carry)
    rise = (_levels(schedule, time, carry) - extended(level(t, carry))) * 2 * z * span * w
    nodes = [np.longdouble(p.t) for p in past]
    out = []
    for k, own in enumerate(nodes):
        others = [node for j, node in enumerate(nodes) if j != k]
        slope = sum(
            np.prod([(time - c) / (own - c) for c in others if c is not left], axis=0)
            / (own - left)
            for left in others
        )
        inner = mp.mpf(float(np.sum(slope * rise)))
        out.append(inner - (whole if k == 0 else 0))
    return out


def _levels(schedule, time, carry):
    """rho or s at many times, in long double where a table has many entries, else one by one."""
    if not isinstance(schedule, DiscreteVP):
        return np.array([extended(level(point(schedule, float(v)), carry)) for v in time])
    table = np.asarray(schedule.alphas_cumprod, np.longdouble)
    log = 0.5 * (np.log1p(-table[table > 0]) - np.log(table[table > 0]))  # ln rho
    last = len(log) - 1
    k = np.clip(np.floor(time).astype(int), 0, last - 1)
    rho = np.exp(log[k] + (time - k) * (log[k + 1] - log[k]))
    rho = np.where(time < 0, np.exp(log[0]) * (1 + time), rho)
    rho = np.where(
        (time > last) & (len(table) > len(log)), np.exp(log[last]) / (last + 1 - time), rho
    )
    root = np.sqrt(1 + rho * rho)  # alpha = 1/root
    return rho if carry == "eps" else rho / root / (rho / root + 1 / root)
