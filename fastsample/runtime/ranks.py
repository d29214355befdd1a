"""Model calls dealt to the processes of a torch.distributed group, each of which runs the same
program and holds all that comes of it.

Call k is made by rank k mod size, whatever the size, and its answer sent to the others: what is
asked together never depends on how many they are, so neither does a bit of what is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

Part = TypeVar("Part")


@dataclass(frozen=True)
class Ranks:
    """A group of `size` processes, of which this is number `rank`; None where it is alone."""

    group: Any = None
    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls, group: Any = None) -> Ranks:
        """Those of a process group; None: of the default one, where there is one, else it alone."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        group = distributed.group.WORLD if group is None else group
        return cls(group, distributed.get_rank(group), distributed.get_world_size(group))

    @property
    def first(self) -> bool:
        """Is it the one that writes and shows?"""
        return self.rank == 0

    def deal(
        self, parts: Sequence[Part], work: Callable[[Part], Any], out: Callable[[Part], Tensor]
    ) -> None:
        """work(part) for every part, which fills the tensor out(part); each is done by
        one process and sent to the others. What `work` raises anywhere is raised everywhere.
        """
        error = None
        for part in parts[self.rank :: self.size]:
            try:
                work(part)
            except Exception as raised:  # whatever a model may raise: the others wait
                if self.size == 1:
                    raise
                error = raised
                break
        if self.size == 1:
            return
        self._agree(error)
        for k, part in enumerate(parts):
            whole = out(part)
            sent = whole.contiguous()
            # Bytes, which every backend sends.
            flat = sent.view(-1).view(torch.uint8)
            distributed.broadcast(flat, self._source(k % self.size), self.group)
            if sent is not whole:
                whole.copy_(sent)

    def _agree(self, error: Exception | None) -> None:
        failed = [None] * self.size
        distributed.all_gather_object(failed, None if error is None else str(error), self.group)
        if error is not None:
            raise error
        for rank, why in enumerate(failed):
            if why is not None:
                raise RuntimeError(f"process {rank} failed: {why}")

    def told(self, make: Callable[[], Any]) -> Any:
        """What `make` gives on the first process, on all of them; pickled, so of our own making.
        What it raises there is raised everywhere.
        """
        if self.size == 1:
            return make()
        said, error = [None], None
        if self.first:
            try:
                said = [make()]
            except Exception as raised:
                error = raised
        self._agree(error)
        distributed.broadcast_object_list(said, self._source(0), self.group)
        return said[0]

    def _source(self, rank: int) -> int:
        """The number of a process of the group among all."""
        return distributed.get_global_rank(self.group, rank)


ALONE = Ranks()
