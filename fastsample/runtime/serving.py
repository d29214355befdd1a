"""Serving: a thread that ticks an Engine, and how an Engine is closed."""

from __future__ import annotations

import atexit
import os
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from threading import Thread, current_thread
from typing import Any
from weakref import WeakSet

import torch

from . import capturable
from .admission import Admission, ordinary

LAST = 5.0  # seconds that the end of the process waits for a tick that is under way
_engines: WeakSet[Serving] = WeakSet()


class Serving(Admission):
    """The part of an Engine that ticks by itself."""

    _thread: Thread | None = None
    _before: Any = None  # what a device had to do after the tick before

    def __init__(self, *room: Any) -> None:
        super().__init__(*room)
        _engines.add(self)

    @property
    def serving(self) -> bool:
        """Does a thread tick it? False before serve(), after close(), and when the thread died."""
        return self._thread is not None and self._thread.is_alive()

    def serve(self) -> Serving:
        """Tick in a thread from now on, which sleeps while there is no request. Returns the Engine,
        of which a `with` block closes at its end: drained, or by an exception without.

        A model that raises, or returns what does not fit, ends the requests it was asked for with
        its own error, and none other. What a policy raises ends the thread, and all requests.
        RuntimeError for a second thread, and after close().
        """
        with self._lock:
            self._refuse_closed("Engine.serve")
            if self._thread is not None:
                raise RuntimeError(
                    f"Engine.serve: the thread {self._thread.name} serves it; one is accepted"
                )
            thread = Thread(target=self._serve, name="fastsample.Engine", daemon=True)
            thread.start()  # or there is none, and nothing has changed
            self._thread = thread
        return self

    def close(self, drain: bool = True) -> None:
        """Take no more requests. drain: tick until all have ended, in the serving thread, if there
        is one; else they are cancelled, after the tick that is under way. Returns when that is so.
        RuntimeError, and nothing is closed, where no thread serves and a callback calls it.
        """
        inside = self._thread is current_thread()
        turn = self._turn if inside else self._alone("Engine.close")
        self._shut(drain)
        if inside:
            return
        if self._thread is not None:  # and from now on nobody starts one
            self._thread.join()
        elif drain:
            self.run()
        else:
            with turn:  # somebody's tick may be under way
                pass

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.close(drain=kind is None)

    def _shut(self, drain: bool) -> None:
        with self._lock:
            self._closed = self._closed or "the Engine is closed"
            if not drain:
                self._end_all("cancelled", RuntimeError("Engine.close: its requests are cancelled"))
            self._wake.notify()

    def _end_all(self, state: str, reason: BaseException) -> None:
        for ticket in (*self._queue.waiting, *self.running):
            self._ends(ticket, state, reason)

    def _served_elsewhere(self) -> bool:
        """Does another thread than this one tick?"""
        return self.serving and self._thread is not current_thread()

    # -- the thread --------------------------------------------------------------------------------
    def _serve(self) -> None:
        cuda = self._device.type == "cuda"
        try:
            with torch.cuda.device(self._device) if cuda else nullcontext():
                while self._woken():
                    self._serve_one()
        except BaseException as error:
            with self._lock:
                said = f"{type(error).__name__}: {error}"
                self._closed = f"its thread has died of {said:.200}"
                self._end_all("failed", error)
                self._sweep()
            if not isinstance(error, Exception):
                raise

    def _woken(self) -> bool:
        """Sleep until there is a request; is there one?"""
        with self._wake:
            while not (self.running or self._queue.waiting or self._closed):
                self._wake.wait()
            return bool(self.running or self._queue.waiting)

    def _serve_one(self) -> None:
        """A tick, of which a fault ends the requests that it is about."""
        with self._alone("Engine.serve"):
            with self._lock:
                self._enter()
                try:
                    self._row()
                except BaseException as error:
                    for ticket in {ticket for ticket, _ in self._tick.blamed} or self.running:
                        self._ends(ticket, "failed", ordinary(error))
                    traceback.clear_frames(error.__traceback__)  # of the tensors that they hold
            self._call_back(BaseException)
            self._pace()

    def _pace(self) -> None:
        """Be one tick ahead of the device, and no more: who comes would have to wait for them."""
        self._before, before = capturable.mark(self._device), self._before
        if before is not None:
            before.synchronize()

    # -- the end of the process, and another one ---------------------------------------------------
    def _last(self) -> None:
        if self._thread is not None:
            self._shut(drain=False)
            self._thread.join(LAST)

    def _forked(self) -> None:
        """In a child of its process, which has none of the other threads: it is a copy of its own,
        unless one of them served it, or was at it just then.
        """
        if free := self._lock.acquire(blocking=False):
            self._lock.release()
        served = self._thread not in (None, current_thread())
        if self._turn.forked() and free and not served:
            return
        self._anew()
        self._closed = "it is at work in the process that this one was forked from"
        error = RuntimeError(f"Engine: {self._closed}, and so is this request")
        for ticket in (*self._queue.waiting, *self.running):
            if not ticket.done:  # those who would hear of it are not here
                ticket._state, ticket._reason = "failed", error
        self._queue.waiting, self.running = [], ()


def _each(what: Callable[[Serving], None]) -> None:
    for engine in list(_engines):
        what(engine)


atexit.register(_each, Serving._last)
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=partial(_each, Serving._forked))
