"""The row: what a plan's table holds, where each number of it stands, and what a row asks for.

A row of a plan with S slots, G branches, L noises, K guidance scales and E model scalars reads and
writes operands, one column of M each, W = 3 + S + G + L of them:

    x | r_1..r_S | m | f | f_1..f_G | n_1..n_L

`FIELDS` names every array of a plan. Packed for a kernel, a row is a record of floats, the float
fields one after the other in that order, and a record of 32-bit words, the whole-number fields in
that order with `reads` cut into its low 24 bits and the rest. csrc/core/row.h has the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .given import reals

if TYPE_CHECKING:
    from .plan import Plan

READS_SPLIT = 24  # bits of `reads` in its first word
CAPS = {"R": 65536, "S": 24, "G": 8, "L": 8, "K": 8, "E": 4}


class PlanError(ValueError):
    """A plan or plan file that cannot be used; says where, and what would be accepted."""


class Field(NamedTuple):
    """An array of a plan, [R, *shape]. shape: an axis a character, a digit or a letter of
    `Layout.size`. kind: float (float64) or int (int64). fill: what stands where nothing was said.
    within: the least and the largest number of an int field.
    """

    name: str
    shape: str
    kind: type
    fill: float = 0
    within: Callable[[Layout], tuple[int, int]] | None = None

    def array(self, value: Any, where: str) -> np.ndarray:
        """value as a read-only array of this kind, in memory of its own; PlanError, which begins
        with `where`, for what is not numbers or not whole.
        """
        if isinstance(value, np.ndarray) and value.dtype == self.kind:
            array = np.array(value, order="C")
            array.setflags(write=False)
            return array
        found = reals(value)
        if found is None:
            raise PlanError(
                f"{where}: {self.name} is not a regular array of numbers; shape "
                f"[{', '.join('R' + self.shape)}] is needed"
            )
        array = np.asarray(found, order="C")
        if self.kind is int:
            # from 2**53 on a float64 may stand for several whole numbers
            odd = ~((array == np.floor(array)) & (np.abs(array) < 2.0**53))
            if odd.any():
                raise PlanError(
                    f"{where}: {self.name} holds {array[odd][0]:g}, not a whole number; the words "
                    "of a row are whole"
                )
            array = array.astype(np.int64)
        array.setflags(write=False)
        return array


FIELDS = (
    Field("M", "3W", float),  # rows for x', u, v over the operands
    Field("p", "", float),
    Field("q", "", float),
    Field("clip", "", float),
    Field("U", "G", float),
    Field("V", "GK", float),
    Field("known", "Y", float),  # ky, Cy_1..Cy_L of the inpainting target
    Field("c", "", float),
    Field("t", "E", float),
    Field("preview", "2", float),
    Field("alpha", "", float),
    Field("sigma", "", float),
    Field("reads", "", int, 0, lambda at: (0, 2**at.W - 1)),
    Field("branches", "", int, 0, lambda at: (0, 2**at.G - 1)),
    Field("known_reads", "", int, 0, lambda at: (0, 2 ** (1 + at.L) - 1)),
    Field("dst", "2", int, -1, lambda at: (-1, at.S - 1)),
    Field("call", "", int, -1, lambda at: (-1, 255)),
    Field("ids", "L", int, -1, lambda at: (-1, 2**32 - 1)),
)
FLOATS = tuple(field for field in FIELDS if field.kind is float)
INTS = tuple(field for field in FIELDS if field.kind is int)
FILLED = tuple(field for field in FIELDS if field.fill)


class Layout(NamedTuple):
    """The sizes that a record depends on; plans of one layout share a table."""

    S: int
    G: int
    L: int
    K: int
    E: int

    @classmethod
    def of(cls, plan: Plan) -> Layout:
        """The layout of a plan, from the shapes of its arrays."""
        (G, K), L, E = plan.V.shape[1:], plan.ids.shape[1], plan.t.shape[1]
        return cls(plan.M.shape[2] - 3 - G - L, G, L, K, E)

    @property
    def W(self) -> int:
        """Operand columns of M; x is column 0."""
        return 3 + self.S + self.G + self.L

    def slot(self, s: int) -> int:
        """Column of slot s, counted from 0; like the four below, an operand of M."""
        return 1 + s

    @property
    def m(self) -> int:
        return 1 + self.S

    @property
    def f(self) -> int:
        return 2 + self.S

    def branch(self, g: int) -> int:
        return 3 + self.S + g

    def noise(self, k: int) -> int:
        return 3 + self.S + self.G + k

    def size(self, axis: str) -> int:
        """Length of a field's axis: a digit, a letter of the layout, W, or Y = 1 + L."""
        if axis.isdigit():
            return int(axis)
        return 1 + self.L if axis == "Y" else getattr(self, axis)

    def shape(self, field: Field) -> tuple[int, ...]:
        """Shape of the field in one row."""
        return tuple(map(self.size, field.shape))

    def at(self, name: str) -> int:
        """Where a field begins: in the float record, or in the record of words."""
        return _places(self)[name]

    @property
    def WF(self) -> int:
        """Numbers in the float record."""
        return _places(self)["floats"]

    @property
    def WI(self) -> int:
        """Words in the record of words."""
        return _places(self)["words"]

    def operand(self, column: int) -> str:
        """Name of a column: x, r0.., m, f, f0.., n0.. (slots, branches, noises from 0)."""
        named = lambda letter, count: [f"{letter}{k}" for k in range(count)]
        slots, branches, noises = named("r", self.S), named("f", self.G), named("n", self.L)
        return ["x", *slots, "m", "f", *branches, *noises][column]

    def columns_in(self, wider: Layout) -> list[int]:
        """Where each operand of this layout stands in a wider one."""
        x_and_slots, noises = range(1 + self.S), range(self.L)
        m_and_f = range(wider.m, wider.branch(self.G))
        return [*x_and_slots, *m_and_f, *(wider.noise(k) for k in noises)]


@lru_cache(maxsize=256)
def shapes(layout: Layout) -> list[tuple[int, ...]]:
    """The shape of every field in one row."""
    return [layout.shape(field) for field in FIELDS]


def blank(layout: Layout, rows: int) -> dict[str, np.ndarray]:
    """Every array of a plan of so many rows, filled with what stands where nothing was said."""
    pairs = zip(FIELDS, shapes(layout), strict=True)
    arrays = {field.name: np.zeros((rows, *shape), field.kind) for field, shape in pairs}
    for field in FILLED:
        arrays[field.name].fill(field.fill)
    return arrays


def moved(masks: np.ndarray, places: Iterable[tuple[int, int]]) -> np.ndarray:
    """Bit masks whose bit `old` stands at bit `new`, for each (old, new); other bits are gone."""
    return sum(((masks >> old) & 1) << new for old, new in places)


@lru_cache(maxsize=256)
def _places(layout: Layout) -> dict[str, int]:
    places, size = {}, {float: 0, int: 0}
    for field in FIELDS:
        places[field.name] = size[field.kind]
        size[field.kind] += prod(layout.shape(field)) + (field.name == "reads")
    return {**places, "floats": size[float], "words": size[int]}


class RowShape(NamedTuple):
    """What a row does, apart from its numbers: equal shapes share one compiled row.

    reads: bit k, operand k is read.  branches: bit g, f_g enters f.  known_reads: bit 0 y, bit
    1 + k n_k.  du, dv: slots written, -1 for none.  clips: m is bounded.  call: the model asked, -1
    for none.
    """

    reads: int
    branches: int
    known_reads: int
    du: int
    dv: int
    clips: bool
    call: int

    @property
    def dst(self) -> tuple[int, int]:
        return self.du, self.dv

    def reads_operand(self, column: int) -> bool:
        return bool(self.reads >> column & 1)

    def branches_needed(self, layout: Layout) -> tuple[bool, ...]:
        """For each branch: does the row need its output, in f or as an operand?"""
        own = self.reads >> layout.branch(0)
        return tuple(bool((self.branches | own) >> g & 1) for g in range(layout.G))

    def draws(self, layout: Layout, masked: bool) -> tuple[bool, ...]:
        """For each noise operand: does the row draw it? masked: there is a known image."""
        drawn = self.reads >> layout.noise(0) | (self.known_reads >> 1 if masked else 0)
        return tuple(bool(drawn >> k & 1) for k in range(layout.L))

    def slots_read(self, layout: Layout) -> tuple[int, ...]:
        return tuple(s for s in range(layout.S) if self.reads >> layout.slot(s) & 1)


class Program(NamedTuple):
    """A plan without its numbers: one compiled or captured graph serves every plan of a program."""

    layout: Layout
    rows: tuple[RowShape, ...]
