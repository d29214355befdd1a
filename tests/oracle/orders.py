"""Order of convergence on a problem with a known answer, as slopes of a Plan's end error.

The data are a 1-D Gaussian mixture (means -1 and 1, weights .3 and .7, standard deviation .25).
With y = x/alpha and rho = sigma/alpha every schedule gives the same probability-flow ODE,
dy/dlambda = D(y, rho) - y, solved from rho = 3 to .1 by DOP853. `python -m oracle.orders`, in
tests/, writes the table docs/orders.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import interpreter
import numpy as np
from scipy.integrate import solve_ivp

from fastsample.schedules import EDM, Flow
from fastsample.solvers import SOLVERS

from . import derivations as d
from . import multistep, refined, singlestep, stabilised, stochastic
from .marginals import points

MEANS, WEIGHTS, STD = np.array([-1.0, 1.0]), np.array([0.3, 0.7]), 0.25
TOP, BOTTOM = 3.0, 0.1
# y at rho = 3, on both sides of the split
STARTS = np.array([-5.2, -3.1, -1.7, -0.6, 0.7, 1.9, 3.4, 5.0])
# errors that speak of order: below is rounding, above is not yet a power law
WINDOW = (1e-10, 1e-2)


def denoise(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """E[x0 | alpha x0 + sigma eps = x]: responsibilities of the components times their posterior
    means.
    """
    variance = (alpha * STD) ** 2 + sigma**2
    gap = x[..., None] - alpha * MEANS
    log = np.log(WEIGHTS) - gap**2 / (2 * variance)
    share = np.exp(log - log.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return (share * (MEANS + alpha * STD**2 / variance * gap)).sum(-1)


@cache
def exact(rho: float) -> np.ndarray:
    """y at rho on the trajectories through STARTS."""
    if rho >= TOP * (1 - 1e-14):
        return STARTS
    span, ode = (-np.log(TOP), -np.log(rho)), lambda lam, y: denoise(y, 1.0, np.exp(-lam)) - y
    return solve_ivp(ode, span, STARTS, method="DOP853", rtol=3e-14, atol=1e-14).y[:, -1]


def grid(schedule, n: int) -> np.ndarray:
    """n steps uniform in half log-SNR from rho = 3 to .1."""
    return schedule.time(np.linspace(-np.log(TOP), -np.log(BOTTOM), n + 1))


def uneven(schedule, n: int) -> np.ndarray:
    """The same, every second step twice as wide, however short they get."""
    ends = np.cumsum([0.0, *(1.0 + np.arange(n) % 2)])
    levels = -np.log(TOP) + np.log(TOP / BOTTOM) * ends / ends[-1]
    return schedule.time(levels)


def error(plan, schedule, *, history: int = 1, unipc: dict | None = None) -> float:
    """Largest end error in y.

    history = p hands the run exact states at its first p points, so that row p is the first of full
    order. A predictor-corrector keeps an anchor inside its rows: with `unipc` (order, variant) the
    state at point p is set to the full-order prediction from the exact history, which is what a run
    that had been going on would hold.
    """
    where = [i for i in range(plan.rows) if plan.call[i] >= 0]
    level = {i: (plan.alpha[i], plan.sigma[i]) for i in range(plan.rows)}
    slots, x = [np.full(STARTS.shape, np.nan)] * plan.S, STARTS * plan.alpha[1]
    for i in range(1, plan.rows):
        k, (alpha, sigma) = where.index(i) if i in where else -1, level[i]
        if 0 <= k < history:
            x = alpha * exact(sigma / alpha)
        elif unipc and k == history > 1:
            x = _predicted(plan, schedule, where, history, unipc["variant"])
        outputs = [denoise(x, alpha, sigma)] if k >= 0 else None  # plans made with prediction="x0"
        x = interpreter.step(plan, i, x, slots, outputs, None)[0]
    return float(np.max(np.abs(x / plan.alpha[-1] - exact(BOTTOM))))


def _predicted(plan, schedule, where: list[int], p: int, variant: str) -> np.ndarray:
    """UniP-p from exact states and exact predictions at points p-1, p-2, ..., 0."""
    past = points(schedule, plan.note["times"][: p + 1])
    s, t = past[p - 1], past[p]
    weights = d.unipc_weights(past[p - 1 :: -1], t, variant, False)
    out = float(d.transfer(s, t)[0]) * float(s.alpha) * exact(float(s.rho))
    for w, node in zip(weights, past[p - 1 :: -1], strict=True):
        alpha, sigma = float(node.alpha), float(node.sigma)
        out = out + float(t.alpha * w) * denoise(alpha * exact(float(node.rho)), alpha, sigma)
    return out


def slope(errors: Callable[[int], float], sizes=(64, 128, 256, 512)) -> tuple[float, float, int]:
    """(order, error, n) of the last doubling whose errors are both inside the window."""
    found = {}
    for n in reversed(sizes[1:]):
        for k in (n, n // 2):
            found.setdefault(k, errors(k))
        if all(WINDOW[0] <= found[k] <= WINDOW[1] for k in (n, n // 2)):
            return float(np.log2(found[n // 2] / found[n])), found[n], n
    raise AssertionError(f"no doubling of {sizes} with errors inside {WINDOW}: {found}")


_ERRORS: dict[tuple, float] = {}


@dataclass(frozen=True)
class Method:
    """A deterministic solver with options, the order p its rows reach, and the outputs a full row
    needs (history).
    """

    name: str
    options: dict
    order: int
    history: int = 1
    schedule: object = EDM()
    uneven: bool = False

    @property
    def id(self) -> str:
        options = ", ".join(f"{k}={v}" for k, v in self.options.items())
        name = f"{self.name}({options})" if options else self.name
        name += " on uneven steps" * self.uneven
        return name if isinstance(self.schedule, EDM) else f"{name} on a flow"

    def error(self, n: int, *, exact_history: bool) -> float:
        """Largest end error of n steps; remembered, and computed once where a full row needs no
        history.
        """
        key = (self.id, n, exact_history and self.history > 1)
        if key not in _ERRORS:
            _ERRORS[key] = self._error(n, exact_history=key[2])
        return _ERRORS[key]

    def plan(self, n: int):
        times = (uneven if self.uneven else grid)(self.schedule, n)
        return SOLVERS[self.name](self.schedule, times, prediction="x0", **self.options)

    @property
    def corrects(self) -> bool:
        return self.name == "unipc" and self.options.get("corrector", True)

    def _error(self, n: int, *, exact_history: bool) -> float:
        history = self.history if exact_history else 1
        anchor = {"variant": self.options["variant"]} if self.corrects and exact_history else None
        return error(self.plan(n), self.schedule, history=history, unipc=anchor)

    @property
    def as_run(self) -> int:
        """The order a run reaches: that of its rows where they need no history; started at order 1
        its first step leaves an error of h^2, after a corrector of h^3.
        """
        if self.history == 1:
            return self.order
        return min(self.order, 3 if self.corrects else 2)


def _unipc(order: int, variant: str, corrector: bool) -> Method:
    options = {"order": order, "variant": variant} | ({} if corrector else {"corrector": False})
    return Method("unipc", options, order + corrector, order)


METHODS = [
    Method("ddim", {}, 1),
    Method("euler", {}, 1),
    Method("euler", {}, 1, schedule=Flow(3.0)),
    Method("euler_ancestral", {"eta": 0.0}, 1),
    Method("heun", {}, 2),
    Method("heun", {}, 2, schedule=Flow(3.0)),
    Method("dpmpp_2s", {}, 2),
    Method("dpmpp_2m", {}, 2, 2),
    Method("dpmpp_2m", {"variant": "heun"}, 2, 2),
    Method("dpmpp_2m_sde", {"eta": 0.0}, 2, 2),
    Method("dpmpp_3m", {}, 3, 3),
    Method("dpmpp_3m", {"compat": "diffusers"}, 2, 3),
    *(
        _unipc(order, variant, corrector)
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")
        for corrector in (False, True)
    ),
    _unipc(3, "vary", True),
    *(
        Method(*values, **dict(*words))
        for family in (multistep, singlestep, stochastic, refined, stabilised)
        for name, options, order, history, *words in family.METHODS
        for values in [(name, options, order, history)]
    ),
]


def unlisted() -> list[Method]:
    """Deterministic solvers of the registry that METHODS lacks, held to the orders that their own
    notes state.
    """
    listed, found = {method.name for method in METHODS}, []
    for name in (name for name in SOLVERS if name not in listed):
        plan = SOLVERS[name](EDM(), grid(EDM(), 8), prediction="x0")
        if plan.L == 0:
            each = list(plan.note["orders"])
            found.append(Method(name, {}, max(each), each.index(max(each)) + 1))
    return found


DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "orders.md"
HEAD = """# Order of convergence, measured

This page shows how fast the error of each solver falls with the number of steps: of order p, twice
the steps leave a 2^p-th of it. The data are a 1-D Gaussian mixture (means -1 and 1, weights .3 and
.7, standard deviation .25) with its exact denoiser, on EDM's schedule where not said otherwise,
from sigma/alpha = 3 to .1 on levels even in log sigma. An order is the slope of the largest end
error over the last doubling, to 512 steps.

**As run** is what a sampler started from noise shows: its first steps have no history and are of
lower order. *From exact history* hands the first full row what it would have had, and shows the
order of the rows themselves. The first step leaves an error of order 2 (3 with UniPC's corrector)
for good: where a figure is above that, the first step does not dominate yet. Every option that is
not named stands at its default. *On uneven steps* every second step is twice as wide as the others,
however short they get. Solvers with the weights of even steps (ipndm, pndm) are of first order
there. Where steps change smoothly they are of second (smooth_order in a plan's note), and where
steps are even in sigma of fourth, from exact history.

Written by `python -m oracle.orders` in `tests/`; `tests/test_order.py` holds every number.

"""


def measured(method: Method) -> tuple[float, float, float]:
    """(order from exact history, order as run, error as run at 512 steps)."""
    rows, run = (slope(lambda n, e=e: method.error(n, exact_history=e))[0] for e in (True, False))
    return rows, run, method.error(512, exact_history=False)


def table() -> str:
    """The measured orders of every method as Markdown."""
    heads = "solver; order as run; from exact history; order of its rows; error as run, 512 steps"
    lines = [f"| {' | '.join(heads.split('; '))} |", "|---|---|---|---|---|"]
    for m in METHODS:
        rows, run, error = measured(m)
        lines.append(f"| {m.id} | **{run:.2f}** | {rows:.2f} | {m.order} | {error:.1e} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(HEAD + table())
