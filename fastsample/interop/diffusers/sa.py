"""The rows of SA-Solver as diffusers has them: in data or noise form, with a strength of the noise
for every step. No torch, no diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...model import Model
from ...plan import Plan
from ...solvers._begin import number
from ...solvers._build import Builder, Lin, X
from ...solvers._multistep import Form, Levels, plain, rows
from ...solvers.sa_solver import CITE, corrector


def sa(
    model: Model,
    grid,
    *,
    taus: Sequence[float],
    predictor_order: int,
    corrector_order: int,
    noise: bool,
    lower_order_final: bool,
    published: bool,
    clip: float = 0.0,
) -> Plan:
    """`solvers.sa_solver`, one evaluation a step, except that

    taus       [n] the strength of the noise in every step
    noise      eps is carried in place of x0
    published  the weight of the one difference of a second-order step in data form, as there with
               compat="diffusers"

    A step of length 0 changes nothing, and no corrector comes back to it. Xue et al. 2023,
    arXiv:2309.05019, Alg. 1.
    """
    b = Builder(model, grid, stored="x0", clip=clip)
    forms, anchored = [Form("eps" if noise else "x0", "lambda", tau**2) for tau in taus], []
    weigh, low = plain if published and not noise else None, lower_order_final
    corrected = corrector(b, forms, predictor_order, corrector_order, weigh, low)

    def correct(at: Levels, i: int, drawn: Lin) -> Lin:
        here = corrected(at, i, drawn) if b.half_log_snr[i] > b.half_log_snr[i - 1] else X
        if here is not X:  # all that x was predicted from stays until it is corrected (`edits`)
            anchored.append((i + 1, 1.0 / b.alpha[i] if noise else 0.0))
        return here

    reach = max(predictor_order, corrector_order)
    words = {"low": low, "weigh": weigh, "correct": correct, "reach": reach}
    orders = rows(b, forms, predictor_order, **words)
    words = {"anchored": anchored, "orders": orders, "citations": [CITE]}
    poor = any(taus) or corrector_order == 1
    words["order"] = 1 if poor else min(max(predictor_order, corrector_order), 3)
    # exact outputs give the SDE in noise form another variance than its level has
    sound = not (noise and any(taus))
    return b.build("sa_solver of diffusers", consistent=sound, **words)


def strengths(tau_func: Callable[[float], float] | None, labels: Sequence[float]) -> list[float]:
    """tau at every label [n]; without a function 1 from 200 to 800 and 0 elsewhere. ValueError for
    one that is no number from 0 up.
    """
    if tau_func is None:
        return [1.0 if 200.0 <= t <= 800.0 else 0.0 for t in labels]
    return [number("FsScheduler: what tau_func says", float(tau_func(t))) for t in labels]
