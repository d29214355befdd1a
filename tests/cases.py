"""The one table of cases for the kernels, shared by tests and benches: a base, and for each case
one thing that differs from it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from importlib import import_module
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

from fastsample.kernels import backend as choices
from fastsample.kernels.backend import bound, select
from fastsample.plan.row import Layout, RowShape
from fastsample.runtime import pool as pools

_WORDS = Layout(0, 0, 0, 0, 0)
READS_LO, BRANCHES, KNOWN_READS, DU, CALL, IDS = map(
    _WORDS.at, ("reads", "branches", "known_reads", "dst", "call", "ids")
)
READS_HI, DV = READS_LO + 1, DU + 1
STATES = choices.STATES
MODELS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SIZES = (0, 1, 127, 4097)
LAYOUTS = ("contiguous", "strided", "offset", "transposed")


def backends(kernel: str = "step", wished: bool = False) -> list[str]:
    """Every backend that has the kernel for float32 on the CPU, the definition first; wished: those
    too that run there only where they are asked for.
    """
    last, *others = reversed(choices.BACKENDS)
    module = lambda name: import_module(f"fastsample.kernels.{name}")
    covers = lambda name: module(name).covers(kernel, torch.device("cpu"), torch.float32)
    offered = lambda name: wished or "cpu" not in getattr(module(name), "WISHED", ())
    return [last, *(name for name in others if offered(name) and covers(name) is None)]


BACKENDS = backends()


@dataclass(frozen=True)
class Case:
    """A batch for a launch: sizes, dims, dtypes, memory layout, and which optional arguments are
    given.
    """

    elements: int = 37
    batch: int = 3
    S: int = 2
    G: int = 2
    L: int = 1
    K: int = 1
    E: int = 1
    state: torch.dtype = torch.float32
    model: torch.dtype = torch.float32
    layout: str = "contiguous"
    groups: int = 1
    mask: bool = False
    given_noise: bool = False
    weights: bool = False
    bound: bool = False
    noise_scale: bool = False

    def __str__(self) -> str:
        changed = [
            f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if getattr(self, f.name) != f.default
        ]
        return "-".join(changed).replace("torch.", "") or "base"


BASE = Case()
VARY = {
    "elements": SIZES,
    "batch": (0, 1, 9),
    "S": (0, 1, 24),
    "G": (1, 8),
    "L": (0, 3, 8),
    "K": (0, 8),
    "E": (2, 4),
    "state": STATES[1:],
    "model": MODELS[1:],
    "layout": LAYOUTS[1:],
    "mask": (True,),
    "given_noise": (True,),
    "weights": (True,),
    "bound": (True,),
    "noise_scale": (True,),
}
CASES = [
    BASE,
    *(replace(BASE, **{name: value}) for name, values in VARY.items() for value in values),
    replace(BASE, groups=6, elements=36),
    replace(BASE, groups=4, elements=4 * 3 * 5, mask=True),
    replace(BASE, groups=6, elements=36, L=2),
    replace(BASE, state=torch.float64, model=torch.bfloat16),
    replace(BASE, batch=1, elements=70001, S=1, G=1),
]


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values [B, n] in another memory layout."""
    batch, n = tensor.shape
    if layout == "strided":
        wide = torch.full((batch, 3 * n + 1), torch.nan, dtype=tensor.dtype)
        wide[:, 1::3] = tensor
        return wide[:, 1::3]
    if layout == "offset":
        flat = torch.full((batch * n + 1,), torch.nan, dtype=tensor.dtype)
        flat[1:] = tensor.flatten()
        return flat[1:].view(batch, n)
    return tensor.t().contiguous().t() if layout == "transposed" else tensor


def random_table(rng: np.random.Generator, at: Layout, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers [rows, WF] float64 and words [rows, WI] int32 of random rows. Every second row has a
    bound for m; slots read are any of the S.
    """
    numbers = rng.standard_normal((rows, at.WF))
    numbers[:, at.at("clip")] = np.where(
        np.arange(rows) % 2, np.abs(numbers[:, at.at("clip")]) + 0.1, 0.0
    )
    words = np.zeros((rows, at.WI), np.int64)
    reads = rng.integers(0, 2, (rows, at.W)) @ (1 << np.arange(at.W, dtype=np.int64))
    # most rows read the prediction and every noise, whatever chance chose
    reads |= np.where(np.arange(rows) % 3, 1 << at.m, 0)
    reads |= np.where(np.arange(rows) % 3 != 1, ((1 << at.L) - 1) << at.noise(0), 0)
    words[:, READS_LO], words[:, READS_HI] = reads & 0xFFFFFF, reads >> 24
    words[:, BRANCHES] = rng.integers(0, 1 << at.G, rows)
    words[:, KNOWN_READS] = rng.integers(0, 1 << (1 + at.L), rows)
    words[:, DU] = words[:, DV] = -1
    if at.S:
        words[:, DU] = rng.integers(-1, at.S, rows)
        words[:, DV] = np.where(rng.integers(0, 2, rows), (words[:, DU] + 1) % at.S, -1)
        words[:, DV] = np.where(words[:, DV] == words[:, DU], -1, words[:, DV])
    words[:, CALL] = 0
    words[:, IDS:] = rng.integers(0, 2**32, (rows, at.L))
    return numbers, words.astype(np.uint32).view(np.int32)


def make(case: Case, seed: int = 0, rows: int = 7) -> SimpleNamespace:
    """Everything `launched` takes: positional arguments in `args`, the rest in `options`. Slots
    that no row of the batch reads hold NaN.
    """
    rng = np.random.default_rng([seed, case.elements, case.batch, case.S, case.G, case.L, case.K])
    at = Layout(case.S, case.G, case.L, case.K, case.E)
    numbers, words = random_table(rng, at, rows)
    normal = lambda *shape: torch.from_numpy(rng.standard_normal(shape))
    state = lambda: laid_out(normal(case.batch, case.elements).to(case.state), case.layout)
    row = torch.from_numpy(
        rng.integers(0, rows, (case.batch, case.groups) if case.groups > 1 else case.batch)
    )
    slots = [state() for _ in range(case.S)]
    read = 0
    for r in row.flatten().tolist():
        read |= int(words[r, READS_LO]) | int(words[r, READS_HI]) << 24
    for s, slot in enumerate(slots):
        if not read >> (1 + s) & 1:
            slot.fill_(torch.nan)
    f = [
        laid_out(normal(case.batch, case.elements).to(case.model), case.layout)
        for _ in range(case.G)
    ]
    options = {
        "seed": torch.from_numpy(rng.integers(-(2**62), 2**62, case.batch)),
        "scale": normal(case.batch, case.K).to(case.state) if case.K else None,
        "noise_scale": normal(case.batch).to(case.state) if case.noise_scale else None,
        "weights": normal(case.batch, 1 + case.G).to(case.state) if case.weights else None,
        "bound": normal(case.batch).abs().add(0.1).to(case.state) if case.bound else None,
        "noise": [state() for _ in range(case.L)] if case.given_noise else [],
        "mask": torch.from_numpy(rng.random((case.batch, case.elements))).to(case.state)
        if case.mask
        else None,
        "known": state() if case.mask else None,
        "inner": case.elements // (2 * case.groups) if case.groups > 1 else 0,
        "model_dtype": case.model,
        "preview": True,
    }
    if case.groups > 1 and case.elements % (2 * case.groups):
        options["inner"] = case.elements // case.groups
    tables = torch.from_numpy(numbers).to(case.state), torch.from_numpy(words)
    return SimpleNamespace(
        case=case, at=at, args=(state(), slots, f, *tables, row, at), options=options
    )


def shape_of(at: Layout, numbers: torch.Tensor, words: torch.Tensor) -> RowShape:
    """What the row with these numbers [WF] and words [WI] does."""
    word = words.tolist()
    reads = word[READS_LO] | word[READS_HI] << 24
    clips = bool(numbers[at.at("clip")] > 0)
    return RowShape(reads, word[BRANCHES], word[KNOWN_READS], word[DU], word[DV], clips, word[CALL])


def table_of(at: Layout, numbers: torch.Tensor, words: torch.Tensor) -> pools.Table:
    """A table of rows that no plan made."""
    shapes = tuple(shape_of(at, *row) for row in zip(numbers, words, strict=True))
    ids = tuple(tuple(k & 0xFFFFFFFF for k in row[IDS:]) for row in words.tolist())
    return pools.Table(numbers.contiguous(), words.contiguous(), at, shapes, ids)


NAMES = ("x'", "u", "v", "model_input", "x0", "status", "slots")


class Launched(NamedTuple):
    """What stands in a pool after a launch. u, v [P,*]: the slots that a sample's row writes, +0
    where it writes none, or its status forbids it to run.
    """

    x: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor
    model_input: torch.Tensor
    x0: torch.Tensor
    status: torch.Tensor
    slots: torch.Tensor


def pooled(x, slots, numbers, words, row, at: Layout, *, model_dtype, preview=True, **rest):
    """A pool of these samples in memory of its own; what a launch is to write holds NaN. row: [B]
    or [B, groups], or an int, which is no part of a pool.
    """
    whole = lambda v: None if v is None else v.int().contiguous()
    made = pools.empty(
        table_of(at, numbers, words),
        x,
        model_dtype,
        own_input=True,
        preview=preview,
        row=None if isinstance(row, int) else whole(row),
        **{"mask": None, "known": None, **rest, "f_index": whole(rest.get("f_index"))},
    )
    made.x.copy_(x)
    for own, given in zip(made.slots, slots, strict=True):
        own.copy_(given)
    made.model_input.fill_(torch.nan)
    if preview:
        made.preview.fill_(torch.nan)
    return made


def launched(x, slots, f, numbers, words, row, at, *, backend, noise=(), **options) -> Launched:
    """One launch of a backend on a pool of these samples. row: a row for each sample [B], for each
    group of it [B, groups], or an int for all. options: as `pooled` takes them.
    """
    held = pooled(x, slots, numbers, words, row, at, **options)
    launch = bound(select("step", held.x.device, held.x.dtype, backend), held)
    launch(row if isinstance(row, int) else None, *lying(held, f, noise))
    return results(held, row)


def lying(held: pools.Pool, f, noise=()) -> tuple[list, list]:
    """Outputs and draws as a launch takes them: dense, in the memory format of the pool."""
    strides = held.x.stride()
    f = [v if v is None else pools.placed(v, strides, held.model_dtype) for v in f]
    return f, [pools.placed(n, strides, held.x.dtype) for n in noise]


def results(held: pools.Pool, row) -> Launched:
    """What the launch at `row` left in a pool whose samples stand at their own places."""
    rows = torch.full((held.batch,), row) if isinstance(row, int) else row
    ran = (held.status & 7 == 0).view(-1, *[1] * (rows.dim() - 1)) & (rows >= 0)
    words = held.table.i[torch.where(ran, rows, 0).long()]
    groups, inner = (rows.shape[1], held.inner) if rows.dim() == 2 else (1, held.elements)
    group = torch.arange(held.elements) // max(inner, 1) % groups
    flat, written = held.slots.flatten(2), []
    for word in (DU, DV):
        value = torch.zeros_like(held.x).flatten(1)
        slot = torch.where(ran, words[..., word], -1).view(held.batch, groups)[:, group]
        for s in range(held.table.layout.S):
            value = torch.where(slot == s, flat[s], value)
        written.append(value.view(held.x.shape))
    x0 = held.x.new_empty(0) if held.preview is None else held.preview
    return Launched(held.x, *written, held.model_input, x0, held.status, held.slots)


def as_plan(at: Layout, numbers: np.ndarray, words: np.ndarray) -> SimpleNamespace:
    """A table as the interpreter's plan: arrays under their names, in the table's own precision."""
    rows = len(numbers)
    cut = lambda start, width: numbers[:, start : start + width]
    return SimpleNamespace(
        S=at.S,
        G=at.G,
        L=at.L,
        K=at.K,
        E=at.E,
        W=at.W,
        rows=rows,
        M=cut(0, 3 * at.W).reshape(rows, 3, at.W),
        p=numbers[:, at.at("p")],
        q=numbers[:, at.at("q")],
        clip=numbers[:, at.at("clip")],
        U=cut(at.at("U"), at.G),
        V=cut(at.at("V"), at.G * at.K).reshape(rows, at.G, at.K),
        known=cut(at.at("known"), 1 + at.L),
        c=numbers[:, at.at("c")],
        preview=cut(at.at("preview"), 2),
        reads=words[:, READS_LO].astype(np.int64) | words[:, READS_HI].astype(np.int64) << 24,
        branches=words[:, BRANCHES],
        known_reads=words[:, KNOWN_READS],
        dst=words[:, [DU, DV]],
        ids=words[:, IDS:].astype(np.int64) & 0xFFFFFFFF,
    )


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, signs of zeros included; any NaN equals any NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    nan = a.isnan() & b.isnan()
    return bool((nan | ((a == b) & (a.signbit() == b.signbit()))).all())


def louder(plan, amplitude=1.3):
    """The plan begun at amplitude times its noise, as a search writes it: in row 0 alone."""
    M = plan.M.copy()
    M[0, 0, 0] *= amplitude
    return replace(plan, M=M)
