"""The figures of a search as comma-separated values (RFC 4180)."""

from __future__ import annotations

import csv as rfc4180
import io
from typing import TYPE_CHECKING, Any

from ..plan.text import printable
from .rungs import solver_of

if TYPE_CHECKING:
    from ..optimize import Search

COLUMNS = (
    *("method", "evaluations", "mean_db", "q25_db", "median_db", "q75_db", "pooled_db"),
    *("solver", "evaluations_spent", "seconds"),
)


def csv(search: Search) -> str:
    """A header, then a row for each rung and number of evaluations; what was not measured is empty.

    mean_db, q25_db, median_db, q75_db: of each sample's own PSNR to the teacher's end points;
    pooled_db: of their mean squared error. evaluations_spent (per sample) and seconds are the whole
    rung's. Text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    out = io.StringIO()
    writer = rfc4180.writer(out)
    writer.writerow(COLUMNS)
    for rung in search.judged:
        for m in sorted(rung.plans):
            decibels = [*rung.psnr.get(m, ("",) * 4), rung.pooled.get(m, "")]
            spent = (rung.nfe, rung.seconds)
            row = (_text(rung.name), m, *decibels, _text(solver_of(rung.plans[m])), *spent)
            writer.writerow(row)
    return out.getvalue()


def _text(value: Any) -> str:
    text = printable(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
