"""Ticket: a request in an Engine, for the one who made it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..kernels.reference.step import NOT_FINITE
from . import arguments, outputs
from .stack import Rows
from .window import Window

if TYPE_CHECKING:
    from .engine import Engine


class Ticket:
    """What `Engine.submit` returns.

    plan: the plan that is run, guidance added. row: the one that the next tick runs. done: it has
    ended, by itself, by a fault, or by cancel().
    """

    def __init__(
        self,
        engine: Engine,
        rows: Rows,
        place: int,
        row: int,
        told: list,
        window: Window | None,
    ) -> None:
        self.plan, self.row, self.done = rows.plan, row, False
        self._engine, self._rows, self._place, self._told = engine, rows, place, told
        self._window = window
        self._first = next((k for k in range(row, rows.end) if rows.asks[k]), rows.end)
        self._copies, self._cancelled = None, False
        rows.users += 1

    def result(self) -> Tensor:
        """The sample [1,*], in the state dtype and in memory of its own. RuntimeError before it is
        done and after cancel(), FloatingPointError where it became non-finite, with the plan's row.
        """
        with self._engine._lock:
            if self._cancelled or not self.done:
                where = "cancelled" if self._cancelled else f"at row {self.row} of {self._rows.end}"
                raise RuntimeError(
                    f"Ticket.result: the request is {where}; one that is done (tick or run the "
                    "Engine) has a result"
                )
            x, _, status = self._leave()
            word = int(status) if self._engine._judged else 0
        if word & NOT_FINITE:
            row = (word >> 8 & 0xFFFFFF) - self._rows.first
            why = outputs.fault(self.plan, self._engine._dtypes[1], x.numel(), row)
            raise FloatingPointError(
                f"Ticket.result: the sample became non-finite at row {row} of its plan; {why}"
            )
        return x

    @property
    def x0(self) -> Tensor | None:
        """The last row's prediction of the data [1,*], a copy. None before a row has asked the
        model, after cancel(), and with preview=False.
        """
        with self._engine._lock:
            if self._cancelled or self.row <= self._first:
                return None
            return (self._copies or self._engine._places.copies(self._place))[1]

    def cancel(self) -> None:
        """End it; its place is free for another. A request that is done stays as it is."""
        with self._engine._alone("Ticket.cancel"):
            if not self.done:
                self.done = self._cancelled = True
                kept = [ticket for ticket in self._engine.running if ticket is not self]
                self._engine.running = tuple(kept)
                self._vacate()

    def __reduce__(self) -> tuple:
        raise TypeError("Ticket: it stays with its Engine; pickle its result()")

    def _left_to_draw(self) -> set[int]:
        """Noise ids that the rows to come draw."""
        return arguments.drawn_from(self.plan, self.row, self._rows.masked)

    def _copied(self, place: int) -> Ticket:
        """A ticket for another request that stands where this one does, in another place."""
        self._engine._places.copy(self._place, place)
        twin = Ticket(self._engine, self._rows, place, self.row, self._told, self._window)
        twin._first = self._first
        return twin

    def _leave(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Out of the Engine's memory, with copies of what stands there."""
        if self._copies is None:
            self._copies = self._engine._places.copies(self._place)
            self._vacate()
        return self._copies

    def _vacate(self) -> None:
        self._engine._seats[self._place] = self._told = None
        self._rows.users -= 1
