"""The loop over a run: one body for every door that asks a model and steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from torch import Tensor

from ..kernels.transforms import watched
from ..plan import Plan
from .conditions import answer
from .outputs import written
from .run import Run
from .select import Select, chosen


def drive(run: Run, ask: Callable, each: Callable | None = None, where: str = "Sampler") -> Tensor:
    """The state at the end of a run: ask(x, t, row) for every row that asks a model, then its step,
    then each(row), which returns another `ask` where it has chosen among the samples. The last row
    writes into memory that nobody holds, unless `each` is to see it.

    Raises ValueError for a model that writes into what it is given: it may be the state itself, and
    t is every later row's too.
    """
    x, times, end, last, out = run.model_input, run.times, run.end, run.last, None
    t, sure = times[0], each is None and not watched()
    told = t._version  # of every row's times, which are views of one tensor
    while (row := run.row) < end:
        before = x._version
        f = ask(x, times[row - 1], row)
        if x._version != before or t._version != told:
            raise written(where, row)
        if each is None and row == last:
            out = run.results.fresh()
            run.carry(f, None, out)
            continue
        run.step(f, sure)
        if each is not None and (again := each(row)) is not None:
            ask, x, times = again, run.model_input, run.times
            t, told = times[0], times[0]._version
    return run.x.clone() if out is None else out


def watching(
    run: Run, states: list | None, callback: Callable | None, shown, following: Callable
) -> Callable:
    """each(row) for `drive`: what a Sampler does after it. following(index): the `ask` of the
    samples that a callback's Select goes on with, whose states before then are kept in their order.
    """
    count = iter(range(run.plan.rows))

    def each(row: int) -> Callable | None:
        ask = None
        if callback is not None:
            new = callback(next(count), run.x, run.x0)
            if isinstance(new, Select):
                index = chosen("Sampler: Select", new.index, len(run.x))
                run.select(index, seeds=new.seeds)
                ask, new = following(index), new.x
                if states is not None:
                    states[:] = [x[index.to(x.device)] for x in states]
            if new is not None:
                run.x = new
        if states is not None:
            states.append(run.x.clone())
        if shown is not None:
            shown.update()
        return ask

    return each


def asker(
    plan: Plan, models: Sequence[Callable], conditions: Sequence[dict], joint: dict | None
) -> Callable:
    """ask(x, t, row): the model of that row with what it is told, every branch in one call where
    `joint` says them together, else a list with one call for each branch that the row needs.
    """
    shapes, G = plan.program.rows, len(conditions)
    if G == 1:
        (only,) = conditions
        if len(models) == 1:
            (model,) = models
            return lambda x, t, row: model(x, t, **only)
        return lambda x, t, row: models[shapes[row].call](x, t, **only)
    layout = plan.layout

    def ask(x: Tensor, t: Tensor, row: int):
        shape = shapes[row]
        batch, asked = x.shape[0] // (1 if joint is None else G), [models[shape.call]] * G
        needed = shape.branches_needed(layout)
        return answer(asked, x, t, batch, needed, conditions, joint)

    return ask


def bar(where: str, wanted: bool | Callable, total: int, **words: str):
    """A tqdm bar, what is wanted in its place, or nothing. words: as tqdm takes them."""
    if not wanted:
        return nullcontext()
    if callable(wanted):
        return wanted(total=int(total), **words)
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            f"{where}: progress=True needs tqdm; pip install 'fastsample[demo]'"
        ) from error
    return tqdm(total=int(total), **words)
