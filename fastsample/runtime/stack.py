"""Stack: the rows of several plans in one table, for a batch whose samples follow plans of their
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from ..plan import Plan
from ..plan.row import Layout, RowShape
from .pool import Table

LEAST = 1024  # rows of a table: so many are kept before those without users are written over
KEPT = 256  # plans that were asked for last: what is checked and made of them stays
UNUSED = RowShape(0, 0, 0, -1, -1, False, -1)  # of a row of the table that no plan has


class Rows:
    """The rows of a plan in a stack. masked: those that blend a known image do.

    first: number of the plan's row 0 in the table. end: the row that holds. asks: for each row the
    branches that the model is asked for. calls: and which model. alike: for how many rows from each
    on both are the same; turns: calls, asks, alike. records: numbers, words, shapes and noise ids.
    stds: of what rows draw, as far as somebody asked (`drawn`).
    """

    def __init__(self, plan: Plan, masked: bool, dtype: type, layout: Layout):
        self.plan, self.first, self.users, self.masked, self._dtype = plan, 0, 0, masked, dtype
        self.end, shapes = plan.rows - 1, plan.program.rows
        needed = [s.branches_needed(plan.layout) if s.call >= 0 else () for s in shapes]
        self.asks = [tuple(g for g, there in enumerate(each) if there) for each in needed]
        self.calls, self.alike = [shape.call for shape in shapes], [1] * (self.end + 1)
        asked = list(zip(self.asks, self.calls, strict=True))
        for row in range(self.end - 2, -1, -1):
            if asked[row] == asked[row + 1]:
                self.alike[row] += self.alike[row + 1]
        self.turns = list(zip(self.calls, self.asks, self.alike, strict=True))
        self._layout, self.stds = None, {}
        self.pack(layout)

    def pack(self, layout: Layout) -> None:
        """Make the records for this layout."""
        if layout == self._layout:
            return
        wide = self.plan.padded(**layout._asdict())
        (numbers, words), shapes = wide.table(self._dtype), wide.program.rows
        if not self.masked:
            words = words.copy()
            words[:, layout.at("known_reads")] = 0
            shapes = [shape._replace(known_reads=0) for shape in shapes]
        self.records = numbers, words, shapes, list(map(tuple, wide.ids.tolist()))
        self._layout = layout


class Stack:
    """A table of every plan in use, padded to the smallest layout that holds them all, equal plans
    once. Rows keep their numbers as long as they have users; those without are written over before
    the table grows.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self._dtype, self._device = np.float32 if dtype == torch.float32 else np.float64, device
        self._held: dict[tuple[Plan, bool], Rows] = {}
        self._size, self.table = LEAST, None
        self._made = lru_cache(KEPT)(self._make)

    def check(self, plan: Plan, masked: bool) -> None:
        """ValueError where the plan's numbers do not fit the dtype. In any thread."""
        self._made(plan, masked)

    def agree(self, plan: Plan, coming: Sequence[Plan]) -> None:
        """ValueError where the plan tells the model another number of scalars than those before it,
        in the table or coming to it.
        """
        before = next((other.E for other in coming), plan.E)
        before = before if self.table is None else self.table.layout.E
        if before != plan.E:
            raise ValueError(
                f"Engine.submit: the plan tells the model {plan.E} scalar(s), those before it "
                f"{before}; one number is accepted"
            )

    def rows(self, plan: Plan, masked: bool) -> Rows:
        """The plan's rows; who keeps them counts as a user of theirs."""
        rows = self._held.get((plan, masked))
        if rows is None:
            layout, rows = self._wide(plan), self._made(plan, masked)
            rows.pack(layout)
            if self.table is not None and layout != self.table.layout:
                for other in self._held.values():
                    other.pack(layout)
            rows.first = self._room(plan.rows)
            self._held[plan, masked] = rows
            self._build(layout)
        return rows

    def _make(self, plan: Plan, masked: bool) -> Rows:
        return Rows(plan, masked, self._dtype, self._wide(plan))

    def _wide(self, plan: Plan) -> Layout:
        """That of a table that holds this plan, too."""
        table = self.table
        return plan.layout if table is None else Layout(*map(max, plan.layout, table.layout))

    def bytes(self, coming: Sequence[tuple[Plan, bool]], layout: Layout) -> int:
        """What the table takes at most until these plans, masked or not, are in it, which then is
        of this layout; while it is made, the one before stands, too.
        """
        new = {key: key[0].rows for key in coming if key not in self._held}
        end = max((rows.first + rows.plan.rows for rows in self._held.values()), default=0)
        end += sum(new.values())
        size = self._size if end <= self._size else max(2 * self._size, end)
        unit = np.dtype(self._dtype).itemsize
        a_row = lambda at: 2 * at.WF * unit + at.WI * 4  # the numbers stand on the host, too
        after, table = size * a_row(layout), self.table
        if not new:
            return after
        before = 0 if table is None else self._size * a_row(table.layout)
        return after + (before if len(new) == 1 else after)

    def times(self, numbers: Sequence[int]) -> np.ndarray:
        """Model scalars [n, E] that rows of the table keep for those after them."""
        at, width = self.table.layout.at("t"), self.table.layout.E
        return self._numbers[numbers, at : at + width]

    def _room(self, count: int) -> int:
        """Where `count` rows fit."""
        if (first := self._gap(count)) + count > self._size:
            self._held = {key: rows for key, rows in self._held.items() if rows.users}
            first = self._gap(count)
        if first + count > self._size:
            self._size = max(2 * self._size, first + count)
        return first

    def _gap(self, count: int) -> int:
        """The first run of `count` rows that no plan has, or what lies behind them all."""
        end = 0
        for rows in sorted(self._held.values(), key=lambda rows: rows.first):
            if rows.first - end >= count:
                break
            end = rows.first + rows.plan.rows
        return end

    def _build(self, layout: Layout) -> None:
        self._numbers = np.zeros((self._size, layout.WF), self._dtype)
        words = np.zeros((self._size, layout.WI), np.int32)
        shapes, ids = [UNUSED] * self._size, [()] * self._size
        for rows in self._held.values():
            here = slice(rows.first, rows.first + rows.plan.rows)
            self._numbers[here], words[here], shapes[here], ids[here] = rows.records
        with torch.inference_mode(False):
            f, i = (torch.tensor(v, device=self._device) for v in (self._numbers, words))
        self.table = Table(f, i, layout, tuple(shapes), tuple(ids))
