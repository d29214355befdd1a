"""The one table of cases for the kernels, shared by tests and benches: a base, and for each case
one thing that differs from it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from types import SimpleNamespace

import numpy as np
import torch

from fastsample.kernels import Layout
from fastsample.kernels.layout import BRANCHES, CALL, DU, DV, IDS, KNOWN_READS, READS_HI, READS_LO

STATES = (torch.float32, torch.float64)
MODELS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SIZES = (0, 1, 127, 4097)
LAYOUTS = ("contiguous", "strided", "offset", "transposed")


@dataclass(frozen=True)
class Case:
    """A batch for `step`: sizes, dims, dtypes, memory layout, and which optional arguments are
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
    numbers[:, at.p + 2] = np.where(np.arange(rows) % 2, np.abs(numbers[:, at.p + 2]) + 0.1, 0.0)
    words = np.zeros((rows, at.WI), np.int64)
    reads = rng.integers(0, 2, (rows, at.W)) @ (1 << np.arange(at.W, dtype=np.int64))
    # most rows read the prediction and every noise, whatever chance chose
    reads |= np.where(np.arange(rows) % 3, 1 << at.m, 0)
    reads |= np.where(np.arange(rows) % 3 != 1, ((1 << at.L) - 1) << at.n, 0)
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
    """Everything a call of `step` takes: positional arguments in `args`, the rest in `options`.
    Slots that no row of the batch reads hold NaN.
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
        p=numbers[:, at.p],
        q=numbers[:, at.p + 1],
        clip=numbers[:, at.p + 2],
        U=cut(at.U, at.G),
        V=cut(at.V, at.G * at.K).reshape(rows, at.G, at.K),
        known=cut(at.known, 1 + at.L),
        c=numbers[:, at.c],
        preview=cut(at.preview, 2),
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
