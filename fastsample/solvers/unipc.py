"""UniPC: a multistep predictor, and a corrector that uses the output at the predicted point at no
extra evaluation.
"""

from __future__ import annotations

from ..plan import Plan
from ._begin import begin, build, choice
from ._build import Builder, Lin, X
from ._multistep import Form, Levels, Weigh, corrected, halved, plain, predicted, rows
from ._start import solver

FULL_ORDER_FROM = 15  # steps; fewer end better with their orders lowered, as diffusers has it


@solver(
    "A",
    usual=True,
    diffusers="UniPCMultistepScheduler",
    comfyui="uni_pc, uni_pc_bh2",
    diff_sampler="unipc",
)
def unipc(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    order=3,
    variant="bh2",
    corrector=True,
    carry="x0",
    lower_order_final=None,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """Predictor of order p: x' = (sigma'/sigma)·x_c + alpha' sum_k w_k·m_k, the w_k integrating the
    polynomial through the last p outputs. Corrector of order p, one point later:
    x_c = (sigma/sigma_1)·x_c1 + alpha sum_k w_k·m_k, through those outputs and the new one. m is
    x0; with carry="eps" it is eps, alpha and sigma change places and lambda its sign.

    order 1..4. variant "bh1", "bh2": the published shortcut 1/2 in the predictor of order 2 and the
    corrector of order 1, where the weight of the one difference is B(h)/2, B = h or 1 - e^{-h};
    "vary": the exact weight there too. They differ nowhere else. corrector=False: predictor alone.
    lower_order_final: order at most n - i; None: where the grid ends in sigma = 0 or has fewer than
    15 steps. A step to sigma = 0 is of first order, the end is not corrected (nothing is evaluated
    there), and outputs at alpha = 0 drop out (the limits); the first corrector after alpha = 0
    keeps bh2's half weight and is left out where its weight is infinite, for bh1 and for eps. One
    evaluation a step; x_c is eliminated, so a row keeps one output. Order as run:
    min(order + 1, 3), or min(order, 2) without the corrector; where the end is above sigma = 0 at
    most one more than that of the last step, which lowered is 2. Zhao et al. 2023,
    arXiv:2302.04867, Alg. 5-8. compat changes nothing here.
    """
    order = choice("unipc: order", order, (1, 2, 3, 4))
    choice("unipc: variant", variant, tuple(WEIGHED))
    choice("unipc: carry", carry, ("x0", "eps"))
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    low = lower_order_final
    low = (b.sigma[-1] == 0.0 or b.n < FULL_ORDER_FROM) if low is None else bool(low)
    form, most = Form(carry), asked(b, order, low)
    correct = lambda at, i, _: correction(at, form, i, most[i - 1], variant, edited=b.inpaint)
    orders = rows(b, form, most, weigh=WEIGHED[variant], correct=correct if corrector else None)
    words = {"order": int(order), "variant": variant, "corrector": bool(corrector), "carry": carry}
    given = lower_order_final if lower_order_final is None else bool(lower_order_final)
    words |= {"lower_order_final": given, "compat": compat}
    cite = "Zhao, Bai, Rao, Zhou, Lu 2023, UniPC, Alg. 5-8, arXiv:2302.04867"
    reached = min(max(orders) + 1, 3) if corrector else min(max(orders), 2)
    if b.sigma[-1] > 0.0:
        reached = min(reached, orders[-1] + 1)  # the end is not corrected
    return build(b, "unipc", words, orders, cite, order=reached)


def asked(b: Builder, order: int, low: bool) -> list[int]:
    """How many outputs every step is asked for. low: order n - i at most in step i."""
    most = [min(order, b.n - i) if low else order for i in range(b.n)]
    return [_asked(b, i, each) for i, each in enumerate(most)]


def step(at: Levels, i: int) -> tuple[Lin, int]:
    """(x', order) of the step from point i with the defaults, of full order whatever follows."""
    here = correction(at, Form(), i, _asked(at, i - 1, 3), "bh2") if i else X
    return predicted(at, Form(), i, _asked(at, i, 3), weigh=halved, here=here)


def correction(
    at: Levels, form: Form, i: int, order: int, variant: str, *, edited: bool = False
) -> Lin:
    """x at point i, corrected from the corrected x of the point before, over the last `order`
    outputs up to there and the one at point i; x as it is where that has no limit.

    The shortcut belongs to order 1, not to an order that alpha = 0 brought down to 1: the limit of
    order 2 is the exact weight.
    """
    if at.alpha[i - 1] == 0.0 and (form.carry == "eps" or (variant == "bh1" and order == 1)):
        return X
    return corrected(at, form, i, order, order, weigh=WEIGHED[variant], edited=edited)


def _asked(at: Levels | Builder, i: int, most: int) -> int:
    return 1 if at.sigma[i + 1] == 0.0 else min(most, i + 1)


WEIGHED: dict[str, Weigh | None] = {"bh1": plain, "bh2": halved, "vary": None}
