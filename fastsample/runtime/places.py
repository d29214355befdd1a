"""Places: the memory of an Engine, whose samples each run a row of their own, and the one piece of
numbers that goes to the device before a launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from ..kernels.backend import Choice, bound
from ..kernels.reference.step import NOT_FINITE
from ..plan.row import Layout
from . import pool
from .pool import Table
from .window import Window

REST = -1  # row number of a place that sits a launch out: outside the table, so left untouched
NOTHING = -0.0  # a guidance scale that adds nothing, not even to the sign of a zero


class Places:
    """A pool of P places [P,*], made by `fit` and grown by it; a sample stays in its place.

    host: arrays by name, copied to the device in one piece by `upload`: of each place its row [P],
    f_index [G,P], seed [P], stage [P] and scale [P,K], and of each row of the model's batch the
    place that it shows, index [N], and its t [N,E].
    """

    def __init__(
        self,
        size: Sequence[int],
        dtype: torch.dtype,
        model_dtype: torch.dtype,
        device: torch.device,
        preview: bool,
        choice: Choice,
    ) -> None:
        self._size, self._dtype, self._model_dtype = tuple(size), dtype, model_dtype
        self._device, self._preview, self._choice = device, preview, choice
        self.pool, self.host = None, {}

    def fit(self, table: Table, batch: int, masked: bool) -> None:
        """Go by this table; batch: the model's rows at most; masked: some sample has a mask."""
        own = self.pool
        if own is None or own.table.layout != table.layout or (masked and own.mask is None):
            self._grow(table, batch, masked)
        elif own.table is not table:
            own.table = table
            if hasattr(self.launch, "use"):
                self.launch.use(table)

    def bytes(self, layout: Layout, batch: int, masked: bool, steps: int) -> int:
        """What `fit` to a table of this layout takes at most, if it is in so many steps; while the
        places are moved, those before stand, too.
        """
        own = self.pool
        masked = masked or (own is not None and own.mask is not None)
        after = self._bytes(layout, batch, masked)
        if own is None:
            before = 0
        elif own.table.layout != layout or masked != (own.mask is not None):
            before = self._bytes(own.table.layout, self._batch.shape[0], False)
        else:
            return after
        return after + (before if steps == 1 else after)

    def _bytes(self, layout: Layout, batch: int, masked: bool) -> int:
        P, numbers = self._size[0], prod(self._size[1:])
        state, model = self._dtype.itemsize, self._model_dtype.itemsize
        memory = pool.staggered(P * numbers, self._dtype) * (1 + layout.S)
        words = sum(d.itemsize * prod(n) for d, n in self._words(layout, batch).values())
        samples = P * (self._preview + 2 * masked) * state + (P + batch) * model
        return memory + 2 * words + samples * numbers + P * torch.int32.itemsize

    def _words(self, at: Layout, batch: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Of each array of `host` its dtype and sizes."""
        whole, P = torch.int32, self._size[0]
        parts = {"seed": (torch.int64, (P,)), "scale": (self._dtype, (P, at.K))}
        parts |= {"t": (self._dtype, (batch, at.E)), "index": (whole, (batch,))}
        return parts | {"row": (whole, (P,)), "stage": (whole, (P,)), "f_index": (whole, (at.G, P))}

    def _grow(self, table: Table, batch: int, masked: bool) -> None:
        at, old, P = table.layout, self.pool, self._size[0]
        parts = self._words(at, batch)
        with torch.inference_mode(False):
            self._host, host = _parts(parts, "cpu")
            self._block, self._there = _parts(parts, self._device)
            names = "seed", "stage", "row", "f_index", *(["scale"] if at.K else [])
            words = {name: self._there[name] for name in names}
            for name in ("mask", "known"):
                words[name] = None if old is None else getattr(old, name)
                if masked and words[name] is None:
                    words[name] = torch.zeros(self._size, dtype=self._dtype, device=self._device)
            sizes, kind = (batch, *self._size[1:]), self._model_dtype
            self._batch = torch.empty(sizes, dtype=kind, device=self._device)
            one = torch.empty((1, *self._size[1:]), device=self._device)
            like = one.expand(self._size) if old is None else old.x
            options = {"own_input": True, "preview": self._preview, **words}
            self.pool = new = pool.empty(table, like, self._model_dtype, **options)
            if old is not None:
                new.slots[: old.slots.shape[0]].copy_(old.slots)
                for name in ("x", "status", "model_input", "preview")[: 3 + self._preview]:
                    getattr(new, name).copy_(getattr(old, name))
        before, self.host = self.host, {name: part.numpy() for name, part in host.items()}
        self.host["scale"].fill(NOTHING)
        for name, values in before.items():
            self.host[name][tuple(map(slice, values.shape))] = values
        self.launch = bound(self._choice, new)
        here = self._device.type == "cpu"
        self._status = new.status.numpy() if here else np.zeros(P, np.int32)

    def seat(
        self,
        k: int,
        given: Tensor | None,
        blend: Sequence,
        words: Sequence,
        before: int | None,
        window: Window | None,
    ) -> None:
        """Begin a sample in place k. given [1,*]: what it begins with, None: noise of its seed, in
        this window; blend: its mask and known image, or None; words: seed [1], stage [1] and scale
        [1,K] or None; before: None, or the table's row before the one where it enters.
        """
        own, place, host = self.pool, slice(k, k + 1), self.host
        x, (seed, stage, scale) = own.x[place], words
        host["seed"][k], host["stage"][k] = int(seed), 0 if stage is None else int(stage)
        host["scale"][k] = NOTHING
        if scale is not None:
            host["scale"][k, : scale.shape[1]] = scale
        if given is None:
            self._philox(k, 0, window, x)
        else:
            x.copy_(given)
        for memory, value in zip((own.mask, own.known), blend, strict=True):
            if value is not None:
                memory[place].copy_(value)
        if before is not None:
            c = own.table.f[before, own.table.layout.at("c")]
            own.model_input[place].copy_(c * x)
        own.status[place].zero_()

    def noise(self, drawing: Sequence[tuple]) -> list[Tensor | None]:
        """The L noise operands of a launch, [P,*] where one of the samples that draw is a window,
        else None, for the kernel to draw. drawing: for every sample of the launch its place, the
        ids that its row draws, and its window, or None.
        """
        made: list[Tensor | None] = [None] * self.pool.table.layout.L
        for k in range(len(made)):
            read = [(place, ids[k], part) for place, ids, part in drawing if k < len(ids)]
            read = [each for each in read if each[1] is not None]
            if any(part is not None for *_, part in read):
                made[k] = torch.zeros_like(self.pool.x)
                for place, name, part in read:
                    self._philox(place, name, part, made[k][place : place + 1])
        return made

    def _philox(self, k: int, name: int, window: Window | None, out: Tensor) -> None:
        """Fill out [1,*] with the noise of this id of the sample in place k."""
        here = slice(k, k + 1)
        seed, stage = (torch.from_numpy(self.host[name][here]) for name in ("seed", "stage"))
        if window is not None:
            out.copy_(window.noise(seed, stage, name, out))
        else:
            self._choice.module.fill(out, seed.to(self._device), name, stage.to(self._device))

    def copy(self, k: int, to: int) -> None:
        """Place `to` holds the sample of place k, as it is now."""
        own, host = self.pool, self.host
        held = own.x, own.model_input, own.preview, own.status, own.mask, own.known
        for memory in (*(v for v in held if v is not None), *own.slots):
            memory[to].copy_(memory[k])
        for name in ("seed", "stage", "scale"):
            host[name][to] = host[name][k]

    def upload(self) -> None:
        """What stands in `host` is what the next launch goes by."""
        pinned = self._host.pin_memory() if self._device.type == "cuda" else self._host
        self._block.copy_(pinned, non_blocking=True)

    def shown(self, n: int, here: slice | None) -> tuple[Tensor, Tensor]:
        """The model's batch [n,*], as it lies where its places follow one another, `here`, and its
        times [n] or [n,E]. Valid until the next launch.
        """
        x, t = self.pool.model_input, self._there["t"][:n]
        if here is not None:
            x = x[here]
        else:
            x = torch.index_select(x, 0, self._there["index"][:n], out=self._batch[:n])
        return x, t[:, 0] if t.shape[1] == 1 else t

    def faults(self) -> np.ndarray:
        """For each place [P], not 0 where its state is known to be non-finite. On the CPU, where a
        look waits for nothing; elsewhere nothing is known.
        """
        return self._status & NOT_FINITE

    def means(self, index: Tensor, f: Sequence, noise: Sequence) -> Tensor:
        """The states [n,*] that the next launch, of these outputs and this noise, gives the places
        index [n] int64 where it draws noise of scale 0.
        """
        own = self.pool.selected(index)
        own.noise_scale, own.f_index = own.x.new_zeros(len(index)), own.f_index[:, index]
        own.preview = own.model_input = None
        noise = [v if v is None else v.index_select(0, index) for v in noise]
        bound(self._choice, own)(None, f, noise)
        return own.x

    def status(self, k: int) -> int | None:
        """Status word of a place if its state is known to be non-finite, else 0; None where a look
        would wait for a device.
        """
        word = int(self._status[k])
        return word * (word & NOT_FINITE > 0) if self._device.type == "cpu" else None

    def copies(self, k: int) -> tuple[Tensor, Tensor | None]:
        """State [1,*] and preview [1,*] of a place, as they are now."""
        own, place = self.pool, slice(k, k + 1)
        with torch.inference_mode(False):
            x0 = own.preview[place].clone() if self._preview else None
            return own.x[place].clone(), x0


def _parts(parts: dict, device) -> tuple[Tensor, dict[str, Tensor]]:
    """Zeros: one piece of memory, and the tensors that stand in it one after the other, the wide
    ones first.
    """
    sizes = [dtype.itemsize * prod(shape) for dtype, shape in parts.values()]
    memory = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)
    pieces = zip(parts.items(), memory.split(sizes), strict=True)
    return memory, {name: piece.view(dtype).view(shape) for (name, (dtype, shape)), piece in pieces}
