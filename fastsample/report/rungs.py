"""What the rungs of a search are called, and what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..plan import Plan
from ..plan.provenance import found

if TYPE_CHECKING:
    from ..optimize._search import Rung


def solver_of(plan: Plan) -> str:
    """The plan's solver, and the grid by name where it was made by hand."""
    solver, grid = plan.note.get("solver", "unnamed"), found(plan).get("grid")
    return f"{solver} ({grid})" if isinstance(grid, str) else f"{solver}"


def budgets_of(rungs: Sequence[Rung]) -> list[int]:
    """Every number of evaluations that a rung has a plan for."""
    return sorted(set().union(*(rung.plans for rung in rungs)))
