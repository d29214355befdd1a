"""Admission: how requests come into an Engine and how they end, while its ticks run or do not."""

from __future__ import annotations

from collections import deque
from itertools import count
from operator import attrgetter
from threading import Condition, RLock
from time import monotonic

from . import arguments
from .meter import Meter, Metrics
from .queue import POLICIES, DeadlineExceeded, EngineFull, Queue, Room
from .ticket import Ticket, seconds
from .turn import Turn

TIMES = 64  # ticks whose times are kept


class Admission:
    """The part of an Engine that its callers meet: requests wait, enter, and end.

    Two locks. `_turn` is held by who ticks or chooses among the running, for as long as it takes;
    `_lock`, always inside of it, by who looks at or changes anything here, and never while a model
    or a callback is asked. What the places hold is written under both.
    """

    def __init__(self, capacity: int, pad_to: int | None, waiting, policy, overtakes) -> None:
        given = capacity if waiting is None else waiting, overtakes
        numbers = [arguments.integer(number) for number in given]
        if any(n is None or n < 0 for n in numbers):
            raise ValueError(
                f"Engine: waiting={waiting!r:.60}, overtakes={overtakes!r:.60}; whole numbers of "
                "requests, 0 or more, are accepted"
            )
        if not callable(policy) and not (isinstance(policy, str) and policy in POLICIES):
            raise ValueError(
                f"Engine: policy is {policy!r:.60}; {', '.join(POLICIES)}, or a callable(waiting, "
                "running) -> tickets, is accepted"
            )
        self.capacity, self.pad_to, self._most_waiting = capacity, pad_to, numbers[0]
        self._room, self._queue = Room(capacity, pad_to), Queue(policy, numbers[1])
        self._anew()
        self._closed: str | None = None  # why nobody is taken in any more
        self._like: dict | None = None  # what the conditions are like of those that are in
        self._stale, self._gone = False, []  # has somebody ended? those whose places are to be free
        self._numbers = count()  # of requests, in order of arrival
        self._timed = self._watched = 0  # requests with a deadline, and with a callback
        self._meter = Meter()
        self._times: deque[float] = deque(maxlen=TIMES)  # of the last ticks that asked the model
        self.running: tuple[Ticket, ...] = ()  # as they entered, or as `select` left them

    def _anew(self) -> None:
        """Locks that nobody holds."""
        self._lock, self._turn = RLock(), Turn(self._sweep_up)
        self._wake = Condition(self._lock)

    @property
    def waiting(self) -> tuple[Ticket, ...]:
        """The requests that wait for a place, first come first."""
        return tuple(self._queue.waiting)

    def metrics(self) -> Metrics:
        """What it has counted so far (`fastsample.runtime.meter`)."""
        with self._lock:
            waiting = len(self._queue.waiting)
            now = {"waiting": waiting, "running": sum(not t.done for t in self.running)}
            return self._meter.read(**now, launches=self._tick.launches, rows=self._tick.rows)

    # -- a request comes ---------------------------------------------------------------------------
    def _take_in(self, ticket: Ticket, served: bool) -> None:
        """Into the queue, and on where it can, or refused. Under the lock. served: a thread ticks,
        and is to be told.
        """
        going = [other for other in self.running if not other.done]
        like, waiting = self._fits(ticket), self._queue.waiting
        try:
            self._refuse_full(going, ticket)
            self._budget.refuse(ticket, going, waiting, self._seconds)
        except EngineFull:
            self._meter.refusals += 1
            raise
        self._like, ticket._number = like, next(self._numbers)
        waiting.append(ticket)
        self._count(ticket, 1)
        try:
            if not served and self._turn.take(wait=False):
                try:
                    self._seat_those_entering()
                finally:
                    self._turn.give()
            if ticket.state == "refused":
                raise ticket.reason
            if ticket.state == "waiting":
                ticket._request = ticket._request.owned()
        except BaseException as error:
            self._ends(ticket, "refused", error)
            raise
        self._wake.notify()

    def _refuse_closed(self, where: str) -> None:
        if self._closed is not None:
            raise RuntimeError(f"{where}: {self._closed}; another Engine is accepted")

    def _refuse_full(self, going: list[Ticket], ticket: Ticket) -> None:
        """Refuse a request for which there is no room beside those going, nor in the queue."""
        G, waiting = ticket.branches, self._queue.waiting
        if self.pad_to is not None and self.pad_to < G:
            raise ValueError(
                f"Engine.submit: the request has {G} branches and pad_to={self.pad_to}; as many "
                "branches at most are accepted"
            )
        beyond = self._room.beyond(going, [*waiting, ticket])
        if len(beyond) <= self._most_waiting:
            return
        inside = [*going, *waiting[: len(waiting) + 1 - len(beyond)]]
        after = self._seconds(self._room.rows_until(inside, beyond[0]))
        branches = sum(other.branches for other in going)
        raise EngineFull(
            f"Engine.submit: {G} branch(es) beside {len(going)} requests in flight with {branches} "
            f"and {len(waiting)} that wait; capacity={self.capacity} requests with "
            f"pad_to={self.pad_to} branches and waiting={self._most_waiting} are accepted, a "
            f"further one in about {after:.2g} s",
            after,
        )

    def _seconds(self, rows: int) -> float:
        """How long so many rows take, by the mean of the last ticks."""
        return max(rows, 1) * sum(self._times) / len(self._times) if self._times else 1.0

    # -- between two ticks -------------------------------------------------------------------------
    def _enter(self) -> list[Ticket]:
        """Those whose deadline has come leave, which are returned; others enter. Under the lock."""
        if self._stale:  # another thread's turn, which has not been swept up after yet
            self._sweep()
        late = self._late() if self._timed else []
        for ticket, error in late:
            self._ends(ticket, "failed", error)
        self._seat_those_entering()
        return [ticket for ticket, _ in late]

    def _late(self) -> list[tuple[Ticket, DeadlineExceeded]]:
        """Those whose deadline has passed, or cannot be met."""
        now, least = monotonic(), min(self._times, default=0.0)
        each = ((t, t._too_late(now, least)) for t in (*self.running, *self._queue.waiting))
        late = [(ticket, error) for ticket, error in each if error is not None]
        if late and {*self.running} <= {ticket for ticket, _ in late}:
            self._times.clear()  # no tick would outdate a slow spell, which would end everybody
        return late

    def _seat_those_entering(self) -> None:
        """Who waits enters, as far as there is room."""
        if self._stale:  # a turn was given back, and its holder has not swept yet
            self._sweep()
        if not self._queue.waiting or len(self.running) >= self.capacity:
            return
        running = sorted(self.running, key=attrgetter("_number"))
        for ticket in self._queue.entering(running, self._room.beside(running)):
            try:
                self._seat(ticket)
            except Exception as error:  # of memory, say
                self._ends(ticket, "refused", error)
            else:
                self._meter.queue_wait.add(monotonic() - ticket._came)

    def _call_back(self, caught: type[BaseException] = Exception) -> list[Ticket]:
        """Tell those who asked for it how their requests stand; those that ended by that. caught:
        of what a callback raises, what ends its request.
        """
        ended = []
        for ticket in self.running if self._watched else ():
            callback = ticket._due_callback()
            if callback is None:
                continue
            try:
                callback(ticket)
            except caught as error:
                ended.append(ticket)
                with self._lock:
                    self._ends(ticket, "failed", ordinary(error))
        return ended

    # -- a request ends ----------------------------------------------------------------------------
    def _ends(self, ticket: Ticket, state: str, reason: BaseException | None = None) -> None:
        """The first end of a request is final. Under the lock; its place is free once no tick is
        under way.
        """
        if ticket.done:
            return
        self._count(ticket, -1)
        self._meter.ended[state] += 1
        if state == "result":
            self._meter.request.add(monotonic() - ticket._came)
        self._stale = True
        if ticket._place is not None:
            self._gone.append(ticket)
        elif ticket in self._queue.waiting:
            self._queue.waiting.remove(ticket)
        ticket._ended(state, reason)
        if not self._turn.held:
            self._sweep()

    def _sweep(self) -> None:
        """Those in flight are those that have not ended; the others' places are free."""
        self.running = tuple(ticket for ticket in self.running if not ticket.done)
        for ticket in self._gone:
            ticket._vacate()
        self._stale, self._gone = False, []
        self._tick.forget()
        if not self.running and not self._queue.waiting:
            self._like = None

    def _sweep_up(self) -> None:
        """After a turn, unless somebody else has it and will: who ends while it is held does not
        sweep, and whoever ends after it does.
        """
        if self._stale:
            with self._lock:
                if self._stale and not self._turn.held:
                    self._sweep()

    def _count(self, ticket: Ticket, one: int) -> None:
        self._meter.requests += one > 0
        self._timed += one * (ticket.deadline is not None)
        self._watched += one * (ticket._callback is not None)

    def _alone(self, where: str) -> Turn:
        """One thread at a time, and never what is called by a tick."""
        if self._turn.mine:
            raise RuntimeError(
                f"{where}: called by the model, or by a callback; between ticks is accepted"
            )
        return self._turn


def ordinary(error: BaseException) -> Exception:
    """What a client is told of it: SystemExit, or the cancelling of a task that the model awaited,
    is not the client's own.
    """
    if isinstance(error, Exception):
        return error
    made = RuntimeError(f"Engine: a model or a callback raised {type(error).__name__}: {error}")
    made.__cause__ = error
    return made


def told_how(came: float, deadline: object, callback: object, every: object) -> tuple:
    """(when a request ends that came at `came`, its callback, every how many rows); refuses a
    deadline and a callback that cannot be.
    """
    after = seconds("Engine.submit", "deadline", deadline)
    if callback is not None and not callable(callback):
        raise TypeError(
            f"Engine.submit: callback is a {type(callback).__name__}; a callable(ticket) is "
            "accepted"
        )
    rows = arguments.integer(every)
    if (rows or 0) < 1:
        raise ValueError(
            f"Engine.submit: every={every!r:.60}; a whole number of rows, 1 or more, is accepted"
        )
    return None if after is None else came + after, callback, rows
