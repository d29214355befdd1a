"""The rows of diffusers' DPM-Solver classes in all forms: data or noise, ODE or SDE, multistep or
singlestep, orders 1 to 3, as choices on the multistep generator. No torch, no diffusers.

A multistep step goes from point to point. A singlestep one goes from the first point of a group of
as many steps as its order, whose outputs since then stand between its two ends: the polynomial
through them is integrated from there, "heun" through all of them; "midpoint" has half of the whole
weight for one difference, and of two takes the line to the newest alone. The SDE in data form has
diffusers' sign of a half in the third order. A step of length 0 changes nothing, and an output at
one level with the next newer one, or at alpha = 0, is left out: diffusers divides by 0 there. Lu et
al. 2022, arXiv:2206.00927 (noise) and 2211.01095 (data).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...model import Model
from ...plan import Plan
from ...solvers._build import ZERO, Builder, Lin, R, X
from ...solvers._exponential import gain
from ...solvers._multistep import (
    BASE,
    VARIANTS,
    Levels,
    added,
    carried,
    first,
    halved,
    history,
    implemented,
    integrals,
    lagrange,
    rows,
    weights,
)
from ...solvers._multistep import Form as Carried

CITE = [
    "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver, arXiv:2206.00927",
    "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver++, arXiv:2211.01095",
]


@dataclass(frozen=True)
class Form:
    """noise, sde, variant: as above. single: x_b is the state at the first point of a group of as
    many steps as its order, else the newest. as_x0: the model's outputs are taken as x0 first, for
    what is bounded there. exact: w_2 as Taylor's formula has it, I_2 in a multistep step.
    """

    noise: bool = False
    sde: bool = False
    variant: str = "midpoint"
    single: bool = False
    as_x0: bool = False
    exact: bool = False


def dpm(
    model: Model,
    grid,
    orders: Sequence[int],
    form: Form,
    clip: float = 0.0,
    rising: bool = False,
) -> Plan:
    """One step from each grid point but the last, of order orders[i] where so many outputs are
    there. rising: the grid does, data to noise. One evaluation a step.
    """
    stored = "x0" if form.as_x0 or not form.noise else "eps"
    b = Builder(model, grid, stored=stored, clip=clip, rising=rising)
    carry = Carried("eps" if form.noise else "x0", eta=float(form.sde))
    own, wrong = VARIANTS[form.variant], form.sde and not (form.noise or form.exact)
    if form.single:
        weigh = _midpoint if own else _bent if wrong else None
        reached, anchored = _grouped(b, carry, orders, weigh)
    else:
        weigh = own if form.exact else implemented(own, wrong)
        reached, anchored = rows(b, carry, orders, weigh=weigh), []
    name = f"{'sde-' * form.sde}dpmsolver{'++' * (not form.noise)}"
    return b.build(
        f"{name}, {'single' if form.single else 'multi'}step",
        arguments={"variant": form.variant, "orders": list(orders)},
        # exact outputs give the SDE in noise form another variance than its level has
        consistent=not (form.noise and form.sde),
        order=1 if form.sde else max(reached) if form.single else min(2, max(reached)),
        orders=reached,
        anchored=anchored,
        citations=CITE,
    )


def multistep_orders(n: int, first: int, order: int, lowered: bool, euler: bool) -> list[int]:
    """Orders of the steps from point `first` on of a run of n steps: growing from 1; lowered: 2 at
    most in the last but one and 1 in the last; euler: 1 in the last.
    """
    most = [min(order, n - i) if lowered else order for i in range(first, n)]
    most[-1] = 1 if euler else most[-1]
    return [min(k, i + 1) for i, k in enumerate(most)]


def singlestep_orders(n: int, first: int, order: int, lowered: bool) -> list[int]:
    """1, 2, .., order over and over, counted in the whole run of n; lowered: 1 in a last step that
    would have the highest.
    """
    orders = [1 + i % order for i in range(n)]
    if lowered and n % order == 0:
        orders[-1] = 1
    return [min(k, i + 1) for i, k in enumerate(orders[first:])]


# -- inside ----------------------------------------------------------------------------------------
def _grouped(b: Builder, form: Carried, orders: Sequence[int], weigh) -> tuple[list, list]:
    """The rows of steps that go from the first point of their group; (orders, what is anchored)."""
    at, reached, anchored = Levels.of(b), [], []
    for i, order in enumerate(orders):
        seen, newest = history(at, form, i, order), carried(at, form, i)
        drawn = b.noise(i) if form.eta else ZERO
        x = _leap(at, form, i, seen, newest, drawn, weigh)
        if len(seen) > 1:
            anchored.append((i + 1, 0.0 if form.carry == b.stored else 1.0 / at.alpha[i]))
        words = {} if len(seen) > 1 else {"anchor": X}
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": newest}, **words)
        reached.append(len(seen))
    return reached, anchored


def _leap(
    at: Levels, form: Carried, i: int, seen: list[int], newest: Lin, noise: Lin, weigh
) -> Lin:
    """x' of the step from the last point seen to point i + 1, over the outputs of those."""
    begin, level = seen[-1], at.half_log_snr
    if level[i + 1] == level[begin]:
        return X
    ends = ([values[begin], values[i + 1]] for values in at[:3])
    leg, whole = Levels(*ends, stored=at.stored), level[i + 1] - level[begin]
    if begin == i:
        return first(leg, form, 0, X, newest, noise)
    outputs = [newest, *(R(f"m{j}") for j in seen[1:])]
    places = [(level[j] - level[begin]) / whole for j in seen[:-1]]
    total = integrals(leg, form, 0, len(seen))
    w = weights(leg, form, 0, total, places, len(seen), weigh)
    return added(first(leg, form, 0, BASE, outputs[-1], noise), w, outputs[:-1], outputs[-1])


def _midpoint(places: list[float], total: list[float], h: float, asked: int) -> list[float]:
    return halved(places, total, h, 2) if len(places) == 1 else [total[1] / places[0], 0.0]


def _bent(places: list[float], total: list[float], h: float, asked: int) -> list[float]:
    """The polynomial through all outputs, of three with the whole weight of D2 taken off."""
    w = lagrange(places, total)
    if len(places) == 2:
        bend = 2.0 * total[0] / gain(h) / (places[0] - places[1])
        w = [w[0] - bend / places[0], w[1] + bend / places[1]]
    return w
