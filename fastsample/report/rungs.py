"""The rungs of a search: those of the front, or what one search found and was compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..plan import Plan

if TYPE_CHECKING:
    from ..optimize import Search
    from ..optimize._search import Rung


def rungs_of(search: Search) -> tuple[Rung, ...]:
    """The search's rungs, the best last. A single search has its plans, named by its method, and
    before them the best by hand, where it was compared, whose dB are pooled.
    """
    # The search has loaded it, and torch; other reports need no torch.
    from ..optimize._search import Rung

    if search.rungs:
        return tuple(search.rungs)
    by_hand, found, each = {}, {}, {}
    for m, beside in search.compared.items():
        by_hand[m], found[m] = beside.by_hand, beside.found
        if beside.psnr:
            each[m] = beside.psnr
    spent = {"nfe": search.nfe, "seconds": search.seconds}
    name = str(found_in(search.plan).get("method", "found"))
    rungs = [Rung(name, search.plans, each, found, **spent)]
    if by_hand:
        plans = {m: beside.plan for m, beside in search.compared.items()}
        rungs.insert(0, Rung("by hand", plans, {}, by_hand, search.compared_nfe))
    return tuple(rungs)


def found_in(plan: Plan) -> Mapping[str, Any]:
    """What the note says of the search; empty where it says nothing."""
    found = plan.note.get("found")
    return found if isinstance(found, Mapping) else {}


def solver_of(plan: Plan) -> str:
    """The plan's solver, and the grid by name where it was made by hand."""
    solver, grid = plan.note.get("solver", "unnamed"), found_in(plan).get("grid")
    return f"{solver} ({grid})" if isinstance(grid, str) else f"{solver}"


def budgets_of(rungs: Sequence[Rung]) -> list[int]:
    """Every number of evaluations that a rung has a plan for."""
    return sorted(set().union(*(rung.plans for rung in rungs)))
