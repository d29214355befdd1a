"""The compiled modes: a model as a graph (`compile-model`), and every row of a run as one graph
(`compile-loop`): the model, a region compiled once however many rows ask it, and between its calls
`fastsample::step_` on the run's own memory.

Row 0, and whatever else comes before the first call of the model, runs outside the graph, when the
run is begun. A graph is made for a program, hence for every plan of it, for any seed and scale, for
the sizes and order of a sample, for a form of conditions, and for a batch of one or of any number.
"""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import count
from threading import Lock

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import outputs
from .conditions import answer
from .run import Run
from .step_op import STEP

MOST = 16  # graphs that a Sampler and those made from it keep
# Numbers a thread, as torch's eager operators have it. Inductor's own 4096 takes two threads for
# 1x4x64x64, which costs 8 us a kernel, and now and then 4 ms where another process is on that core.
OPTIONS = {"cpp.min_chunk_size": 32768}
_numbers = count()


def compiled_model(model: Callable) -> Callable:
    """The model under torch.compile, with a cache of its own."""
    return torch.compile(plain(model))


def distinct(function: Callable) -> Callable:
    """The function, of no defaults, under a code object that nothing else in the process has.

    torch keeps compiled graphs, and re-uses nested regions, by the code alone, and code objects
    compare by value: functions of one source line would share one cache, hence its limit of
    recompiles (8), and graphs made for one another's closures.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    return types.FunctionType(code, function.__globals__, closure=function.__closure__)


def plain(model: Callable) -> Callable:
    """The model as a plain function, distinct from any other: a callable object is inlined by the
    compiler, a wrapped one is not always.
    """

    def ask(x: Tensor, t: Tensor, **cond):
        return outputs.only(model(x, t, **cond))

    return distinct(ask)


class Graphs:
    """The compiled loops of a Sampler and of those made from it for other plans, the longest unused
    dropped first beyond MOST.
    """

    def __init__(self, models: Sequence[Callable]) -> None:
        self._models, self._kept, self._lock = tuple(models), OrderedDict(), Lock()

    def drive(
        self, run: Run, conditions: Sequence[dict], joint: dict | None, keep: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """(x, states): the state at the end of a run that has begun, in memory of its own, and with
        `keep` the state as each row that asks a model begins, and at the end. conditions, joint: as
        for `answer`.

        Raises ValueError, one sentence, caused by a line of torch's, for a model that does not fit
        or is not one graph; a failure of the code generator behind the graph is raised as it is.
        """
        if run.done:
            return run.x.clone(), [run.x.clone()] if keep else []
        if run.prepared is None:
            run.prepared = _prepared(run)
        kind, memory = run.prepared
        told, drawn, said = [*conditions, joint], run.given_noise(), None
        if drawn or any(told):
            told, drawn = unshared(told), pytree.tree_map_only(Tensor, Tensor.detach, drawn)
            said = form([told, drawn])
        key = kind, run.row, keep, joint is None, said
        with self._lock:
            loop = self._kept.pop(key, None) or Loop(run, self._models, keep)
            self._kept[key] = loop
            if len(self._kept) > MOST:
                self._kept.popitem(last=False)
        out = [run.x.clone()] if keep else []
        out += [torch.empty_like(run.x) for _ in loop.writes]
        _any_batch(run.x.shape[0], (told, drawn, out))
        loop(memory, out, drawn, told)
        run.finish()
        return out[-1], out


class Kind:
    """Words that tell one graph from another, hashed once: a program has many."""

    def __init__(self, *words: Hashable) -> None:
        self.words, self._hash = words, hash(words)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kind) and self.words == other.words


def _prepared(run: Run) -> tuple[Kind, tuple[Tensor | None, ...]]:
    """What a graph for this run is made for, and the tensors that it works on."""
    own = run._pool
    memory = own.x, own.slot_rows, own.model_input, own.status, own.table.f, own.table.i, own.seed
    memory += own.stage, own.scale, own.noise_scale, own.mask, own.known
    batch = own.x.shape[0]
    _any_batch(batch, [own.x, own.model_input, own.status, *memory[6:]])
    if batch > 1 and own.slots.shape[0]:
        torch._dynamo.maybe_mark_dynamic(memory[1], 1)
    sample = own.x.shape[1:], own.x.stride()[1:]
    return Kind(run.plan.program, own.copies, own.model_dtype, sample, form(memory)), memory


def _any_batch(batch: int, tree: object) -> None:
    """Tell torch that the first size of these tensors, where it goes with a batch of more than one,
    will change.
    """
    for value in pytree.tree_leaves(tree) if batch > 1 else ():
        if isinstance(value, Tensor) and value.dim() and value.shape[0] % batch == 0:
            torch._dynamo.maybe_mark_dynamic(value, 0)


class Loop:
    """loop(memory, out, drawn, told): the rows of a program, from the one that a run stands at, as
    one graph. told: the conditions of each branch, and what tells all of them in one call, or None.
    keep: as for `drive`.
    """

    def __init__(self, run: Run, models: Sequence[Callable], keep: bool) -> None:
        layout, shapes = run.plan.program
        needed = [shape.branches_needed(layout) for shape in shapes]
        rows = range(run.row, len(shapes) - 1)
        self.rows = [(row, shapes[row].call, needed[row]) for row in rows]
        # which of `out` a row writes: of one that asks its own, or all leave it to the last
        asking = [row for row, call, _ in self.rows if call >= 0]
        self.writes = {row: k for k, row in enumerate(asking, 1)} if keep else {rows[-1]: 0}
        self.models, self.layout = models, layout
        self.copies, self.model_dtype = run._pool.copies, run._pool.model_dtype
        region = torch.compiler.nested_compile_region
        asked = [[region(plain(m)) for _ in range(layout.G)] for m in models]
        self.time = slice(layout.at("t"), layout.at("t") + layout.E)
        whole = distinct(self._function(asked, keep))
        self._sound, self._graph = False, torch.compile(whole, fullgraph=True, options=OPTIONS)

    def _function(self, asked: Sequence[Sequence[Callable]], keep: bool) -> Callable:
        rows, writes, dtype = self.rows, self.writes, self.model_dtype
        time, dims = self.time, [*self.layout, self.copies]

        def loop(memory, out, drawn, told):
            x, slots, model_input, status, table_f, table_i, *options = memory
            x, (*conditions, joint) = out[0] if keep else x, told
            for k, (row, call, needed) in enumerate(rows):
                f = []
                if call >= 0:
                    asks = x if model_input is None else model_input
                    t = _scalars(table_f[row - 1, time], asks.shape[0])
                    f = answer(asked[call], asks, t, x.shape[0], needed, conditions, joint)
                    # else [G*B,*], a size that no other is told of: Inductor takes none like 2 B
                    like = (x, dtype, needed) if isinstance(f, list) else (asks, dtype, (True,))
                    f = outputs.branches("Sampler", f, *like, row)
                noise = drawn[k] if drawn else []
                x_out = out[writes[row]] if row in writes else None
                pool = x, slots, model_input, status, x_out, f, table_f, table_i
                STEP(*pool, *options, noise, row, dims)
                x = x if x_out is None else x_out

        return loop

    def __call__(self, memory, out, drawn, told) -> None:
        dynamo = torch._dynamo.exc
        try:
            self._graph(memory, out, drawn, told)
        except Exception as error:
            failed = isinstance(error, dynamo.BackendCompilerFailed)
            if isinstance(error, dynamo.TorchDynamoException) and not failed:
                self._refuse(_in_a_line(error), memory, told)
            self._look(memory, told)
            raise
        self._look(memory, told)

    def _look(self, memory: Sequence[Tensor], told: Sequence[dict]) -> None:
        """Refuse a model that writes into its input, which a region of a graph may do; once."""
        if not self._sound:
            for row, _, written in self._answers(memory, told):
                if written:
                    raise outputs.written("Sampler", row)
            self._sound = True

    def _answers(self, memory: Sequence[Tensor], told: Sequence[dict]) -> Iterator[tuple]:
        """(row, output, did it write into its input) of each model, asked once as it is."""
        x, _, model_input, _, numbers, *_ = memory
        asks, every = x if model_input is None else model_input, (True,) * self.layout.G
        *conditions, joint = told
        for call, row in {call: row for row, call, _ in self.rows[::-1] if call >= 0}.items():
            with torch.inference_mode(False):  # inference tensors do not count who writes to them
                own = asks.clone()
                t = _scalars(numbers[row - 1, self.time], len(own)).clone()
            before = own._version + t._version
            models = [self.models[call]] * self.layout.G
            f = answer(models, own, t, x.shape[0], every, conditions, joint)
            yield row, f, own._version + t._version != before

    def _refuse(self, error: Exception, memory: Sequence[Tensor], told: Sequence[dict]) -> None:
        """Raise ValueError, one sentence, for the error torch gave instead of a graph; a wrong
        output names its sizes, and a model's own error is raised as such.
        """
        every = (True,) * self.layout.G
        for row, f, _ in self._answers(memory, told):
            try:
                outputs.branches("Sampler", f, memory[0], self.model_dtype, every, row)
            except (TypeError, ValueError) as wrong:
                raise ValueError(str(wrong)) from error
        raise ValueError(
            "Sampler: mode='compile-loop' could not take the model as one graph (a graph break, a "
            "write into its input, an output that shares memory with its input); "
            "mode='compile-model' is accepted"
        ) from error


def unshared(conditions: Sequence[dict]) -> list[dict]:
    """The same keywords in tensors of our own, which may be marked, with no two in one storage: a
    nested region of a compiled loop takes no aliases.
    """
    seen: set[int] = set()

    def own(value: Tensor) -> Tensor:
        place = value.untyped_storage().data_ptr()
        value = value.clone() if place in seen else value.detach()
        seen.add(place)
        return value

    return pytree.tree_map_only(Tensor, own, list(conditions))


def form(value: object) -> Hashable:
    """What a graph for these arguments is made for: keywords, kinds of tensors (sizes apart, but 0
    and 1 are never "any size") and the values of floats and text. Each form has a graph of its own:
    of the few recompiles torch allows a graph, only changing sizes take any.
    """
    leaves, spec = pytree.tree_flatten(value)
    return str(spec), tuple(_kind(leaf) for leaf in leaves)


def _kind(value: object) -> Hashable:
    if isinstance(value, Tensor):
        return value.dtype, str(value.device), tuple(min(n, 2) for n in value.shape)
    return repr(value) if isinstance(value, (float, str, bool)) else type(value)


def _scalars(t: Tensor, batch: int) -> Tensor:
    """Model scalars [batch], or [batch, E] of more than one, from those of a row [E]."""
    t = t.expand(batch, -1)
    return t[:, 0] if t.shape[1] == 1 else t


def _in_a_line(error: BaseException) -> Exception:
    """What torch met first, and in which line of the model: as a cause, its error would otherwise
    put fifty lines and the calls of its compiler before our sentence.
    """
    places = [line.strip() for line in str(error).split("\n") if line.strip().startswith("File ")]
    while isinstance(error.__cause__ or error.__context__, torch._dynamo.exc.TorchDynamoException):
        error = error.__cause__ or error.__context__
    error.args = (", ".join([str(error).strip().split("\n")[0], *places[-1:]]),)
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
