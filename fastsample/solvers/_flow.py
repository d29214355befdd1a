"""Flow coordinates on any schedule: y = x/n, s = sigma/n, n = alpha + sigma, in which
dy/ds = v = eps - x0 is finite at both ends.
"""

from __future__ import annotations

from ..grids import check
from ..model import Model
from ..schedules import Flow, TrigFlow
from ._begin import begin, choice
from ._build import Builder


def is_flow(schedule, grid) -> bool:
    """Is the velocity the thing to carry: on a flow, and wherever the grid begins at alpha = 0."""
    if isinstance(schedule, (Flow, TrigFlow)):
        return True
    return float(schedule.alpha(check(schedule, grid)[0])) == 0.0


def begin_in(
    name: str, space: str | None, model: Model, grid, *, s_churn: float = 0.0, **words
) -> tuple[Builder, str]:
    """A Builder for solver `name` in the space asked for, "rho" or "flow" (None: that of schedule
    and grid), and that space. words: those of `begin`.
    """
    suited = "flow" if is_flow(model.schedule, grid) else "rho"
    space = choice(f"{name}: space", space or suited, ("rho", "flow"))
    if space == "flow" and s_churn:
        raise ValueError(
            f"{name}: s_churn = {s_churn:g} in flow space; 0, or space = 'rho' on a grid that "
            "starts at alpha > 0, is accepted"
        )
    start = words.pop("start", None)
    stored = "flow" if space == "flow" else "x0"
    b = begin(model, grid, None, start, stored=stored, **words)
    if space == "rho" and b.alpha[0] == 0.0:
        raise ValueError(
            f"{name}: space = 'rho' on a grid that starts at alpha = 0, where rho is infinite; "
            "space = 'flow' is accepted"
        )
    return b, space


def on_slopes(model, grid, prediction, start, **words) -> tuple[Builder, str]:
    """A Builder for what carries a slope, and which: "v" on a flow, "eps" elsewhere. words: those
    of `begin`.
    """
    b = begin(model, grid, prediction, start, **words)
    flow = isinstance(b.schedule, (Flow, TrigFlow)) or b.level(b.grid[0])[0] == 0.0
    if flow and not b.clip:  # a bound is one of x0
        b.stored = "flow"
    return b, "v" if flow else "eps"
