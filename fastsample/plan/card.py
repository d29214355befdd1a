"""Plans as HTML: the card that a notebook shows, and the parts of it that pages have too.

A card is read on any ground, light or dark: all in it has the colour of the text around it, and
asks for nothing from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .axis import Axis
from .markup import Markup, tag
from .pays import warning
from .text import named, short, sizes

if TYPE_CHECKING:
    from .plan import Plan

LEVEL = "noise level sigma / alpha where the model is asked"
WIDTH, HEIGHT = 360, 130  # of a figure, in pixels
LEFT, RIGHT, TOP, BOTTOM = 46, 90, 10, 22  # room for its labels
DASHES = (None, "6 3", "2 3", "9 3 2 3", "1 2", "12 4")
LINE = 12  # pixels between two labels at least


def html(plan: Plan) -> Markup:
    """The plan for a notebook: its levels drawn, and its rows and note to unfold. Every string is
    escaped: the note may come from any file.
    """
    name = tag("strong", named(plan))
    said = [tag("p", line) for line in (_made_for(plan), warning(plan)) if line]
    drawn = figure([("", dict(enumerate(levels(plan), 1)))], "evaluation", LEVEL, log=True)
    table = tag("details", tag("summary", "Rows"), coefficients(plan))
    notes = tag("details", tag("summary", "Note"), note(plan))
    return tag("div", tag("p", "Plan ", name, ": ", sizes(plan)), *said, drawn, table, notes)


def _made_for(plan: Plan) -> str:
    """The note's schedule and prediction in a line; empty where it names none."""
    schedule, kind = plan.note.get("schedule"), plan.note.get("prediction")
    if not isinstance(schedule, Mapping):
        return ""
    words = ", ".join(f"{k}={v}" for k, v in schedule.items() if k != "name")
    made = f"Made for {short(schedule.get('name'), 60)}({short(words)})"
    return f"{made}, prediction {short(kind, 60)}" if kind else made


def figure(
    lines: Sequence[tuple[str, Mapping[int, float]]], x: str, y: str, log: bool = False
) -> Markup:
    """A small chart of its own with a curve for each (label, {x: y}), told apart by their dashes,
    the label at its end. log: y by its logarithm; what is infinite stands at the edge.
    """
    across = Axis.over(at for _, line in lines for at in line)
    up = Axis.over((v for _, line in lines for v in line.values()), log)
    place = lambda at, v: (
        LEFT + across.at(at) / 100 * (WIDTH - LEFT - RIGHT),
        TOP + (1 - up.at(v) / 100) * (HEIGHT - TOP - BOTTOM),
    )
    shapes, ends = [], []
    for k, (label, line) in enumerate(lines):
        points = [(at, v, *place(at, v)) for at, v in sorted(line.items())]
        path = "M" + " ".join(f"{a:.1f} {b:.1f}" for *_, a, b in points)
        dash = DASHES[k % len(DASHES)]
        words = {"fill": "none", "stroke": "currentColor", "stroke_width": "1.5"}
        shapes.append(tag("path", d=path, stroke_dasharray=dash, **words))
        for at, v, a, b in points:
            told = tag("title", f"{label} {x} {at}: {v:.4g}".lstrip())
            shapes.append(tag("circle", told, cx=f"{a:.1f}", cy=f"{b:.1f}", r="3"))
        ends += [(points[-1][3], points[-1][2], label)] if points else []
    shapes += _labels(ends) + [
        _text(LEFT - 8, place(across.low, v)[1] + 4, f"{v:g}", "end") for v in _ends(up)
    ]
    places = sorted({at for _, line in lines for at in line})
    shapes += [_text(place(v, up.low)[0], HEIGHT - 6, f"{v}", "middle") for v in _few(places)]
    said = f"{y}, against the {x}"
    words = {"width": WIDTH, "height": HEIGHT, "fill": "currentColor", "font_size": "11"}
    box = f"0 0 {WIDTH} {HEIGHT}"
    drawn = tag("svg", *shapes, viewBox=box, role="img", aria_label=said, **words)
    return tag("figure", drawn, tag("figcaption", said), style="margin:0")


def _labels(ends: Sequence[tuple[float, float, str]]) -> list[Markup]:
    """Each curve's label beside its end, moved down where the one above is too near."""
    found, last = [], -LINE
    for y, x, label in sorted(ends):
        last = max(y, last + LINE)
        found.append(_text(x + 8, last + 4, label, "start"))
    return found


def _ends(axis: Axis) -> list[float]:
    """The round numbers nearest to the ends of an axis."""
    ticks = axis.ticks() or [axis.low, axis.high]
    return sorted({ticks[0], ticks[-1]})


def _few(places: Sequence[int]) -> Sequence[int]:
    """All of a few places, of many the first and the last."""
    return places if len(places) <= 12 else [places[0], places[-1]]


def _text(x: float, y: float, label: str, anchor: str) -> Markup:
    return tag("text", label, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


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


def levels(plan: Plan) -> list[float]:
    """sigma / alpha of each row that asks the model; inf where alpha is 0."""
    alpha, sigma = plan.alpha[plan.call >= 0], plan.sigma[plan.call >= 0]
    with np.errstate(over="ignore"):  # beside an alpha next to 0
        level = np.divide(sigma, alpha, out=np.full(len(alpha), np.inf), where=alpha > 0)
    return level.tolist()


def coefficients(plan: Plan) -> Markup:
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


def note(plan: Plan) -> Markup:
    """The note as a table, a line for every leaf."""
    return tag("table", tag("tbody", *_leaves(plan.note)), class_="note")


def _leaves(value: Any, name: str = "") -> list[Markup]:
    """A line for every leaf of the note, named by its way there."""
    if isinstance(value, Mapping) and value:
        inner = [(f"{name} › {k}" if name else f"{k}", v) for k, v in sorted(value.items())]
    elif isinstance(value, list) and any(isinstance(v, (Mapping, list)) for v in value):
        inner = [(f"{name} › {k}", v) for k, v in enumerate(value)]
    else:
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        cell = "-" if text in ("", "{}") else text
        return [tag("tr", tag("th", name, scope="row"), tag("td", cell))]
    return [line for key, v in inner for line in _leaves(v, key)]
