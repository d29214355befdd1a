"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..plan.text import printable


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], markdown: bool = False) -> str:
    """A table as text, the first column to the left, others to the right; format floats before."""
    lines = [[printable(cell) for cell in line] for line in (header, *rows)]
    if any(len(line) != len(header) for line in lines):
        raise ValueError(
            f"table: a row has another length than the header's {len(header)}; rows of equal "
            "length are needed"
        )
    if markdown:
        lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        rule = ["---", *["---:"] * (len(header) - 1)]
        return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    cells = lambda line: [cell.rjust(w) for cell, w in zip(line, others, strict=True)]
    out = ["  ".join([line[0].ljust(first), *cells(line[1:])]) for line in lines]
    return "\n".join([out[0], "-" * len(out[0]), *out[1:]])
