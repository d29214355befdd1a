"""Queue: which requests wait for a place of an Engine, and in what order they enter.

States. A ticket is "waiting" from `submit` on, "running" once it has a place, and ends in one of
    "result"     its last row has run;
    "cancelled"  by `cancel`, by a coroutine that awaited it and was cancelled, by `close(drain=
                 False)`, by the end of the process;
    "refused"    it never ran: what it needs could not be had when its turn came;
    "failed"     by the error that is its `reason`: the model's own, FloatingPointError where it
                 became non-finite, what its callback raised, DeadlineExceeded.
The first of these that happens is final. A submit that is refused has no ticket: it raises.

Who is refused. ValueError or TypeError for a request that no Engine like this could run: bad
arguments, conditions unlike those of the requests that are in (running or waiting), more branches
than pad_to, more bytes than max_bytes by itself. EngineFull for one that may come again: more than
`waiting` requests would wait beyond those that have room, or max_bytes would be passed. Beyond are,
in order of arrival, the first that finds no room (a place of `capacity`, and under pad_to its
branches) beside the running and those before it, and all after it; so with waiting=0 a request is
taken in if it has room now. RuntimeError after `close`, and when the serving thread is dead.

Order. Requests enter between two ticks, where a place is free. The policy then gives the waiting in
the order in which they are to enter, once; those that it leaves out wait. They enter from its head
as long as the head has room: nothing passes a head that has none. A request that came later and
enters earlier overtakes; one that has been overtaken `overtakes` times is due, and those due go
before all others, first come first. So nobody is overtaken more often. Where nobody runs and the
policy names nobody, the one that came first enters.
    "first"     in order of arrival
    "shortest"  fewest rows left first, of those alike the one that came first
    "grouped"   those alone whose next row that asks a model asks the one that most of the running
                ask next (of two alike the lower number; nobody running: the one that the first to
                come asks), in order of arrival: for plans that swap models
    a callable  (waiting, running) -> tickets of the waiting, both in order of arrival; it may read
                `plan`, `row`, `left`, `model`, `branches`, `deadline` and `overtaken`

Deadlines, in seconds from submit, are looked at between two ticks, before anybody enters. A
request, waiting or running, ends with DeadlineExceeded if its deadline has passed, or cannot be
met: now + n·t > deadline, for its n rows left that ask the model, and t the least time of the last
64 ticks that asked it (0 before the first). Where that ends all who run, these times are forgotten:
no tick would outdate a slow spell. A request whose last row has run has a result, however late.

When to come again. `EngineFull.retry_after` is n·t, for n the rows that those with room have left
until so many of them have ended, those with fewest left first, that the first beyond has room (or
that the bytes are free), and t the mean time of the same 64 ticks; 1 s before the first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ticket import Ticket


class EngineFull(RuntimeError):
    """An Engine has no room for a request now. retry_after: seconds until it may have."""

    def __init__(self, said: str, retry_after: float) -> None:
        super().__init__(said)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple:
        return EngineFull, (str(self), self.retry_after)


class DeadlineExceeded(TimeoutError):
    """A request's deadline has passed, or cannot be met."""


def first(waiting: Sequence[Ticket], running: Sequence[Ticket]) -> Sequence[Ticket]:
    """First come, first in."""
    return waiting


def shortest(waiting: Sequence[Ticket], running: Sequence[Ticket]) -> Sequence[Ticket]:
    """Fewest rows left first."""
    return sorted(waiting, key=lambda ticket: ticket.left)


def grouped(waiting: Sequence[Ticket], running: Sequence[Ticket]) -> Sequence[Ticket]:
    """Those whose next model is the one that most of the running ask next."""
    asked = Counter(ticket.model for ticket in running or waiting[:1])
    model = min(asked, key=lambda number: (-asked[number], number))
    return [ticket for ticket in waiting if ticket.model == model]


POLICIES = {policy.__name__: policy for policy in (first, shortest, grouped)}


class Queue:
    """The waiting, in order of arrival. overtakes: how often one of them is overtaken at most."""

    def __init__(self, policy: str | Callable, overtakes: int) -> None:
        self._policy, self._overtakes = POLICIES.get(policy, policy), overtakes
        self.waiting: list[Ticket] = []

    def entering(
        self, running: Sequence[Ticket], has: Callable[[Ticket], bool]
    ) -> Iterator[Ticket]:
        """Those that enter now, one after the other, each out of the queue; has: is there room for
        this one beside those before it? ValueError or TypeError where the policy names others than
        the waiting, each once.
        """
        if not self.waiting:
            return
        named = iter(self._named(tuple(self.waiting), tuple(running)))
        head = self._next(named)
        if head is None and not running:
            head = next(iter(self.waiting), None)
        while ticket := self._due() or head:
            if not has(ticket):
                return
            at = self.waiting.index(ticket)
            for other in self.waiting[:at]:
                other.overtaken += 1
            del self.waiting[at]
            yield ticket
            if head not in self.waiting:
                head = self._next(named)

    def _next(self, named: Iterator[Ticket]) -> Ticket | None:
        """The next that still waits: a policy, too, may cancel."""
        return next((ticket for ticket in named if ticket in self.waiting), None)

    def _due(self) -> Ticket | None:
        due = (ticket for ticket in self.waiting if ticket.overtaken >= self._overtakes)
        return next(due, None)

    def _named(self, waiting: Sequence[Ticket], running: Sequence[Ticket]) -> Iterable[Ticket]:
        named = self._policy(waiting, running)
        if named is waiting or self._policy in POLICIES.values():
            return named
        if not isinstance(named, Iterable):
            raise TypeError(
                f"Engine: the policy returned a {type(named).__name__}; tickets of the waiting, "
                "in the order in which they are to enter, are accepted"
            )
        named = list(named)
        numbers = [*map(id, named)]  # of what may have no hash
        if len({*numbers}) < len(numbers) or not {*numbers} <= {*map(id, waiting)}:
            raise ValueError(
                f"Engine: the policy named {len(named)} requests, one of them not waiting, or "
                "twice; tickets of the waiting, each once, are accepted"
            )
        return named


class Room:
    """How many requests have room at once. capacity: requests; branches: those that a tick can ask
    for (pad_to; None: any number).
    """

    def __init__(self, capacity: int, branches: int | None) -> None:
        self.capacity, self.branches = capacity, math.inf if branches is None else branches

    def beside(self, inside: Sequence[Ticket]) -> Callable[[Ticket], bool]:
        """has(ticket): is there room for it beside these, and those that had room before it?"""
        requests, taken = len(inside), sum(ticket.branches for ticket in inside)

        def has(ticket: Ticket) -> bool:
            nonlocal requests, taken
            more = taken + ticket.branches
            if requests >= self.capacity or more > self.branches:
                return False
            requests, taken = requests + 1, more
            return True

        return has

    def beyond(self, running: Sequence[Ticket], waiting: Sequence[Ticket]) -> Sequence[Ticket]:
        """Those of the waiting, in order of arrival, that find no room: from the first on."""
        has = self.beside(running)
        at = next((k for k, ticket in enumerate(waiting) if not has(ticket)), len(waiting))
        return waiting[at:]

    def rows_until(self, running: Sequence[Ticket], more: Ticket) -> int:
        """Rows until so many of the running have ended that this one has room."""
        going = sorted(running, key=lambda ticket: ticket.left)
        rows = 0
        while not self.beside(going)(more) and going:
            rows = going.pop(0).left
        return rows
