"""The rows of diffusers' DPM-Solver classes in all forms: data or noise, ODE or SDE, multistep or
singlestep, orders 1 to 3, as choices on the multistep generator. No torch, no diffusers.

In third order a multistep step has half of the second difference's weight, and the SDE in data form
1/2 taken off where it is added. A step of length 0 changes nothing, and an output at one level with
the next newer one, or at alpha = 0, is left out: diffusers divides by 0 there. Lu et al. 2022,
arXiv:2206.00927 (noise) and 2211.01095 (data).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...model import Model
from ...plan import Plan
from ...solvers._build import Builder
from ...solvers._grouped import bent, midpoint
from ...solvers._grouped import rows as grouped
from ...solvers._multistep import VARIANTS, implemented, rows
from ...solvers._multistep import Form as Carried

CITE = [
    "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver, arXiv:2206.00927",
    "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver++, arXiv:2211.01095",
]


@dataclass(frozen=True)
class Form:
    """noise: eps is carried. sde: with noise. variant: "midpoint", or "heun", which is "taylor" in
    groups. single: steps in groups. as_x0: the model's outputs are taken as x0 first, for what is
    bounded there. exact: a multistep step of third order without what is said above.
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
        weigh = midpoint if own else bent if wrong else None
        reached, begins, order = grouped(b, carry, orders, weigh)
        slope = form.noise and stored == "x0"
        back = [i for i, begin in enumerate(begins) if begin < i]
        anchored = [(i + 1, float(1.0 / b.alpha[i]) if slope else 0.0) for i in back]
    else:
        weigh = own if form.exact else implemented(own, wrong)
        reached, anchored = rows(b, carry, orders, weigh=weigh), []
        order = min(2, max(reached))
    name = f"{'sde-' * form.sde}dpmsolver{'++' * (not form.noise)}"
    return b.build(
        f"{name}, {'single' if form.single else 'multi'}step",
        arguments={"variant": form.variant, "orders": list(orders)},
        # exact outputs give the SDE in noise form another variance than its level has
        consistent=not (form.noise and form.sde),
        order=1 if form.sde else order,
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
