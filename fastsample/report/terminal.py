"""Plans drawn in a terminal, one or two side by side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..plan import Plan
from ..plan.axis import Axis
from ..plan.card import levels
from ..plan.row import FIELDS
from ..plan.text import printable, short
from .tables import table

EIGHTHS = " ▏▎▍▌▋▊▉█"
LEAST = 10  # cells of the longest bar, however narrow the terminal


def bars(plans: Mapping[str, Plan], blocks: bool, width: int) -> str:
    """A bar for each evaluation of each plan, as long as the logarithm of its noise level
    sigma/alpha is high; full where that is infinite.

    plans: {label: Plan}, the label left out where there is one plan. blocks: drawn with eighths of
    a cell, else with #. width: of the terminal.
    """
    each = {label: levels(plan) for label, plan in plans.items()}
    axis = Axis.over((v for found in each.values() for v in found), log=True)
    lines = []
    for k in range(max(map(len, each.values()))):
        told = (f"{k + 1}",)
        for label, found in each.items():
            if k < len(found):
                name = (label,) if len(plans) > 1 else ()
                lines.append(((*told, *name, f"{found[k]:.4g}"), axis.at(found[k]) / 100))
                told = ("",)
    head = ("evaluation", *[""] * (len(plans) > 1), "sigma/alpha")
    wide = [max(map(len, column)) for column in zip(head, *(c for c, _ in lines), strict=True)]
    left = lambda cells: "  ".join(c.rjust(w) for c, w in zip(cells, wide, strict=True))
    room = max(LEAST, width - sum(wide) - 2 * len(wide))
    drawn = [f"{left(cells)}  {_bar(share * room, blocks)}".rstrip() for cells, share in lines]
    return "\n".join([left(head), *drawn])


def _bar(cells: float, blocks: bool) -> str:
    if not blocks:
        return "#" * max(1, round(cells))
    whole, eighths = divmod(max(1, round(8 * cells)), 8)
    return EIGHTHS[-1] * whole + EIGHTHS[eighths] * bool(eighths)


def compared(names: Mapping[str, str], plans: Mapping[str, Plan]) -> str:
    """What two plans have in common and by what they differ, as text: their structure, the entries
    of their notes, and in each row the largest difference in each of its fields.

    names: {label: file}; plans: {label: Plan}, the same labels.
    """
    (a, b), labels = plans.values(), [*plans]
    lines = [f"{label}  {printable(names[label])}: {printable(plans[label])}" for label in labels]
    lines += ["", f"program  {_programs(a, b)}"]
    keys = [k for k in sorted({*a.note, *b.note}) if a.note.get(k) != b.note.get(k)]
    lines += [f"note     {short(k, 60)}: {_short(a, k)} | {_short(b, k)}" for k in keys]
    rows = _rows(a, b)
    if not rows:
        return "\n".join([*lines, "rows     every number is the same"])
    told = table(("row", "largest difference in each field"), rows, words=1)
    return "\n".join([*lines, "", told])


def _programs(a: Plan, b: Plan) -> str:
    same = "one compiled or captured graph runs both"
    if a.program == b.program:
        return f"the same: {same}"
    wide = {k: max(a.dims[k], b.dims[k]) for k in a.layout._fields}
    if a.rows == b.rows and a.padded(**wide).program == b.padded(**wide).program:
        sizes = ", ".join(f"{k}={v}" for k, v in wide.items() if a.dims[k] != b.dims[k])
        return f"the same once padded to {sizes}: {same} then"
    sizes = [f"{p.nfe} evaluations in {p.rows} rows with {p.S} slots" for p in (a, b)]
    return "different: " + (
        " | ".join(sizes) if sizes[0] != sizes[1] else "rows read or write other operands"
    )


def _short(plan: Plan, key: str) -> str:
    return short(plan.note.get(key, "-"), 60)


def _rows(a: Plan, b: Plan) -> list[tuple[int, str]]:
    """(row, what differs) of every row that differs, or that one plan alone has."""
    wide = {k: max(a.dims[k], b.dims[k]) for k in a.layout._fields}
    a, b = a.padded(**wide), b.padded(**wide)
    found = []
    for i in range(min(a.rows, b.rows)):
        parts = []
        for field in FIELDS:
            mine, theirs = getattr(a, field.name)[i], getattr(b, field.name)[i]
            if np.array_equal(mine, theirs):
                continue
            apart = f" {np.abs(mine - theirs).max():.3g}" if field.kind is float else ""
            parts.append(f"{field.name}{apart}")
        if parts:
            found.append((i, ", ".join(parts)))
    longer = "a" if a.rows > b.rows else "b"
    rest = range(min(a.rows, b.rows), max(a.rows, b.rows))
    return found + [(i, f"{longer} alone has it") for i in rest]
