"""Steps: the rows of a plan that belong together, as its grid has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .plan import Plan


def begins(plan: Plan) -> list[int]:
    """Rows at which a step that asks a model begins: every row that does, if the note has as many
    steps or names no grid; those that read nothing older (stages in between); or, if only these
    are as many as the steps, the first at each level (a corrector that asks again).
    """
    asks = np.flatnonzero(plan.call >= 0).tolist()
    times = plan.note.get("times")  # a file may say anything there
    steps = len(times) - 1 - unasked(plan) if isinstance(times, list) else len(asks)
    if len(asks) == steps:
        return asks
    apart = [row for row in asks if row in plan.entries]
    levels = {(plan.alpha[row], plan.sigma[row]): row for row in reversed(asks)}
    return sorted(levels.values()) if len(apart) != steps == len(levels) else apart


def unasked(plan: Plan) -> int:
    """Steps before the first call: 1 after `analytic_first_step`."""
    return int(plan.call[1] < 0)


def spans(plan: Plan) -> dict[int, tuple[int, int]]:
    """noise id -> (row, row): the part of the way, from where the one row begins to where the other
    does, over which the noise is added. It ends after the row that first draws it, and begins with
    that row's step or, where the step has drawn another, where that one's ends. The draws of row 0
    and id 0, which belong to no step, are left out.
    """
    found: dict[int, tuple[int, int]] = {}
    first, end, begun = 1, 1, set(begins(plan))
    for row, shape in enumerate(plan.program.rows[:-1]):
        drawn = shape.draws(plan.layout, masked=False)
        ids = [k for k, read in zip(plan.ids[row].tolist(), drawn, strict=True) if read and k]
        first = row if row in begun else first
        new = [k for k in ids if k not in found] if row else []
        for k in new:
            found[k] = max(first, end), row + 1
        end = row + 1 if new else end
    return found
