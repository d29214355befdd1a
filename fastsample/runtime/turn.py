"""Turn: what one thread holds at a time, in the order in which they asked for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock, get_ident


class Turn:
    """after: called by who held it, once it has let go. Whoever waits is handed it, so that a
    thread that takes it again and again lets others in between. No generator, which would cost a
    tick 1 µs in 60.
    """

    def __init__(self, after: Callable[[], None]) -> None:
        self._lock, self._holder, self._after = Lock(), None, after
        self._line: deque[tuple[int, Lock]] = deque()  # who waits, and what wakes it

    @property
    def held(self) -> bool:
        return self._holder is not None

    @property
    def mine(self) -> bool:
        """Does this thread hold it?"""
        return self._holder == get_ident()

    def take(self, wait: bool = True) -> bool:
        """Is it this thread's now?"""
        with self._lock:
            if self._holder is None:
                self._holder = get_ident()
                return True
            if not wait:
                return False
            mine = get_ident(), Lock()
            mine[1].acquire()
            self._line.append(mine)
        try:
            mine[1].acquire()
        except BaseException:  # KeyboardInterrupt
            self._leave(mine)
            raise
        return True

    def give(self, *_: object) -> None:
        self._pass_on()
        self._after()

    __enter__, __exit__ = take, give

    def forked(self) -> bool:
        """In a process forked from the one where it was made: is it nobody's, or this thread's?
        Who else waited is not here.
        """
        busy = self._lock.locked() or not (self._holder is None or self.mine)
        self._lock, self._line = Lock(), deque()
        return not busy

    def _pass_on(self) -> None:
        with self._lock:
            self._holder = None
            if self._line:
                self._holder, called = self._line.popleft()
                called.release()

    def _leave(self, mine: tuple[int, Lock]) -> None:
        """Wait no more, and pass it on if it has been handed over by now."""
        with self._lock:
            waits = mine in self._line
            if waits:
                self._line.remove(mine)
        if not waits:
            self.give()
