"""A whole run as one pure function of tensors: what `compile-loop` compiles and what gradients flow
through.

The structure of the plan (what each row reads and writes, which model it asks) is Python, its
numbers are tensors: one trace serves every plan of one `plan.program`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor

from ..kernels.layout import Layout
from ..plan import Plan
from . import outputs

_numbers = count()


def distinct(function: Callable) -> Callable:
    """The function under a code object that nothing else in the process has.

    torch keeps compiled graphs, and re-uses nested regions, by the code alone, and code objects
    compare by value: functions of one source line would share one cache, hence its limit of
    recompiles (8), and graphs made for one another's closures.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    twin = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


class Program:
    """run(x, ...) over the rows of a plan from row `first`, by `step` (the definition: to be fused,
    or under autograd).

    ask[k](x, t, conditions, used) is model k, conditions one dict a branch; it returns [G*B,*] for
    all branches, or a list of G with None where the row uses no such branch. keep: also return
    every state. region marks what is compiled once: each kind of row is one, given its operands and
    no others, each once, because torch matches the tensors of a repeated region by the order in
    which distinct ones appear.
    """

    def __init__(
        self,
        plan: Plan,
        first: int,
        step: Callable,
        ask: Sequence[Callable],
        model_dtype: torch.dtype,
        keep: bool,
        region: Callable = lambda function: function,
    ):
        self.dims = Layout(plan.S, plan.G, plan.L, plan.K, plan.E)
        self.rows, self.first, self.ask, self.model_dtype, self.keep = (
            [(row.call, *row[:6]) for row in plan.program.rows],
            first,
            tuple(ask),
            model_dtype,
            keep,
        )
        kinds = sorted({(tuple(row[1:]), own) for row in self.rows for own in (False, True)})
        self.steps = {kind: region(distinct(self._bound(step, kind[0]))) for kind in kinds}

    def _bound(self, step: Callable, structure: tuple[int, ...]) -> Callable:
        def row_of(x, table_f, table_i, row, used):
            at = self.dims
            f = used.get("f", [x] * at.G)
            f = f if isinstance(f, list) else list(f.unflatten(0, (at.G, x.shape[0])).unbind(0))
            noise = (
                [used.get(f"n{k}", x) for k in range(at.L)]
                if any(f"n{k}" in used for k in range(at.L))
                else []
            )
            rest = {
                name: used.get(name) for name in ("seed", "scale", "noise_scale", "mask", "known")
            }
            slots = [used.get(f"r{s}", x) for s in range(at.S)]
            new, u, v, model_input, _, status = step(
                x,
                slots,
                [x if g is None else g for g in f],
                table_f,
                table_i,
                row,
                at,
                noise=noise,
                **rest,
                model_dtype=self.model_dtype,
                structure=structure,
            )
            return (
                new,
                model_input,
                status,
                [value for slot, value in zip(structure[3:5], (u, v), strict=True) if slot >= 0],
            )

        return row_of

    def used(self, row: int) -> tuple[bool, ...]:
        """Which branches a row needs from the model."""
        _, reads, branches, *_ = self.rows[row]
        return tuple(
            bool((branches >> g | reads >> (self.dims.m + 2 + g)) & 1) for g in range(self.dims.G)
        )

    def _operands(self, row: int, slots: dict, f, requested: dict) -> dict:
        """What this row reads, by name; nothing else goes into its region."""
        _, reads, branches, known, *_ = self.rows[row]
        at, masked = self.dims, requested["mask"] is not None and known != 0
        drawn = [
            k for k in range(at.L) if reads >> (at.n + k) & 1 or (masked and known >> (1 + k) & 1)
        ]
        own = requested["noise"][row] if requested["noise"] is not None else []
        used = {f"r{s}": slots[s] for s in range(at.S) if reads >> (1 + s) & 1}
        used |= {"f": f} if f is not None else {}
        used |= (
            {f"n{k}": own[k] for k in drawn}
            if own
            else {"seed": requested["seed"]}
            if drawn
            else {}
        )
        wanted = {
            "noise_scale": bool(drawn),
            "scale": branches != 0,
            "mask": masked,
            "known": masked,
        }
        return used | {
            name: requested[name]
            for name, needed in wanted.items()
            if needed and requested[name] is not None
        }

    def run(
        self,
        x: Tensor,
        table_f: Tensor,
        table_i: Tensor,
        rows: Tensor,
        conditions: Sequence[dict],
        requested: dict,
    ):
        """(x at the end, every state from the first row's result on if `keep`, status words [rows
        run, B]) of the start x [B, *] in the state dtype.

        rows [R, B] int64: row numbers as data. requested: seed, scale, noise_scale, mask, known
        (None: absent) and noise, for each row its L draws or [].
        """
        batch, at = x.shape[0], self.dims
        slots, model_input, t, states, status = {}, None, None, [], []
        if self.first:
            before = table_f[self.first - 1]
            model_input, t = (
                (before[at.c] * x).to(self.model_dtype),
                self._time(before.expand(batch, -1)),
            )
            states.append(x)
        for i in range(self.first, len(self.rows) - 1):
            call, *structure = self.rows[i]
            f = None
            if call >= 0:
                f = self.ask[call](model_input, t, conditions, self.used(i))
                outputs.check("Sampler", f, x, self.model_dtype, self.used(i), i)
            used = self._operands(i, slots, f, requested)
            own = any(f"n{k}" in used for k in range(at.L))
            x, model_input, word, written = self.steps[tuple(structure), own](
                x, table_f, table_i, rows[i], used
            )
            for slot, value in zip([d for d in structure[3:5] if d >= 0], written, strict=True):
                slots[slot] = value
            t = self._time(table_f[rows[i]])
            status.append(word)
            if self.keep:
                states.append(x)
        return x, states, torch.stack(status)

    def _time(self, rows: Tensor) -> Tensor:
        c = self.dims.c
        return rows[:, c + 1] if self.dims.E == 1 else rows[:, c + 1 : c + 1 + self.dims.E]

    def refuse(
        self, error: Exception, x: Tensor, table_f: Tensor, conditions: Sequence[dict]
    ) -> None:
        """Raise ValueError, one sentence, for the error torch gave instead of a graph: each model
        is asked once as it is, because a wrong output names its sizes there and a model's own error
        is raised as such.
        """
        used, before = (True,) * self.dims.G, table_f[max(self.first, 1) - 1]
        first_asked = {
            self.rows[i][0]: i
            for i in reversed(range(self.first, len(self.rows) - 1))
            if self.rows[i][0] >= 0
        }
        for call, row in first_asked.items():
            f = self.ask[call](
                x.to(self.model_dtype, copy=True),
                self._time(before.expand(x.shape[0], -1)),
                conditions,
                used,
            )
            try:
                outputs.check("Sampler", f, x, self.model_dtype, used, row)
            except (TypeError, ValueError) as wrong:
                raise ValueError(str(wrong)) from error
        raise ValueError(
            "Sampler: mode='compile-loop' could not take the model as one graph (a graph break, a "
            "write into its input, an output that "
            "shares memory with its input); mode='compile-model' is accepted"
        ) from error


def compiled(program: Program) -> Callable:
    """program.run as one graph. Raises ValueError, one sentence, chained from torch's, for a model
    that does not fit or is not one graph; a failure of the code generator behind the graph is
    raised as it is.
    """
    run = torch.compile(types.MethodType(distinct(Program.run), program), fullgraph=True)

    def call(
        x: Tensor,
        table_f: Tensor,
        table_i: Tensor,
        rows: Tensor,
        conditions: Sequence[dict],
        requested: dict,
    ):
        try:
            return run(x, table_f, table_i, rows, conditions, requested)
        except torch._dynamo.exc.BackendCompilerFailed:
            raise
        except torch._dynamo.exc.TorchDynamoException as error:
            program.refuse(error, x, table_f, conditions)

    return call
