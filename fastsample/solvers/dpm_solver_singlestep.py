"""DPM-Solver in single steps, in noise form, and its split of a budget of evaluations."""

from __future__ import annotations

from ..plan import Plan
from ..plan.given import integer
from ..schedules import Flow
from ._begin import begin, build, choice, number
from ._build import Builder
from ._grouped import GROUPED, in_turn
from ._grouped import rows as grouped
from ._multistep import Form
from ._renoise import Level, falls
from ._start import solver
from ._tableau_steps import VARIANTS, dpm_solver, rows

CITE = "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver, Alg. 1 and 2, arXiv:2206.00927"
# stages of each order
SHARES = {1: (0.5,), 2: (0.5,), 3: (1 / 3, 2 / 3)}


@solver("A", diffusers="DPMSolverSinglestepScheduler (algorithm_type='dpmsolver')")
def dpm_solver_singlestep(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    order=3,
    nfe=None,
    variant="dpmsolver",
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x1 = (alpha1/alpha)·x - sigma1 r1 h phi_1(r1 h)·e at lambda + r1 h;
    x2 = (alpha2/alpha)·x - sigma2 [r2 h phi_1(r2 h)·e + r2 h phi_2(r2 h)·(r2/r1)(e1 - e)];
    x' = (alpha'/alpha)·x - sigma' [h phi_1(h)·e + h phi_2(h)·(e2 - e)/r2].

    e is eps, h = lambda' - lambda, r1 = 1/3, r2 = 2/3: order 3. Order 2 has r1 = 1/2 and
    x' = (alpha'/alpha)·x - sigma' h phi_1(h)·[e + (e1 - e)/(2 r1)], order 1 is `ddim`. variant
    "taylor": h phi_2(h)·(e1 - e)/r1 in order 2, the parabola through all outputs in order 3. As
    many evaluations a step as its order. nfe: a budget, split as the paper does: over nfe//3 + 1
    steps of orders 3, .., then 2 and 1 where 3 divides it, else its remainder (order 2: steps of 2,
    and 1 last where it is odd); None: all steps of `order`. A step that starts at alpha = 0, where
    there is no limit, or ends at sigma = 0 is of first order, with one evaluation. x0 is stored (e
    of a stage is a combination of those): order - 1 outputs. Lu et al. 2022, arXiv:2206.00927,
    Alg. 1 and 2, and its DPM-Solver-fast.

    compat="diffusers": one evaluation a step, the grid walked in groups of `order` steps whose
    inner points are the stages, as `dpmpp_3s` has it.
    """
    order = choice("dpm_solver_singlestep: order", order, (1, 2, 3))
    choice("dpm_solver_singlestep: variant", variant, VARIANTS)
    if nfe is not None and compat == "diffusers":
        raise ValueError(
            f"dpm_solver_singlestep: nfe = {nfe!r:.40} with compat = 'diffusers', which makes one "
            "evaluation a step; None is accepted"
        )
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    if compat == "diffusers":
        orders = in_turn(b.n, 0, order, True)
        orders, _, reached = grouped(b, Form("eps"), orders, GROUPED[variant])
    else:
        asked = [order] * b.n if nfe is None else _split("dpm_solver_singlestep", b, order, nfe)
        orders, reached = _rows(b, asked, variant)
    words = {"order": order, "nfe": nfe if nfe is None else integer(nfe), "variant": variant}
    return build(
        b, "dpm_solver_singlestep", words | {"compat": compat}, orders, CITE, order=reached
    )


@solver("A", k_diffusion="sample_dpm_fast", comfyui="dpm_fast")
def dpm_fast(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    nfe=None,
    eta=0.0,
    s_noise=1.0,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """`dpm_solver_singlestep` of order 3 with its budget: nfe evaluations over nfe//3 + 1 steps.

    nfe: None is 3n - 2 for a grid of n steps, whose last is of first order. k-diffusion's
    sample_dpm_fast on a grid even in lambda. A step from alpha = 0 or to sigma = 0 makes one
    evaluation whatever its order, so that a plan may have fewer. Lu et al. 2022, arXiv:2206.00927
    (DPM-Solver-fast). compat changes nothing here.

    eta >= 0 (on Flow at most 1): a step goes on to the level of `euler_ancestral`, though never
    below the grid's end, and s_noise times noise leads back up: none in the last step. An s_noise
    other than 1 leaves the schedule by design. A step that keeps no noise (a great eta) is of first
    order with one evaluation.
    """
    eta, s_noise = number("dpm_fast: eta", eta), number("dpm_fast: s_noise", s_noise)
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    budget = 3 * len(b.grid) - 5 if nfe is None else nfe
    if isinstance(b.schedule, Flow):
        number("dpm_fast: eta on Flow", eta, 0.0, 1.0)
    points = Level.on(b)
    room = [0.0 if p.sigma == 0.0 else points[-1].half_log_snr - p.half_log_snr for p in points]
    kappas = [*map(min, falls(b, points, eta), room[1:])]
    words = {"kappas": kappas, "s_noise": s_noise}
    orders, reached = _rows(b, _split("dpm_fast", b, 3, budget), "dpmsolver", **words)
    words = {"nfe": nfe if nfe is None else integer(nfe), "eta": eta, "s_noise": s_noise}
    said = {"order": 1 if eta else reached, "consistent": s_noise == 1.0 or not eta}
    return build(b, "dpm_fast", words | {"compat": compat}, orders, CITE, **said)


def _rows(b: Builder, orders: list[int], variant: str, **words) -> tuple[list[int], int]:
    made = {order: dpm_solver(order, variant, *SHARES[order]) for order in {*orders}}
    return rows(b, [made[order] for order in orders], noise=True, **words)


def _split(name: str, b: Builder, order: int, nfe: int) -> list[int]:
    """The orders of the steps that a budget gives the whole grid, from the start on."""
    n = len(b.grid) - 1
    budget = integer(nfe)
    if budget is None or budget < 1:
        raise ValueError(f"{name}: nfe = {nfe!r:.40}; a whole number from 1 up is accepted")
    if order == 3 and budget % 3 == 0:
        orders = [3] * (budget // 3 - 1) + [2, 1]
    else:
        orders = [order] * (budget // order) + [budget % order] * (budget % order > 0)
    if len(orders) != n:
        raise ValueError(
            f"{name}: nfe = {budget} of order {order} takes a grid of {len(orders)} steps, not "
            f"{n}; {_accepted(order, n)} is accepted"
        )
    return orders[b.start or 0 :]


def _accepted(order: int, n: int) -> str:
    """The budgets that fill n steps."""
    least, most = {1: (n, n), 2: (2 * n - 1, 2 * n), 3: (max(3 * n - 3, 1), 3 * n - 1)}[order]
    return f"nfe = {least}" if least == most else f"nfe = {least} to {most}"
