"""The Plan: a sampler compiled into one small table, a row per model evaluation.

Row i of a plan, applied to a sample with state x, slots r_1..r_S and G raw model outputs f_1..f_G::

    f          = sum_g w_g f_g                              w_g = U_g + sum_s scale_s V_gs
    m          = clip(p x + q f)                            the prediction, in the stored kind
    [x' u v]   = M [x, r_1..r_S, m, f, f_1..f_G, n_1..n_L]  r_du <- u, r_dv <- v
    x'        += mask (ky y + sum_l Cy_l n_l - x')          only with a mask and a known image y
    c x'       -> model input, t -> model scalars           of row i+1, kept in row i

Row 0 calls no model: it takes unit noise (or an image) to the first point of the grid. The last row
holds: x' = x.
Everything is float64 and immutable; makers are in `fastsample.solvers`, the file format in
`fastsample.plan.file`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from . import file as plan_file
from .checks import FLOATS, INTS, check, slots_read
from .file import CAPS, PlanError
from .row import Layout, Program, RowShape

__all__ = ["CAPS", "Plan", "PlanError"]


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A compiled sampler. Arrays (float64, then int64), with R rows, S slots, G branches, L noises,
    K scales, E model scalars, W = 3+S+G+L:

    M [R,3,W]           rows for x', u, v over the operands x, r_1..r_S, m, f, f_1..f_G, n_1..n_L
    p, q [R]            prediction m = p x + q f
    clip [R]            |m| <= clip, 0 = no clip
    U [R,G], V [R,G,K]  weights of the branches in f
    known [R,1+L]       ky, Cy_1..Cy_L of the inpainting target
    c [R], t [R,E]      input scale and model scalars of the next row
    preview [R,2]       dx, dm with x0 = dx x + dm m
    alpha, sigma [R]    signal and noise level of x as the row begins (row 0: 0, 1 for noise or
                        1, 0 for an image; last row: the end)
    reads [R]           bit k: operand k is read
    branches [R]        bit g: f_g enters f
    known_reads [R]     bit 0: y is read, bit 1+l: n_l
    dst [R,2]           slots that u and v are written to, -1 for none
    call [R]            number of the model asked in this row, -1 for none
    ids [R,L]           noise ids, 0..2**32-1, -1 for none
    note                JSON-able dict: solver, stored kind, schedule, prediction, grid, how it was
                        found, citations

    Raises PlanError, one sentence, for anything inconsistent.
    """

    M: np.ndarray
    p: np.ndarray
    q: np.ndarray
    clip: np.ndarray
    U: np.ndarray
    V: np.ndarray
    known: np.ndarray
    c: np.ndarray
    t: np.ndarray
    preview: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    reads: np.ndarray
    branches: np.ndarray
    known_reads: np.ndarray
    dst: np.ndarray
    call: np.ndarray
    ids: np.ndarray
    note: dict

    # filled by fastsample.solvers: a plan cannot import its makers
    _makers: ClassVar[dict[str, Callable]] = {}

    def __post_init__(self) -> None:
        for name, dtype in [*((n, np.float64) for n in FLOATS), *((n, np.int64) for n in INTS)]:
            array = np.array(getattr(self, name), dtype=dtype, order="C")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        check(self)

    # -- sizes -------------------------------------------------------------------------------------
    @property
    def rows(self) -> int:
        return self.M.shape[0]

    @property
    def W(self) -> int:
        return self.M.shape[2]

    @property
    def G(self) -> int:
        return self.U.shape[1]

    @property
    def L(self) -> int:
        return self.ids.shape[1]

    @property
    def S(self) -> int:
        return self.W - 3 - self.G - self.L

    @property
    def K(self) -> int:
        return self.V.shape[2]

    @property
    def E(self) -> int:
        return self.t.shape[1]

    @property
    def dims(self) -> dict[str, int]:
        return {"R": self.rows, "S": self.S, "G": self.G, "L": self.L, "K": self.K, "E": self.E}

    @property
    def nfe(self) -> int:
        """Model evaluations: rows that call a model. One evaluation is one row's call, however many
        branches it has.
        """
        return int((self.call >= 0).sum())

    @property
    def init_scale(self) -> float:
        """M[0,0,0]: what row 0 multiplies unit noise by, sigma of the first point times the
        amplitude that a search found (sigma before churn: row 0 draws that beside it).
        x = init_scale·noise stands at row 1. PlanError for a plan that starts from an image.
        """
        if self.sigma[0] == 0:
            raise PlanError(
                "init_scale: the plan was made with start= and begins from an image; a plan that "
                "begins from noise has one"
            )
        return float(self.M[0, 0, 0]) if self.reads[0] & 1 else 0.0

    @property
    def stored(self) -> str:
        """Kind of the prediction m: x0, eps, flow or d."""
        return self.note.get("stored", "x0")

    @property
    def layout(self) -> Layout:
        """The sizes that a packed row depends on."""
        return Layout(self.S, self.G, self.L, self.K, self.E)

    @cached_property
    def program(self) -> Program:
        """Hashable structure: plans with equal programs share one compiled or captured graph; only
        numbers differ between them.
        """
        words = (self.reads, self.branches, self.known_reads, *self.dst.T, self.clip > 0, self.call)
        rows = zip(*(word.tolist() for word in words), strict=True)
        return Program(self.layout, tuple(RowShape(*row) for row in rows))

    @cached_property
    def entries(self) -> tuple[int, ...]:
        """Rows a run may start at: rows from which no slot written earlier is read."""
        live, found = 0, []
        for i in range(self.rows - 1, -1, -1):
            for d in self.dst[i]:
                if d >= 0:
                    live &= ~(1 << int(d))
            live |= slots_read(self, i)
            if live == 0 and i < self.rows - 1:
                found.append(i)
        return tuple(reversed(found))

    def operand(self, column: int) -> str:
        """Name of an operand column: x, r0.., m, f, f0.., n0.. (slots, branches and noises counted
        from 0).
        """
        return self.layout.operand(column)

    # -- other forms -------------------------------------------------------------------------------
    def table(self, dtype: type | str = np.float32) -> tuple[np.ndarray, np.ndarray]:
        """The rows as kernels read them: (numbers [R, WF] of `dtype`, words [R, 7+L] int32),
        rounded once. Layout: csrc/core/row.h.
        """
        return plan_file.records(self, dtype)

    def padded(self, **dims: int) -> Plan:
        """The same plan with larger S, G, L, K, E (a pool of plans shares one width). Padding is
        never read.
        """
        if not set(dims) <= set("SGLKE"):
            raise PlanError(f"padded: {', '.join(sorted(dims))} given; S, G, L, K and E can grow")
        size = {**self.dims, **dims}
        for name in "SGLKE":
            if size[name] < self.dims[name]:
                raise PlanError(
                    f"padded: {name}={size[name]} is less than the plan's own {self.dims[name]}; "
                    "pass at least that"
                )
        S, G, L, R = size["S"], size["G"], size["L"], self.rows
        new = _columns(self.S, self.G, self.L, S, G)
        M = np.zeros((R, 3, 3 + S + G + L))
        M[:, :, new] = self.M
        reads = sum(((self.reads >> k) & 1) << int(n) for k, n in enumerate(new))
        grow = {"U": (R, G), "V": (R, G, size["K"]), "known": (R, 1 + L), "t": (R, size["E"])}
        wide = {name: _grown(getattr(self, name), shape, 0) for name, shape in grow.items()}
        return replace(self, M=M, reads=reads, ids=_grown(self.ids, (R, L), -1), **wide)

    def with_note(self, **changes: object) -> Plan:
        """The same rows with entries of the note replaced or added."""
        return replace(self, note={**self.note, **changes})

    def remake(self, start: int | float | None = None) -> Plan:
        """Compile the same solver on grid[start:] for an image, or with None for noise again, from
        this plan's own note.

        `start` is a grid index or a strength. A plan for noise keeps this plan's init_scale; an
        image is noised to the schedule's own level, where a searched amplitude has no meaning: it
        is kept in the note, for a later remake(None).
        """
        maker = self._makers.get("remake")
        if maker is None:
            raise PlanError("remake: no makers are loaded; import fastsample.solvers first")
        return maker(self, start=start)

    def save(self, path: object) -> None:
        """Write a .fsplan file, whole or not at all."""
        plan_file.save(self, path)

    @classmethod
    def load(cls, path: object) -> Plan:
        """Read a .fsplan file; PlanError, one sentence, for anything but a sound one."""
        return plan_file.load(path, cls)

    def to_bytes(self) -> bytes:
        return plan_file.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        return plan_file.decode(data, cls)

    def to_json(self) -> str:
        return plan_file.to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        return plan_file.from_json(text, cls)

    # -- reading it --------------------------------------------------------------------------------
    def consistency(self) -> float:
        """Largest defect of the rows against the schedule when every prediction is exact.

        For data at one point x0 the exact model returns that x0, so x must stand at
        alpha x0 + sigma (unit noise) at every row's point. The rows are run on coefficient vectors
        over (x0, start noise, every drawn noise); returned is the largest deviation of
        (alpha, sigma), relative to alpha + sigma. Near 1e-15 for a sound solver; distilled and
        learned tables (note: consistent = False) may leave the schedule by design.
        """
        # a foreign table may hold any finite number; its defect is then inf
        with np.errstate(all="ignore"):
            defects = [
                max(abs(a - alpha), abs(s - sigma)) / (alpha + sigma)
                for a, s, alpha, sigma in self._exact_levels()
            ]
        return float(max(np.nan_to_num(defects, nan=np.inf), default=0.0))

    def _exact_levels(self) -> Iterator[tuple[float, ...]]:
        """(alpha, sigma) of x with exact predictions, then as the plan has them, row by row."""
        ids = sorted({int(k) for k in self.ids.ravel() if k >= 0})
        noises = {k: 2 + n for n, k in enumerate(ids)}
        width, m, drawn = 2 + len(noises), 1 + self.S, 3 + self.S + self.G
        x0 = np.zeros(width)
        x0[0] = 1.0
        read = self.M * ((self.reads[:, None] >> np.arange(self.W)) & 1)[:, None]
        # x, r_1..r_S, m, f, f_1..f_G, n_1..n_L of the row at hand
        operands = np.zeros((self.W, width))
        for i in range(self.rows):
            if i == 1:  # where the run starts, whatever label its noise was given
                operands[0] = 0.0
                operands[0, :2] = self.alpha[1], self.sigma[1]
            if i >= 1:
                spread = float(np.sqrt((operands[0, 1:] ** 2).sum()))
                yield operands[0, 0], spread, self.alpha[i], self.sigma[i]
            operands[m], operands[m + 1 : drawn] = self._exact_prediction(i, operands[0], x0)
            operands[drawn:] = 0.0
            for k, noise in enumerate(self.ids[i]):
                if noise >= 0:
                    operands[drawn + k, noises[int(noise)]] = 1.0
            x, *kept = read[i] @ operands
            for d, value in zip(self.dst[i], kept, strict=True):
                if d >= 0:
                    operands[1 + d] = value
            operands[0] = x

    def _exact_prediction(
        self, i: int, x: np.ndarray, x0: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        a, s = self.alpha[i], self.sigma[i]
        if self.call[i] < 0:
            return self.p[i] * x, np.zeros_like(x)
        m = x0 if self.stored == "x0" else (x - (a + s if self.stored == "flow" else a) * x0) / s
        f = (m - self.p[i] * x) / self.q[i] if self.q[i] else np.zeros_like(x)
        return m, f

    def describe(self) -> str:
        """The plan as a readable table."""
        return plan_file.describe(self)

    def __repr__(self) -> str:
        sizes = f"nfe={self.nfe}, rows={self.rows}, slots={self.S}, branches={self.G}"
        return f"Plan({self.note.get('solver', 'unnamed')!s}, {sizes})"


def _columns(S: int, G: int, L: int, new_S: int, new_G: int) -> np.ndarray:
    """Where each operand column of an (S, G, L) plan stands in a plan with new_S slots and new_G
    branches.
    """
    old = np.arange(3 + S + G + L)
    return old + np.where(old > S, new_S - S, 0) + np.where(old >= 3 + S + G, new_G - G, 0)


def _grown(array: np.ndarray, shape: tuple[int, ...], fill: float) -> np.ndarray:
    out = np.full(shape, fill, array.dtype)
    out[tuple(slice(n) for n in array.shape)] = array
    return out
