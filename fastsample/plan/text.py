"""A plan as text to read: the note's lines, then a line per row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .note import dump_note
from .pays import warning

if TYPE_CHECKING:
    from .plan import Plan


def printable(value: Any) -> str:
    """Text with non-printing characters escaped: a terminal obeys what the note of a file says."""
    escaped = lambda ch: ch if ch.isprintable() else ch.encode("unicode_escape").decode()
    return "".join(map(escaped, str(value)))


def short(value: Any, most: int = 150) -> str:
    """The same of a value of any length, cut where it has more than `most` characters."""
    text = printable(str(value)[: most + 1])
    return text if len(text) <= most else f"{text[: most - 3]}..."


def sizes(plan: Plan) -> str:
    """How much a plan asks and keeps: 8 evaluations, 10 rows, 1 slot, 2 branches."""
    said = [("evaluation", plan.nfe), ("row", plan.rows), ("slot", plan.S), ("branch", plan.G)]
    many = lambda what: f"{what}es" if what.endswith("ch") else f"{what}s"
    return ", ".join(f"{n} {what if n == 1 else many(what)}" for what, n in said)


def named(plan: Plan) -> str:
    """The solver that the note names; the note may be of any file."""
    return short(plan.note.get("solver") or "unnamed", 60)


def describe(plan: Plan) -> str:
    """The plan as a readable table: the note's lines, then a line per row."""
    silent = {"clip": 0, "inpaint": False, "consistent": True}
    note = {
        k: v
        for k, v in plan.note.items()
        if v not in (None, [], {}) and not (k in silent and v == silent[k])
    }
    lines = [f"Plan  {named(plan)}   {sizes(plan)}"]
    lines += [f"  {short(k):14s} {_value(v)}" for k, v in sorted(note.items()) if k != "solver"]
    if plan.sigma[0]:
        lines.append(
            f"  {'init_scale':14s} {plan.init_scale:.6g} (row 0 multiplies unit noise by it)"
        )
    if said := warning(plan):
        lines.append(
            f"  {'warning':14s} {said}: so few steps on this grid do not pay for its order "
            "(docs/solvers.md)"
        )
    lines += [
        f"  {'consistency':14s} {plan.consistency():.1e} (largest departure from the schedule with "
        "exact predictions)",
        f"  {'row':>4} {'model':>5} {'time':>10} {'alpha':>9} {'sigma':>9} {'log a/s':>8}   update",
    ]
    times = np.concatenate([[np.nan], plan.t[:-1, 0]])
    for i in range(plan.rows):
        a, s = plan.alpha[i], plan.sigma[i]
        log = "inf" if s == 0 else "-inf" if a == 0 else f"{math.log(a) - math.log(s):.3f}"
        call, time = "-", "-"
        if plan.call[i] >= 0:
            call, time = str(plan.call[i]), f"{times[i]:.5g}"
        head = f"  {i:4d} {call:>5} {time:>10} {a:9.5f} {s:9.5f} {log:>8}"
        lines.append(f"{head}   {_update(plan, i)}")
    return "\n".join(lines)


def _update(plan: Plan, i: int) -> str:
    parts = []
    for name, o in (("x", 0), *((f"r{d}", 1 + k) for k, d in enumerate(plan.dst[i]) if d >= 0)):
        terms = [
            f"{plan.M[i, o, k]:+.5g} {plan.operand(k)}"
            for k in range(plan.W)
            if plan.program.rows[i].reads_operand(k) and plan.M[i, o, k]
        ]
        parts.append(f"{name} = {' '.join(terms) or '0'}")
    return "; ".join(parts)


def _value(value: Any) -> str:
    return short(dump_note(value) if isinstance(value, dict) else value)
