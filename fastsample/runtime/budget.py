"""Budget: the memory that an Engine may take, counted before any of it is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.utils import _pytree as pytree

from ..plan.given import integer
from ..plan.row import Layout
from .places import Places
from .queue import EngineFull
from .request import Request
from .stack import Stack
from .ticket import Ticket


class Budget:
    """most: bytes of the state, slots, model input, preview, masks, the model's batch, the rows of
    plans, and of the conditions of the requests that are in, twice: as they came, and joined for
    the model (what `collate` pads beyond is its own); of those that wait their noise, mask and
    known image, too; and while plans of another layout move in, of the places before. A result is
    no longer the Engine's: it has memory of its own, as long as its ticket. None: no end.
    memory: of every track its places and its table. batch: rows of the models' batch for so many
    branches.
    """

    def __init__(
        self,
        most: int | None,
        memory: Sequence[tuple[Places, Stack]],
        batch: Callable[[int], int],
    ) -> None:
        self._most, self._memory, self._batch = most, memory, batch

    def refuse(
        self,
        ticket: Ticket,
        running: Sequence[Ticket],
        waiting: Sequence[Ticket],
        seconds: Callable[[int], float],
    ) -> None:
        """Refuse a request for which there is too little beside these: EngineFull where some of it
        comes back when they end (seconds: how long so many rows take), else ValueError.
        """
        if self._most is None:
            return
        fixed = self.fixed([*waiting, ticket]) + _bytes(ticket)
        held = sorted((other.left, _bytes(other)) for other in (*running, *waiting))
        if fixed > self._most:
            raise ValueError(
                f"Engine.submit: the request needs {fixed:,} bytes by itself; max_bytes="
                f"{self._most:,} are accepted"
            )
        needed = fixed + sum(size for _, size in held)
        if needed <= self._most:
            return
        rows = 0
        for left, size in held:
            if needed <= self._most:
                break
            rows, needed = left, needed - size
        after = seconds(rows)
        raise EngineFull(
            f"Engine.submit: with this request {fixed + sum(size for _, size in held):,} bytes are "
            f"needed; max_bytes={self._most:,} are accepted, a further one in about {after:.2g} s",
            after,
        )

    def refuse_copies(self, going: Sequence[Ticket], waiting: Sequence[Ticket]) -> None:
        """RuntimeError where those in flight, some of them more than once, and those that wait need
        more.
        """
        if self._most is None or len({*going}) == len(going):
            return
        needed = self.fixed(waiting) + sum(map(_bytes, (*going, *waiting)))
        if needed > self._most:
            raise RuntimeError(
                f"Engine.select: with {len(going) - len({*going})} copies {needed:,} bytes are "
                f"needed; max_bytes={self._most:,} are accepted"
            )

    def fixed(self, coming: Sequence[Ticket]) -> int:
        """What the places and the table of every track take once these have entered, beside all
        before them.
        """
        each = [ticket._request.tracks for ticket in coming]
        return sum(
            self._of_track(*memory, [tracks[k] for tracks in each])
            for k, memory in enumerate(self._memory)
        )

    def _of_track(self, places: Places, stack: Stack, coming: Sequence[Request]) -> int:
        layouts = [each.plan.layout for each in coming]
        layouts += [] if stack.table is None else [stack.table.layout]
        layout = Layout(*map(max, zip(*layouts, strict=True)))
        masked = any(each.masked for each in coming)
        size = stack.bytes([(each.plan, each.masked) for each in coming], layout)
        return size + places.bytes(layout, self._batch(layout.G), masked, len(coming))


def most_bytes(given: object) -> int | None:
    """As an Engine is given them."""
    number = None if given is None else integer(given)
    if given is not None and (number or 0) < 1:
        raise ValueError(
            f"Engine: max_bytes={given!r:.60}; a whole number of 1 or more, or None, is accepted"
        )
    return number


def _bytes(ticket: Ticket) -> int:
    """What a request holds beside its place."""
    tensors = [v for v in pytree.tree_leaves(ticket._told) if isinstance(v, Tensor)]
    size, request = 2 * sum(v.nbytes for v in tensors), ticket._request
    for each in () if request is None else request.tracks:
        size += sum(v.nbytes for v in (each.given, *each.blend) if v is not None)
    return size
