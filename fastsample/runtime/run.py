"""Run: one batch in flight through a plan, for loops that belong to somebody else.

    run = Run(plan, noise=z, seed=7)
    while not run.done:
        run.step(model(run.model_input, run.t))
    run.x

All memory is allocated once; `model_input`, `t`, `x` and `x0` are views of it, valid until the next
step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..kernels import native, select, transforms
from ..kernels.transforms import forward_ad, fx, tracing
from ..plan import Plan
from . import arguments, outputs, sources
from . import pool as inplace
from .pool import Buffers


class Run:
    """One batch of B samples, advanced one row a call.

    noise         [B,*] unit normal to start from; or shape = (B,*): drawn from the seeds
    latent        [B,*] instead: the clean image for a plan made with start= (noise= may stand
                  beside it); with start= the state there
    start         row to enter at, one of plan.entries, with the state at it, alpha x0 + sigma eps
                  (row 1 of a plan for noise, begun from noise alone: plan.init_scale times it); a
                  plan for noise needs it for a latent
    seed          int s (sample b takes s + b), B ints, or int64 [B]; None: a fresh s of torch's
                  default CPU generator, taken only where the run draws noise of its own (`seeds`
                  says which). Noise id 0 of a plan is the noise the run started with
    guidance      a number, K numbers, or a tensor [B,K]; [B] where K = 1
    noise_scale   a number or [B], times every draw of the plan (0: none)
    noise_source  instead of Philox: callable(row, id) -> [B,*], or a tensor for each noise id in
                  the order the rows first draw it
    mask, known   inpainting: mask in [0,1], 1 keeps the known image
    state_dtype   float32 or float64
    model_dtype   what the model gets and returns (by default that of the given noise or latent)
    copies        how often model_input and t repeat the batch
    preview       False: x0 is not formed
    backend       a wish, see fastsample.kernels.backend

    A model that writes into its input may write into the state. Raises ValueError or TypeError, one
    sentence, before any kernel.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        noise: Tensor | None = None,
        latent: Tensor | None = None,
        shape: Sequence[int] | None = None,
        seed=None,
        guidance=None,
        state_dtype: torch.dtype = torch.float32,
        model_dtype: torch.dtype | None = None,
        device=None,
        noise_scale=None,
        noise_source: Sequence[Tensor] | Callable | None = None,
        mask: Tensor | None = None,
        known: Tensor | None = None,
        start: int | None = None,
        preview: bool = True,
        copies: int = 1,
        backend: str | None = None,
    ) -> None:
        if not isinstance(plan, Plan):
            raise TypeError(f"Run: plan is a {type(plan).__name__}; a fastsample.Plan is needed")
        transforms.refuse("Run", noise, latent, seed, guidance, noise_scale, mask, known)
        given, size, device = arguments.start(
            noise, latent, shape, device, image=plan.sigma[0] == 0
        )
        self.plan, self._row = (
            plan,
            arguments.entry(plan, latent is not None, start, noise is not None, mask is not None),
        )
        model_dtype = model_dtype or (state_dtype if given is None else given.dtype)
        arguments.dtypes("Run", state_dtype, model_dtype)
        self._choice = select(device, state_dtype, backend)
        self._table, self._model_dtype = inplace.table(plan, state_dtype, device), model_dtype
        empty = lambda *lead, dtype=state_dtype: torch.empty(
            *lead, *size[1:], dtype=dtype, device=device
        )
        own_input = (
            copies != 1 or model_dtype != state_dtype or bool((plan.c[: plan.rows - 2] != 1).any())
        )
        mask, known = arguments.blend(plan, mask, known, size, state_dtype, device)
        scale = arguments.scales(plan, guidance, size[0], state_dtype, device)
        noise_scale = arguments.noise_scales(noise_scale, size[0], state_dtype, device)
        self._draws = sources.draws(
            noise_source, plan, size, state_dtype, device, mask is not None, noise
        )
        needed = given is None or sources.seeded(
            plan, self._row, noise, noise_source, noise_scale, mask is not None
        )
        self._seeded = seed is not None or needed
        rows = (
            torch.arange(plan.rows, dtype=torch.int32, device=device)[:, None]
            .expand(-1, size[0])
            .contiguous()
        )
        self._buffers = Buffers(
            empty(size[0]),
            empty(plan.S, size[0]),
            empty(copies * size[0], dtype=model_dtype) if own_input else None,
            empty(size[0]) if preview else None,
            torch.zeros(size[0], dtype=torch.int32, device=device),
            rows,
            scale,
            sources.seeds(seed, size[0], device, needed),
            noise_scale,
            mask,
            known,
            copies,
        )
        times = self._table.f[:, self._table.dims.c + 1 :][:, : plan.E]
        times = times[:, None, :].expand(-1, copies * size[0], -1).contiguous()
        self._times = (times[..., 0] if plan.E == 1 else times).unbind(0)
        self._bind()
        if given is None:
            self._choice.module.fill(self._buffers.x, self._buffers.seed, 0)
        else:
            self._buffers.x.copy_(given)
        if self._row:
            self._refresh()
        self._advance()

    # -- what a loop reads -------------------------------------------------------------------------
    @property
    def row(self) -> int:
        """The row that the next step runs; the last row of the plan holds."""
        return self._row

    @property
    def done(self) -> bool:
        return self._row >= self._end

    @property
    def t(self) -> Tensor:
        """Model scalars of the current row: [copies*B], or [copies*B, E] where the model takes
        several; state dtype.
        """
        return self._times[self._row - 1]

    @property
    def call(self) -> int:
        """Number of the model that the current row asks (0 with one model; -1 when done)."""
        return int(self.plan.call[self._row])

    @property
    def x0(self) -> Tensor | None:
        """The last step's prediction of the data, [B,*]; None before the first step or with
        preview=False.
        """
        return self._buffers.preview if self._seen else None

    @property
    def x(self) -> Tensor:
        """The state [B,*]. Assigning copies finite values in and refreshes the model input; a
        multistep plan keeps its history.
        """
        return self._buffers.x

    @x.setter
    def x(self, value: Tensor) -> None:
        if (
            not isinstance(value, Tensor)
            or value.shape != self.x.shape
            or not value.is_floating_point()
        ):
            raise ValueError(
                f"Run.x: {outputs.words(value)} was given for a state of {list(self.x.shape)}; a "
                "floating tensor of that shape is accepted"
            )
        transforms.refuse("Run.x", value)
        arguments.check_values("x", value)
        self._buffers.x.copy_(value.detach())
        self._refresh()

    @property
    def seeds(self) -> Tensor | None:
        """Seeds [B] int64 of the samples, given or drawn; seed=run.seeds draws the same again. None
        where none was given or needed.
        """
        return self._buffers.seed if self._seeded else None

    def status(self) -> Tensor:
        """Status words so far [B] int32: 0, or in the low byte bits 1 bad row, 4 bad output index,
        8 non-finite state, and above it the first row with a fault.
        """
        return self._buffers.status

    @property
    def std(self) -> Tensor:
        """Standard deviation [B] of the noise that the current row adds to x' (0 for a
        deterministic row); mean() is its mean.
        """
        first, ids = (
            3 + self.plan.S + self.plan.G,
            arguments.drawn(self.plan, self._row, masked=False),
        )
        drawn = [
            self.plan.M[self._row, 0, first + k]
            for k, number in enumerate(ids)
            if number is not None
        ]
        std = torch.full_like(
            self._buffers.x.new_empty(self.x.shape[0]), math.hypot(*drawn) if drawn else 0.0
        )
        return std if self._buffers.noise_scale is None else std * self._buffers.noise_scale.abs()

    # -- advancing ---------------------------------------------------------------------------------
    def step(self, f: Tensor | Sequence[Tensor | None]) -> None:
        """Apply the current row to the model's output and move to the next.

        f: [B,*], or branch-major [G*B,*], or a list of G tensors [B,*] (None for a branch this row
        does not use), in the model dtype. Raises IndexError past the end; ValueError, TypeError or
        RuntimeError, one sentence, for outputs that do not fit (nothing is broadcast).
        """
        try:
            address = (
                self._fast
                and f.__class__ is Tensor
                and not tracing()
                and not fx._is_fx_tracing_flag
                and forward_ad._current_level < 0
                and f.shape == self._shape
                and f.dtype is self._model_dtype
                and not f.requires_grad
                and f.is_cpu
                and f.is_contiguous()
                and f.data_ptr()
            )
        except RuntimeError:  # a tensor of torch.func has no address
            address = 0
        if address:
            self._kernel(self._address[self._row], address)
        else:
            transforms.refuse("Run.step", *(f if isinstance(f, (list, tuple)) else (f,)))
            if self._row >= self._end:
                raise IndexError(
                    f"Run.step: the plan's {self.plan.nfe} model rows have all run; make a new Run "
                    "to sample again"
                )
            self._apply(self._row, self._outputs(f))
        self._row += 1
        self._seen = True
        if self._stops[self._row]:
            self._advance()

    def mean(self, f: Tensor | Sequence[Tensor | None]) -> Tensor:
        """x' [B,*] of the current row at noise scale 0, without advancing. Refused where the row
        re-uses an earlier draw, which belongs to the mean.
        """
        transforms.refuse("Run.mean", *(f if isinstance(f, (list, tuple)) else (f,)))
        if self._row >= self._end:
            raise IndexError("Run.mean: the run is done; there is no row left to take the mean of")
        row, plan, b = self._row, self.plan, self._buffers
        masked = b.mask is not None
        earlier = {k for i in range(row) for k in arguments.drawn(plan, i, masked)} - {None}
        if earlier & set(arguments.drawn(plan, row, masked)):
            raise ValueError(
                f"Run.mean: row {row} re-uses noise of an earlier row; its mean at noise scale 0 "
                "would leave that draw out"
            )
        f = [b.x if t is None else t for t in self._outputs(f)]
        still = b._replace(
            noise_scale=b.x.new_zeros(b.x.shape[0]), preview=None, model_input=None
        ).copied()
        inplace.step(self._table, still, row, f, self._noise(row), self._model_dtype, self._choice)
        return still.x

    def __deepcopy__(self, memo: dict) -> Run:
        """A run of its own from here on: state copied, plan and table shared."""
        transforms.refuse("Run: a copy")
        twin = object.__new__(Run)
        twin.__dict__.update(self.__dict__)
        twin._buffers = self._buffers.copied()
        twin._bind()
        return twin

    # -- inside ------------------------------------------------------------------------------------
    @property
    def model_input(self) -> Tensor:
        """What the model is asked with: c x, [copies*B,*] in the model dtype (the state itself
        where c = 1 throughout).
        """
        return self._input

    def _bind(self) -> None:
        b, plan = self._buffers, self.plan
        self._input = b.x if b.model_input is None else b.model_input
        self._shape, self._device, self._end, self._seen = (
            b.x.shape,
            b.x.device,
            plan.rows - 1,
            getattr(self, "_seen", False),
        )
        self._stops = [c < 0 for c in plan.call.tolist()]
        self._kernel = (
            inplace.bind(self._table, b, self._model_dtype)
            if self._choice.name == "native"
            else None
        )
        self._address = [b.rows.data_ptr() + 4 * b.rows.shape[1] * k for k in range(plan.rows)]
        self._simple = (
            self._kernel is not None and plan.G == 1 and self._draws is None and b.x.numel() > 0
        )
        self._fast = False

    def _advance(self) -> None:
        """Run the rows that ask no model, up to the next that does or to the end."""
        while self._row < self._end and self._stops[self._row]:
            self._apply(self._row, [None] * self.plan.G)
            self._row += 1
        self._fast = self._simple and self._row < self._end

    def _refresh(self) -> None:
        if self._buffers.model_input is not None and self._row < self._end:
            c = self._table.f[self._row - 1, self._table.dims.c]
            b = self._buffers
            b.model_input.view(b.copies, *b.x.shape).copy_((c * b.x).to(self._model_dtype))

    def _noise(self, row: int) -> list[Tensor]:
        """The caller's draws for this row, one for each noise operand; empty with Philox."""
        draws = [] if self._draws is None else self._draws(row)
        return draws if any(n is not None for n in draws) else []

    def _apply(self, row: int, f: list[Tensor | None]) -> None:
        noise = self._noise(row)
        if self._kernel is None:
            inplace.step(self._table, self._buffers, row, f, noise, self._model_dtype, self._choice)
            return
        if self._draws is not None:
            self._kernel.set("noise", [native.address(n) for n in noise])
        self._kernel(self._address[row], *(native.address(v) for v in f))

    def _outputs(self, f: Tensor | Sequence[Tensor | None]) -> list[Tensor | None]:
        """The model's output as G contiguous tensors [B,*], checked."""
        G = self.plan.G
        outputs.check(
            "Run.step",
            f,
            self._buffers.x,
            self._model_dtype,
            [self._uses(g) for g in range(G)],
            self._row,
        )
        if isinstance(f, Tensor):
            f = [f] if G == 1 else f.unflatten(0, (G, self._shape[0])).unbind(0)
        if any(v is not None and v.requires_grad for v in f):
            raise RuntimeError(
                "Run.step: the model's output requires grad, and a Run keeps none; use "
                "torch.no_grad() or Sampler(..., differentiable=True)"
            )
        return [None if v is None else v.contiguous() for v in f]

    def _uses(self, g: int) -> bool:
        return bool(
            (
                self.plan.branches[self._row] >> g
                | self.plan.reads[self._row] >> (3 + self.plan.S + g)
            )
            & 1
        )
