"""Ticket: a request in an Engine, for the one who made it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from math import prod
from typing import TYPE_CHECKING

from torch import Tensor

from ..kernels.reference.step import NOT_FINITE
from ..plan.given import within
from . import arguments, capturable, ladder, outputs, said
from .drawn import Drawn
from .queue import DeadlineExceeded
from .request import Request
from .stack import Rows

if TYPE_CHECKING:
    from .engine import Engine


class Ticket:
    """What `Engine.submit` returns.

    plan      the plan that is run, guidance added, of several tracks the first one's; branches: how
              many it has
    row       the one that the next tick runs; left: how many there are yet
    model     number of the model that the next row to ask one asks, -1: none does
    state     "waiting", "running", or how it ended: "result", "cancelled", "refused" or "failed"
              (`fastsample.runtime.queue` says when); done: it has ended. On a GPU one that became
              non-finite is found out by the first look at its state, reason or result after the end
    reason    why it has no result, an exception; None while it may have one
    deadline  when it ends without a result, by time.monotonic(); None: never
    overtaken how many requests came later and entered before it

    `await ticket` is its result, in any event loop while `Engine.serve` ticks; a coroutine that is
    cancelled while it awaits cancels the request.
    """

    def __init__(
        self,
        engine: Engine,
        request: Request,
        came: float,
        deadline: float | None,
        callback: Callable | None,
        every: int,
    ) -> None:
        self.plan, self.row, self.deadline = request.plan, request.first, deadline
        self.branches, self._end = self.plan.G, self.plan.rows - 1
        self.overtaken, self._state, self._reason = 0, "waiting", None
        self._engine, self._request, self._came = engine, request, came
        self._callback, self._every, self._told_of = callback, every, self.row
        self._plans = tuple(each.plan for each in request.tracks)
        self._windows = tuple(each.window for each in request.tracks)
        self._windowed = any(window is not None for window in self._windows)
        self._shapes = request.plan.program.rows
        asks = (k for k in range(self.row, self._end) if self._shapes[k].call >= 0)
        self._first = next(asks, self._end)
        self._entry, self._after, self._ladder, self._drawn = self.row, None, None, None
        self._rows = self._place = self._told = self._trace = None
        self._copies = self._unread = None  # once it has ended; a status that may say it failed
        self._heard: list[Callable[[], object]] = []

    __repr__ = said.ticket

    # -- what it is about --------------------------------------------------------------------------
    @property
    def left(self) -> int:
        return self._end - self.row

    @property
    def model(self) -> int:
        return next((row.call for row in self._shapes[self.row :] if row.call >= 0), -1)

    @property
    def done(self) -> bool:
        return self._state not in ("waiting", "running")

    @property
    def state(self) -> str:
        self._look()
        return self._state

    @property
    def reason(self) -> BaseException | None:
        self._look()
        return self._reason

    @property
    def levels(self) -> tuple[float, float] | dict[str, tuple[float, float]]:
        """(sigma, alpha) of its state, at which `row` begins, exact; of several by track."""
        each = [(float(p.sigma[self.row]), float(p.alpha[self.row])) for p in self._plans]
        return self._engine._named(each)

    @property
    def drawn(self) -> Drawn | None:
        """The last row that drew noise, and how likely was what it drew: None before one, and
        without density=True of the Engine. Rows count that ask a model, and draw all of their noise
        anew (most of a run with a mask re-use some).
        """
        with self._engine._lock:
            return self._drawn

    # -- what its owner does -----------------------------------------------------------------------
    def result(self, timeout: float | None = None) -> Tensor:
        """The sample [1,*], in the state dtype and in memory of its own. While a thread serves the
        Engine it is waited for, `timeout` seconds at most, else TimeoutError; RuntimeError before
        the end elsewhere, and after cancel(); what it failed by, FloatingPointError where it became
        non-finite, with the plan's row.
        """
        longest = seconds("Ticket.result", "timeout", timeout)
        longest = None if longest is None else min(longest, threading.TIMEOUT_MAX)
        ended = threading.Event()
        if not self._when_ended(ended.set, "Ticket.result") and not ended.wait(longest):
            with self._engine._lock:
                self._heard = [hear for hear in self._heard if hear != ended.set]
            raise TimeoutError(
                f"Ticket.result: {self._where()} after {timeout} s, and goes on; timeout=None "
                "waits for its end"
            )
        if self.state == "result":
            return self._copies[0]
        raise self._reason.with_traceback(self._trace)

    def __await__(self) -> Generator[object, None, Tensor]:
        return self._awaited().__await__()

    async def _awaited(self) -> Tensor:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def hear() -> None:
            with suppress(RuntimeError):  # a loop that is closed waits for nothing
                loop.call_soon_threadsafe(lambda: ended.done() or ended.set_result(None))

        if not self._when_ended(hear, "await ticket"):
            try:
                await ended
            except asyncio.CancelledError:
                self._cancel("Ticket: the coroutine that awaited the request was cancelled")
                raise
        if self._unread is not None:  # a look waits for the device, and the loop need not
            await loop.run_in_executor(None, self._look)
        return self.result()

    @property
    def x0(self) -> Tensor | None:
        """The last row's prediction of the data [1,*], a copy. None before a row has asked the
        model, after an end without a result, and with preview=False.
        """
        with self._engine._lock:
            if self._state not in ("running", "result") or self.row <= self._first:
                return None
            return (self._copies or self._engine._copies(self._place))[1]

    def cancel(self) -> None:
        """End it; its place is free for another. A request that is done stays as it is."""
        self._cancel("Ticket.result: the request is cancelled; one that is done has a result")

    def __reduce__(self) -> tuple:
        raise TypeError("Ticket: it stays with its Engine; pickle its result()")

    # -- inside, under the Engine's lock -----------------------------------------------------------
    def _cancel(self, said: str) -> None:
        with self._engine._lock:
            self._engine._ends(self, "cancelled", RuntimeError(said))

    def _where(self) -> str:
        waits = " of those waiting" if self._state == "waiting" else ""
        return f"the request is at row {self.row} of {self._end}{waits}"

    def _when_ended(self, hear: Callable[[], object], where: str) -> bool:
        """Has it ended? Else `hear` is called when it has; RuntimeError where nobody sees to it."""
        with self._engine._lock:
            if not self.done:
                if not self._engine._served_elsewhere():
                    raise RuntimeError(
                        f"{where}: {self._where()}; one that is done (tick, run or serve the "
                        "Engine) has a result"
                    )
                self._heard.append(hear)
            return self.done

    def _look(self) -> None:
        """Read what its place said of it at the end, where nobody has yet. Waits for the device,
        without the lock.
        """
        unread = self._unread
        if unread is None:
            return
        words, written = unread
        if written is not None:
            written.synchronize()
        error = self._fault(words.tolist())
        with self._engine._lock:
            if self._unread is not None and error is not None:
                self._state, self._reason, self._copies = "failed", error, None
            self._unread = None

    def _fault(self, words: Sequence[int]) -> FloatingPointError | None:
        """What its status words say, one a track."""
        track, word = next(((k, w) for k, w in enumerate(words) if w & NOT_FINITE), (0, 0))
        if not word:
            return None
        rows, (name, shape) = self._tracks[track], self._engine._sizes[track]
        # by where its rows stood while they ran: the table may have been written over since
        row = (word >> 8 & 0xFFFFFF) - self._stood[track]
        what = "the sample" if name is None else name
        why = outputs.fault(rows.plan, self._engine._dtypes[1], prod(shape), row)
        return FloatingPointError(
            f"Ticket.result: {what} became non-finite at row {row} of its plan; {why}"
        )

    def _ended(self, state: str, reason: BaseException | None) -> None:
        self._state, self._reason = state, reason
        self._trace = None if reason is None else reason.__traceback__
        self._request = self._callback = self._after = None
        if self._place is None:
            self._told = None
        for hear in self._heard:
            hear()
        self._heard = []

    def _due_callback(self) -> Callable | None:
        """Its callback, once it is to be called for the row where it stands."""
        callback = self._callback
        if callback is None or self.row - self._told_of < self._every:
            return None
        self._told_of = self.row
        return callback

    def _too_late(self, now: float, least: float) -> DeadlineExceeded | None:
        """What ends it at a time, if its deadline has passed or, where each of its rows that ask
        the model takes `least` seconds, cannot be met.
        """
        if self.deadline is None:
            return None
        rows, after = self._shapes[self.row : self._end], now - self._came
        asks = sum(row.call >= 0 for row in rows)
        if now + asks * least <= self.deadline:
            return None
        allowed = self.deadline - self._came
        return DeadlineExceeded(
            f"Ticket.result: {self._where()} after {after:.4g} s with {asks} evaluations left, of "
            f"{least:.2g} s or more, and deadline={allowed:.4g} s; a later one is accepted"
        )

    def _enter(self, tracks: Sequence[Rows], place: int) -> None:
        """Into the Engine's memory, in a place that is its own until it is vacated."""
        self._tracks, self._rows, self._place = tracks, tracks[0], place
        self._state, self._request, self._order = "running", None, ladder.order(self, place)
        for rows in tracks:
            rows.users += 1
        self._stood = [rows.first for rows in tracks]

    def _copied(self, place: int) -> Ticket:
        """A ticket for another request that stands where this one does, in another place."""
        self._engine._places.copy(self._place, place)
        twin = object.__new__(Ticket)
        twin.__dict__.update(self.__dict__, _heard=[])
        twin._enter(self._tracks, place)
        return twin

    def _take_out(self, unread: bool) -> None:
        """Its result, out of the Engine's memory. unread: nobody knows whether it is finite."""
        self._copies = self._engine._copies(self._place)
        if unread:
            words = self._engine._words(self._place)
            self._unread = words, capturable.mark(words.device)

    def _vacate(self) -> None:
        self._engine._seats[self._place] = self._told = None
        for rows in self._tracks:
            rows.users -= 1

    def _left_to_draw(self) -> set[int]:
        """Noise ids that the rows to come draw."""
        return arguments.drawn_from(self.plan, self.row, self._rows.masked)


def seconds(where: str, name: str, value: object, least: float = 0.0) -> float | None:
    """So many seconds, None for no end; TypeError or ValueError, one sentence."""
    number = None if value is None else within(value, least)
    if value is not None and number is None:
        raise ValueError(
            f"{where}: {name}={value!r:.60}; a number of seconds, {least:g} or more, or None, is "
            "accepted"
        )
    return number
