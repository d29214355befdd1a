"""The rows of diffusers' UniPC: in data or noise form, with the corrector left out where asked. No
torch, no diffusers.
"""

from __future__ import annotations

from collections.abc import Collection

from ...model import Model
from ...plan import Plan
from ...solvers._build import Builder, Lin, X
from ...solvers._multistep import Form, Levels, rows
from ...solvers.unipc import WEIGHED, asked, correction


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

    noise        eps is carried
    uncorrected  the numbers, in the whole run, of the steps that no corrector comes back to

    A step of length 0 changes nothing, and an output at one level with a newer one is left out. All
    that x was predicted from stays until x is corrected, for `edits`.
    Zhao et al. 2023, arXiv:2302.04867, Alg. 5-8.
    """
    b = Builder(model, grid, stored="eps" if noise else "x0", clip=clip)
    form, most, anchored = Form(b.stored), asked(b, order, lower_order_final), []

    def correct(at: Levels, i: int, _: Lin) -> Lin:
        if b.half_log_snr[i] == b.half_log_snr[i - 1] or i - 1 + first in uncorrected:
            return X
        here = correction(at, form, i, most[i - 1], variant)
        if here is not X:
            anchored.append((i + 1, 0.0))
        return here

    orders = rows(b, form, most, weigh=WEIGHED[variant], correct=correct, reach=order)
    return b.build(
        "unipc of diffusers",
        arguments={"order": order, "variant": variant, "uncorrected": sorted(uncorrected)},
        order=min(max(orders) + 1, 3),
        orders=orders,
        anchored=anchored,
        citations=["Zhao, Bai, Rao, Zhou, Lu 2023, UniPC, Alg. 5-8, arXiv:2302.04867"],
    )
