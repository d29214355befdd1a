"""The rows of diffusers' DPM-Solver classes in all forms: data or noise, ODE or SDE, multistep or
singlestep, orders 1 to 3. No torch, no diffusers.

In data form m is x0; in noise form m is eps. With h the rise of lambda = ln(alpha/sigma) over a
step, D1 and D2 the differences of outputs that `_differences` forms, and m_b the output at the
state x_b that a step begins at,

    x' = base·x_b + A [I_0·m_b + w_1·D1 + w_2·D2] + noise,    I_j = H·j!·phi_{j+1}(-H)

    data, ODE     base = sigma'/sigma           A = alpha'      H = h
    data, SDE     base = e^{-h} sigma'/sigma    A = alpha'      H = 2h   sigma' sqrt(1 - e^{-2h})·n
    noise, ODE    base = alpha'/alpha           A = sigma'      H = -h
    noise, SDE    base = alpha'/alpha           A = 2 sigma'    H = -h   sigma' sqrt(e^{2h} - 1)·n

w_1 is I_0/2 ("midpoint") or I_1 ("heun", and order 3), w_2 = I_2/2, and I_2/2 - 1 in the SDE in
data form: diffusers' sign of a half. A step of length 0 changes nothing, and an output at one level
with the next newer one, or at alpha = 0, is left out: diffusers divides by 0 there. Lu et al. 2022,
arXiv:2206.00927 (noise) and 2211.01095 (data).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...model import Model
from ...plan import Plan
from ...solvers._build import ANCHOR, ZERO, Builder, Lin, M, R, X
from ...solvers._exponential import gain
from ...solvers._multistep import Form as Carried
from ...solvers._multistep import Levels, history, moments

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
    x0 = form.as_x0 or not form.noise
    anchored: list[tuple[int, float]] = []
    stored, reached = "x0" if x0 else "eps", []
    b = Builder(model, grid, stored=stored, clip=clip, rising=rising)
    at = Levels.of(b)
    for i, order in enumerate(orders):
        here = (X - b.alpha[i] * M) / b.sigma[i] if x0 and form.noise else M
        seen = history(at, Carried(), i, order)
        begins = form.single and len(seen) == 1
        if form.single and len(seen) > 1:
            anchored.append((i + 1, 0.0 if here is M else 1.0 / b.alpha[i]))
        x, keep = _step(b, i, seen, here, form), {f"m{i}": here}
        b.row(b.t[i], to=b.t[i + 1], x=x, keep=keep, anchor=Lin(X) if begins else None)
        reached.append(len(seen))
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
def _step(b: Builder, i: int, seen: list[int], here: Lin, form: Form) -> Lin:
    """x' from point i, over the outputs of the points seen; here is that of i."""
    level, begin = b.half_log_snr, seen[-1] if form.single else i
    if level[i + 1] == level[begin]:
        return Lin(X)
    h, (alpha, sigma), (a, s) = (
        level[i + 1] - level[begin],
        b.level(b.t[begin]),
        b.level(b.t[i + 1]),
    )
    outputs = [here, *(R(f"m{j}") for j in seen[1:])]
    x = Lin({"x" if begin == i else ANCHOR: 1.0})
    if form.noise:
        H, A = -h, s
        total = -a * sigma / alpha * gain(h)  # s·gain(-h), finite where s = 0
        x, up = (a / alpha) * x, a * sigma / alpha
        if form.sde:
            total, A = 2.0 * total, 2.0 * A
    else:
        H, A, up = 2.0 * h if form.sde else h, a, s
        total = a * gain(H)
        x = s / sigma * (math.exp(-h) if form.sde else 1.0) * x if s else ZERO
    x = x + total * outputs[-1 if form.single else 0]
    if len(seen) > 1:
        rises = [float(level[j] - level[k]) / h for j, k in zip(seen, seen[1:], strict=False)]
        halved = len(seen) == 2 and form.variant == "midpoint"
        _, first, second = moments(H, 3)
        if form.single or not form.exact:
            second = 0.5 * second
        if form.sde and not form.noise and not form.exact:
            second = second - 1.0
        weights = [0.5 * total if halved else A * first, A * second]
        pairs = zip(weights, _differences(outputs, rises, form), strict=False)
        x = x + sum((w * d for w, d in pairs), ZERO)
    return x + up * math.sqrt(gain(2.0 * h)) * b.noise(i) if form.sde and up else x


def _differences(m: list[Lin], r: list[float], form: Form) -> list[Lin]:
    """D1, and D2 of three outputs m, newest first; r: the rises of lambda between them, in steps of
    h. A third-order midpoint step of a group has no D2.
    """
    newer = (m[0] - m[1]) / r[0]
    if len(m) == 2:
        return [newer]
    older = (m[1] - m[2]) / r[1]
    if not form.single:
        bend = (newer - older) / (r[0] + r[1])
        return [newer + r[0] * bend, bend]
    whole = (m[0] - m[2]) / (r[0] + r[1])
    if form.variant == "midpoint":
        return [whole]
    return [((r[0] + r[1]) * older - r[1] * whole) / r[0], 2.0 * (whole - older) / r[0]]
