"""A stand-in for torch.cuda on a machine without a GPU: it offers what a captured loop needs, on
the CPU, and writes down in `calls` what was asked of it.

A capture records every op of torch and every launch of a kernel with the very tensors it was given;
a replay runs them again and puts each result where it was. So what a graph bakes in, numbers and
addresses, is baked in here too.

As a pytest plugin (-p stand_in) it stands in for a whole process: `make gpu REHEARSE=1` runs what
needs a GPU on it. Its device is called "rehearsed", and so is all that is written of it.
"""

from contextlib import contextmanager
from threading import get_ident
from time import perf_counter
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from fastsample.kernels import native
from fastsample.runtime import capturable, cursor


class Recorder(TorchDispatchMode):
    """The ops of a capture, in order."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    @classmethod
    def ignore_compile_internals(cls):
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)

        def again():
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

        self.steps.append(again)
        return out


class StandIn:
    def __init__(self):
        self.calls, self.captures, self.replays, self.pools = [], 0, 0, 0
        self._sync, self._current, self._recording = "default", Stream(self, "current"), None
        stand_in = self

        class Event:
            def __init__(self, enable_timing=False):
                self.at = None

            def record(self, stream=None):
                self.at = perf_counter()
                stream = stream or stand_in._current
                stand_in.calls.append(f"{stream.name}: record done")

            def synchronize(self):
                stand_in.calls.append("host: wait for done")

            def elapsed_time(self, end):
                return 1e3 * (end.at - self.at)

        class CUDAGraph:
            def __init__(self):
                self.steps = []

            @torch.no_grad()
            def replay(self):
                stand_in.calls.append(f"{stand_in._current.name}: replay")
                stand_in.replays += 1
                for step in self.steps:
                    step()

        self.Event, self.CUDAGraph = Event, CUDAGraph

    def is_available(self):
        return True

    def get_device_name(self):
        return "rehearsed"

    def get_device_properties(self, device):
        return SimpleNamespace(L2_cache_size=2**14)

    def synchronize(self):
        pass

    def _sleep(self, cycles):
        """A kernel that does nothing."""

    def Stream(self, device=None):
        return Stream(self, "side")

    def current_stream(self, device=None):
        return self._current

    @contextmanager
    def stream(self, stream):
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def graph_pool_handle(self):
        self.pools += 1
        return self.pools

    def get_sync_debug_mode(self):
        return self._sync

    def set_sync_debug_mode(self, mode):
        self.calls.append(f"sync: {mode}")
        self._sync = mode

    @contextmanager
    def graph(self, graph, *, pool=None, stream=None, capture_error_mode="global"):
        stream = stream or Stream(self, "side")
        self.calls.append(f"{stream.name}: capture into {pool}, {capture_error_mode}")
        self.captures += 1
        self._recording = graph.steps, get_ident()
        try:
            with self.stream(stream), Recorder(graph.steps):
                yield
        finally:
            self._recording = None

    def kernel(self, run):
        """A function that runs by address, which no op shows: recorded as a whole."""

        def recorded(*arguments, **words):
            with _disable_current_modes():
                done = run(*arguments, **words)
            steps, thread = self._recording or (None, None)
            # Another thread's launches are on another stream, and in no graph.
            if thread == get_ident() and done is not False:
                steps.append(lambda: run(*arguments, **words))
            return done

        return recorded


class Stream:
    def __init__(self, cuda, name):
        self._cuda, self.name = cuda, name

    def wait_stream(self, other):
        self._cuda.calls.append(f"{self.name}: wait for {other.name}")

    def wait_event(self, event):
        self._cuda.calls.append(f"{self.name}: wait for done")

    def synchronize(self):
        pass


class Launch:
    """A native launch whose every run is recorded."""

    def __init__(self, launch, cuda):
        self._run, self.take, self.carry = map(cuda.kernel, (launch, launch.take, launch.carry))
        self.lies, self.use = launch.lies, launch.use

    def __call__(self, *arguments):
        self._run(*arguments)


def install(monkeypatch):
    """The stand-in in the place of torch.cuda, for the CPU."""
    cuda, bound = StandIn(), cursor.bound

    def recording(choice, pool):
        launch = bound(choice, pool)
        return Launch(launch, cuda) if choice.name == "native" else launch

    monkeypatch.setattr(capturable, "CUDA", cuda)
    monkeypatch.setattr(capturable, "KIND", "cpu")
    monkeypatch.setattr(cursor, "bound", recording)
    monkeypatch.setattr(native, "fill", cuda.kernel(native.fill))
    return cuda


def pytest_configure(config):
    """The stand-in for the whole process; torch.compile traces and compiles nothing."""
    patch, traced = pytest.MonkeyPatch(), torch.compile
    install(patch)
    eager = {"backend": "eager", "options": None}
    patch.setattr(torch, "compile", lambda function, **words: traced(function, **words | eager))
