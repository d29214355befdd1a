"""Rows that a search fitted, as a solver: what it found is its argument, so a plan of them is made
again like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..plan import Plan
from ._build import Builder, M, R, X
from ._given import resolve

KINDS = ("free", "consistent")


def fitted(
    model,
    grid,
    *,
    weights: Sequence[Sequence[float]],
    rows: str = "free",
    prediction=None,
    start=None,
    inpaint=False,
    clip=0.0,
) -> Plan:
    """x' = w_0 x + sum_l w_l m_l, m_l the last predictions as x0, the newest last.

    weights: of every step of the grid, w_0 and one to all of its predictions' w_l. rows:
    "consistent", weights that stand on the schedule at every point if predictions are exact, or
    "free". With start=, what is missing of the past is the first prediction: sum_l w_l, and with it
    a consistent row's place on the schedule, stays.
    """
    if rows not in KINDS or (rows == "free" and (start is not None or inpaint)):
        raise ValueError(
            f"fitted: rows={rows!r:.40}, start={start!r:.40}, inpaint={inpaint!r}; 'consistent' "
            "rows, or 'free' ones from noise without inpaint, are accepted"
        )
    b = Builder(resolve(model, prediction), grid, start=start, inpaint=inpaint, clip=clip)
    sizes = [len(w) for w in weights]
    if len(sizes) != len(b.grid) - 1 or not all(1 < n < k + 3 for k, n in enumerate(sizes)):
        raise ValueError(
            f"fitted: weights of {sizes!s:.60} numbers for a grid of {len(b.grid) - 1} steps; two "
            "to k + 2 in step k, counted from 0, are accepted"
        )
    for i, (own, *past) in enumerate(weights[b.start or 0 :]):
        missing = max(len(past) - 1 - i, 0)
        past = [sum(past[: missing + 1]), *past[missing + 1 :]]
        terms = [*(R(f"m{n}") for n in range(i + 1 - len(past), i)), M]
        x = sum((w * m for w, m in zip(past, terms, strict=True)), own * X)
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": M})
    arguments = {"weights": [[float(w) for w in step] for step in weights], "rows": rows}
    words = {"rows": rows, "citations": []}
    return b.build("fitted", arguments=arguments, consistent=rows == "consistent", **words)
