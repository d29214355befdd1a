"""Serving: a thread that ticks an Engine, and how an Engine is closed."""

from __future__ import annotations

import atexit
import traceback
from contextlib import nullcontext
from threading import Thread, current_thread
from typing import Any
from weakref import WeakSet

import torch

from . import capturable
from .admission import Admission, ordinary

LAST = 5.0  # seconds that the end of the process waits for a tick that is under way
_served: WeakSet[Serving] = WeakSet()


class Serving(Admission):
    """The part of an Engine that ticks by itself."""

    _thread: Thread | None = None
    _before: Any = None  # what a device had to do after the tick before

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
            self._thread = Thread(target=self._serve, name="fastsample.Engine", daemon=True)
            _served.add(self)
            self._thread.start()
        return self

    def close(self, drain: bool = True) -> None:
        """Take no more requests. drain: tick until all have ended, in the serving thread, if there
        is one; else they are cancelled, after the tick that is under way. Returns when that is so.
        RuntimeError, and nothing is closed, where no thread serves and a callback calls it.
        """
        turn = self._alone("Engine.close") if self._thread is None else None
        self._shut(drain)
        if turn is None:
            if self._thread is not current_thread():
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
            if self._device.type == capturable.KIND:
                self._pace()

    def _pace(self) -> None:
        """Be one tick ahead of the device, and no more: who comes would have to wait for them."""
        event = capturable.CUDA.Event()
        event.record()
        self._before, before = event, self._before
        if before is not None:
            before.synchronize()


@atexit.register
def _end_all_served() -> None:
    for engine in list(_served):
        engine._shut(drain=False)
        engine._thread.join(LAST)
