"""DPM-Solver++ in single steps: stages between, each step by itself."""

from __future__ import annotations

from ..plan import Plan
from ._begin import begin, build, choice, number
from ._grouped import GROUPED, in_turn
from ._grouped import rows as grouped
from ._multistep import Form
from ._start import solver
from ._tableau_steps import VARIANTS, dpm_solver, rows

CITE = "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver++, Alg. 1 (2S), arXiv:2211.01095"
CITE_3S = (
    "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver, Alg. 2, arXiv:2206.00927, in the data form of "
    "arXiv:2211.01095"
)


@solver(
    "A",
    usual=True,
    diffusers="DPMSolverSinglestepScheduler",
    k_diffusion="sample_dpmpp_2s_ancestral (eta=0)",
    comfyui="dpmpp_2s_ancestral (eta=0)",
)
def dpmpp_2s(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    r=0.5,
    variant="dpmsolver",
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x1 = (sigma1/sigma)·x + alpha1 (1 - e^{-rh})·m at lambda + r h;
    x' = (sigma'/sigma)·x + alpha' (1 - e^{-h})·[m + (m1 - m)/(2r)].

    m is x0, h = lambda' - lambda, 0 < r < 1. variant "dpmsolver" (above); "taylor" integrates the
    line through m and m1 exactly: the weight of (m1 - m)/r is h·phi_2(-h). Second order, two
    evaluations a step. A step that starts at alpha = 0 or ends at sigma = 0 is of first order, with
    one evaluation: h is infinite there, and the limit of the two-stage step is that one. Keeps one
    output. Lu et al. 2022, arXiv:2211.01095, Alg. 1.

    compat="diffusers": one evaluation a step, the grid walked in pairs whose middle point is the
    stage, and a last step of first order; r has no meaning there.
    """
    r = _share("dpmpp_2s: r", r)
    choice("dpmpp_2s: variant", variant, VARIANTS)
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    if compat == "diffusers":
        orders, _, order = grouped(b, Form(), in_turn(b.n, 0, 2, True), GROUPED[variant])
    else:
        orders, order = rows(b, [dpm_solver(2, variant, r)] * b.n)
    words = {"r": r, "variant": variant, "compat": compat}
    return build(b, "dpmpp_2s", words, orders, CITE, order=order)


@solver("A", diffusers="DPMSolverSinglestepScheduler (solver_order=3)")
def dpmpp_3s(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    r1=1 / 3,
    r2=2 / 3,
    variant="dpmsolver",
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x1 = (sigma1/sigma)·x + alpha1 r1 h phi_1(-r1 h)·m at lambda + r1 h;
    x2 = (sigma2/sigma)·x + alpha2 [r2 h phi_1(-r2 h)·m + r2 h phi_2(-r2 h)·(r2/r1)(m1 - m)];
    x' = (sigma'/sigma)·x + alpha' [h phi_1(-h)·m + h phi_2(-h)·(m2 - m)/r2].

    m is x0, h = lambda' - lambda, 0 < r1 < r2 < 1. variant "dpmsolver" (above); "taylor" integrates
    the parabola through all three outputs. Three evaluations a step; third order where r2 = 2/3,
    whatever r1 and the variant, else second. A step that starts at alpha = 0 or ends at sigma = 0
    is of first order, with one evaluation (the first is the limit). Keeps two outputs. Lu et al.
    2022, arXiv:2206.00927, Alg. 2, in the data form of arXiv:2211.01095.

    compat="diffusers": one evaluation a step, the grid walked in threes whose inner points are the
    stages, half of phi_1 for phi_2 in x2 of "dpmsolver", and a last step of first order; r1 and r2
    have no meaning there.
    """
    r1, r2 = _share("dpmpp_3s: r1", r1), _share("dpmpp_3s: r2", r2)
    if not r1 < r2:
        raise ValueError(f"dpmpp_3s: r1 = {r1:g} beside r2 = {r2:g}; r1 < r2 is accepted")
    choice("dpmpp_3s: variant", variant, VARIANTS)
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    if compat == "diffusers":
        orders, _, order = grouped(b, Form(), in_turn(b.n, 0, 3, True), GROUPED[variant])
    else:
        orders, order = rows(b, [dpm_solver(3, variant, r1, r2)] * b.n)
    words = {"r1": r1, "r2": r2, "variant": variant, "compat": compat}
    return build(b, "dpmpp_3s", words, orders, CITE_3S, order=order)


def _share(name: str, value: float) -> float:
    """A share of the step, inside (0, 1)."""
    found = number(name, value, 0.0, 1.0)
    if found in (0.0, 1.0):
        raise ValueError(f"{name} = {found:g}; a number inside (0, 1) is accepted")
    return found
