"""The captured loop (mode "graph"): every row of a run that asks a model, the models included, as
one CUDA graph.

A graph works on a run of its own (`Run.apart`) and on copies of what the model is told. A call
begins a run as ever, so its first row reads the noise given; then, on the caller's stream, it
copies over the state, the seeds, the scales, the given noise, the tensors among the conditions and,
where the plan is another, its numbers; replays; and copies the result out. Replays of one device
take turns, by a lock and an event, since their graphs share memory. While the model is watched
before a capture, a wait for the device raises in every thread of the process.

A graph is made for a program and the noise ids of its plan, the shape, strides and dtypes of the
samples, a form of conditions with the value of whatever is no tensor (objects by identity), the
state of autocast, and the device. What it reads beside that, parameters and buffers above all, is
compared at each call: by address, by identity in the modules that are found in the model, and
whether each of them is training (12 us for 84 tensors in 71 modules, 0.16 ms for 996 in 831); a
model's other settings in Python are not.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from threading import Lock, RLock

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import capturable
from .capturable import Probe, Reads, uncapturable
from .compiled import Kind
from .conditions import PLAIN
from .drive import asker, drive
from .pool import Pool
from .run import Run

MOST = 16  # graphs of a device; one more retires them all
MEMORY = ("x", "status", "model_input", "seed", "stage", "scale", "noise_scale", "mask", "known")
_log = logging.getLogger("fastsample")


class Captured:
    """The captured loops of a Sampler and of those made from it for other plans.

    prepare(times): told the model scalars [n] or [n,E] of the calls to come before the first of
    them; in a graph it is part of it, so another plan's times reach it.
    """

    def __init__(self, models: Sequence[Callable], prepare: Callable | None) -> None:
        self._models, self._prepare = tuple(models), prepare
        self._lanes: dict[torch.device, Lane] = {}
        self._lock = Lock()

    def drive(
        self,
        run: Run,
        conditions: Sequence[dict],
        joint: dict | None,
        keep: bool,
        out: Tensor | None,
        now: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """(x, states): the state at the end of a run that has begun, in `out` or memory of its own,
        and with `keep` the state as each row begins and at the end. conditions, joint: as for
        `answer`. now: capture a graph where there is none; else such a call runs eager, and a log
        line says so once.

        Raises ValueError, one sentence, for a model that cannot be captured.
        """
        if not run.done:
            first = run.row
            drawn = [run._draws(row) for row in range(run.row, run.end)] if run._draws else []
            if run._window is not None:  # which is drawn on the host
                drawn = run.given_noise()
            told, form = pytree.tree_flatten((conditions, joint, drawn))
            lane, key = self._lane(run.x.device), _key(run, told, form, keep)
            with lane.lock:
                graph = lane.find(key)
                if graph is None and lane.wants(key, now):
                    lane.make_room()
                    rows = partial(self._through, keep=keep)
                    graph = Graph(run, told, form, rows, self._models, lane)
                    lane.add(key, graph)
                if graph is not None:
                    return graph(run, told, out)
            if drawn:  # what the caller drew for the key is what the rows read
                run = copy.copy(run)
                run._draws = lambda row: drawn[row - first]
        x, states = self._through(run, conditions, joint, keep)
        return x if out is None else out.copy_(x), states

    def _lane(self, device: torch.device) -> Lane:
        with self._lock:
            if device not in self._lanes:
                self._lanes[device] = Lane(device)
            return self._lanes[device]

    def _through(
        self, run: Run, conditions: Sequence[dict], joint: dict | None, keep: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """The rows of a run, one after the other: what a graph records."""
        if self._prepare is not None and not run.done:
            self._prepare(run.calls)
        states = [run.x.clone()] if keep else []
        each = (lambda row: states.append(run.x.clone())) if keep else None
        return drive(run, asker(run.plan, self._models, conditions, joint), each), states

    def release(self) -> None:
        """Free every graph."""
        with self._lock:
            lanes = list(self._lanes.values())
        for lane in lanes:
            with lane.lock:
                lane.retire()
                lane.again.clear()


class Lane:
    """What the graphs of a device share: their memory, the stream they are captured on, the lock
    that a call holds until all of it is queued, and the event that its last copy is done.
    """

    def __init__(self, device: torch.device) -> None:
        cuda = capturable.CUDA
        self.side, self.done, self.lock = cuda.Stream(device), cuda.Event(), RLock()
        self.pool = cuda.graph_pool_handle()
        self.graphs: dict[tuple, Graph] = {}
        self.again: set[tuple] = set()  # had a graph, that the model moved away from
        self._said: set[Kind] = set()

    def find(self, key: tuple) -> Graph | None:
        """The graph for this key. Where the model is not where it was none is right any more: all
        are retired.
        """
        graph = self.graphs.get(key)
        if graph is not None and graph.reads.moved():
            _log.warning(
                "Sampler: the model is not as it was captured (moved, fused, offloaded, or its "
                "training switched); %d graph(s) are captured again, each at its next call",
                len(self.graphs),
            )
            self.again |= self.graphs.keys()
            self.retire()
            return None
        return graph

    def wants(self, key: tuple, now: bool) -> bool:
        """Is a graph to be captured for this key, that has none?"""
        if now or key in self.again:
            return True
        if key[0] not in self._said:
            self._said.add(key[0])
            _log.warning(
                "Sampler: no graph was captured for a call of this kind, which runs eager; "
                "warm(shapes), or capture='now', captures one"
            )
        return False

    def make_room(self) -> None:
        """For one graph more. They lie in one memory, where a single one cannot be given up."""
        if len(self.graphs) >= MOST:
            _log.warning("Sampler: %d graphs are kept for a device; they make room", MOST)
            self.retire()

    def add(self, key: tuple, graph: Graph) -> None:
        self.graphs[key] = graph
        self.again.discard(key)
        self._said.discard(key[0])

    def retire(self) -> None:
        """Free all graphs, once the last replay is over."""
        if self.graphs:
            self.done.synchronize()
            self.graphs.clear()
            self.pool = capturable.CUDA.graph_pool_handle()


class Graph:
    """graph(run, told, out): (x, states) at the end of a run that has begun.

    told: the leaves, `form` the tree, of (conditions, what tells all branches in one call, the
    given noise of each row).  rows(run, conditions, joint): what is captured.
    """

    def __init__(
        self,
        run: Run,
        told: Sequence,
        form: pytree.TreeSpec,
        rows: Callable,
        models: Sequence[Callable],
        lane: Lane,
    ) -> None:
        own, first, shapes = run.apart(), run.row, run._pool.table.shapes
        with torch.inference_mode(False):
            # the objects stay alive, since the key knows them by identity
            self._told = [v.detach().clone() if isinstance(v, Tensor) else v for v in told]
        conditions, joint, drawn = pytree.tree_unflatten(self._told, form)
        if drawn:
            own._draws = lambda row: drawn[row - first]
        kept = any(slot >= 0 for shape in shapes[:first] for slot in shape.dst)
        names = [*MEMORY, "slots"] if kept else MEMORY
        self._names = [name for name in names if getattr(own._pool, name) is not None]
        self._into = _tensors(own._pool, self._names, self._told)
        self._lane, self._own, self._table = lane, own, run._pool.table
        cached, casts = torch.is_autocast_cache_enabled(), _autocast(run.x.device)
        # a weight cast before the graph is not cast in it; without casts a compiled model, which
        # looks at this, is left as it is
        torch.set_autocast_cache_enabled(cached and casts is None)
        try:
            self._capture(lambda: rows(copy.copy(own), conditions, joint), run, told, models)
        finally:
            torch.set_autocast_cache_enabled(cached)

    def _capture(self, rows: Callable, run: Run, told: Sequence, models: Sequence) -> None:
        """Twice on the side stream, the second time watched, and then into the graph."""
        cuda, lane, own = capturable.CUDA, self._lane, self._own
        probe = Probe(pytree.tree_leaves((vars(own._pool), own.times, self._told)))
        stream, self._graph = cuda.current_stream(run.x.device), cuda.CUDAGraph()
        words = {"pool": lane.pool, "stream": lane.side, "capture_error_mode": "thread_local"}
        lane.side.wait_stream(stream)
        try:
            with cuda.stream(lane.side):
                self._load(run, told)
                rows()
                self._load(run, told)
                probe.watch(rows)
            try:
                with cuda.graph(self._graph, **words):
                    self._x, self._states = rows()
            except RuntimeError as error:
                raise uncapturable(str(error).split("\n")[0]) from error
        finally:
            stream.wait_stream(lane.side)
        self.reads = Reads(models, probe.read.values())

    def _load(self, run: Run, told: Sequence) -> None:
        """Copy over all that a call brings."""
        theirs, own = run._pool.table, self._own._pool.table
        torch._foreach_copy_(self._into, _tensors(run._pool, self._names, told))
        if theirs is not self._table:
            torch._foreach_copy_([own.f, *self._own.times], [theirs.f, *run.times])
            self._table = theirs  # whose words `i` are those of the program and the noise ids

    def __call__(self, run: Run, told: Sequence, out: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        done, stream = self._lane.done, capturable.CUDA.current_stream(run.x.device)
        stream.wait_event(done)
        self._load(run, told)
        self._graph.replay()
        x = self._x.clone() if out is None else out.copy_(self._x)
        states = [state.clone() for state in self._states]
        run._pool.status.copy_(self._own._pool.status)
        done.record(stream)
        run.finish()
        return x, states


def _tensors(pool: Pool, names: Sequence[str], leaves: Sequence) -> list[Tensor]:
    return [getattr(pool, name) for name in names] + [v for v in leaves if isinstance(v, Tensor)]


def _key(run: Run, told: Sequence, form: pytree.TreeSpec, keep: bool) -> tuple:
    """What a graph is made for; first of all the program and the memory of the run."""
    own = run._pool
    if run.prepared is None:
        held = (getattr(own, name) for name in MEMORY)
        shapes = [None if v is None else (v.shape, v.stride(), v.dtype) for v in held]
        words = run.plan.program, own.table.ids, own.copies, own.model_dtype, *shapes
        run.prepared = Kind(*words)
    return run.prepared, run.row, keep, _autocast(own.x.device), str(form), *map(_value, told)


def _autocast(device: torch.device) -> torch.dtype | None:
    """The dtype that torch.autocast has there; None where it is off."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


def _value(leaf: object) -> Hashable:
    """What of a leaf is part of the key: a tensor's form, and the number that one on the host is;
    the value of text and numbers; which object it is otherwise.
    """
    if isinstance(leaf, Tensor):
        told = leaf.dim() == 0 and leaf.device.type != capturable.KIND
        number = repr(leaf.item()) if told else None
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device, number
    return type(leaf), repr(leaf) if isinstance(leaf, PLAIN) else id(leaf)
