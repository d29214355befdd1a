"""Tick: one row of every request of an Engine: what the device is told, what the model is asked,
and the launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from . import arguments, outputs
from .conditions import collated, together
from .places import REST, Places
from .stack import Stack
from .ticket import Ticket


class Company:
    """The requests of a tick, in the order of their places, and what of it stays for `left` ticks:
    as long as none joins or ends, and each asks the model for the same branches.

    rows [n]: the table's row that each runs next. places [n]. asked [N]: for each row of the
    model's batch, its request and the branch that it is; the last one again up to pad_to. index
    [N]: their places, and slice, too, where they follow one another. told: what the model is told.
    windows: some request is one.
    """

    def __init__(self, tickets: tuple[Ticket, ...], pad_to: int | None) -> None:
        self.tickets = tickets
        ordered = sorted(tickets, key=lambda ticket: ticket._place)
        self.left = min(ticket._rows.alike[ticket.row] for ticket in ordered)
        self.rows = np.array([ticket._rows.first + ticket.row for ticket in ordered])
        self.places = np.array([ticket._place for ticket in ordered])
        asks = [(k, g) for k, t in enumerate(ordered) for g in t._rows.asks[t.row]]
        self._branches = [(g, ordered[k]._place) for k, g in asks]
        asks += asks[-1:] * ((pad_to or 0) - len(asks))
        self.asked = [(ordered[k], g) for k, g in asks]
        self._who = np.array([k for k, _ in asks], int)
        shown = self.places[self._who]
        self.index, self.size = shown, len(shown)
        follow = self.size > 0 and (np.diff(shown) == 1).all()
        self.slice = slice(int(shown[0]), int(shown[-1]) + 1) if follow else None
        self.windows = any(ticket._window is not None for ticket in tickets)
        self.told: dict = {}

    def begin(self, host: dict[str, np.ndarray]) -> None:
        """Write down what stays."""
        self._host = host
        host["row"].fill(REST)
        host["f_index"].fill(-1)
        if self._branches:
            host["f_index"][tuple(zip(*self._branches, strict=True))] = range(len(self._branches))
        host["index"][: self.size] = self.index

    def lasts(self, tickets: tuple[Ticket, ...], host: dict[str, np.ndarray]) -> bool:
        """Is it still that of these requests, and written down here?"""
        same = self.tickets is tickets or self.tickets == tickets
        return same and self.left > 0 and self._host is host

    def before(self) -> np.ndarray:
        """For each row of the model's batch the table's row before its request's."""
        return self.rows[self._who] - 1


class Tick:
    """What asks the model for the requests in `places`, whose rows stand in `stack`, and launches
    their rows. asking: the model, or collate, is being asked. Arguments as the Engine has them.
    """

    def __init__(
        self,
        model: Callable,
        places: Places,
        stack: Stack,
        pad_to: int | None,
        model_dtype: torch.dtype,
        collate: Callable | None,
    ) -> None:
        self._model, self._places, self._stack = model, places, stack
        self._pad_to, self._model_dtype, self._collate = pad_to, model_dtype, collate
        self.asking, self._company, self._told = False, None, ([], {})

    def launch(self, tickets: tuple[Ticket, ...], like: dict) -> None:
        """The next row of these requests, whose conditions are like this one; others in flight
        stand still. Where the model or collate raises, or what it returns does not fit, nothing is
        launched.
        """
        company, host = self._company, self._places.host
        if company is None or not company.lasts(tickets, host):
            company = self._gathered(tickets, like)
            company.begin(host)
            self._company = company
        host["row"][company.places] = company.rows
        if company.size:
            host["t"][: company.size] = self._stack.times(company.before())
        self._places.upload()
        f = [self._ask(company)] * self._places.pool.table.layout.G if company.size else ()
        self._places.launch(None, f, self._noise(company))

    def advance(self, judged: bool) -> list[Ticket]:
        """The requests of the last launch one row on; those that ended, by a fault only where
        judged.
        """
        company, faults = self._company, self._places.faults()
        faulty = judged and faults.any()
        company.rows += 1
        company.left -= 1
        for ticket in company.tickets:
            ticket.row += 1
        if company.left > 0 and not faulty:
            return []
        for ticket in company.tickets:
            over = ticket.row >= ticket._rows.end
            ticket.done = bool(over or (judged and faults[ticket._place]))
        return [ticket for ticket in company.tickets if ticket.done]

    def forget(self) -> None:
        """Keep nothing of the requests before."""
        self._company, self._told = None, ([], {})

    def _gathered(self, tickets: tuple[Ticket, ...], like: dict) -> Company:
        """These requests, and what the model is told of them."""
        company = Company(tickets, self._pad_to)
        asked, told = self._told
        if company.asked and company.asked != asked:
            told = self._join([ticket._told[g] for ticket, g in company.asked], like)
            self._told = company.asked, told
        company.told = told
        return company

    def _join(self, told: list, like: dict) -> dict:
        """What the model is told of all rows of its batch."""
        if self._collate is None:
            return together(told, like)
        with self._outside():
            tree = self._collate(told)
        return collated("Engine.tick", tree, len(told), self._places.pool.x.device)

    @contextmanager
    def _outside(self) -> Iterator[None]:
        """While what the caller gave is asked."""
        self.asking = True
        try:
            yield
        finally:
            self.asking = False

    def _ask(self, company: Company) -> Tensor:
        """The model's output [N,*] for the rows of its batch, checked."""
        x, t = self._places.shown(company.size, company.slice)
        version = x._version + t._version
        with self._outside():
            f = self._model(x, t, **company.told)
        (f,) = outputs.branches("Engine.tick", f, x, self._model_dtype, (True,), 0)
        if f.requires_grad:
            raise RuntimeError("Engine.tick: the model's output requires grad; detach it")
        if x._version + t._version != version:
            raise ValueError("Engine.tick: the model changed its input in place; let it copy first")
        return f.contiguous()

    def _noise(self, company: Company) -> Sequence[Tensor | None]:
        """What the launch is handed of noise: all of an operand where a request is a window."""
        if not company.windows:
            return ()
        drawn = lambda ticket: arguments.drawn(ticket.plan, ticket.row, ticket._rows.masked)
        return self._places.noise([(t._place, drawn(t), t._window) for t in company.tickets])
