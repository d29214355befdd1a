"""One page that says what a search found: a file that opens without a server, runs no script and
asks no address for anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..files import write_whole
from ..plan.card import LEVEL, grid, levels
from ..plan.markup import Markup, join, tag
from .budget import budget, decibels
from .chart import curves, key, strips, symbols
from .rungs import budgets_of
from .style import POLICY, STYLE

if TYPE_CHECKING:
    from ..optimize import Search
    from ..optimize._search import Rung

OPEN = 6  # numbers of evaluations that are all unfolded; of more, the largest alone
MEAN = "mean of each sample's PSNR to the teacher's end points, dB"
POOLED = "PSNR to the teacher's end points, from the mean squared error of all samples, dB"
EVALUATIONS = "model evaluations per sample"
ERROR = "mean |x - x of the teacher|^p at the data end, on the noises searched with"


def page(search: Search, path: Any, *, title: str | None = None) -> None:
    """Write a `Search` as one self-contained HTML page, whole or not at all.

    It shows the error of every rung over evaluations with its quartiles, and for each number of
    evaluations where the plans ask the model, samples of the same noises side by side, the plans'
    coefficients and their notes; then what the search cost and the command that makes it again. A
    search without rungs shows what it has. The same search gives the same bytes. Every string is
    escaped; a Content-Security-Policy allows images within the page and the page's own style, and
    nothing else. Raises TypeError for what is no Search, and what `files.write_whole` raises.
    """
    from ..optimize import Search

    if not isinstance(search, Search):
        raise TypeError(f"page: search is a {type(search).__name__}; a Search is accepted")
    rungs = search.judged
    budgets = budgets_of(rungs)
    name = title or f"Plans of {_listed(sorted(search.plans))} evaluations"
    meta = [tag("meta", charset="utf-8")]
    meta.append(tag("meta", http_equiv="Content-Security-Policy", content=POLICY))
    meta.append(tag("meta", name="viewport", content="width=device-width, initial-scale=1"))
    head = tag("head", *meta, tag("title", name), tag("style", Markup(STYLE)))
    main = tag(
        "main",
        *(tag("h1", name), tag("p", _summary(search, rungs)), _contents(budgets)),
        *_error(search, rungs, budgets),
        *_schedules(search, rungs),
        *_budgets(search, rungs, budgets),
        *_provenance(search, rungs),
    )
    whole = tag("html", head, tag("body", symbols(), main), lang="en")
    write_whole(path, f"<!DOCTYPE html>\n{whole}\n".encode())


def _listed(budgets: Sequence[int]) -> str:
    """1, 2, 3 as 1 to 3; others one by one."""
    if len(budgets) > 2 and budgets[-1] - budgets[0] == len(budgets) - 1:
        return f"{budgets[0]} to {budgets[-1]}"
    return ", ".join(map(str, budgets))


def _summary(search: Search, rungs: Sequence[Rung]) -> str:
    m = max(search.plans)
    best = ([rung for rung in rungs if _chosen(search, rung, m)] or rungs)[-1]
    figures = best.psnr.get(m, (best.pooled.get(m),))
    reached = "was judged on no held-out noise"
    if figures[0] is not None:
        reached = f"reaches {decibels(figures[0])} dB to the teacher on held-out noise"
    return f"The plan of {m} evaluations ({best.name}) {reached}; {search.about_teacher()}."


def _contents(budgets: Sequence[int]) -> Markup:
    links = [tag("a", f"{m}", href=f"#m{m}") for m in budgets]
    links = [tag("a", "Error", href="#error"), *links, tag("a", "Provenance", href="#provenance")]
    return tag("nav", *links, aria_label="Error, each number of evaluations, provenance")


def _chosen(search: Search, rung: Rung, m: int) -> bool:
    """Is the rung's plan the one that the search keeps? A plan's hash is of its numbers alone, and
    the note of the one kept may say more.
    """
    both = m in rung.plans and m in search.plans
    return both and hash(rung.plans[m]) == hash(search.plans[m])


def _legend(rungs: Sequence[Rung], used: Sequence[int]) -> Markup:
    items = (tag("li", key(k), rungs[k].name) for k in used)
    return tag("ul", *items, class_="legend")


# -- error over evaluations ------------------------------------------------------------------------
def _error(search: Search, rungs: Sequence[Rung], budgets: Sequence[int]) -> list[Markup]:
    """The chart and its figures: dB on held-out noise where there are any, else the error searched
    for.
    """
    heading = tag("h2", "Error over evaluations", id="error")
    header = ("method", *budgets)
    if not any(rung.psnr or rung.pooled for rung in rungs):
        lines = [(rungs[-1].name, {m: (v,) * 3 for m, v in search.error.items()})]
        said = tag("p", "No noise was held out: this is the error on the noises searched with.")
        row = ("error", *(f"{search.error[m]:.3g}" for m in budgets))
        figure = tag("figure", curves(lines, EVALUATIONS, ERROR, log=True))
        return [heading, said, figure, grid("Error over evaluations", header, [row])]
    said = "Higher is nearer to the teacher; bold is the plan kept."
    means = any(rung.psnr for rung in rungs)
    if means:
        said += " The band holds the middle half of the samples, from quartile to quartile."
        lines = [(r.name, {m: (v[0], v[1], v[3]) for m, v in r.psnr.items()}) for r in rungs]
    else:
        lines = [(r.name, {m: (v,) * 3 for m, v in r.pooled.items()}) for r in rungs]
    drawn = curves(lines, EVALUATIONS, MEAN if means else POOLED)
    cells = lambda rung: (_cell(rung, m, means) for m in budgets)
    rows = [(join(key(k), rung.name), *cells(rung)) for k, rung in enumerate(rungs)]
    best = lambda i, j: _chosen(search, rungs[i], budgets[j - 1])
    table = grid("Error over evaluations", header, rows, best)
    legend = _legend(rungs, range(len(rungs)))
    return [heading, tag("figure", legend, drawn), tag("p", said), table]


def _cell(rung: Rung, m: int, means: bool) -> Any:
    """Mean and quartiles in dB; what is pooled says so among means."""
    if m in rung.psnr:
        mean, low, _, high = map(decibels, rung.psnr[m])
        return join(mean, tag("small", f"{low} – {high}"))
    if m not in rung.pooled:
        return "-"
    return join(decibels(rung.pooled[m]), *(tag("small", "pooled") for _ in range(means)))


# -- schedules and budgets -------------------------------------------------------------------------
def _schedules(search: Search, rungs: Sequence[Rung]) -> list[Markup]:
    """Where each plan that was kept asks the model."""
    none = [len(rungs)]
    owner = lambda m: ([k for k, r in enumerate(rungs) if _chosen(search, r, m)] or none)[-1]
    rows = [(f"{m}", owner(m), levels(plan)) for m, plan in sorted(search.plans.items())]
    drawn = strips(rows, LEVEL, _limits(rungs))
    said = (
        "A line for each number of evaluations, the plan kept; its first evaluation is rightmost."
    )
    legend = _legend(rungs, sorted({k for _, k, _ in rows if k < len(rungs)}))
    return [tag("h2", "Schedules"), tag("p", said), tag("figure", legend, drawn)]


def _limits(rungs: Sequence[Rung]) -> list[float]:
    return [v for rung in rungs for plan in rung.plans.values() for v in levels(plan)]


def _budgets(search: Search, rungs: Sequence[Rung], budgets: Sequence[int]) -> list[Markup]:
    limits, parts = _limits(rungs), []
    for m in budgets:
        name = tag("summary", tag("h2", f"{m} evaluation{'s' * (m > 1)}"))
        unfolded = True if len(budgets) <= OPEN or m == budgets[-1] else None
        inside = budget(m, rungs, search, limits)
        parts.append(tag("details", name, inside, id=f"m{m}", class_="budget", open=unfolded))
    return parts


# -- provenance ------------------------------------------------------------------------------------
def _provenance(search: Search, rungs: Sequence[Rung]) -> list[Markup]:
    """What the search is and cost, and the command that makes it again."""
    facts = {
        "teacher": search.about_teacher().removeprefix("teacher: "),
        "noises searched with": search.samples,
        "steps of the fine grid": len(search.grid) - 1,
        "evaluations a sample, the teacher's included": f"{search.nfe:g}",
        "seconds": f"{search.seconds:.1f}",
        "bytes of states and targets at most": f"{search.bytes:,}",
        "evaluations a sample to compare": f"{search.compared_nfe:g}",
        "fine grid": ", ".join(f"{t:.6g}" for t in np.asarray(search.grid)),
        "made by": f"fastsample {__version__}",
    }
    lines = (tag("tr", tag("th", k, scope="row"), tag("td", v)) for k, v in facts.items())
    parts = [tag("h2", "Provenance", id="provenance")]
    parts.append(tag("table", tag("tbody", *lines), class_="note"))
    rows = [(join(key(k), r.name), f"{r.nfe:g}", f"{r.seconds:.1f}") for k, r in enumerate(rungs)]
    header = ("method", "evaluations a sample", "seconds")
    parts += [tag("h3", "What each took"), grid("What each took", header, rows)]
    command = search.command or "The command was not kept; each plan's note has the arguments."
    return [*parts, tag("h3", "To make it again"), tag("pre", command)]
