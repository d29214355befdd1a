"""Random steps for fs_step: each call fills every array, so that an unwritten number shows;
`expected` is the NumPy definition.
"""

import numpy as np
from c import interface, rows

FLOATS = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": np.uint16,
}
SEEDS = ("seed", "stage")


def random_table(rng, R, dims, dtype, dense=False):
    """(F [R,WF], I [R,WI]) with coefficients in [-1, 1], random read masks, branches, writes and
    ids.
    """
    S, G, L, K, E = dims
    W, at, width = rows.offsets(*dims)
    F = rng.uniform(-1, 1, (R, width)).astype(dtype)
    F[:, at["clip"]] = np.where(rng.random(R) < 0.4, rng.uniform(0.2, 1, R), 0)
    reads = np.array([rng.integers(0, 2**W) if not dense else 2**W - 1 for _ in range(R)], np.int64)
    slot = lambda: rng.integers(-1, S, R) if S else np.full(R, -1)
    du, dv = slot(), slot()
    dv = np.where(du == dv, -1, dv)
    words = [
        reads & 0xFFFFFF,
        reads >> 24,
        rng.integers(0, 2**G, R),
        rng.integers(0, 2 ** (1 + L), R),
        du,
        dv,
        np.zeros(R),
    ]
    I = np.stack([*words, *(rng.integers(0, 2**31, R) for _ in range(L))], 1).astype(np.int32)  # noqa: E741
    return F, I


def fused_table(rng, slots_read, noise, write, dims, dtype):
    """One row of the commonest shape: x, the first slots, m and perhaps a noise; a slot written or
    not.
    """
    S, G, L, K, E = dims
    F, I = random_table(rng, 1, dims, dtype)  # noqa: E741
    reads = 1 | ((1 << slots_read) - 1) << 1 | 1 << (1 + S) | (int(noise) << (3 + S + G))
    I[0, :6] = [reads & 0xFFFFFF, reads >> 24, (1 << G) - 1, 0, 0 if write else -1, -1]
    return F, I


class Case:
    """One call: its arrays, and what they must hold afterwards."""

    def __init__(
        self,
        rng,
        dims,
        table,
        *,
        B,
        D,
        P=None,
        dtype="float32",
        model="float32",
        groups=1,
        inner=None,
        copies=1,
        outputs=None,
        channels=0,
        **wish,
    ):
        self.dims, self.table, self.B, self.D = dims, table, B, D
        self.groups, self.copies, self.channels = groups, copies, channels
        S, G, L, K, E = dims
        T, self.P, self.inner = FLOATS[dtype], P or B, inner or D
        self.F, self.I = table
        number = lambda *shape: rng.standard_normal(shape).astype(T)
        outputs = outputs or B
        self.arrays = dict(
            x=number(self.P, D),
            slots=number(S, self.P, D),
            f=[rows.narrow(number(outputs, D), FLOATS[model]) for _ in range(G)],
            row=rng.integers(0, len(self.F), (B, groups)).astype(np.int32),
            status=np.zeros(B, np.int32),
            t_out=np.full((B, groups, E), -7, np.float32),
            model_input=rows.narrow(np.full((copies, B, D), -7.0), FLOATS[model]),
        )
        optional = dict(
            place=lambda: rng.permutation(self.P)[:B].astype(np.int32),
            f_index=lambda: rng.integers(0, outputs, (G, B)).astype(np.int32),
            scale=lambda: number(B, K),
            seed=lambda: rng.integers(0, 2**64, B, np.uint64),
            stage=lambda: rng.integers(0, 2**32, B, np.uint32),
            noise_scale=lambda: number(B),
            weights=lambda: number(B, 1 + G),
            bound=lambda: abs(number(B)) + T(0.1),
            noise=lambda: [number(B, D) for _ in range(L)],
            mask=lambda: rng.random((B, D)).astype(T),
            known=lambda: number(B, D),
            preview=lambda: np.full((B, D), -7, T),
            x_in=lambda: number(self.P, D),
            x_out=lambda: np.full((self.P, D), -7, T),
        )
        self.arrays |= {name: make() for name, make in optional.items() if wish.get(name)}
        self.model = FLOATS[model]
        self.one_row = bool(wish.get("one_row"))
        if self.one_row:
            self.arrays["row"][:] = self.arrays["row"][0, 0]
        if wish.get("wide_times"):
            self.arrays["t_out"] = self.arrays["t_out"].astype(T)

    def args(self, arrays=None, **changes):
        S, G, L, K, E = self.dims
        arrays = arrays or self.arrays
        strides = {
            f"{n}_batch_stride": self.D if arrays[n].shape[0] == self.B else 0
            for n in ("mask", "known")
            if n in arrays
        }
        sizes = dict(
            batch=self.B,
            elements=self.D,
            pool=self.P,
            outputs=len(arrays["f"][0]) if arrays["f"] else 0,
            groups=self.groups,
            inner=self.inner,
            copies=self.copies,
            channels=self.channels,
            table_rows=len(self.F),
            table_f=self.F,
            table_i=self.I,
        )
        if self.one_row:
            sizes |= dict(one_row=1, row_number=int(arrays["row"][0, 0]))
            changes.setdefault("row", None)
        dtypes = dict(
            state_dtype=interface.DTYPES[arrays["x"].dtype],
            t_dtype=interface.DTYPES[arrays["t_out"].dtype],
            model_dtype=interface.DTYPES[np.dtype(self.model)],
        )
        return interface.step_args(
            dict(S=S, G=G, L=L, K=K, E=E), **sizes, **dtypes, **strides, **{**arrays, **changes}
        )

    def clone(self):
        return {
            n: [v.copy() for v in a] if isinstance(a, list) else a.copy()
            for n, a in self.arrays.items()
        }

    def sample(self, a, b, i, old_x, old_slots):
        """Row i of sample b over all its elements."""
        S, G, L, K, E = self.dims
        T = old_x.dtype.type
        pick = lambda name: a[name][b] if name in a else None

        def n(k):
            if "noise" in a:
                value = a["noise"][k][b]
            else:
                seed, stage = (int(a[v][b]) if v in a else b * (v == "seed") for v in SEEDS)
                id_ = int(np.uint32(self.I[i, 7 + k]))
                drawn = rows.normals(seed, id_, self.D, stage=stage).astype(T)
                value = drawn.reshape(max(self.channels, 1), -1).T.flatten()
            return value * a["noise_scale"][b] if "noise_scale" in a else value

        at = [a["f_index"][g, b] if "f_index" in a else b for g in range(G)]
        f = [None if at[g] < 0 else rows.widen(a["f"][g][at[g]]).astype(T) for g in range(G)]
        return rows.one_row(
            self.dims,
            self.F[i],
            self.I[i],
            old_x,
            old_slots,
            f,
            n,
            scale=pick("scale"),
            weights=pick("weights"),
            bound=pick("bound"),
            mask=pick("mask"),
            known=pick("known"),
            preview="preview" in a,
        )

    def expected(self):
        """The arrays after the call."""
        a, before = self.clone(), self.arrays
        new = a.get("x_out", a["x"])
        group = (np.arange(self.D) // self.inner) % self.groups
        for b in range(self.B):
            k = before["place"][b] if "place" in before else b
            for g in range(self.groups):
                here = group == g
                out = self.sample(
                    before,
                    b,
                    int(before["row"][b, g]),
                    before.get("x_in", before["x"])[k],
                    [s[k] for s in before["slots"]],
                )
                x, written, model_input, t, image = out
                new[k][here] = x[here]
                for slot, value in written.items():
                    a["slots"][slot, k][here] = value[here]
                a["model_input"][:, b, here] = rows.narrow(model_input, self.model)[here]
                a["t_out"][b, g] = t
                if image is not None:
                    a["preview"][b][here] = image[here]
            bad = group[~np.isfinite(new[k])]
            if bad.size and not before["status"][b] & 255:
                a["status"][b] = 8 | before["row"][b, bad.min()] << 8
        return a


def differences(got, want):
    """Names of arrays whose bits differ (NaN equals NaN)."""
    same = lambda x, y: (
        x.tobytes() == y.tobytes() or (x.dtype.kind == "f" and np.array_equal(x, y, equal_nan=True))
    )
    flat = lambda v: v if isinstance(v, list) else [v]
    return [
        name
        for name in want
        if not all(same(x, y) for x, y in zip(flat(got[name]), flat(want[name]), strict=True))
    ]
