"""UniPC: a multistep predictor, and a corrector that uses the output at the predicted point at no
extra evaluation.
"""

from __future__ import annotations

import math

from ..plan import Plan
from ._begin import begin, build, choice
from ._build import ANCHOR, ZERO, Lin, M, R, X
from ._exponential import Levels, gain, history, multistep, nodes, weights
from ._start import solver

BASE = R("anchor")  # the corrected x of the point before
FULL_ORDER_FROM = 15  # steps; fewer end better with their orders lowered, as diffusers has it


@solver(
    "A",
    diffusers="UniPCMultistepScheduler",
    comfyui="uni_pc, uni_pc_bh2",
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
    lower_order_final=None,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """Predictor of order p: x' = (sigma'/sigma)·x_c + alpha' sum_k w_k·m_k, the w_k integrating the
    polynomial through the last p outputs. Corrector of order p, one point later:
    x_c = (sigma/sigma_1)·x_c1 + alpha sum_k w_k·m_k, through those outputs and the new one.

    order 1..3. variant "bh1", "bh2": the published shortcut 1/2 in the predictor of order 2 and the
    corrector of order 1, where the weight of the one difference is B(h)/2, B = h or 1 - e^{-h};
    "vary": the exact weight there too. They differ nowhere else. corrector=False: predictor alone.
    lower_order_final: order at most n - i; None: where the grid ends in sigma = 0 or has fewer than
    15 steps. A step to sigma = 0 is of first order, the end is not corrected (nothing is evaluated
    there), and outputs at alpha = 0 drop out (the limits); the first corrector after alpha = 0
    keeps bh2's half weight and is left out for bh1, whose weight is infinite there. One evaluation
    a step; x_c is eliminated, so a row keeps one output. m is x0. Order as run: min(order + 1, 3),
    or min(order, 2) without the corrector; where the end is above sigma = 0 at most one more than
    that of the last step, which lowered is 2. Zhao et al. 2023, arXiv:2302.04867, Alg. 5-8. compat
    changes nothing here.
    """
    order = choice("unipc: order", order, (1, 2, 3))
    choice("unipc: variant", variant, ("bh1", "bh2", "vary"))
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    at, asked, orders = Levels.of(b), [], []
    low = lower_order_final
    low = (b.sigma[-1] == 0.0 or b.n < FULL_ORDER_FROM) if low is None else bool(low)
    for i in range(b.n):
        here = corrected(at, i, asked[-1], variant) if i and corrector else X
        asked.append(_asked(at, i, min(order, b.n - i) if low else order))
        x, reached = predicted(at, i, asked[-1], variant, here)
        orders.append(reached)
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": M}, anchor=here if corrector else None)
    words = {"order": int(order), "variant": variant, "corrector": bool(corrector)}
    given = lower_order_final if lower_order_final is None else bool(lower_order_final)
    words |= {"lower_order_final": given, "compat": compat}
    cite = "Zhao, Bai, Rao, Zhou, Lu 2023, UniPC, Alg. 5-8, arXiv:2302.04867"
    reached = min(max(orders) + 1, 3) if corrector else min(max(orders), 2)
    if b.sigma[-1] > 0.0:
        reached = min(reached, orders[-1] + 1)  # the end is not corrected
    return build(b, "unipc", words, orders, cite, order=reached)


def step(at: Levels, i: int) -> tuple[Lin, int]:
    """(x', order) of the step from point i with the defaults, of full order whatever follows, over
    x as the model is asked: x_c of the point before, which the corrector comes back to, is what x
    was predicted from.
    """
    here = X
    if i:
        order = _asked(at, i - 1, 3)
        at_i = predicted(at, i - 1, order, "bh2", BASE)[0].put("m", R(f"m{i - 1}"))
        before = (X - at_i.put(ANCHOR, ZERO)) / at_i[ANCHOR]
        here = corrected(at, i, order, "bh2").put(ANCHOR, before)
    return predicted(at, i, _asked(at, i, 3), "bh2", here)


def _asked(at: Levels, i: int, most: int) -> int:
    return 1 if at.sigma[i + 1] == 0.0 else min(most, i + 1)


def predicted(at: Levels, i: int, order: int, variant: str, here: Lin) -> tuple[Lin, int]:
    """x at grid point i+1 from the corrected x at point i, and the order reached."""
    level = at.half_log_snr
    seen = history(level, i, order)
    halved = order == len(seen) == 2 and variant != "vary"
    h = float(level[i + 1] - level[i])
    places = nodes(level, seen, h)
    w = _halved(h, variant, places[1]) if halved else weights(places, h)
    return multistep(at, i, seen, w, here), len(seen)


def corrected(at: Levels, i: int, order: int, variant: str) -> Lin:
    """x at grid point i, corrected: from the corrected x of point i-1, over the last `order`
    outputs up to there and the one at point i.

    The shortcut belongs to order 1, not to an order that alpha = 0 brought down to 1: the limit of
    order 2 is the exact weight.
    """
    level, last = at.half_log_snr, i - 1
    h = float(level[i] - level[last])
    if math.isinf(h) and variant == "bh1":
        return X
    seen = history(level, last, order)
    if order == 1 and variant != "vary":
        w = _halved(h, variant, 1.0)
    else:
        w = [0.0, 1.0] if math.isinf(h) else weights([*nodes(level, seen, h), 1.0], h)
    return multistep(at, last, [*seen, i], w, BASE)


def _halved(h: float, variant: str, node: float) -> list[float]:
    """Weights of m and of the output at `node` by the shortcut for one difference:
    (1 - e^{-h})·m + B(h)/2·(m_node - m)/node.
    """
    w = 0.5 * (h if variant == "bh1" else gain(h)) / node
    return [gain(h) - w, w]
