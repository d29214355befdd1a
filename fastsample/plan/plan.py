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

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from . import card, consistency, text
from . import file as plan_file
from .checks import check, check_note
from .given import integer
from .note import frozen
from .numbers import with_numbers
from .row import FIELDS, Layout, PlanError, Program, RowShape, blank, moved


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
    note: dict[str, Any]

    # filled by fastsample.solvers and fastsample.guidance: a plan cannot import its makers
    _makers: ClassVar[dict[str, Callable]] = {}

    def __post_init__(self) -> None:
        for field in FIELDS:
            object.__setattr__(self, field.name, field.array(getattr(self, field.name), "plan"))
        check(self)
        object.__setattr__(self, "note", frozen(self.note))

    # -- identity ----------------------------------------------------------------------------------
    @cached_property
    def _content(self) -> bytes:
        """A digest of every array: shapes and bits."""
        digest = hashlib.sha256(repr(self.layout).encode())
        for array in self.numbers().values():
            digest.update(array)
        return digest.digest()

    def __hash__(self) -> int:
        return hash(self._content)

    def __eq__(self, other: object) -> bool:
        """Plans are equal whose arrays have the same bits and whose notes say the same."""
        if self is other:
            return True
        if not isinstance(other, Plan):
            return NotImplemented
        return self._content == other._content and self.note == other.note

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the plan's file without these 32 bytes, as the file's header and the C
        library's fs_info have it: 64 hexadecimal digits. PlanError where save refuses the note.
        """
        return plan_file.digest(self)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """From a pickle, checked like any other plan; what older ones had cached is left out."""
        self.__init__(**{field.name: state[field.name] for field in fields(self)})

    def __copy__(self) -> Plan:
        return self

    def __deepcopy__(self, memo: dict) -> Plan:
        return self

    # -- sizes -------------------------------------------------------------------------------------
    @property
    def rows(self) -> int:
        return self.M.shape[0]

    @cached_property
    def layout(self) -> Layout:
        """The sizes that a packed row depends on."""
        return Layout.of(self)

    @property
    def W(self) -> int:
        return self.layout.W

    @property
    def S(self) -> int:
        return self.layout.S

    @property
    def G(self) -> int:
        return self.layout.G

    @property
    def L(self) -> int:
        return self.layout.L

    @property
    def K(self) -> int:
        return self.layout.K

    @property
    def E(self) -> int:
        return self.layout.E

    @property
    def dims(self) -> dict[str, int]:
        return {"R": self.rows, **self.layout._asdict()}

    @property
    def nfe(self) -> int:
        """Model evaluations: one is one row's call of a model, however many branches it has."""
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

    @cached_property
    def program(self) -> Program:
        """Hashable structure: plans that differ in numbers alone share one compiled graph."""
        words = (self.reads, self.branches, self.known_reads, *self.dst.T, self.clip > 0, self.call)
        rows = zip(*(word.tolist() for word in words), strict=True)
        return Program(self.layout, tuple(RowShape(*row) for row in rows))

    @cached_property
    def entries(self) -> tuple[int, ...]:
        """Rows a run may start at: rows from which no slot written earlier is read."""
        live: set[int] = set()
        found = []
        for i, row in reversed([*enumerate(self.program.rows)][:-1]):
            live = live - {row.du, row.dv} | set(row.slots_read(self.layout))
            if not live:
                found.append(i)
        return tuple(reversed(found))

    def operand(self, column: int) -> str:
        """Name of an operand column: x, r0.., m, f, f0.., n0.., each counted from 0."""
        return self.layout.operand(column)

    # -- other forms -------------------------------------------------------------------------------
    table = plan_file.table
    to_bytes = plan_file.to_bytes
    from_bytes = classmethod(plan_file.from_bytes)
    to_json = plan_file.to_json
    from_json = classmethod(plan_file.from_json)
    save = plan_file.save
    load = classmethod(plan_file.load)
    describe = text.describe
    _repr_html_ = card.html

    def padded(self, **dims: int) -> Plan:
        """The same plan with larger S, G, L, K, E, for a pool of one width; padding is not read."""
        if not set(dims) <= set(Layout._fields):
            raise PlanError(f"padded: {', '.join(sorted(dims))} given; S, G, L, K and E can grow")
        counts = {name: integer(size) for name, size in dims.items()}
        for name, size in dims.items():
            count = counts[name]
            if count is None or count < self.dims[name]:
                is_no = "no whole number, beside" if count is None else "less than"
                raise PlanError(
                    f"padded: {name}={size!r:.60} is {is_no} the plan's own {self.dims[name]}; "
                    "pass at least that"
                )
        wide = self.layout._replace(**counts)
        columns, arrays = self.layout.columns_in(wide), blank(wide, self.rows)
        for field in FIELDS:
            old = getattr(self, field.name)
            place = (..., columns) if "W" in field.shape else tuple(map(slice, old.shape))
            arrays[field.name][place] = old
        return replace(self, **arrays | {"reads": moved(self.reads, enumerate(columns))})

    def numbers(self) -> dict[str, np.ndarray]:
        """Every array by its name, read-only: float64, then int64."""
        return {field.name: getattr(self, field.name) for field in FIELDS}

    with_numbers = with_numbers

    def with_note(self, **changes: object) -> Plan:
        """The same rows, not checked again, with entries of the note replaced or added."""
        twin, note = object.__new__(type(self)), {**self.note, **changes}
        check_note(note)
        twin.__dict__.update(self.__getstate__(), note=frozen(note))
        return twin

    def remake(
        self,
        start: int | None = None,
        *,
        strength: float | None = None,
        level: float | None = None,
        inpaint: bool | None = None,
    ) -> Plan:
        """Compile the same solver for an image, or with None for noise again, from this plan's own
        note.

        One of: start, an index into the grid; strength, the share of the steps that is run; level,
        the noise level sigma/alpha the image is noised to, for which the grid is made again to
        begin there, with as many steps. A plan for noise keeps this plan's init_scale; an
        image is noised to the schedule's own level, where a searched amplitude has no meaning: it
        is kept in the note, for a later remake(None). Rows that a search fitted are made again too:
        those that leave the schedule for noise alone. inpaint: whether rows blend a known image
        under a mask (rows that leave the schedule do not); None: as this plan's do.
        """
        words = {"strength": strength, "level": level, "inpaint": inpaint}
        return self._maker("remake", "solvers")(self, start, **words)

    def unguided(self) -> Plan:
        """The plan of one branch that `guidance.guided` made this one from. PlanError for a plan
        whose branches it did not make.
        """
        return self._maker("unguided", "guidance")(self)

    def _maker(self, name: str, module: str) -> Callable[..., Plan]:
        if name not in self._makers:
            raise PlanError(f"{name}: no makers are loaded; import fastsample.{module} first")
        return self._makers[name]

    # -- reading it --------------------------------------------------------------------------------
    def consistency(self) -> float:
        """Largest defect of the rows against the schedule when every prediction is exact.

        For data at one point x0 the exact model returns that x0, so x must stand at
        alpha x0 + sigma (unit noise) at every row's point; returned is the largest deviation of
        (alpha, sigma), relative to alpha + sigma. Near 1e-15 for a sound solver; distilled and
        learned tables (note: consistent = False) may leave the schedule by design.
        """
        return consistency.defect(self)

    def __repr__(self) -> str:
        sizes = f"nfe={self.nfe}, rows={self.rows}, slots={self.S}, branches={self.G}"
        return f"Plan({text.named(self)}, {sizes})"
