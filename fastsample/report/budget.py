"""What a page says of one number of evaluations: figures, schedules, samples, rows and notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..plan import Plan
from ..plan.card import LEVEL, coefficients, grid, levels, note
from ..plan.markup import Markup, join, tag
from .chart import key, strips
from .rungs import solver_of
from .samples import samples

if TYPE_CHECKING:
    from ..optimize import Search
    from ..optimize._search import Rung


def budget(m: int, rungs: Sequence[Rung], search: Search, limits: Sequence[float]) -> Markup:
    """All that is known of m evaluations. limits: noise levels of every plan of the page, so that
    the schedules of all budgets have one axis.
    """
    here = [(k, rung) for k, rung in enumerate(rungs) if m in rung.plans]
    figures = [(key(k), rung.name, *_figures(rung, m)) for k, rung in here]
    rows = [(join(mark, name), *cells) for mark, name, *cells in figures]
    header = ("method", "mean dB", "quartiles dB", "pooled dB", "plan")
    drawn = [(rung.name, k, levels(rung.plans[m])) for k, rung in here]
    parts = [grid(f"Figures at {m} evaluations", header, rows)]
    parts += [tag("h3", "Schedules"), tag("figure", strips(drawn, LEVEL, limits))]
    shown = [(f"{r.name}{_decibel(r, m)}", r.ends[m]) for _, r in here[::-1] if m in r.ends]
    if shown:
        if search.target is not None:
            shown.insert(0, ("the teacher's end points", search.target))
        parts += [tag("h3", "The same noises"), samples(shown)]
    parts.append(tag("h3", "Coefficients and notes"))
    parts += [
        _folded(f"{rung.name}: {solver_of(rung.plans[m])}", rung.plans[m]) for _, rung in here
    ]
    return join(*parts)


def decibels(value: float) -> str:
    """A figure in dB; one that is not finite by its name."""
    return f"{value:.2f}" if np.isfinite(value) else str(float(value))


def _figures(rung: Rung, m: int) -> tuple[str, ...]:
    mean, spread = "-", "-"
    if m in rung.psnr:
        mean, *quartiles = map(decibels, rung.psnr[m])
        spread = " / ".join(quartiles)
    pooled = decibels(rung.pooled[m]) if m in rung.pooled else "-"
    return mean, spread, pooled, solver_of(rung.plans[m])


def _decibel(rung: Rung, m: int) -> str:
    return f", {decibels(rung.psnr[m][0])} dB" if m in rung.psnr else ""


def _folded(name: str, plan: Plan) -> Markup:
    """The rows and the note of one plan, to unfold."""
    return tag("details", tag("summary", name), coefficients(plan), tag("h3", "Note"), note(plan))
