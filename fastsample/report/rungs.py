"""What the rungs of a search are called, and what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..plan import Plan
from ..plan.provenance import found
from ..plan.text import named, short

if TYPE_CHECKING:
    from ..optimize._search import Rung


def solver_of(plan: Plan) -> str:
    """The plan's solver, and the grid by name where it was made by hand."""
    grid = found(plan).get("grid")
    return f"{named(plan)} ({short(grid, 60)})" if isinstance(grid, str) else named(plan)


def budgets_of(rungs: Sequence[Rung]) -> list[int]:
    """Every number of evaluations that a rung has a plan for."""
    return sorted(set().union(*(rung.plans for rung in rungs)))
