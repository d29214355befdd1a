"""Random calls of fs_step, of every kind that its arguments allow: rows of plans and of no plan,
groups, places, absent branches, given noise, masks, wrong indices, odd addresses.
"""

import numpy as np
from c import interface, rows
from c.cases import FLOATS
from emulate.memory import Array, copied, faults, parts

SIZES = (0, 1, 3, 4, 8, 37, 64, 127, 128, 512, 1024, 4097, 4100)
ROWS = 6
ODD = (0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -3e-45, 3e38, 65519.9, 6e-8, 6.1e-5)
WRITTEN = ("x", "slots", "x_out", "model_input", "t_out", "preview", "status")


class Step:
    """One call: `arrays` by name, `sizes` and whether all samples run one row."""

    def __init__(self, seed):
        self.rng = rng = np.random.default_rng(seed)
        self.pick = lambda *values: values[rng.integers(len(values))]
        self.chance = lambda p: rng.random() < p
        # run: a plan's row for every sample, as a Run launches it; lean: a plan's rows; any: all
        self.kind = kind = self.pick("run", "run", "run", "lean", "any", "any")
        self.lean, self.one_row = kind != "any", kind == "run" or self.chance(0.3)
        self._sizes()
        whole = [k for k in (1, 2, 3, 4, 37, 64) if self.D % k == 0]
        self.channels = int(np.random.default_rng([seed, 1]).choice([0, 0, 0, 0, *whole]))
        self._table()
        self._arrays()
        if self.chance(0.3):
            self._spoil()

    def _sizes(self):
        pick, kind, lean = self.pick, self.kind, self.lean
        S = pick(*((0, 1, 2, 4, 7, 10, 11) if lean else (0, 1, 2, 3, 5, 12, 24)))
        G = pick(*((1, 1, 2, 3) if lean else (0, 1, 2, 3, 8)))
        L = pick(*((0, 0, 1, 1, 2) if lean else (0, 1, 2, 8)))
        K, E = pick(*((0, 1) if lean else (0, 1, 2, 8))), pick(0, 1, 2, 4)
        self.dims = S, G, L, K, E
        self.state = pick(
            "float32", "float32", "float32", "float64" if kind != "run" else "float32"
        )
        self.model = pick(*FLOATS, "float32")
        sizes = SIZES if kind != "run" or self.chance(0.2) else [n for n in SIZES if n % 4 == 0]
        self.B, self.D = pick(0, 1, 2, 2, 5), pick(*sizes)
        if self.D <= 8 and self.chance(0.4):
            self.B = 33
        self.groups, self.inner = 1, self.D % 3  # which nobody reads
        if self.D and not self.one_row and self.chance(0.6):
            if self.chance(0.1):  # more groups than threads, more blocks than those
                self.D = 8192
            many = (64,) if self.D == 8192 else (2, 3, 4, 8, 16, 37, 64)
            self.groups = pick(*[g for g in many if self.D % g == 0] or [1])
            inner = self.D // self.groups
            self.inner = pick(*[k for k in (1, 4, 8, 16, inner) if inner % k == 0])
        if self.groups > 1 and self.B == 33:
            self.B = 260  # more than a small grid has threads
        self.P, self.outputs = self.B + pick(0, 3), self.B + pick(0, 2)
        self.copies, self.offset = pick(1, 1, 3), pick(0, 0, 0, 1, 2, 3)
        self.offset *= kind != "run" or self.chance(0.1)
        self.wild = pick(0.0, 0.0, 0.02, 0.2)

    def _table(self):
        rng, (S, G, L, _, _) = self.rng, self.dims
        W, at, width = rows.offsets(*self.dims)
        F = rng.standard_normal((ROWS, width)).astype(FLOATS[self.state])
        F[:, at["clip"]] = np.where(rng.random(ROWS) < 0.5, 0, abs(F[:, at["clip"]]) + 0.1)
        bits = rng.random((ROWS, W)) < self.pick(0.2, 0.5, 0.9, 1.0)
        if self.lean:  # neither f nor f_g is an operand; mostly one slot is written
            bits[:, 2 + S : 3 + S + G] = False
            bits[:, 0] |= rng.random(ROWS) < 0.8
            bits[:, 1 + S] |= rng.random(ROWS) < 0.8
        reads = bits @ (1 << np.arange(W, dtype=np.int64))
        slot = lambda: rng.integers(-1, S, ROWS) if S else np.full(ROWS, -1)
        du, dv = slot(), slot()
        if self.lean:
            dv[rng.random(ROWS) < 0.9] = -1
        words = [
            reads & 0xFFFFFF,
            reads >> 24,
            np.where(rng.random(ROWS) < 0.5, 2**G - 1, rng.integers(0, 2**G, ROWS)),
            rng.integers(0, 2 ** (1 + L), ROWS),
            du,
            np.where(du == dv, -1, dv),
            np.zeros(ROWS, np.int64),
            *(rng.integers(0, 2**32, ROWS) for _ in range(L)),
        ]
        I = np.stack(words, 1).astype(np.uint32).view(np.int32)  # noqa: E741
        self.table = F, I

    def numbers(self, shape, name):
        """Numbers of a dtype, some of them odd."""
        v = self.rng.standard_normal(shape)
        v = np.where(self.rng.random(shape) < self.wild, self.rng.choice(ODD, shape), v)
        with np.errstate(all="ignore"):
            return rows.narrow(v, FLOATS[name])

    def _arrays(self):
        rng, (S, G, L, K, E), B, D, P = self.rng, self.dims, self.B, self.D, self.P
        T = FLOATS[self.state]
        put = lambda values: Array(values, self.offset)
        state = lambda *shape: put(self.numbers(shape, self.state))
        model = lambda *shape: put(self.numbers(shape, self.model))
        F, I = self.table  # noqa: E741
        row = rng.integers(0, ROWS, (B, self.groups)).astype(np.int32)
        self.row = int(rng.integers(0, ROWS))
        self.arrays = a = dict(table_f=put(F), table_i=put(I), row=put(row), x=state(P, D))
        a["slots"] = state(S, P, D)
        absent = 0.01 if self.lean else 0.15
        a["f"] = [None if self.chance(absent) else model(self.outputs, D) for _ in range(G)]
        given = not self.lean or self.chance(0.15)
        a["noise"] = [state(B, D) if given and self.chance(0.4) else None for _ in range(L)]
        out = lambda: Array(np.full((P, D), -7, T), self.offset)
        times = np.full((B, self.groups, E), -7, T if self.chance(0.3) else np.float32)
        rare, index = 0.05 if self.lean else 0.25, lambda v: put(v.astype(np.int32))
        often = 0.05 if self.kind == "run" else 0.4
        wishes = dict(
            place=(often, lambda: index(rng.permutation(P)[:B])),
            f_index=(often, lambda: index(self._outputs_of(G, B))),
            scale=(0.6, lambda: state(B, K)),
            seed=(0.7, lambda: put(rng.integers(0, 2**64, B, np.uint64))),
            stage=(0.4, lambda: put(rng.integers(0, 2**32, B, np.uint32))),
            noise_scale=(0.3, lambda: state(B)),
            weights=(rare, lambda: state(B, 1 + G)),
            bound=(rare, lambda: put(abs(self.numbers((B,), self.state)) + T(0.1))),
            preview=(0.4, lambda: state(B, D)),
            x_in=(0.3, lambda: state(P, D)),
            x_out=(0.3, out),
            model_input=(0.8, lambda: model(self.copies, B, D)),
            t_out=(0.7, lambda: put(times)),
            status=(0.9, lambda: put(rng.choice([0, 0, 0, 0x4300, 0x104], B).astype(np.int32))),
        )
        if self.chance(rare * 1.5):
            wishes |= dict.fromkeys(("mask", "known"), (1, lambda: self._mask(put)))
        a |= {name: make() for name, (p, make) in wishes.items() if self.chance(p)}

    def _outputs_of(self, G, B):
        at = self.rng.integers(0, max(self.outputs, 1), (G, B))
        return np.where(self.rng.random((G, B)) < 0.2, -1, at)

    def _mask(self, put):
        return put(self.numbers((self.pick(1, self.B) if self.B else 0, self.D), self.state))

    def _spoil(self):
        """An index outside its bounds, or a row outside its dims."""
        known = ("row", "place", "f_index", "table_i")
        name = self.pick(*(n for n in known if n in self.arrays and self.arrays[n].values.size))
        values = self.arrays[name].values
        if name == "table_i":
            S = self.dims[0]
            values[self.rng.integers(ROWS), self.pick(1, 2, 3, 4, 5)] = self.pick(
                S, S + 40, 1 << 20
            )
            return
        most = {"row": ROWS, "place": self.P, "f_index": self.outputs}[name]
        values[tuple(self.rng.integers(n) for n in values.shape)] = self.pick(-2, -1, most, most)
        if name == "row" and self.one_row:
            self.row = self.pick(-1, ROWS, 10**6)

    def args(self, arrays, device, words=True):
        S, G, L, K, E = self.dims
        at = lambda v: None if v is None else v.address
        held = {n: v for n, v in arrays.items() if not isinstance(v, list)}
        values = {name: at(array) for name, array in held.items()}
        for name in ("mask", "known"):
            if name in held:
                values[f"{name}_batch_stride"] = self.D if len(held[name].values) == self.B else 0
        if self.one_row:
            values |= dict(row=None, one_row=1, row_number=self.row)
            if words:  # those of some row where there is no such one
                row = self.row if 0 <= self.row < ROWS else 0
                values["row_words"] = self.arrays["table_i"].values[row].ctypes.data
        if "t_out" in held:
            values["t_dtype"] = interface.DTYPES[held["t_out"].values.dtype]
        args = interface.step_args(
            dict(S=S, G=G, L=L, K=K, E=E),
            device=device,
            batch=self.B,
            elements=self.D,
            pool=self.P,
            outputs=self.outputs,
            copies=self.copies,
            table_rows=ROWS,
            threads=1,
            state_dtype=interface.DTYPES[np.dtype(FLOATS[self.state])],
            model_dtype=interface.DTYPES[np.dtype(FLOATS[self.model])],
            **values,
        )
        args.groups, args.inner, args.channels = self.groups, self.inner, self.channels
        for name in ("f", "noise"):
            known = list(map(at, arrays[name]))
            pointers = getattr(args, name)
            pointers[:] = known + [1] * (len(pointers) - len(known))  # those behind are not read
        return args


def is_whole(case):
    """Does every quad of every array begin at a multiple of 16 bytes, of 8 where numbers have 16
    bits?
    """
    state = ["x", "slots", "x_in", "x_out", "mask", "known", "preview", "noise"]
    each = [(n, a) for n in (*state, "f", "model_input") for a in parts(case.arrays.get(n))]
    small = lambda name, a: 8 if name not in state and a.values.itemsize == 2 else 16
    quads = case.D % 4 == 0 and (case.groups == 1 or case.inner % 4 == 0)
    return quads and all(a.address % small(name, a) == 0 for name, a in each)


def expected_kernel(case):
    """The kernel that the table of rules asks for, worked out from the case."""
    S, G, L, _, _ = case.dims
    whole, a = is_whole(case), case.arrays
    if case.groups > 1:
        return "step_any(groups,whole)" if whole else "step_any(groups)"
    other = "step_any(whole)" if whole else "step_any"
    kept = ("place", "f_index", "weights", "bound", "mask")
    dtypes = case.state == "float32" and case.model != "float64"
    if not (whole and dtypes and case.one_row and 0 <= case.row < ROWS) or set(kept) & set(a):
        return other
    low, high, branches, known, du, dv = map(int, a["table_i"].values[case.row, :6])
    reads = low | high << 24
    part = lambda first, n: [k for k in range(n) if reads >> first + k & 1]
    m, f, direct, noises = (
        reads >> 1 + S & 1,
        reads >> 2 + S & 1,
        part(3 + S, G),
        part(3 + S + G, L),
    )
    mixed = [g for g in range(G) if branches >> g & 1] if m or "preview" in a else []
    fits = not (f or direct or dv >= 0 or len(noises) > 1 or reads >> 3 + S + G + L)
    sound = du < S and branches < 2**G and known < 2 ** (1 + L)
    sound = sound and all(a["f"][g] is not None for g in mixed)
    drawn = case.channels <= 1 and all(a["noise"][k] is None for k in noises)
    if not (fits and sound and (drawn or not noises)):
        return other
    for slots, most, noise in ((1, 1, 0), (4, 2, 0), (4, 2, 1), (10, 1, 0), (10, 2, 0)):
        if len(part(1, S)) <= slots and len(mixed) <= most and len(noises) <= noise:
            return f"step_uniform({slots},{most},{noise})"
    return other


def check(lib, seed, seen=lambda kernel, arrays: None):
    """Names of what the emulated kernels get wrong in case `seed`, by the CPU's and by the rules of
    launches. seen(kernel, arrays): told of which kernel wrote what.
    """
    case, words = Step(seed), seed % 8 != 0
    want, got = copied(case.arrays), copied(case.arrays)
    lib.fs_step(case.args(want, interface.CPU))
    lib.fs_emulated_order(seed % 7, seed % 2)
    name = expected_kernel(case) if words else None
    launches, own = lib.count(), lib.count(name)
    lib.fs_step(case.args(got, interface.CUDA, words))
    settles = case.groups > 1 and "status" in case.arrays
    expected = case.B and 1 + settles
    ran = lib.count() - launches == expected and (not name or lib.count(name) - own == bool(case.B))
    if name and case.B:
        seen(name, got)
    return faults(want, got) + ([] if ran else [f"not by {name}"])
