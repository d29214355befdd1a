"""The rows of DEIS and LMS as diffusers has them: on levels that may repeat; of LMS also from the
middle of a run. No torch, no diffusers.
"""

from __future__ import annotations

from ...model import Model
from ...plan import Plan
from ...solvers._build import ZERO, Builder
from ...solvers._multistep import Form, Levels, carried, predicted, rows

LMS_ORDER = 4


def deis(model: Model, grid, *, order: int, lower_order_final: bool, clip: float = 0.0) -> Plan:
    """`solvers.deis` in log rho, on levels that may repeat: a step of length 0 changes nothing.
    Zhang and Chen 2023, arXiv:2204.13902, eq. 15.
    """
    b = Builder(model, grid, stored="x0", clip=clip)
    orders = rows(b, Form("eps", "lambda"), order, low=lower_order_final)
    cite = ["Zhang, Chen 2023, Fast Sampling of Diffusion Models with Exponential Integrator, "]
    cite[0] += "eq. 15, arXiv:2204.13902"
    words = {"arguments": {"order": order}, "order": min(2, max(orders)), "orders": orders}
    return b.build("deis of diffusers", citations=cite, **words)


def lms(model: Model, grid, *, run, first: int, order: int = LMS_ORDER, clip: float = 0.0) -> Plan:
    """`solvers.lms` from point `first` of the whole run [n+1] on, the weights of whose steps are
    those of the whole run: of outputs that were asked before this run began there are none, and
    their weights are left out. A step of length 0 changes nothing. Butcher 2016, ch. 24.
    """
    b, whole = Builder(model, grid, stored="x0", clip=clip), Builder(model, run, stored="x0")
    at, form = Levels.of(whole), Form("eps", "level")
    for i in range(first, whole.n):
        x, _ = predicted(at, form, i, order)
        for j in range(max(0, i - order), first):
            x = x.put(("r", f"m{j}"), ZERO)
        t, to = b.t[i - first], b.t[i - first + 1]
        b.row(t, to=to, x=x, keep={f"m{i}": carried(at, form, i)})
    return b.build(
        "lms of diffusers",
        consistent=first == 0,
        order=min(order, 2) if first == 0 and whole.n > 1 else 1,
        orders=[min(order, i + 1) if first == 0 else 1 for i in range(b.n)],
        citations=[
            "Butcher 2016, Numerical Methods for Ordinary Differential Equations, ch. 24, "
            "doi:10.1002/9781119121534"
        ],
    )
