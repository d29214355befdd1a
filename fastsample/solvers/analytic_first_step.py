"""The analytic first step: in place of the first evaluation, what unit normal data would have it
say.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..plan import Plan

CITE = "Dockhorn, Vahdat, Kreis 2022, GENIE, analytical first step, arXiv:2210.05475"


def analytic_first_step(plan: Plan) -> Plan:
    """The plan without its first evaluation: the prediction there is taken to be a multiple of x,

        eps = x/r,  x0 = alpha x/(r (r + sigma)),  r = sqrt(alpha² + sigma²)

    or, in y = x/alpha and rho = sigma/alpha, the slope is y/sqrt(1 + rho²). It is near the truth
    where rho is large, whatever the data; from alpha = 0, eps = x and x0 = 0.

        plan = solvers.analytic_first_step(solvers.ipndm(model, grid))      # n - 1 evaluations

    Any solver's plan for noise will do. Of a first step with stages, only the first is replaced; no
    clip bounds what is said there, and every branch says it. It does not become exact as steps
    shrink: the plan is of first order at most, though by little at a high noise level, and leaves
    the schedule by design. `remake` keeps it, for noise: an image is stepped from by the model.

    Dockhorn, Vahdat, Kreis 2022, arXiv:2210.05475; in this form Zhou, Chen, Wang, Chen 2024,
    arXiv:2312.00094, for each of their solvers. ValueError, one sentence, for a plan from an image,
    of one evaluation, or that holds (`held`) before its first step.
    """
    if plan.note.get("analytic"):
        return plan
    first = _first(plan)
    arrays = {name: np.array(value) for name, value in plan.numbers().items()}
    k = _share(plan.stored, float(plan.alpha[first]), float(plan.sigma[first]))
    outputs = slice(plan.layout.f, plan.layout.noise(0))
    said = arrays["M"][first, :, outputs].sum(1)
    if said.any():  # the raw output of which the prediction is k·x: k = p + q·f
        arrays["M"][first, :, 0] += said * (k - plan.p[first]) / plan.q[first]
        arrays["M"][first, :, outputs] = 0.0
        arrays["reads"][first] |= 1
    arrays["reads"][first] &= ~(((2 << plan.G) - 1) << plan.layout.f)
    arrays["p"][first], arrays["q"][first] = k, 0.0
    arrays["call"][first], arrays["branches"][first], arrays["clip"][first] = -1, 0, 0.0
    if plan.G > 1:
        arrays["U"][first], arrays["V"][first] = 0.0, 0.0
    cited = [*plan.note.get("citations", []), CITE]
    note = {**plan.note, "analytic": True, "consistent": False, "citations": cited}
    if "orders" in note:
        note |= {"order": min(note["order"], 1), "orders": [0, *note["orders"][1:]]}
        note.pop("smooth_order", None)
    return replace(plan, **arrays, note=note)


def _share(stored: str, alpha: float, sigma: float) -> float:
    """k of m = k·x in the stored kind; eps - x0 is sigma (1 + sigma/(r + alpha)) x/(r (r + sigma))
    without cancelling.
    """
    r = math.hypot(alpha, sigma)
    if stored == "x0":
        return alpha / (r * (r + sigma))
    if stored == "flow":
        return sigma * (1.0 + sigma / (r + alpha)) / (r * (r + sigma))
    return 1.0 / r


def _first(plan: Plan) -> int:
    """The row of the first evaluation, or a ValueError."""
    asking = np.flatnonzero(plan.call >= 0).tolist()
    for refused, what, accepted in (
        (plan.sigma[0] == 0.0, "begins from an image", "begins from noise"),
        (len(asking) < 2, f"makes {len(asking)} evaluation(s)", "makes two or more"),
        (plan.note.get("held", [0])[0], "holds before its first step", "is held after this"),
    ):
        if refused:
            raise ValueError(
                f"analytic_first_step: the plan {what}; one that {accepted} is accepted"
            )
    return asking[0]
