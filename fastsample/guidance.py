"""Guidance by linear weights: f = f_G + sum_k s_k (f_k - f_G), with the scales s_k chosen per
sample at run time.

With two branches (conditional, unconditional) this is classifier-free guidance,
f = f_2 + s (f_1 - f_2): Ho and Salimans 2022, eq. 6 with s = 1 + w.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .plan import Plan, PlanError
from .plan.given import integer, plain, reals
from .plan.row import moved


def guided(plan: Plan, branches: int = 2, interval: tuple[float, float] | None = None) -> Plan:
    """The same plan reading `branches` model outputs f_1..f_G: f = f_G + sum_k s_k (f_k - f_G),
    with K = G-1 scales that a run is given; the last branch is the base.

    plan: one branch. branches: 2..8. interval: (low, high) in half_log_snr = log(alpha / sigma) of
    the row's point; rows outside it use f_1 alone (Kynkaanniemi et al. 2024). Raises TypeError for
    anything but a Plan, PlanError for a plan that has branches, and where not low < high.
    A plan of CFG++ (`solvers.euler_cfgpp`) reads the base's own output beside f, inside the
    interval.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"guided: plan is a {type(plan).__name__}; a fastsample.Plan is needed")
    if plan.G != 1 or plan.K != 0:
        raise PlanError(
            f"guided: the plan has {plan.G} branches and {plan.K} scales already; one branch and "
            "none is accepted"
        )
    given, branches = branches, integer(branches)
    if branches is None or not 2 <= branches <= 8:
        raise PlanError(f"guided: branches={given!r:.60}; 2 to 8 is accepted")
    low, high = (-np.inf, np.inf) if interval is None else _ends(interval)
    raw, wide = plan.layout.branch(0), plan.padded(G=branches, K=branches - 1)
    reads_base = any(row.reads_operand(raw) for row in plan.program.rows)
    if reads_base and plan.note.get("direction") is None:
        raise PlanError(
            "guided: the plan reads a single branch's raw output; compile it for guidance instead"
        )
    with np.errstate(divide="ignore"):
        half_log_snr = np.log(plan.alpha) - np.log(plan.sigma)
    inside = (half_log_snr >= low) & (half_log_snr <= high)
    called = plan.branches != 0
    U, V = np.zeros_like(wide.U), np.zeros_like(wide.V)
    on, base = called & inside, plan.U[:, 0]
    U[called & ~inside, 0] = base[called & ~inside]
    U[on, -1] = base[on]
    for k in range(branches - 1):
        V[on, k, k], V[on, -1, k] = base[on], -base[on]
    bits = np.where(on, (1 << branches) - 1, np.where(called, 1, 0))
    span = None if interval is None else [low, high]
    note = {"form": "linear", "branches": branches, "interval": span}
    arrays = {"U": U, "V": V, "branches": bits}
    if reads_base:
        first, last = wide.layout.branch(0), wide.layout.branch(branches - 1)
        arrays["M"], arrays["reads"] = _from(wide.M, wide.reads, on, first, last)
    return replace(wide, **arrays, note={**plan.note, "guidance": note})


def _from(
    M: np.ndarray, reads: np.ndarray, rows: np.ndarray, old: int, new: int
) -> tuple[np.ndarray, np.ndarray]:
    """M and reads, with column `old` of the rows at `new`."""
    M, bit = M.copy(), (reads >> old) & 1
    M[rows, :, new], M[rows, :, old] = M[rows, :, old], 0.0
    return M, np.where(rows, reads & ~(1 << old) | bit << new, reads)


def unguided(plan: Plan) -> Plan:
    """`Plan.unguided`: the one branch's rows, its weight back from the base's place, are accepted
    only where guiding them again gives this very plan.
    """
    narrow = plan.layout._replace(G=1, K=0)
    columns = narrow.columns_in(plan.layout)
    called, on = plan.branches != 0, plan.branches == (1 << plan.G) - 1
    M, reads, base = plan.M, plan.reads, plan.layout.branch(plan.G - 1)
    if plan.note.get("direction") is not None:
        M, reads = _from(M, reads, on, base, plan.layout.branch(0))
    arrays = {
        "M": M[:, :, columns],
        "reads": moved(reads, ((old, new) for new, old in enumerate(columns))),
        "U": np.select([on, called], [plan.U[:, -1], plan.U[:, 0]], 1.0)[:, None],
        "V": np.zeros((plan.rows, 1, 0)),
        "branches": called,
    }
    try:
        said = plan.note["guidance"]
        made = replace(plan, **arrays, note={**plan.note, "guidance": None})
        if guided(made, said["branches"], said["interval"]) == plan:
            return made
    except (LookupError, TypeError, PlanError):
        pass
    raise PlanError(
        f"unguided: the plan's {plan.G} branches and {plan.K} scales are not those that guided "
        "gives one; a plan that guided made is accepted"
    )


Plan._makers["unguided"] = unguided


def _ends(interval: object) -> tuple[float, float]:
    """Both ends of an interval as numbers."""
    ends = reals(interval) if isinstance(interval, (list, tuple, np.ndarray)) else None
    truths = ends is None or any(isinstance(plain(end), bool) for end in interval)
    low, high = (np.nan, np.nan) if truths or ends.shape != (2,) else ends.tolist()
    if not low < high:
        raise PlanError(
            f"guided: interval={interval!r}; (low, high) in half_log_snr with low < high is "
            "accepted"
        )
    return low, high
