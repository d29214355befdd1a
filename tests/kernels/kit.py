"""What every kernel of every backend goes through: configurations drawn at random, each in one
regime, on memory that is fenced and holds NaN.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from cases import MODELS, READS_LO, STATES, Case, lying, make, pooled

from fastsample.kernels.backend import bound, select

FENCE, BYTE = 256, 0xA5  # bytes before and behind what a kernel writes, and what they hold
REGIMES = {
    "normal": lambda n, rng: n,
    "tiny": lambda n, rng: n * 1e-15,
    "large": lambda n, rng: n * 1e15,
    "mixed rows": lambda n, rng: n * 10.0 ** rng.integers(-6, 6, (len(n), *[1] * (n.ndim - 1))),
    "zeros": lambda n, rng: np.where(rng.random(n.shape) < 0.9, np.copysign(0.0, n), n),
    "skewed": lambda n, rng: np.exp(2 * n),
}


class Fences:
    """Memory of a device between bytes that nobody may write to."""

    def __init__(self, device: str = "cpu"):
        self.device, self._around = device, []

    def there(self, given):
        """What a kernel is given, on the device: tensors among what is None, in lists or plain."""
        if isinstance(given, (list, tuple)):
            return [self.there(v) for v in given]
        return given.to(self.device) if isinstance(given, torch.Tensor) else given

    def memory(self, shape, dtype: torch.dtype, strides=None) -> torch.Tensor:
        """A tensor of NaN, or of the largest integer; strides: of a tensor without gaps."""
        made = torch.empty(shape, dtype=dtype, device="meta")
        inner = made.numel() * made.element_size()
        whole = torch.full((2 * FENCE + inner,), BYTE, dtype=torch.uint8, device=self.device)
        self._around.append(whole)
        own = whole[FENCE : FENCE + inner].view(dtype)
        own.fill_(torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max)
        return own.as_strided(shape, made.stride() if strides is None else strides)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        strides = torch.empty_like(tensor, device="meta").stride()
        return self.memory(tensor.shape, tensor.dtype, strides).copy_(tensor)

    @contextlib.contextmanager
    def around_what_is_made(self):
        """Within this, what a tensor's new_empty and new_zeros make is fenced."""
        kept = torch.Tensor.new_empty, torch.Tensor.new_zeros

        def empty(like, *shape, dtype=None, **_):
            shape = shape if isinstance(shape[0], int) else shape[0]
            return self.memory(shape, like.dtype if dtype is None else dtype)

        torch.Tensor.new_empty = empty
        torch.Tensor.new_zeros = lambda *shape, **options: empty(*shape, **options).zero_()
        try:
            yield
        finally:
            torch.Tensor.new_empty, torch.Tensor.new_zeros = kept

    def whole(self) -> bool:
        """Is every fence as it was?"""
        return all(
            bool((side == BYTE).all()) for v in self._around for side in (v[:FENCE], v[-FENCE:])
        )


class Draw:
    """The random numbers of one configuration."""

    def __init__(self, kernel: str, index: int):
        self.rng = np.random.default_rng([index, len(kernel)])
        self.regime = list(REGIMES)[index % len(REGIMES)]

    def one(self, *of):
        return of[int(self.rng.integers(len(of)))]

    def whole(self, low: int, high: int, *shape) -> torch.Tensor:
        return torch.from_numpy(self.rng.integers(low, high, shape))

    def plain(self, *shape) -> torch.Tensor:
        return torch.from_numpy(self.rng.standard_normal(shape))

    def numbers(self, shape, dtype: torch.dtype) -> torch.Tensor:
        """Numbers of the regime, those beyond the dtype's at its ends; three of every tenth tensor
        are not finite.
        """
        most = torch.finfo(dtype).max
        wide = REGIMES[self.regime](self.rng.standard_normal(shape), self.rng)
        numbers = torch.from_numpy(wide).clamp(-most, most).to(dtype)
        if self.one(*[False] * 9, True) and numbers.numel():
            for at in self.rng.integers(0, numbers.numel(), 3):
                numbers.view(-1)[at] = self.one(torch.nan, torch.inf, -torch.inf)
        return numbers


# A configuration of a kernel: (backend, fences) -> what the kernel wrote.
Run = Callable[[str, Fences], list[torch.Tensor]]
WRITTEN = ("x", "slots", "model_input", "preview", "status")
LYING = ("x", "slots", "model_input", "preview", "mask", "known")  # as samples do


def step(draw: Draw) -> Run:
    """A row for all, or for each sample or group, good or bad, with any of what a pool may hold."""
    one = draw.one
    groups, inner = one(*[(1, 0)] * 5, (2, 3), (3, 1))
    batch, elements = one(1, 2, 3), 4 * groups * inner if inner else one(1, 6, 16, 37, 126, 127)
    words = dict(S=one(0, 1, 2, 4), G=one(1, 2, 2, 3), L=one(0, 1, 1, 2), K=one(0, 1, 2))
    words |= dict(state=one(STATES[0], *STATES), model=one(*MODELS), groups=groups)
    words |= {name: one(False, True) for name in ("mask", "weights", "bound", "noise_scale")}
    case = Case(elements, batch, **words, given_noise=one(False, False, True))
    setup = make(case, int(draw.rng.integers(2**16)))
    x, slots, f, *table, row, at = setup.args
    table[1][0, READS_LO : READS_LO + 2] = 0  # a row that reads nothing, and writes zeros
    like = lambda v: v if v.isnan().any() else draw.numbers(v.shape, v.dtype)
    noise = [one(n, None) for n in setup.options.pop("noise")]
    options = {**setup.options, "preview": one(False, True), "copies": one(1, 1, 2)}
    options |= {"inner": inner, "stage": one(None, None, draw.whole(-(2**31), 2**31, batch).int())}
    for name in ("mask", "known") if case.mask else ():
        options[name] = one(options[name], options[name][:1])  # one for all samples
    number = one(None, int(draw.rng.integers(8)))
    if number is None and one(False, False, True):
        row[-1] = one(-1, 7)
    row = row if number is None or groups > 1 else number
    held = pooled(like(x), list(map(like, slots)), *table, row, at, **options)
    held.status.copy_(torch.tensor([one(0, 0, 0, 3 << 8, 8 | 5 << 8) for _ in range(batch)]))
    if number is None and one(False, True):
        ran = max(1, batch - 1)  # samples of the launch, fewer than of the pool
        held.place = torch.from_numpy(draw.rng.permutation(batch + one(0, 0, 1))[:ran]).int()
        taken = one((-1, 0), (-1, batch + 2), *[(0, batch + 1)] * 3)
        held.f_index = draw.whole(*taken, at.G, ran).int()
        held.row, f = held.row[:ran].contiguous(), [torch.cat([v, v[:1]]) for v in f]
    whole = [n for n in (2, 3, 8) if elements % n == 0 and isinstance(row, int)]
    C = one(1, *whole)
    last = lambda v: v if v is None or C == 1 else v.unflatten(-1, (-1, C)).mT  # channels last
    held = replace(held, **{name: last(getattr(held, name)) for name in LYING})
    noise = list(map(last, noise))
    f = lying(held, [last(one(*[like(v)] * 3, None)) for v in f])
    ends = [last(one(None, draw.numbers((batch, elements), case.state))) for _ in "io"]

    def run(backend: str, fences: Fences) -> list[torch.Tensor]:
        there, at = [name for name in WRITTEN if getattr(held, name) is not None], held.table
        own = {name: fences.there(value) for name, value in vars(held).items() if name != "table"}
        own |= {name: fences.copy(getattr(held, name)) for name in there}
        own = replace(held, table=at._replace(f=fences.there(at.f), i=fences.there(at.i)), **own)
        x_in, x_out = fences.there(ends[0]), None if ends[1] is None else fences.copy(ends[1])
        launch = bound(select("step", fences.device, case.state, backend), own)
        launch(number, fences.there(f[0]), fences.there(noise), x_in, x_out)
        return [*(getattr(own, name) for name in there), *([] if x_out is None else [x_out])]

    return run


def fill(draw: Draw) -> Run:
    batch, elements = draw.one(1, 2, 3), draw.one(1, 3, 37, 127, 1030)
    seed, dtype = draw.whole(-(2**62), 2**62, batch), draw.one(*STATES)
    number = int(draw.rng.integers(2**32))
    stage = draw.one(None, draw.whole(-(2**31), 2**31, batch).int())

    def run(backend: str, fences: Fences) -> list[torch.Tensor]:
        out = fences.memory((batch, elements), dtype)
        module = select("step", fences.device, dtype, backend).module
        module.fill(out, fences.there(seed), number, fences.there(stage))
        return [out]

    return run


def plain(kernel: str, dtype: torch.dtype, *given) -> Run:
    """A kernel that makes what it gives."""

    def run(backend: str, fences: Fences) -> list[torch.Tensor]:
        with fences.around_what_is_made():
            module = select(kernel, fences.device, dtype, backend).module
            got = getattr(module, kernel)(*fences.there(given))
        return list(got) if isinstance(got, tuple) else [got]

    run.given = given
    return run


def moments(draw: Draw) -> Run:
    P, Q, dtype = draw.one(1, 1, 2), draw.one(0, 1, 3, 5), draw.one(*MODELS)
    shape = draw.one(1, 2), draw.one(1, 16, 127, 1024, 2100)
    groups = [[draw.numbers(shape, dtype) for _ in range(count)] for count in (P, Q)]
    return plain("moments", dtype, *groups)


def jumps(draw: Draw) -> tuple:
    """U, c, X, band, p. Every third lies on a curve of small steps, where near ties decide."""
    R, B, I, J = draw.one(1, 2, 3), draw.one(1, 2), draw.one(1, 3, 6), draw.one(1, 4, 7)  # noqa: E741
    D, dtype, p = (
        draw.one(1, 37, 128, 300, 8300),
        draw.one(*MODELS),
        draw.one(1.0, 2.0, 2.0, 0.5, 2.5),
    )
    c, low = draw.plain(R, I, J), draw.whole(0, J + 1, I)
    band = torch.stack([low, draw.whole(0, J + 1, I)], 1).int()
    if draw.regime in ("normal", "skewed") and draw.one(False, True):
        curve = 0.01 * draw.plain(B, I + J, D).cumsum(1) + draw.plain(B, 1, D)
        c = torch.cat([1 + 1e-3 * c[:1], 1e-3 * c[1:]])
        dtype, p, band[:] = torch.float32, 2.0, torch.tensor([0, J], dtype=torch.int32)
        U = [curve[:, :I], *(draw.plain(B, I, D) for _ in range(R - 1))]
        return [u.to(dtype) for u in U], c, curve[:, I:].to(dtype), band, p
    U = [draw.numbers((B, I, D), dtype) for _ in range(R)]
    return U, c, draw.numbers((B, J, D), dtype), band, p


def cost_matrix(draw: Draw) -> Run:
    U, c, X, band, p = jumps(draw)
    return plain("cost_matrix", X.dtype, U, c, X, band, p)


def cost_gather(draw: Draw) -> Run:
    U, c, X, _, _ = jumps(draw)
    shape = draw.one((X.shape[1],), X.shape[:2])
    return plain("cost_gather", X.dtype, U, c, draw.whole(-1, c.shape[1], *shape))
