"""The rows of diffusers' UniPC: in data or noise form, with the corrector left out where asked. No
torch, no diffusers.
"""

from __future__ import annotations

from collections.abc import Collection

from ...model import Model
from ...plan import Plan
from ...solvers._build import Builder, M, X
from ...solvers._multistep import Form, Levels, predicted
from ...solvers.unipc import WEIGHED, correction


def unipc(
    model: Model,
    grid,
    *,
    order: int,
    variant: str,
    noise: bool = False,
    lower_order_final: bool = True,
    uncorrected: Collection[int] = (),
    first: int = 0,
    clip: float = 0.0,
) -> Plan:
    """`solvers.unipc` from point `first` of a grid on, except that

    noise        m is eps, and alpha and sigma change places, and lambda its sign
    uncorrected  the numbers, in the whole run, of the steps that no corrector comes back to

    A step of length 0 changes nothing, and an output at one level with a newer one is left out. All
    that x was predicted from stays until x is corrected, for `edits`.
    Zhao et al. 2023, arXiv:2302.04867, Alg. 5-8.
    """
    b = Builder(model, grid, stored="eps" if noise else "x0", clip=clip)
    level, at, weigh = b.half_log_snr, Levels.of(b), WEIGHED[variant]
    if noise:
        at = at._replace(alpha=at.sigma, sigma=at.alpha, half_log_snr=(-level).tolist())
    asked, orders, anchored = [], [], []
    for i in range(b.n):
        here = X
        if i and level[i] > level[i - 1] and i - 1 + first not in uncorrected:
            here = correction(at, Form(), i, asked[-1], variant)
            if here is not X:
                anchored.append((i + 1, 0.0))
        most = min(order, b.n - i) if lower_order_final else order
        asked.append(1 if b.sigma[i + 1] == 0.0 else min(most, i + 1))
        x, reached = here, 1
        if level[i + 1] > level[i]:
            x, reached = predicted(at, Form(), i, asked[-1], weigh=weigh, here=here)
        orders.append(reached)
        read = [] if here is X else [f"m{j}" for j in range(max(0, i - 1 - order), i)]
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": M}, spares=read)
    return b.build(
        "unipc of diffusers",
        arguments={"order": order, "variant": variant, "uncorrected": sorted(uncorrected)},
        order=min(max(orders) + 1, 3),
        orders=orders,
        anchored=anchored,
        citations=["Zhao, Bai, Rao, Zhou, Lu 2023, UniPC, Alg. 5-8, arXiv:2302.04867"],
    )
