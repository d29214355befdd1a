"""Line charts and strips of marks as SVG text. Places are percent of a box that CSS makes as wide
as the page, sizes of text and marks are pixels, so that a narrow page has small charts with large
words. Colours and marks are numbers, classes c0..c7 of the page's style and symbols mark0..mark7.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..plan.axis import Axis
from ..plan.markup import Markup, join, tag

COLOURS = 8
STRIP = 38  # pixels of a row of marks with its label
# 10 pixels wide, centred; a disc, square, diamond, triangle, tee, cross, star and bar.
MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-3.5 -3.5h7v7h-7z",
    "M0 -5L5 0L0 5L-5 0z",
    "M0 -5L4.6 3.6H-4.6z",
    "M0 5L4.6 -3.6H-4.6z",
    "M-5 -3L-3 -5L0 -2L3 -5L5 -3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0z",
    "M-1.5 -5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
    "M-1.5 -5h3v10h-3z",
)


def key(number: int) -> Markup:
    """The mark of a curve, to stand beside its name."""
    mark = tag("use", href=f"#mark{number % COLOURS}", x="50%", y="50%")
    return tag("svg", mark, class_=f"key c{number % COLOURS}", aria_hidden="true")


def symbols() -> Markup:
    """Every mark, once in a page."""
    marks = (tag("path", id=f"mark{k}", d=d) for k, d in enumerate(MARKS))
    return tag("svg", tag("defs", *marks), class_="symbols", aria_hidden="true")


def curves(
    lines: Sequence[tuple[str, Mapping[int, Sequence[float]]]], x: str, y: str, log: bool = False
) -> Markup:
    """A curve for each (label, {x: (y, low, high)}) with the band from low to high, x spaced by
    its logarithm; what is not finite is left out. log: y by its logarithm too.
    """
    places = {at for _, line in lines for at in line}
    across = Axis.over(places, log=True)
    up = Axis.over([v for _, line in lines for figures in line.values() for v in figures], log)
    shapes, marks = [], []
    for k, (label, line) in enumerate(lines):
        drawn = {at: v for at, v in sorted(line.items()) if all(map(up.holds, v))}
        shapes.append(_shape(k, drawn, across, up))
        marks += [
            _mark(k, across.at(at), 100 - up.at(v[0]), f"{label}, {at}: {v[0]:.4g}")
            for at, v in drawn.items()
        ]
    stretched = tag("svg", *shapes, viewBox="0 0 100 100", preserveAspectRatio="none")
    labels = [_tick_x(across.at(at), f"{at:g}") for at in across.thinned(places)]
    labels += [_tick_y(100 - up.at(v), f"{v:g}") for v in up.thinned(up.ticks())]
    said = (
        f"{y} against {x}: {', '.join(label for label, _ in lines)}; the figures are in the table"
    )
    plot = tag("svg", *labels, stretched, *marks, class_="plot", role="img", aria_label=said)
    axis = tag("p", x, " →", class_="axis x")
    return join(tag("p", "↑ ", y, class_="axis"), plot, axis)


def strips(
    rows: Sequence[tuple[str, int, Sequence[float]]], x: str, limits: Iterable[float]
) -> Markup:
    """A row of marks on one logarithmic axis for each (label, number of its mark, values). A value
    beyond every finite one of `limits` stands at the edge.
    """
    across = Axis.over(limits, log=True)
    marks = [_tick_x(across.at(v), f"{v:g}") for v in across.thinned(across.ticks())]
    for i, (label, number, values) in enumerate(rows):
        y = (i + 0.75) * STRIP
        marks.append(tag("text", label, x="-6", y=f"{y - 0.4 * STRIP:g}"))
        marks.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        for k, value in enumerate(values, 1):
            said = f"{label}, evaluation {k}: {value:.4g}"
            marks.append(_mark(number, across.at(value), y, said, ""))
    if any(not across.holds(v) for _, _, values in rows for v in values):
        x += "; at the edge, 0 or infinite"
    said = f"{x}: {', '.join(label for label, _, _ in rows)}"
    height = len(rows) * STRIP + 34  # the padding of .strips with it
    plot = tag("svg", *marks, class_="strips", height=height, role="img", aria_label=said)
    return join(plot, tag("p", x, " →", class_="axis x"))


def _shape(number: int, drawn: Mapping, across: Axis, up: Axis) -> Markup:
    """Band and line in a box of 100 x 100."""
    path = lambda points: " ".join(f"{across.at(x):.2f} {100 - up.at(y):.2f}" for x, y in points)
    if not drawn:
        return join()
    line = tag("path", class_="line", d=f"M{path((x, v[0]) for x, v in drawn.items())}")
    there = path((x, v[1]) for x, v in drawn.items())
    back = path((x, v[2]) for x, v in reversed(drawn.items()))
    band = tag("path", class_="band", d=f"M{there} {back}z")
    return tag("g", band, line, class_=f"c{number % COLOURS}")


def _mark(number: int, x: float, y: float, said: str, unit: str = "%") -> Markup:
    """A mark at x percent and y percent, or pixels; a pointer that rests on it reads `said`."""
    mark = tag("use", href=f"#mark{number % COLOURS}", x=f"{x:.2f}%", y=f"{y:.2f}{unit}")
    return tag("g", tag("title", said), mark, class_=f"c{number % COLOURS}")


def _tick_x(x: float, label: str) -> Markup:
    line = tag("line", x1=f"{x:.2f}%", x2=f"{x:.2f}%", y1="0", y2="100%", class_="grid")
    return join(line, tag("text", label, class_="tick", x=f"{x:.2f}%", y="100%", dy="1.4em"))


def _tick_y(y: float, label: str) -> Markup:
    line = tag("line", x1="0", x2="100%", y1=f"{y:.2f}%", y2=f"{y:.2f}%", class_="grid")
    return join(line, tag("text", label, class_="tick y", x="-8", y=f"{y:.2f}%", dy="0.35em"))
