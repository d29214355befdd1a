"""Integrals of a polynomial in time, which have no closed form."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..schedules import DiscreteVP

if TYPE_CHECKING:
    from ._multistep import Levels

# of lambda: a quadrature's panels, so short that six nodes are exact to rounding where time has
# its poles pi/2 from the real axis; and where an infinite step is cut
NODES, WEIGHTS = np.polynomial.legendre.leggauss(6)
PLACES = 1.0 + NODES
PANEL, TAIL = 1 / 4, 40.0


def over_time(at: Levels, carry: str, count: int) -> list[list[float]]:
    """`integrals` of every step for a polynomial in time: by Gauss's rule over lambda, in which
    both times and measure are smooth, in panels that end where a table's entries join. All steps
    at once, as a schedule's times take little longer at many levels than at a few.
    """
    t, level = np.asarray(at.t), np.asarray(at.half_log_snr)
    found = np.zeros((len(t) - 1, count))
    long = np.flatnonzero(level[:-1] != level[1:])
    low, high = level[long], level[long + 1]
    top = np.maximum(low, np.minimum(high, 0.0) - TAIL)
    end = np.minimum(high, np.maximum(top, 0.0) + TAIL)
    joints = np.array([at.schedule.t_min])
    if isinstance(at.schedule, DiscreteVP):
        joints = np.append(np.arange(max(math.ceil(t[-1]), 0), math.ceil(t[0])), joints)
    even = PANEL * np.arange(math.floor(top[0] / PANEL), math.ceil(end[-1] / PANEL))
    edges = np.sort(np.concatenate([top, end, even, at.schedule.half_log_snr(joints)]))
    step = np.searchsorted(low, edges[:-1], side="right") - 1
    inside = (edges[:-1] >= top[step]) & (edges[:-1] < end[step])
    step, half = step[inside], np.diff(edges)[inside] / 2
    levels = half * PLACES[:, None]
    levels += edges[:-1][inside]
    begin, finish = t[long[step]], t[long[step] + 1]
    v = at.schedule.time(levels) - begin
    v /= finish - begin
    # -d rho = rho d lambda, -ds = s (1 - s) d lambda
    scale = np.asarray(at.alpha)[long + 1]
    if carry == "eps":
        measure = np.exp(-levels)
        measure *= -half
    else:
        scale = scale + np.asarray(at.sigma)[long + 1]
        measure = np.cosh(levels / 2) ** -2 * (-half / 4)
    firsts = np.searchsorted(step, np.arange(len(long)))
    for j in range(count):
        found[long, j] = scale * np.add.reduceat(WEIGHTS @ measure, firsts)
        measure *= v
    return found.tolist()
