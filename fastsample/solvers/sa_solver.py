"""SA-Solver: Adams steps of an SDE, with a corrector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..plan import Plan
from ..plan.given import reals
from ._begin import begin, build, choice, number
from ._build import Builder, Lin, M, R, X
from ._multistep import Form, Levels, Weigh, corrected, plain, rows
from ._start import solver

CITE = "Xue, Yi, Luo, Zhang, Sun, Li, Ma 2023, SA-Solver, Alg. 1, arXiv:2309.05019"


@solver("A", diffusers="SASolverScheduler", comfyui="sa_solver, sa_solver_pece")
def sa_solver(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    predictor_order=2,
    corrector_order=2,
    tau=1.0,
    between=None,
    s_noise=1.0,
    evaluations=1,
    lower_order_final=False,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """Predictor: x' = (sigma'/sigma) e^{-tau² h}·x_c + alpha' sum_k w_k·m_k
                      + sigma' sqrt(1 - e^{-2 tau² h}) s_noise·n,  h = lambda' - lambda; m is x0.

    The w_k integrate the polynomial in lambda through the last predictor_order (1..4) outputs
    against (1 + tau²) e^{-(1 + tau²)(lambda' - l)}. Corrector, one point later: the same from the
    corrected x_c of the point before, through corrector_order (1..5; 0: none) outputs, the new one
    among them, with the noise that the predictor drew.

    tau >= 0 is the strength of the noise (0: the ODE) in steps that start between = (low, high),
    levels sigma/alpha, and 0 outside; None: everywhere. evaluations 1: PEC, one a step; 2: PECE,
    which asks again at corrected points. lower_order_final: the predictor's order at most n - i in
    step i, the corrector's one more. A step to sigma = 0 is of first order without noise, outputs
    at alpha = 0 drop out (the limits). x_c is eliminated: a row keeps one output. s_noise other
    than 1 leaves the schedule by design. Xue et al. 2023, arXiv:2309.05019, Alg. 1.

    compat="diffusers": alpha' (1 + tau²) h/2 for the one difference of a second-order step.
    """
    p = choice("sa_solver: predictor_order", predictor_order, (1, 2, 3, 4))
    c = choice("sa_solver: corrector_order", corrector_order, (0, 1, 2, 3, 4, 5))
    tau, s_noise = number("sa_solver: tau", tau), number("sa_solver: s_noise", s_noise)
    asks, levels = _asks(evaluations, c), _between(between)
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    forms, low = _forms(b, tau, *levels), bool(lower_order_final)
    weigh = plain if compat == "diffusers" else None
    given = {"low": low, "s_noise": s_noise, "weigh": weigh, "twice": asks == 2}
    orders = rows(b, forms, p, correct=corrector(b, forms, p, c, weigh, low), **given)
    words = {"predictor_order": p, "corrector_order": c, "tau": tau, "s_noise": s_noise}
    words |= {"between": None if between is None else list(levels), "evaluations": asks}
    words |= {"lower_order_final": low, "compat": compat}
    noisy = any(form.eta for form in forms)
    order = 1 if noisy or c == 1 else min(max(p, c), 3 if c else 2)
    sound = s_noise == 1.0 or not noisy
    return build(b, "sa_solver", words, orders, CITE, order=order, consistent=sound)


def _asks(evaluations, corrector_order: int) -> int:
    asks = choice("sa_solver: evaluations", evaluations, (1, 2))
    if asks == 2 and not corrector_order:
        raise ValueError(
            "sa_solver: evaluations = 2 with corrector_order = 0; a corrector, whose points are "
            "asked again, or evaluations = 1 is accepted"
        )
    return asks


def _forms(b: Builder, tau: float, low: float, high: float) -> list[Form]:
    """What is carried in every step: x0, with noise where the step starts between the levels."""
    with np.errstate(divide="ignore"):
        level = b.sigma[:-1] / b.alpha[:-1]
    return [Form(eta=tau**2 if low <= each <= high else 0.0) for each in level]


def corrector(
    b: Builder, forms: Sequence[Form], predictor: int, order: int, weigh: Weigh | None, low: bool
) -> Callable[[Levels, int, Lin], Lin] | None:
    """`correct` of `rows`: through `order` outputs, that at the point among them, after a predictor
    of order `predictor`; None for order 0. low: the predictor's is n - i at most in step i, the
    corrector's one more. x as it is where the published weight is infinite.
    """

    def correct(at: Levels, i: int, noise: Lin) -> Lin:
        form, left = forms[i - 1], b.n - (i - 1)
        most, asked = (min(order, left + 1), min(predictor, left)) if low else (order, predictor)
        if most > 1 and weigh is not None and at.alpha[i - 1] == 0.0:
            return X
        if at.alpha[i - 1] == 0.0 and form.eta:  # nothing is left of x there: alpha m_0 + sigma n
            return X + at.alpha[i] * (M - R(f"m{i - 1}"))
        words = {"weigh": weigh, "noise": noise, "edited": b.inpaint}
        return corrected(at, form, i, min(most - 1, i), asked, **words)

    return correct if order else None


def _between(value) -> tuple[float, float]:
    """The two levels, 0 and infinity for None."""
    if value is None:
        return 0.0, float("inf")
    found = reals(value)
    if found is None or found.shape != (2,) or not 0.0 <= found[0] <= found[1]:
        raise ValueError(
            f"sa_solver: between = {value!r:.60}; two levels sigma/alpha, the lower first, are "
            "accepted"
        )
    return float(found[0]), float(found[1])
