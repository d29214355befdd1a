"""Steps of one evaluation that stand in groups of as many as the order, as diffusers' single-step
DPM-Solver has them: each goes from the first point of its group, and the grid points since then are
its stages.

Their outputs stand between the ends of the step: the polynomial through them is integrated from
there on, "taylor" through all; "dpmsolver" has half of the whole weight for one difference, and of
two takes the line to the newest alone (Lu et al. 2022, arXiv:2206.00927, Alg. 1 and 2).
"""

from __future__ import annotations

from collections.abc import Sequence

from ._build import ZERO, Builder, Lin, M, R, X
from ._exponential import gain
from ._multistep import (
    BASE,
    Form,
    Levels,
    Weigh,
    added,
    carried,
    first,
    halved,
    history,
    integrals,
    lagrange,
    weights,
)

ROUNDING = 1e-12  # of a share of the step that may be 2/3


def in_turn(n: int, start: int, order: int, lowered: bool) -> list[int]:
    """Orders 1, 2, .., order over and over of the steps from point `start` on, counted in the whole
    run of n; lowered: 1 in a last step that would have the highest.
    """
    orders = [1 + i % order for i in range(n)]
    if lowered and n % order == 0:
        orders[-1] = 1
    return [min(k, i + 1) for i, k in enumerate(orders[start:])]


def midpoint(places: list[float], total: list[float], h: float, asked: int) -> list[float]:
    """ "dpmsolver"."""
    return halved(places, total, h, 2) if len(places) == 1 else [total[1] / places[0], 0.0]


def bent(places: list[float], total: list[float], h: float, asked: int) -> list[float]:
    """ "taylor" of the SDE in data form as diffusers has it, of three outputs with the whole weight
    of the second difference taken off.
    """
    w = lagrange(places, total)
    if len(places) == 2:
        bend = 2.0 * total[0] / gain(h) / (places[0] - places[1])
        w = [w[0] - bend / places[0], w[1] + bend / places[1]]
    return w


GROUPED: dict[str, Weigh | None] = {"dpmsolver": midpoint, "taylor": None}


def rows(
    b: Builder, form: Form, orders: Sequence[int], weigh: Weigh | None
) -> tuple[list[int], list[int], int]:
    """The rows of every step; returns their orders, the points that they go from, and the order of
    the run: a single step of order p leaves an error of h^{p+1}, one of infinite h the same
    whatever the number of steps. A third-order step is one where its newest output stands at 2/3.
    """
    at, reached, begins = Levels.of(b), [], []
    # eps read off x and x0 has 1/sigma for a weight: the x of a stage is written out instead
    over_x0 = form.carry == "eps" and b.stored == "x0" and not form.eta
    state: Lin = BASE
    outputs: dict[int, Lin] = {}
    for i, order in enumerate(orders):
        seen, own = history(at, form, i, order), R(f"m{i}")
        newest = carried(at, form, i)
        if over_x0 and len(seen) > 1:
            newest = (state - at.alpha[i] * M) / at.sigma[i]
        outputs[i] = newest.put("x", BASE).put("m", own) if over_x0 else own
        drawn = b.noise(i) if form.eta else ZERO
        older = [outputs[j] for j in seen[1:]]
        x, found = _leap(at, form, i, seen, [newest, *older], drawn, weigh)
        state, kept = x.put("x", BASE).put("m", own), M if over_x0 else newest
        anchor = X if len(seen) == 1 else None
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": kept}, anchor=anchor)
        reached.append(found)
        begins.append(seen[-1])
    whole = [i for i in range(b.n) if begins[i + 1 : i + 2] in ([], [i + 1])]
    finite = [reached[i] for i in whole if at.alpha[begins[i]] and at.sigma[i + 1]]
    return reached, begins, min(max(reached), min(finite, default=max(reached)) + 1)


def _leap(
    at: Levels,
    form: Form,
    i: int,
    seen: list[int],
    outputs: list[Lin],
    noise: Lin,
    weigh: Weigh | None,
) -> tuple[Lin, int]:
    """(x', order) of the step from the last point seen to point i + 1, over the outputs of all."""
    begin, level = seen[-1], at.half_log_snr
    if level[i + 1] == level[begin]:
        return X, 1
    ends = ([values[begin], values[i + 1]] for values in at[:3])
    leg, whole = Levels(*ends, stored=at.stored), level[i + 1] - level[begin]
    if begin == i:
        return first(leg, form, 0, X, outputs[0], noise), 1
    places = [(level[j] - level[begin]) / whole for j in seen[:-1]]
    w = weights(leg, form, 0, integrals(leg, form, 0, len(seen)), places, len(seen), weigh)
    x = added(first(leg, form, 0, BASE, outputs[-1], noise), w, outputs[:-1], outputs[-1])
    return x, min(len(seen), 3 if abs(places[0] - 2.0 / 3.0) <= ROUNDING else 2)
