"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..plan.text import printable


def table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], markdown: bool = False, words: int = 0
) -> str:
    """A table as text, the first column and the last `words` ones to the left, others to the right;
    format floats before.
    """
    lines = [[printable(cell) for cell in line] for line in (header, *rows)]
    if any(len(line) != len(header) for line in lines):
        raise ValueError(
            f"table: a row has another length than the header's {len(header)}; rows of equal "
            "length are needed"
        )
    if markdown:
        lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        rule = ["---", *["---:"] * (len(header) - 1 - words), *["---"] * words]
        return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = range(1, len(header) - words)
    sides = [str.rjust if k in right else str.ljust for k in range(len(header))]
    cells = lambda line: [side(c, w) for side, c, w in zip(sides, line, widths, strict=True)]
    out = ["  ".join(cells(line)).rstrip() for line in lines]
    return "\n".join([out[0], "-" * max(map(len, out)), *out[1:]])
