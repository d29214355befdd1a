"""Cursor: which row of a pool is next, and the step to the one after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..kernels import native, transforms
from ..kernels.backend import alike, bound
from ..kernels.transforms import watched
from ..plan import Plan
from . import arguments, outputs, pool
from .results import KEPT, Results

# channels_last on a CPU: with more, a tile of the step holds less than two of a block's numbers.
MOST_CHANNELS = 512


class Cursor:
    """A pool whose samples all run the same row, advanced one row a call.

    row is the number of the row that the next step runs, times[row - 1] its model scalars; the last
    row of the plan, `end`, holds.
    """

    row: int
    end: int
    times: Tensor

    # -- what a loop reads -------------------------------------------------------------------------
    @property
    def done(self) -> bool:
        return self.row >= self.end

    @property
    def t(self) -> Tensor:
        """Model scalars of the current row: [copies*B], or [copies*B, E] where the model takes
        several; state dtype.
        """
        return self.times[self.row - 1]

    @property
    def call(self) -> int:
        """Number of the model that the current row asks (0 with one model; -1 when done)."""
        return self._shapes[self.row].call

    @property
    def calls(self) -> Tensor:
        """Model scalars of the calls to come: [n], or [n, E] where the model takes several."""
        times, rows = self._pool.table.times, range(self.row, self.end)
        rows = [row - 1 for row in rows if self._shapes[row].call >= 0]
        times = torch.stack([times[row] for row in rows]) if rows else times[:0]
        return times[:, 0] if times.shape[1] == 1 else times

    @property
    def model_input(self) -> Tensor:
        """What the model is asked with: c x, [copies*B,*] in the model dtype (the state itself
        where c = 1 throughout).
        """
        return self._input

    @property
    def x0(self) -> Tensor | None:
        """The last step's prediction of the data, [B,*]; None before the first step or with
        preview=False.
        """
        return self._pool.preview if self._seen else None

    @property
    def x(self) -> Tensor:
        """The state [B,*]. Assigning copies finite values in and refreshes the model input; a
        multistep plan keeps its history.
        """
        return self._pool.x

    @x.setter
    def x(self, value: Tensor) -> None:
        self.takes(value)
        self._pool.x.copy_(value.detach())
        self._refresh()

    def takes(self, value: Tensor) -> None:
        """Refuse what is no state: the sentences of an assignment to `x`."""
        fits = isinstance(value, Tensor) and value.shape == self.x.shape
        if not fits or not value.is_floating_point():
            raise ValueError(
                f"Run.x: {outputs.words(value)} was given for a state of {list(self.x.shape)}; a "
                "floating tensor of that shape is accepted"
            )
        transforms.refuse("Run.x", value)
        arguments.check_values("x", value)

    def bounds(self) -> Tensor:
        """s [B], for the caller to write before every step: from the first call on the prediction
        of a row is clamp(m, -s, s)/s; ones at first.
        """
        if self._pool.bound is None:
            with torch.inference_mode(False):
                ones = self._pool.x.new_ones(self._pool.batch)
            self._stand(replace(self._pool, bound=ones))
        return self._pool.bound

    def status(self) -> Tensor:
        """Status words [B] int32: 0, or of the first fault of a sample the low byte (1 bad row, 4
        bad output index, 8 non-finite state) and above it the row.
        """
        return self._pool.status

    # -- advancing ---------------------------------------------------------------------------------
    def step(self, f: Tensor | Sequence[Tensor | None], sure: bool = False) -> None:
        """Apply the current row to the model's output and move to the next.

        f: [B,*], or branch-major [G*B,*], or a list of G tensors [B,*] (None for a branch this row
        does not use), in the model dtype. sure: no transform is active, as a loop knows that has
        looked before its first row. Raises IndexError past the end; ValueError, TypeError or
        RuntimeError, one sentence, for outputs that do not fit (nothing is broadcast).
        """
        row = self.row
        if (
            not self._plain
            or f.__class__ is not Tensor
            or f.requires_grad
            or (not sure and watched())
            or not self._take(row, f)
        ):
            self._slow(f)
        self.row = row = row + 1  # as _on, whose call would cost a fiftieth of a short step
        self._seen = True
        if self._stops[row]:
            self._next_call()

    def carry(self, f: Tensor, x_in: Tensor | None = None, x_out: Tensor | None = None) -> None:
        """A step that reads the state at x_in and writes it to x_out, [B,*] as x is, in place of
        `x`, which is left alone: for loops whose state is theirs, and for the last row of a run.
        """
        if not self.carries(f, x_in, x_out):
            self._slow(f, x_in, x_out)
            self._on()

    def carries(self, f: Tensor, x_in: Tensor | None, x_out: Tensor | None) -> bool:
        """The same where all three are seen at a look to be as they must; else False, nothing done,
        for loops that say in their own words what was wrong.
        """
        fits = (
            self._plain
            and f.__class__ is Tensor
            and not f.requires_grad
            and not watched()
            and self._launch.carry(self.row, f, x_in, x_out)
        )
        if fits:
            self._on()
        return fits

    def _on(self) -> None:
        """Stand at the next row that asks a model."""
        self.row = row = self.row + 1
        self._seen = True
        if self._stops[row]:
            self._next_call()

    def faults(self) -> list[int]:
        """The samples whose status word is not 0; on a device this waits for it."""
        if self._clean():
            return []
        return [b for b, word in enumerate(self._pool.status.tolist()) if word]

    def _clean(self) -> bool:
        """Is every status word 0, as far as that is seen without waiting?"""
        return self._words is not None and self._words.tobytes() == self._zeros

    def finish(self) -> None:
        """Stand at the end: the rows that were left have run on this run's memory."""
        self.row, self._plain = self.end, False

    # -- inside ------------------------------------------------------------------------------------
    def _bind(self, table: pool.Table | None = None) -> None:
        """Look up once what every row needs; table: in place of the plan's shared one."""
        own = self._pool
        self._launch = launch = bound(self._choice, own)
        self._take, self._lies, self._seen, self._plain = launch.take, launch.lies, False, False
        self._input = own.x if own.model_input is None else own.model_input
        self._strides, self._dtype, self._device = own.x.stride(), own.x.dtype, own.x.device
        self._here, C = self._device.type == "cpu", own.channels
        apart = C is None or (self._here and C > MOST_CHANNELS)
        self._permuted = (apart or self._window is not None) and own.table.layout.L > 0
        here = self._here and own.batch > 0
        self._words = memoryview(own.status.numpy()).cast("B") if here else None
        self._zeros, self._offsets = bytes(4 * own.batch), np.arange(own.batch)
        if self._samples is not None:
            self._offsets = np.array(self._samples, np.int64)
        self._low, self._high = arguments.usual(own.x.numel())
        self._energy = arguments.sum_of_squares if native.MISSING or not here else native.energy
        self._late = None  # a seed that no row draws from, until somebody asks for it
        self._seed_words = own.seed.numpy() if here else None
        self.results = Results(own.x)
        # memory of its own, and what its results may leave behind
        self.bytes = own.bytes + KEPT * own.x.numel() * own.x.element_size()
        self._use(self.plan, table)

    def _stand(self, own: pool.Pool) -> None:
        """Go on where it stands, in other memory."""
        seen, armed, self._pool = self._seen, self._armed, own
        self._bind()
        self._seen, self._armed = seen, self._armed and armed
        self._plain = self._quick and self.row < self.end

    def _use(self, plan: Plan, table: pool.Table | None = None) -> None:
        """Go by this plan: its table, and what each of its rows does."""
        own, kept = self._pool, self._pool.table
        own.table = table or pool.table(plan, own.x.dtype, own.x.device)
        if own.table is not kept and hasattr(self._launch, "use"):
            self._launch.use(own.table)
        self._quick = own.x.numel() > 0 and self._draws is None and not self._permuted
        self.plan, self._shapes, self.end = plan, own.table.shapes, plan.rows - 1
        self.prepared = None  # what a compiled or captured loop made of this run and table
        self._stops = [shape.call < 0 for shape in self._shapes]
        # may plain noise begin it with one launch; the row whose x' is the end, if that row asks
        self._armed = self._quick and plan.sigma[0] != 0 and self.end > 1 and not self._stops[1]
        self.last = self.end - 1 if self.end and not self._stops[self.end - 1] else -1
        with torch.inference_mode(False):  # inference tensors do not count who writes to them
            times = own.table.times[:, None].expand(-1, own.copies * own.batch, -1).contiguous()
            self.times = (times[..., 0] if plan.E == 1 else times).unbind(0)

    def _begin(self, first: int, given: Tensor | None) -> None:
        """Stand at row `first` with the noise or latent given; None: noise is drawn."""
        own = self._pool
        self.row, self._seen, self._plain = first, False, False
        if given is None and self._window is None:
            self._choice.module.fill(own.x, own.seed, 0, own.stage)
        elif given is None:
            own.x.copy_(self._philox(0))
        elif first or given.dtype != self._dtype or not alike(given, self._strides):
            own.x.copy_(given)
            given = None
        if first == 0:
            self._launch(0, (), self._noise(0), given)
            self.row = 1
        else:
            self._refresh()
        self._next_call()

    def _next_call(self) -> None:
        """Run the rows that ask no model, up to the next that does or to the end."""
        while self.row < self.end and self._stops[self.row]:
            self._launch(self.row, (), self._noise(self.row))
            self.row += 1
        self._plain = self._quick and self.row < self.end

    def _refresh(self) -> None:
        own = self._pool
        if own.model_input is not None and self.row < self.end:
            c = own.table.f[self.row - 1, own.table.layout.at("c")]
            own.model_input.unflatten(0, (own.copies, -1)).copy_((c * own.x).to(own.model_dtype))

    def _noise(self, row: int) -> Sequence[Tensor | None]:
        """The draws of this row that do not come from the kernel's own Philox, one for each noise
        operand: the caller's, and every one where samples are a window, or lie in an order in which
        they cannot draw, or not as fast.
        """
        if self._draws is None and not self._permuted:
            return ()
        own, ids = self._pool, arguments.drawn(self.plan, row, self._pool.mask is not None)
        draws = (self._draws and self._draws(row)) or [None] * len(ids)
        if self._permuted:
            pairs = zip(draws, ids, strict=True)
            draws = [self._philox(k) if n is None and k is not None else n for n, k in pairs]
        draws = [n if n is None else pool.placed(n, own.x.stride(), own.x.dtype) for n in draws]
        return draws if any(n is not None for n in draws) else ()

    def given_noise(self) -> list[Sequence[Tensor | None]]:
        """For each row that is left the draws that the kernel does not make; [] where there are
        none.
        """
        if self._draws is None and not self._permuted:
            return []
        return [self._noise(row) for row in range(self.row, self.end)]

    def _philox(self, id_: int) -> Tensor:
        own = self._pool
        if self._window is not None:
            return self._window.noise(own.seed, own.stage, id_, own.x)
        n = torch.empty(own.x.shape, dtype=own.x.dtype, device=own.x.device)
        self._choice.module.fill(n, own.seed, id_, own.stage)
        return n

    def _slow(self, f, x_in: Tensor | None = None, x_out: Tensor | None = None) -> None:
        """A step whose model output was not taken at a look: checked, with its sentences."""
        transforms.refuse("Run.step", *(f if isinstance(f, (list, tuple)) else (f,)))
        if self.done:
            raise IndexError(
                f"Run.step: the plan's {self.plan.nfe} model rows have all run; restart(noise) "
                "begins again"
            )
        own, row = self._pool, self.row
        for name, v in (("x_in", x_in), ("x_out", x_out)):
            if v is not None and not (
                (v.shape, v.dtype, v.device) == (own.x.shape, own.x.dtype, own.x.device)
                and alike(v, self._strides)
            ):
                raise ValueError(
                    f"Run.carry: {name} is {v.dtype} {list(v.shape)} on {v.device}; a tensor that "
                    f"lies as the state, {own.x.dtype} {list(own.x.shape)}, is accepted"
                )
        self._launch(row, self._outputs(f), self._noise(row), x_in, x_out)

    def _outputs(self, f: Tensor | Sequence[Tensor | None], gradients=False) -> list[Tensor | None]:
        """The model's output as G tensors [B,*] that lie as the state does, checked."""
        own = self._pool
        needed = self._shapes[self.row].branches_needed(self.plan.layout)
        f = outputs.branches("Run.step", f, own.x, own.model_dtype, needed, self.row)
        if not gradients and any(v is not None and v.requires_grad for v in f):
            raise RuntimeError(
                "Run.step: the model's output requires grad, and a step keeps none; detach it "
                "(mean and log_prob take it as it is), or use torch.no_grad() or Sampler(..., "
                "differentiable=True)"
            )
        return [v if v is None else pool.placed(v, own.x.stride(), v.dtype) for v in f]
