"""Tick: one row of every request of an Engine: what the device is told, what the model is asked,
and the launch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from threading import RLock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import arguments, ladder, outputs
from .by_track import found, wanted
from .conditions import collated, together
from .drawn import Drawing
from .places import REST, Places
from .stack import Stack
from .ticket import Ticket

NOBODY = np.zeros(0, int)


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
    ladders, rows [tracks, n]: the row of each track's table that each runs next, and places [n].
    parts: by model; in each its requests by branch, the last one again up to pad_to. size: rows of
    all parts, index [size]: their places, and slice, too, where they follow one another. told: what
    each part's model is told. windows: some request is one.
    """

    def __init__(self, tickets: tuple[Ticket, ...], pad_to: int | None, tracks: int) -> None:
        waits = [t for t in tickets if t._after is not None]
        rest = {t: n for t in waits if (n := ladder.rests(t, tickets))}
        self.tickets = tickets
        self.going = tuple(t for t in tickets if t not in rest) if rest else tickets
        ordered = sorted(self.going, key=attrgetter("_order"))
        turns = [t._rows.turns[t.row] for t in ordered]
        self.left = min([*rest.values(), *[alike for *_, alike in turns]])
        rows = [[own._tracks[k].first + own.row for own in ordered] for k in range(tracks)]
        self.rows, self.places = np.array(rows), np.array([t._place for t in ordered])
        asks: dict[int, list] = defaultdict(list)
        for k, (model, branches, _) in enumerate(turns):
            for g in branches:
                asks[model].append((k, g))
        self.parts, self._reads, self.size, who = [], [], 0, [NOBODY]
        for model, pairs in sorted(asks.items()):
            first, n = self.size, len(pairs)
            pairs += pairs[-1:] * ((pad_to or 0) - n)
            own, branches = np.array(pairs).T
            who.append(own)
            self._reads.append((branches[:n], self.places[own[:n]], np.arange(first, first + n)))
            self.size += len(pairs)
            asked = [(ordered[k], g) for k, g in pairs]
            self.parts.append(Part(model, slice(first, self.size), asked))
        self._who = np.concatenate(who)
        self.index = self.places[self._who]
        follow = self.size > 0 and (np.diff(self.index) == 1).all()
        self.slice = slice(int(self.index[0]), int(self.index[-1]) + 1) if follow else None
        self.windows = any([t._windowed for t in self.going])
        self.told: list[dict] = []
        self._hosts: list[dict] = []

    def begin(self, host: dict[str, np.ndarray]) -> None:
        """Write down what stays, of each track."""
        self._hosts.append(host)
        host["row"].fill(REST)
        host["f_index"].fill(-1)
        for branches, places, rows in self._reads:
            host["f_index"][branches, places] = rows
        host["index"][: self.size] = self.index

    def lasts(self, tickets: tuple[Ticket, ...], host: dict[str, np.ndarray]) -> bool:
        """Is it still that of these requests, and written down here?"""
        same = self.tickets is tickets or self.tickets == tickets
        return same and self.left > 0 and self._hosts[0] is host

    def before(self, track: int) -> np.ndarray:
        """For each row of the model's batch the table's row before its request's."""
        return self.rows[track, self._who] - 1


class Tick:
    """What asks the models for the requests in the places of each track, whose rows stand in its
    stack, and launches their rows. names: of the tracks; None: requests of one tensor. lock: held
    by who calls, and free while a model, or collate, is asked. blamed: the rows that it was asked
    for, also after it has raised or answered what does not fit; none where that was not it.
    launches, and rows that models were asked for: so far. Arguments as the Engine has them.
    """

    def __init__(
        self,
        models: Sequence[Callable],
        memory: Sequence[tuple[Places, Stack]],
        names: Sequence[str] | None,
        pad_to: int | None,
        model_dtype: torch.dtype,
        collate: Callable | None,
        lock: RLock,
        density: bool,
    ) -> None:
        self._models, self._memory, self._names = models, memory, names
        self._pad_to, self._model_dtype, self._collate = pad_to, model_dtype, collate
        self._lock, self._density, self.launches, self.rows = lock, density, 0, 0
        self._company: Company | None = None
        self._told: dict[int, tuple[list, dict]] = {}  # by model
        self.blamed: list[tuple[Ticket, int]] = []

    def launch(self, tickets: tuple[Ticket, ...], like: dict) -> None:
        """The next row of these requests, whose conditions are like this one, as far as it is their
        turn; others in flight stand still. Where a model or collate raises, or what it returns
        does not fit, nothing is launched.
        """
        self.blamed = []
        company = self._company
        if company is None or not company.lasts(tickets, self._memory[0][0].host):
            company = Company(tickets, self._pad_to, len(self._memory))
            company.told = [self._tell(part, like) for part in company.parts]
            for places, _ in self._memory:
                company.begin(places.host)
            self._company = company
        for track, (places, stack) in enumerate(self._memory):
            places.host["row"][company.places] = company.rows[track]
            if company.size:
                places.host["t"][: company.size] = stack.times(company.before(track))
            places.upload()
        f = self._answers(company) if company.size else [None] * len(self._memory)
        self.blamed = []
        for track, own in enumerate(f):
            self._launch(company, track, own)
        self.launches, self.rows = self.launches + len(f), self.rows + company.size

    def advance(self, judged: bool) -> list[Ticket]:
        """The requests of the last launch one row on; those of which it was the last, and where
        judged those whose state became non-finite.
        """
        company, (faults, *others) = self._company, [p.faults() for p, _ in self._memory]
        for other in others:
            faults = faults | other
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
        """Keep nothing of requests that have ended."""
        if self._company is not None and any(t.done for t in self._company.tickets):
            self._company = None
        ended = [model for model, (asked, _) in self._told.items() if any(t.done for t, _ in asked)]
        for model in ended:
            del self._told[model]
        self.blamed = []

    def _tell(self, part: Part, like: dict) -> dict:
        """What the model is told of all rows of a part: as before, if they are the same."""
        asked, told = self._told.get(part.model, (None, None))
        if asked != part.asked:
            trees = [ticket._told[g] for ticket, g in part.asked]
            if self._collate is None:
                told = together(trees, like)
            else:
                with self._outside(part):
                    told = put_together(self._collate, trees)
                device = self._memory[0][0].pool.x.device
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

    def _answers(self, company: Company) -> list[Tensor]:
        """The models' outputs [N,*] for the rows of the batch, of each track."""
        shown = [places.shown(company.size, company.slice) for places, _ in self._memory]
        f = []
        for part, told in zip(company.parts, company.told, strict=True):
            if len(company.parts) > 1:
                f.append(self._ask(part, told, [(x[part.rows], t[part.rows]) for x, t in shown]))
            else:
                f.append(self._ask(part, told, shown))
        return f[0] if len(f) == 1 else [*map(torch.cat, zip(*f, strict=True))]

    def _ask(self, part: Part, told: dict, shown: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The model's output [n,*] for a part, of each track, checked."""
        version = sum(v._version for pair in shown for v in pair)
        if self._names is None:
            x, t = shown[0]
        else:
            x, t = (dict(zip(self._names, v, strict=True)) for v in zip(*shown, strict=True))
        with self._outside(part):
            f = self._models[part.model](x, t, **told)
        answers = [f] if self._names is None else by_name("Engine.tick", self._names, f)
        for k, (x, _) in enumerate(shown):
            (own,) = outputs.branches("Engine.tick", answers[k], x, self._model_dtype, (True,), 0)
            if own.requires_grad:
                raise RuntimeError("Engine.tick: the model's output requires grad; detach it")
            answers[k] = own.contiguous()
        if sum(v._version for pair in shown for v in pair) != version:
            raise ValueError("Engine.tick: the model changed its input in place; let it copy first")
        return answers

    def _launch(self, company: Company, track: int, f: Tensor | None) -> None:
        """One row of every request, of a track."""
        places, noise = self._memory[track][0], self._noise(company, track)
        outs = () if f is None else [f] * places.pool.table.layout.G
        drawing = Drawing(places, company.going, outs, noise) if self._density else None
        places.launch(None, outs, noise)
        if drawing is not None:
            drawing.note()

    def _noise(self, company: Company, track: int) -> Sequence[Tensor | None]:
        """What the launch is handed of noise: all of an operand where a request is a window."""
        if not company.windows:
            return ()
        draws = []
        for ticket in company.going:
            rows = ticket._tracks[track]
            names = arguments.drawn(rows.plan, ticket.row, rows.masked)
            draws.append((ticket._place, names, ticket._windows[track]))
        return self._memory[track][0].noise(draws)


def put_together(collate: Callable, trees: Sequence[dict]) -> object:
    """What it makes of the trees, whose dicts and lists are its own; ValueError where it has
    written into a tensor, which is its caller's.
    """
    tensors = [v for v in pytree.tree_leaves(trees) if isinstance(v, Tensor)]
    tensors = [v for v in tensors if not v.is_inference()]
    before = [v._version for v in tensors]
    told = collate([pytree.tree_map(lambda leaf: leaf, tree) for tree in trees])
    if [v._version for v in tensors] != before:
        raise ValueError("Engine.tick: collate changed a condition in place; let it copy first")
    return told


def by_name(where: str, names: Sequence[str], f: object) -> list:
    """The answers of a model, of each track."""
    if not isinstance(f, Mapping) or f.keys() != {*names}:
        raise TypeError(f"{where}: the model returned {found(f)}; {wanted(dict.fromkeys(names))}")
    return [f[name] for name in names]
