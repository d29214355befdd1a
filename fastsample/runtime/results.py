"""Results: where the end of a run is written. Memory that was handed out before is handed out again
once nobody holds any of it, so that a call faults no page in.
"""

from __future__ import annotations

from sys import getrefcount

import torch
from torch import Tensor

KEPT = 2  # a loop that names its result still holds the last one while the next is made


class Results:
    """Memory for tensors as `like`, KEPT of them in turn."""

    def __init__(self, like: Tensor):
        self._like, self._kept = like, []
        self._again = ALONE is not None and like.device.type == "cpu"

    def fresh(self) -> Tensor:
        """A tensor as `like` that shares its memory with nobody, its numbers unset."""
        if not self._again:  # a device's allocator keeps its memory, and knows the streams
            return torch.empty_like(self._like)
        for memory in self._kept:
            if memory.owners() == ALONE and memory.own.data_ptr() == memory.address:
                return memory.own.data
        memory = Memory(self._like)
        self._kept = [*self._kept[1 - KEPT :], memory]
        return memory.own.data


class Memory:
    """A tensor that is never handed out itself, and so one owner of its memory that is known."""

    def __init__(self, like: Tensor):
        with torch.inference_mode(False):
            self.own = torch.empty_like(like)
        self.storage = self.own.untyped_storage()
        self.address = self.own.data_ptr()  # shared with a process or resized, it lies elsewhere

    def owners(self) -> tuple[int, int]:
        """How many hold the memory: tensors, and in Python the storage itself."""
        return torch._C._storage_Use_Count(self.storage._cdata), getrefcount(self.storage)


def _alone() -> tuple[int, int] | None:
    """What `owners` says where nobody else holds the memory; None where it would not show one."""
    if not hasattr(torch._C, "_storage_Use_Count"):
        return None
    memory = Memory(torch.empty(1, device="cpu"))
    alone = memory.owners()
    itself, part = (lambda x: x), (lambda x: x[0])
    for hold in (itself, part, Tensor.numpy, Tensor.__dlpack__, Tensor.untyped_storage):
        held = hold(memory.own.data)
        if memory.owners() == alone:
            return None
        del held
    return alone if memory.owners() == alone else None


ALONE = _alone()
