"""Spares: idle runs that a Sampler keeps, so that a call allocates and binds nothing."""

from __future__ import annotations

from collections.abc import Hashable
from threading import Lock

import torch
from torch import Tensor

from ..plan import Plan
from .run import Run

MOST, BYTES = 4, 256 << 20


class Spares:
    """At most MOST runs of at most BYTES together, the longest idle dropped first. A run is given
    back after a call that ended well, and by nobody else: one whose model raised, or was
    interrupted, is never handed out again; neither is one in use.
    """

    def __init__(self) -> None:
        self._idle: list[tuple[Hashable, Run]] = []
        self._bytes, self._lock = 0, Lock()

    def key(self, plan: Plan, noise: Tensor, *others: Hashable) -> Hashable | None:
        """What a run must have been made for. None where runs are not kept."""
        if not isinstance(noise, Tensor):
            return None
        device = noise.device
        stream = torch._C._cuda_getCurrentRawStream(device.index) if noise.is_cuda else 0
        try:
            return id(plan), noise.shape, noise.stride(), noise.dtype, device, stream, *others
        except RuntimeError:  # a nested one, which the run refuses
            return None

    def take(self, key: Hashable) -> Run | None:
        with self._lock:
            for k in range(len(self._idle) - 1, -1, -1):
                if self._idle[k][0] == key:
                    run = self._idle.pop(k)[1]
                    self._bytes -= run.bytes
                    return run
        return None

    def give(self, key: Hashable, run: Run) -> None:
        with self._lock:
            self._idle.append((key, run))
            self._bytes += run.bytes
            while len(self._idle) > MOST or self._bytes > BYTES:
                self._bytes -= self._idle.pop(0)[1].bytes

    def clear(self) -> None:
        with self._lock:
            self._idle.clear()
            self._bytes = 0
