"""Draws: a plan's noises when they come from somebody else's generator."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from torch import Tensor

from ..plan import Plan

now = threading.local()


def drawn_now(row: int, name: int) -> Tensor:
    """A Run's noise source: what the step now running in this thread draws, `now.draw`. It holds no
    state, so copies of a run do not share one.
    """
    now.drawn = True
    return now.draw(name)


class Draws:
    """Each noise id is drawn when a row first reads it, and kept only if a later row reads it again
    (an old id is the same noise again).
    """

    def __init__(self, plan: Plan):
        self._readers = Counter(
            int(name)
            for row, ids in zip(plan.program.rows, plan.ids, strict=True)
            for drawn, name in zip(row.draws(plan.layout, masked=False), ids, strict=True)
            if drawn
        )
        self._kept: dict[int, Tensor] = {}

    def __call__(self, name: int, draw: Callable[[], Tensor]) -> Tensor:
        """The noise with this id; draw() makes a new one."""
        if name in self._kept:
            return self._kept[name]
        noise = draw()
        if self._readers[name] > 1:
            self._kept[name] = noise
        return noise

    def keeps(self, name: int) -> bool:
        """Was the noise with this id drawn by an earlier row?"""
        return name in self._kept

    def copy(self) -> Draws:
        twin = object.__new__(Draws)
        twin._readers, twin._kept = self._readers, dict(self._kept)
        return twin

    def select(self, index: Tensor) -> None:
        """Go on with these samples [n]."""
        self._kept = {name: noise[index.to(noise.device)] for name, noise in self._kept.items()}
