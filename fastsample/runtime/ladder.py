"""Ladder: requests of an Engine that begin one after the other and stand side by side in the
model's batch, the slots of a sequence, each at a noise level of its own: a rolling window (Ruhe et
al. 2024, arXiv:2402.09470), a buffer of actions (Høeg et al. 2024, arXiv:2406.04806), a stream of
frames (Kodaira et al. 2023, arXiv:2312.12491).

    slots = []
    for k in range(n):
        slots.append(engine.submit(plan, seed=k, after=slots[-1] if slots else None))

Slot k runs its first row in the tick in which slot k - 1 runs its second, so that a tick asks the
model for all n at once, each a row behind the one before it. after=(ticket, rows): so many rows
behind; 0: together with it, for slots that enter at rows of their own (latent=, start=). A stream
goes on: as one slot ends, another is submitted after the last.

In the model's batch the rows of a ladder follow one another in this order, behind those of requests
that are in none. A slot is a request like any other, and has the bits of its run alone as far as
the model's rows do. One whose turn has not come holds its place and stands still; once the request
before it has ended, in whatever way, or is still waiting for a place, nothing holds it back.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import count
from typing import TYPE_CHECKING

from . import arguments

if TYPE_CHECKING:
    from .engine import Engine
    from .ticket import Ticket

_numbers = count()  # of ladders


def behind(engine: Engine, after: object) -> tuple[Ticket, int] | None:
    """The ticket that a request comes after, and by how many rows; TypeError or ValueError, one
    sentence, for what is none of this Engine.
    """
    if after is None:
        return None
    ticket, rows = after if isinstance(after, tuple) and len(after) == 2 else (after, 1)
    number = arguments.integer(rows)
    if getattr(ticket, "_engine", None) is not engine:
        raise TypeError(
            f"Engine.submit: after is {after!r:.80}; a ticket of this Engine, or (ticket, rows), "
            "is accepted"
        )
    if number is None or number < 0:
        raise ValueError(
            f"Engine.submit: after is {rows!r:.40} rows behind a request; a whole number, 0 or "
            "more, is accepted"
        )
    return ticket, number


def join(ticket: Ticket, after: tuple[Ticket, int] | None) -> None:
    """Put it behind the one that it comes after, if any."""
    if after is None:
        return
    other = after[0]
    if other._ladder is None:
        other._ladder = next(_numbers), 0
    number, slot = other._ladder
    ticket._after, ticket._ladder = after, (number, slot + 1)
    for each in (other, ticket):
        each._order = order(each, each._place)


def rests(ticket: Ticket, running: Collection[Ticket]) -> int:
    """How many rows of the request before it must run before its own next one; 0: it may run."""
    if ticket._after is None:
        return 0
    other, rows = ticket._after
    if other not in running or (left := rows - (other.row - other._entry)) <= 0:
        ticket._after = None  # from now on nothing holds it back
        return 0
    return left


def order(ticket: Ticket, place: int | None) -> tuple:
    """Where it stands in the model's batch: by place, and the slots of a ladder behind those."""
    return (0, place, 0) if ticket._ladder is None else (1, *ticket._ladder)
