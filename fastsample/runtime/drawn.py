"""Drawn: how the state was distributed that a row of an Engine's request led to, as `Run.mean`,
`Run.std` and `Run.log_prob` say it of a run alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from . import arguments, density

if TYPE_CHECKING:
    from .places import Places
    from .ticket import Ticket


class Drawn(NamedTuple):
    """Of a row of the plan that drew noise, the state x [1,*] that it led to, x = mean + std n with
    n unit normal: mean [1,*], std [1], and log_prob [1] float64, the log-density of x, summed over
    the sample. In memory of their own.
    """

    row: int
    x: Tensor
    mean: Tensor
    std: Tensor
    log_prob: Tensor


class Drawing:
    """The requests of a launch whose row draws noise anew, and the means of what it leads to. Made
    before the launch, of its outputs and its noise; `note` after it.
    """

    def __init__(
        self, places: Places, tickets: Sequence[Ticket], f: Sequence, noise: Sequence
    ) -> None:
        stds = [(ticket, _std(ticket)) for ticket in tickets]
        self._places, self._drawn = places, [(ticket, std) for ticket, std in stds if std]
        if self._drawn:
            index = torch.tensor([ticket._place for ticket, _ in self._drawn])
            self._index = arguments.uploaded(index, places.pool.x.device)
            self._means = places.means(self._index, f, noise)

    def note(self) -> None:
        """Each of them knows what it drew."""
        if not self._drawn:
            return
        x = self._places.pool.x.index_select(0, self._index)
        std = arguments.uploaded(
            torch.tensor([std for _, std in self._drawn], dtype=x.dtype), x.device
        )
        values = x, self._means, std, density.log_prob(x, self._means, std)
        for k, (ticket, _) in enumerate(self._drawn):
            ticket._drawn = Drawn(ticket.row, *(v[k : k + 1].clone() for v in values))


def _std(ticket: Ticket) -> float:
    """Of the noise that its row draws, 0 where that has no density: it asks nobody, draws nothing,
    or re-uses an earlier draw.
    """
    row, rows = ticket.row, ticket._rows
    if row not in rows.stds:
        of = rows.plan, row, rows.masked
        none = not rows.asks[row] or density.again(*of)
        rows.stds[row] = 0.0 if none else density.spread(*of)
    return rows.stds[row]
