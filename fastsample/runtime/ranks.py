"""Model calls dealt to the processes of a torch.distributed group, each of which runs the same
program and holds all that comes of it.

Call k is made by rank k mod size, whatever the size, and its answer sent to the others: what is
asked together never depends on how many they are, so neither does a bit of what is found. Nor does
an error: of the calls that fail the first is raised, on all, as one process alone would have it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
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
        """Those of a process group; None: of the default one, where there is one, else it alone.
        ValueError for a group that this process is not in.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        group = distributed.group.WORLD if group is None else group
        rank = distributed.get_rank(group)
        if rank < 0:
            me = distributed.get_rank()
            raise ValueError(
                f"group: process {me} is not in it; a group of those that call is needed"
            )
        if "cpu:" not in distributed.get_backend_config(group):
            group = _of_gloo(group)
        return cls(group, rank, distributed.get_world_size(group))

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
        if self.size == 1:
            for part in parts:
                work(part)
            return
        failed = None
        for k in range(self.rank, len(parts), self.size):
            try:
                work(parts[k])
            except (Exception, KeyboardInterrupt) as error:  # whatever a model may raise
                failed = k, error
                break
        self._agree(failed)
        for k, part in enumerate(parts):
            whole = out(part)
            sent = whole.contiguous()
            # Bytes, which every backend sends.
            flat = sent.view(-1).view(torch.uint8)
            distributed.broadcast(flat, self._source(k % self.size), self.group)
            if sent is not whole:
                whole.copy_(sent)

    def told(self, make: Callable[[], Any]) -> Any:
        """What `make` gives on the first process, on all of them; pickled, so of our own making.
        What it raises there is raised everywhere.
        """
        if self.size == 1:
            return make()
        said, failed = [None], None
        if self.first:
            try:
                said = [make()]
            except (Exception, KeyboardInterrupt) as error:
                failed = 0, error
        self._agree(failed)
        distributed.broadcast_object_list(said, self._source(0), self.group)
        return said[0]

    def alike(self, where: str, given: Mapping[str, Any]) -> None:
        """Refuse, on all, what is not the same on all."""
        if self.size == 1:
            return
        first, *others = self._gathered(given)
        for rank, theirs in enumerate(others, 1):
            for name in given:
                if theirs[name] != first[name]:
                    raise ValueError(
                        f"{where}: {name} is {first[name]!r:.60} in process 0 of the group and "
                        f"{theirs[name]!r:.60} in process {rank}; the same in all is needed"
                    )

    def _agree(self, failed: tuple[int, BaseException] | None) -> None:
        """Raise, on all, the error of the first call that failed, if any did."""
        sent = failed and (failed[0], self._sent(failed[1]))
        errors = [one for one in self._gathered(sent) if one is not None]
        if errors:
            _, error = min(errors, key=lambda one: one[0])
            raise error from (failed and failed[1])

    def _sent(self, error: BaseException) -> BaseException:
        """The error itself, where it can be sent, else what it says."""
        try:
            pickle.loads(pickle.dumps(error))
            return error
        except Exception:  # whatever its class does
            said = f"process {self.rank} failed: {type(error).__name__}: {error}"
            return RuntimeError(said)

    def _gathered(self, own: Any) -> list[Any]:
        """What each process has, in their order."""
        found = [None] * self.size
        distributed.all_gather_object(found, own, self.group)
        return found

    def _source(self, rank: int) -> int:
        """The number of a process of the group among all."""
        return distributed.get_global_rank(self.group, rank)


@cache
def _of_gloo(group: Any) -> Any:
    """The same processes as a group that carries tensors of the host too, which NCCL's do not; made
    once, by all of them together.
    """
    numbers = distributed.get_process_group_ranks(group)
    return distributed.new_group(numbers, backend="gloo", use_local_synchronization=True)


ALONE = Ranks()
