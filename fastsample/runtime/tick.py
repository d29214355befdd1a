"""Tick: one row of every request of an Engine: what the device is told, what the model is asked,
and the launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import arguments, ladder, outputs
from .conditions import collated, together
from .drawn import Drawing
from .places import REST, Places
from .stack import Stack
from .ticket import Ticket


class Part(NamedTuple):
    """The rows of the model's batch that one model is asked for: its number, where they stand, and
    of each its request and the branch that it is.
    """

    model: int
    rows: slice
    asked: list[tuple[Ticket, int]]


class Company:
    """The requests of a tick, and what of it stays for `left` ticks: as long as none joins or ends,
    none begins to run or to rest, and each asks the same model for the same branches.

    going: those whose turn it is (`ladder`); in their order in the model's batch, by place but for
    ladders, rows [n]: the table's row that each runs next, and places [n]. parts: by model; in each
    its requests by branch, the last one again up to pad_to. size: rows of all parts, index [size]:
    their places, and slice, too, where they follow one another. told: what each part's model is
    told. windows: some request is one.
    """

    def __init__(self, tickets: tuple[Ticket, ...], pad_to: int | None) -> None:
        inside = {*tickets}
        rest = {ticket: n for ticket in tickets if (n := ladder.rests(ticket, inside))}
        self.tickets, self.going = tickets, tuple(t for t in tickets if t not in rest)
        ordered = sorted(self.going, key=ladder.order)
        self.left = min([*rest.values(), *(t._rows.alike[t.row] for t in ordered)])
        self.rows = np.array([ticket._rows.first + ticket.row for ticket in ordered])
        self.places = np.array([ticket._place for ticket in ordered])
        asks: dict[int, list] = {}
        for k, ticket in enumerate(ordered):
            for g in ticket._rows.asks[ticket.row]:
                asks.setdefault(ticket._rows.calls[ticket.row], []).append((k, g))
        self.parts, who, self._reads = [], [], []
        for model, rows in sorted(asks.items()):
            first = len(who)
            self._reads += [(g, ordered[k]._place, first + i) for i, (k, g) in enumerate(rows)]
            rows += rows[-1:] * ((pad_to or 0) - len(rows))
            who += [k for k, _ in rows]
            asked = [(ordered[k], g) for k, g in rows]
            self.parts.append(Part(model, slice(first, len(who)), asked))
        self._who, self.size = np.array(who, int), len(who)
        self.index = self.places[self._who]
        follow = who and (np.diff(self.index) == 1).all()
        self.slice = slice(int(self.index[0]), int(self.index[-1]) + 1) if follow else None
        self.windows = any(ticket._window is not None for ticket in self.going)
        self.told: list[dict] = []

    def begin(self, host: dict[str, np.ndarray]) -> None:
        """Write down what stays."""
        self._host = host
        host["row"].fill(REST)
        host["f_index"].fill(-1)
        if self._reads:
            branch, place, row = np.transpose(self._reads)
            host["f_index"][branch, place] = row
        host["index"][: self.size] = self.index

    def lasts(self, tickets: tuple[Ticket, ...], host: dict[str, np.ndarray]) -> bool:
        """Is it still that of these requests, and written down here?"""
        same = self.tickets is tickets or self.tickets == tickets
        return same and self.left > 0 and self._host is host

    def before(self) -> np.ndarray:
        """For each row of the model's batch the table's row before its request's."""
        return self.rows[self._who] - 1


class Tick:
    """What asks the models for the requests in `places`, whose rows stand in `stack`, and launches
    their rows. lock: held by who calls, and free while a model, or collate, is asked. blamed: the
    rows that it was asked for, also after it has raised or answered what does not fit; none where
    that was not it. launches, and rows that models were asked for: so far. Arguments as the Engine
    has them.
    """

    def __init__(
        self,
        models: Sequence[Callable],
        places: Places,
        stack: Stack,
        pad_to: int | None,
        model_dtype: torch.dtype,
        collate: Callable | None,
        lock: RLock,
        density: bool,
    ) -> None:
        self._models, self._places, self._stack = models, places, stack
        self._pad_to, self._model_dtype, self._collate = pad_to, model_dtype, collate
        self._lock, self._density, self.launches, self.rows = lock, density, 0, 0
        self.forget()

    def launch(self, tickets: tuple[Ticket, ...], like: dict) -> None:
        """The next row of these requests, whose conditions are like this one, as far as it is their
        turn; others in flight stand still. Where a model or collate raises, or what it returns
        does not fit, nothing is launched.
        """
        self.blamed = []
        company, host = self._company, self._places.host
        if company is None or not company.lasts(tickets, host):
            company = Company(tickets, self._pad_to)
            company.told = [self._tell(part, like) for part in company.parts]
            company.begin(host)
            self._company = company
        host["row"][company.places] = company.rows
        if company.size:
            host["t"][: company.size] = self._stack.times(company.before())
        self._places.upload()
        f = [self._answers(company)] * self._places.pool.table.layout.G if company.size else ()
        self.blamed = []
        noise = self._noise(company)
        drawing = Drawing(self._places, company.going, f, noise) if self._density else None
        self._places.launch(None, f, noise)
        if drawing is not None:
            drawing.note()
        self.launches, self.rows = self.launches + 1, self.rows + company.size

    def advance(self, judged: bool) -> list[Ticket]:
        """The requests of the last launch one row on; those of which it was the last, and where
        judged those whose state became non-finite.
        """
        company, faults = self._company, self._places.faults()
        faulty = judged and faults[company.places].any()
        company.rows += 1
        company.left -= 1
        for ticket in company.going:
            ticket.row += 1
        if company.left > 0 and not faulty:
            return []
        over = lambda ticket: ticket.left == 0 or (judged and faults[ticket._place])
        return [ticket for ticket in company.going if over(ticket)]

    def forget(self) -> None:
        """Keep nothing of the requests before."""
        self._company: Company | None = None
        self._told: dict[int, tuple[list, dict]] = {}
        self.blamed: list[tuple[Ticket, int]] = []

    def _tell(self, part: Part, like: dict) -> dict:
        """What the model is told of all rows of a part: as before, if they are the same."""
        asked, told = self._told.get(part.model, (None, None))
        if asked != part.asked:
            trees = [ticket._told[g] for ticket, g in part.asked]
            if self._collate is None:
                told = together(trees, like)
            else:
                with self._outside(part):
                    told = self._collate(trees)
                device = self._places.pool.x.device
                told = collated("Engine.tick", told, len(trees), device)
            self._told[part.model] = part.asked, told
        return told

    @contextmanager
    def _outside(self, part: Part) -> Iterator[None]:
        """While what the caller gave is asked for this part: others may take the lock."""
        self.blamed = part.asked
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()

    def _answers(self, company: Company) -> Tensor:
        """The models' outputs [N,*] for the rows of the batch."""
        x, t = self._places.shown(company.size, company.slice)
        f = []
        for part, told in zip(company.parts, company.told, strict=True):
            one = len(company.parts) == 1
            f.append(self._ask(part, told, *((x, t) if one else (x[part.rows], t[part.rows]))))
        return f[0] if len(f) == 1 else torch.cat(f)

    def _ask(self, part: Part, told: dict, x: Tensor, t: Tensor) -> Tensor:
        """The model's output [n,*] for a part, checked."""
        version = x._version + t._version
        with self._outside(part):
            f = self._models[part.model](x, t, **told)
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
        return self._places.noise([(t._place, drawn(t), t._window) for t in company.going])
