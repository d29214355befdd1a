"""Loops: one sampling loop of an FsScheduler for every thread."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable

from ...kernels import transforms
from ...runtime.spares import Spares
from .loop import Loop
from .under_way import under_way


class NoLoop(ValueError, AttributeError):
    """A thread that has no loop reads of one; hasattr then says False."""


def too_early(what: str) -> ValueError:
    return ValueError(f"FsScheduler.{what}: there are no timesteps yet; call set_timesteps first")


class Loops:
    """Which loop belongs to the thread that asks: its own, or the only one there is.

    shared: they may stand in several dicts at once, and nothing may change them there.
    """

    shared = False

    def __init__(self) -> None:
        self._local, self._all, self._lock = threading.local(), weakref.WeakSet(), threading.Lock()
        self.spares = Spares()

    def own(self, memo: dict | None = None) -> Loops:
        """Others, with a copy of this thread's loop, where it stands."""
        twin, loop = Loops(), self.get()
        twin.spares = self.spares
        if loop is not None:
            twin.set(copy.deepcopy(loop, memo))
        return twin

    def __deepcopy__(self, memo: dict) -> Loops:
        """Others, for a copy of a scheduler's __dict__."""
        twin = self.own(memo)
        twin.shared = True
        return twin

    def __reduce__(self) -> tuple:
        """Of all loops this thread's goes along: what it was asked for, for a scheduler to ask
        again, and how far it is.
        """
        loop = self.get()
        asked = getattr(loop, "asked", None)
        if asked is None:
            return Loops, ()
        state = {"asked": asked, "device": loop.timesteps.device, "begin": loop.begin}
        return Loops, (), state | {"under_way": under_way(loop)}

    def set(self, loop: Loop) -> None:
        self._local.loop, loop.spares = loop, self.spares
        with self._lock:
            self._all.add(loop)

    def again(self) -> None:
        """This thread's loop stands at its start again."""
        loop = self.get()
        if loop is not None:
            self.set(loop.again())

    def get(
        self, what: str | None = None, otherwise: Callable[[str], Loop | None] | None = None
    ) -> Loop | None:
        """The loop; where there is none, what otherwise(what) makes, or without it None, or a
        ValueError that says `what` needs one.
        """
        # levels and scales are looked up by number, which a trace would keep for every later input
        if transforms.tracing():
            transforms.refuse("FsScheduler" if what is None else f"FsScheduler.{what}")
        loop = getattr(self._local, "loop", None)
        if loop is not None:
            return loop
        with self._lock:
            loops = list(self._all)
        if len(loops) > 1:
            raise NoLoop(
                f"FsScheduler: {len(loops)} other threads have a loop and this one has none; call "
                "set_timesteps in the thread that steps"
            )
        if not loops and otherwise is not None:
            if (loop := otherwise(what)) is not None:
                self.set(loop)
            return loop
        if not loops and what is not None:
            raise too_early(what)
        return loops[0] if loops else None
