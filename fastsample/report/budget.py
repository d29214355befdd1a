"""What a page says of one number of evaluations: figures, schedules, samples, rows and notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plan import Plan
from .chart import key, strips
from .markup import Markup, join, tag
from .rungs import solver_of
from .samples import samples

if TYPE_CHECKING:
    from ..optimize import Search
    from ..optimize._search import Rung

LEVEL = "noise level sigma / alpha where the model is asked"


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


def grid(
    label: str, header: Sequence[Any], rows: Sequence[Sequence[Any]], best: Callable | None = None
) -> Markup:
    """A table that scrolls by itself where the page is narrow, the keyboard's arrows included.

    best: (row, column) -> whether the cell is set off.
    """
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = []
    for i, row in enumerate(rows):
        cells = [tag("th", row[0], scope="row")]
        cells += [
            tag("td", cell, class_="best" if best and best(i, j) else None)
            for j, cell in enumerate(row[1:], 1)
        ]
        body.append(tag("tr", *cells))
    table = tag("table", tag("thead", head), tag("tbody", *body))
    return tag("div", table, class_="wide", role="region", aria_label=label, tabindex="0")


def decibels(value: float) -> str:
    """A figure in dB; one that is not finite by its name."""
    return f"{value:.2f}" if np.isfinite(value) else str(float(value))


def levels(plan: Plan) -> list[float]:
    """sigma / alpha of each row that asks the model; inf where alpha is 0."""
    alpha, sigma = plan.alpha[plan.call >= 0], plan.sigma[plan.call >= 0]
    level = np.divide(sigma, alpha, out=np.full(len(alpha), np.inf), where=alpha > 0)
    return level.tolist()


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
    note = tag("table", tag("tbody", *_note(plan.note)), class_="note")
    return tag("details", tag("summary", name), _coefficients(plan), tag("h3", "Note"), note)


def _coefficients(plan: Plan) -> Markup:
    """One line a row: what x' is made of, operand by operand, and what the row keeps."""
    reads = [[shape.reads_operand(k) for k in range(plan.W)] for shape in plan.program.rows]
    used = [k for k in range(plan.W) if any(row[k] for row in reads)]
    asks = iter(range(1, plan.nfe + 1))
    number = lambda value: f"{value:.6g}"
    rows = []
    for i, row in enumerate(reads):
        asked = plan.call[i] >= 0
        label = (str(next(asks)), number(plan.t[i - 1, 0])) if asked else ("-", "-")
        points = (number(plan.alpha[i]), number(plan.sigma[i]))
        weights = (number(plan.M[i, 0, k]) if row[k] else "" for k in used)
        rows.append((str(i), *label, *points, *weights, _kept(plan, i, row)))
    header = ["row", "evaluation", "t", "alpha", "sigma", *map(plan.operand, used), "keeps"]
    return grid("Coefficients of x after each row", header, rows)


def _kept(plan: Plan, i: int, reads: Sequence[bool]) -> str:
    """What the row writes beside x."""
    parts = []
    for k, slot in enumerate(plan.dst[i]):
        if slot >= 0:
            weights = plan.M[i, 1 + k]
            terms = [f"{weights[j]:+.6g} {plan.operand(j)}" for j in range(plan.W) if reads[j]]
            parts.append(f"r{slot} = {' '.join(t for t in terms if t[:3] != '+0 ') or '0'}")
    return "; ".join(parts) or "-"


def _note(value: Any, name: str = "") -> list[Markup]:
    """A line for every leaf of the note, named by its way there."""
    if isinstance(value, Mapping) and value:
        inner = [(f"{name} › {k}" if name else f"{k}", v) for k, v in sorted(value.items())]
    elif isinstance(value, list) and any(isinstance(v, (Mapping, list)) for v in value):
        inner = [(f"{name} › {k}", v) for k, v in enumerate(value)]
    else:
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        cell = "-" if text in ("", "{}") else text
        return [tag("tr", tag("th", name, scope="row"), tag("td", cell))]
    return [line for key, v in inner for line in _note(v, key)]
