"""A search as HTML: the card that a notebook shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..plan import card
from ..plan.markup import Markup, tag
from ..plan.text import named

if TYPE_CHECKING:
    from ._search import Rung, Search

MEAN = "mean of each sample's PSNR to the teacher on held-out noise, dB"
POOLED = "PSNR to the teacher, from the mean squared error of all samples held out, dB"
ERROR = "the error searched for, on the noises searched with"


def html(search: Search) -> Markup:
    """The search for a notebook: what each rung reached at each number of evaluations, drawn and as
    a table, and the plans to unfold. Every string is escaped.
    """
    budgets, rungs = sorted(search.plans), search.judged
    spent = f"{search.nfe:g} evaluations for each of {search.samples} noises"
    said = f"{search.about_teacher()}; {spent}, {search.seconds:.1f} s"
    # one figure for all: of a plan made by hand there may be the pooled one alone
    means = all(rung.psnr.keys() >= rung.plans.keys() for rung in rungs)
    figures = {r.name: _means(r) if means else dict(r.pooled) for r in rungs}
    shown = [(name, found) for name, found in figures.items() if found]
    if shown:
        drawn = card.figure(shown, "number of evaluations", MEAN if means else POOLED)
    else:
        errors = {m: search.error[m] for m in budgets}
        drawn = card.figure([("", errors)], "number of evaluations", ERROR, log=True)
    header = ("evaluations", "plan", "error searched for", *(f"{name}, dB" for name, _ in shown))
    rows = []
    for m in budgets:
        decibels = (f"{found[m]:.2f}" if m in found else "-" for _, found in shown)
        rows.append((f"{m}", named(search.plans[m]), f"{search.error[m]:.3g}", *decibels))
    table = card.grid("What the search reached", header, rows)
    plans = (_folded(search, m) for m in budgets)
    listed = ", ".join(map(str, budgets))
    title = tag("p", tag("strong", "Search"), f": plans of {listed} evaluations")
    return tag("div", title, tag("p", said), drawn, table, *plans)


def _means(rung: Rung) -> dict[int, float]:
    return {m: figures[0] for m, figures in rung.psnr.items()}


def _folded(search: Search, m: int) -> Markup:
    name = tag("summary", f"The plan of {m} evaluation{'s' * (m > 1)}")
    return tag("details", name, card.html(search.plans[m]))
