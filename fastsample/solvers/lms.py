"""Linear multistep methods: Adams and Bashforth's, on a slope.

With u = rho = sigma/alpha, y = x/alpha and d = eps, or, on a flow, u = sigma/(alpha + sigma),
y = x/(alpha + sigma) and d = eps - x0,

    y' = y + sum_k w_k d_k,  w_k = ∫ from u to u' of l_k,

l_k the polynomial that is 1 at the output k steps back and 0 at the others read, in u (`lms`), in
time (`adams_bashforth`), or in the number of the step (`ipndm`). The first step is Euler's. One
evaluation a step, order - 1 outputs kept. All are finite into sigma = 0.
"""

from __future__ import annotations

from ..plan import Plan
from ._begin import build, choice, number
from ._build import Builder
from ._flow import on_slopes
from ._multistep import Form, Weigh, rows
from ._start import solver

BUTCHER = "Butcher 2016, Numerical Methods for Ordinary Differential Equations, ch. 24, "
BUTCHER += "doi:10.1002/9781119121534"
IPNDM = "Zhang, Chen 2023, Fast Sampling of Diffusion Models with Exponential Integrator, "
IPNDM += "app. H (iPNDM), arXiv:2204.13902"


@solver("A", diffusers="LMSDiscreteScheduler", k_diffusion="sample_lms", comfyui="lms")
def lms(
    model, grid, *, prediction=None, start=None, order=4, inpaint=False, clip=0.0, compat="exact"
) -> Plan:
    """y' = y + sum_k w_k d_k, the polynomial through the last `order` slopes in u integrated
    exactly, with u = sigma/alpha, y = x/alpha and d = eps, or, on a flow, u = sigma/(alpha +
    sigma), y = x/(alpha + sigma) and d = eps - x0.

    order 1..4. It is DEIS's rhoAB, and what iPNDM for uneven steps was meant to be. Butcher 2016,
    ch. 24. k-diffusion and diffusers integrate by adaptive quadrature, to 1e-4; compat changes
    nothing here.
    """
    order = choice("lms: order", order, (1, 2, 3, 4))
    b, carry = on_slopes(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    return _built(
        b, "lms", Form(carry, "level"), order, {"order": order, "compat": compat}, BUTCHER
    )


@solver("A")
def adams_bashforth(
    model, grid, *, prediction=None, start=None, order=3, inpaint=False, clip=0.0, compat="exact"
) -> Plan:
    """`lms` with the polynomial in the schedule's time in place of u; order 1..4.

    On an unshifted flow time is u, and the two are one. The integrals have no closed form and are
    taken by Gauss's rule, to rounding. Butcher 2016, ch. 24. compat changes nothing here.
    """
    order = choice("adams_bashforth: order", order, (1, 2, 3, 4))
    b, carry = on_slopes(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    words = {"order": order, "compat": compat}
    return _built(b, "adams_bashforth", Form(carry, "time"), order, words, BUTCHER)


@solver("A", usual=True, diffusers="IPNDMScheduler", comfyui="ipndm", diff_sampler="ipndm")
def ipndm(
    model, grid, *, prediction=None, start=None, order=4, inpaint=False, clip=0.0, compat="exact"
) -> Plan:
    """y' = y + (u' - u)·(b_1 d + b_2 d_1 + ...), b = (1); (3, -1)/2; (23, -16, 5)/12;
    (55, -59, 37, -9)/24: the weights of even steps whatever the steps are.

    order 1..4: the outputs read. On grids even in u it is `lms`; of second order (the note's
    smooth_order) where the ratio of neighbouring steps goes to 1 as they get shorter, as on any
    grid drawn from a smooth curve; of first (its order) on others (docs/orders.md). Zhang and Chen
    2023, app. H, after Liu et al. 2022, arXiv:2202.09778. compat changes nothing here.
    """
    order = choice("ipndm: order", order, (1, 2, 3, 4))
    b, carry = on_slopes(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    words = {"order": order, "compat": compat}
    return _built(b, "ipndm", Form(carry, "index"), order, words, IPNDM, even=True)


@solver("A", comfyui="ipndm_v", diff_sampler="ipndm_v")
def ipndm_v(
    model, grid, *, prediction=None, start=None, order=4, inpaint=False, clip=0.0, compat="exact"
) -> Plan:
    """`ipndm` for uneven steps, which is `lms`; order 1..4.

    compat="comfyui": the published third and fourth order, in which a parenthesis stands one term
    too late: of first order unless steps are even, where the third order is right.
    """
    order = choice("ipndm_v: order", order, (1, 2, 3, 4))
    b, carry = on_slopes(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    words, theirs = {"order": order, "compat": compat}, compat == "comfyui"
    weigh, even = _misplaced if theirs else None, theirs and order > 2
    form = Form(carry, "level")
    return _built(b, "ipndm_v", form, order, words, IPNDM, weigh=weigh, even=even)


@solver("A", usual=True, comfyui="gradient_estimation")
def gradient_estimation(
    model, grid, *, prediction=None, start=None, gamma=2.0, inpaint=False, clip=0.0, compat="exact"
) -> Plan:
    """y' = y + (u' - u)·(gamma d + (1 - gamma) d_1); Euler's step first and into sigma = 0.

    gamma from 1 (Euler) to 5. First order: 3/2 would be `ipndm` of order 2. Permenter and Yuan
    2024, arXiv:2306.04848, Alg. 1 (second order). compat changes nothing here.
    """
    gamma = number("gradient_estimation: gamma", gamma, 1.0, 5.0)
    b, carry = on_slopes(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    cite = "Permenter, Yuan 2024, Interpreting and Improving Diffusion Models from an "
    cite += "Optimization Perspective, Alg. 1, arXiv:2306.04848"
    words = {"gamma": gamma, "compat": compat}
    weigh = lambda places, integrals, h, asked: [(1.0 - gamma) * integrals[0]]
    # one output fewer into sigma = 0
    low = b.sigma[-1] == 0.0
    rows(b, Form(carry, "level"), 2, low=bool(low), weigh=weigh)
    return build(b, "gradient_estimation", words, [1] * b.n, cite)


def _built(
    b: Builder,
    name: str,
    form: Form,
    order: int,
    words: dict,
    cite: str,
    *,
    weigh: Weigh | None = None,
    even: bool = False,
) -> Plan:
    """even: the order is reached where steps are even alone."""
    orders = rows(b, form, order, weigh=weigh)
    smooth = min(2, max(orders))
    orders, said = ([1] * b.n, {"smooth_order": smooth}) if even else (orders, {})
    said |= {"order": min(2, max(orders)), "consistent": weigh is None}  # published: may not add up
    return build(b, name, words, orders, cite, **said)


def _misplaced(places: list[float], integrals: list[float], h: float, asked: int) -> list[float]:
    """iPNDM_v's weights as published; in steps of u, h = 1, h_1, h_2, h_3 being those before."""
    back = [newer - older for newer, older in zip([0.0, *places], places, strict=False)]
    h1, h2, h3 = [*back, 0.0, 0.0][:3]
    w = [-0.5 / h1]
    if len(places) > 1:
        bend = 0.5 - 1.0 / (6.0 * h1 * (h1 + h2))  # the 1/2 belongs inside the product
        w = [w[0] - (1.0 + h1 / h2) * bend, bend * h1 / h2]
    over = 0.0  # the four weights of the last order do not add up to 1
    if len(places) > 2:
        late = (1.0 - 1.0 / (3.0 * (1.0 + h1))) / 2.0
        late += (1.0 - 1.0 / (2.0 * (1.0 + h1))) / (6.0 * (1.0 + h1 + h2))
        late *= (1.0 + h1) * (1.0 + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        ratio = h1 * (h1 + h2) / (h2 * (h2 + h3))
        w = [
            w[0] - (1.0 + h1 / h2 + ratio) * late,
            w[1] + (h1 / h2 + ratio * (1.0 + h2 / h3)) * late,
            -ratio * h1 / h2 * late,
        ]
        over = sum(w) + 0.5 / h1 + bend + late
    return [integrals[0] * each for each in (*w, over)]
