"""Tick: one row of every request of an Engine: what the device is told, what the model is asked,
and the launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import arguments, outputs
from .conditions import together
from .places import REST, Places
from .stack import Stack
from .ticket import Ticket


class Tick:
    """What asks the model for the requests in `places`, whose rows stand in `stack`, and launches
    their rows. asking: the model is being asked. Arguments as the Engine has them.
    """

    def __init__(
        self,
        model: Callable,
        places: Places,
        stack: Stack,
        pad_to: int | None,
        model_dtype: torch.dtype,
    ) -> None:
        self._model, self._places, self._stack = model, places, stack
        self._pad_to, self._model_dtype = pad_to, model_dtype
        self.asking, self._company, self._told = False, [], {}

    def launch(self, running: Sequence[Ticket], like: dict) -> None:
        """The next row of these requests, whose conditions are like this one. Where the model
        raises, or what it returns does not fit, nothing is launched.
        """
        places = self._upload(running, like)
        f = [self._ask(places)] * self._places.pool.table.layout.G if places else ()
        self._places.launch(None, f, self._noise(running))

    def advance(self, running: Sequence[Ticket], judged: bool) -> list[Ticket]:
        """Each of these requests one row on; those that ended, by a fault only where judged."""
        faults = self._places.faults()
        for ticket in running:
            ticket.row += 1
            ticket.done = ticket.row >= ticket._rows.end or (judged and faults[ticket._place])
        return [ticket for ticket in running if ticket.done]

    def forget(self) -> None:
        """Keep nothing of the requests before."""
        self._company, self._told = [], {}

    def _upload(self, running: Sequence[Ticket], like: dict) -> list[int]:
        """Tell the device every place's row; the place of each row of the model's batch."""
        host, asked, before = self._places.host, [], []
        host["row"].fill(REST)
        host["f_index"].fill(-1)
        for ticket in sorted(running, key=lambda ticket: ticket._place):
            row = ticket._rows.first + ticket.row
            host["row"][ticket._place] = row
            for g in ticket._rows.asks[ticket.row]:
                host["f_index"][g, ticket._place] = len(asked)
                asked.append((ticket, g))
                before.append(row - 1)
        spare = (self._pad_to or 0) - len(asked)
        asked, before = asked + asked[-1:] * spare, before + before[-1:] * spare
        places = [ticket._place for ticket, _ in asked]
        host["index"][: len(places)] = places
        host["t"][: len(places)] = self._stack.times(before)
        self._places.upload()
        if asked and asked != self._company:
            self._told = together([ticket._told[g] for ticket, g in asked], like)
            self._company = asked
        return places

    def _ask(self, places: list[int]) -> Tensor:
        """The model's output [N,*] for these places, checked."""
        x, t = self._places.shown(places)
        self.asking, version = True, x._version + t._version
        try:
            f = self._model(x, t, **self._told)
        finally:
            self.asking = False
        (f,) = outputs.branches("Engine.tick", f, x, self._model_dtype, (True,), 0)
        if f.requires_grad:
            raise RuntimeError("Engine.tick: the model's output requires grad; detach it")
        if x._version + t._version != version:
            raise ValueError("Engine.tick: the model changed its input in place; let it copy first")
        return f.contiguous()

    def _noise(self, running: Sequence[Ticket]) -> Sequence[Tensor | None]:
        """What the launch is handed of noise: all of an operand where a request is a window."""
        if all(ticket._window is None for ticket in running):
            return ()
        drawn = lambda ticket: arguments.drawn(ticket.plan, ticket.row, ticket._rows.masked)
        return self._places.noise([(t._place, drawn(t), t._window) for t in running])
