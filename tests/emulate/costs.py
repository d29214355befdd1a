"""Random calls of fs_cost_matrix, to the bound of its roundings, and of fs_cost_gather, by bits."""

import numpy as np
from c import interface, rows
from c.cases import FLOATS
from emulate.memory import Array, copied, faults
from emulate.moments import with_workspace


class Costs:
    def __init__(self, seed):
        self.rng = rng = np.random.default_rng(seed)
        pick = lambda *values: values[rng.integers(len(values))]
        self.R, self.B = pick(1, 2, 3, 4), pick(0, 1, 2, 3, 3)
        self.I, self.J = pick(0, 1, 2, 3, 3, 4, 8, 9, 13), pick(0, 1, 7, 8, 9, 33, 40, 40)
        self.D = pick(0, 1, 3, 4, 64, 64, 127, 516, 4097, 8196)
        self.dtype, self.p = pick(*FLOATS), pick(2.0, 2.0, 2.0, 2.0, 1.0, 0.5, 1.7)
        # whole: small whole numbers, no sum of which is rounded; near: of one term, which X is but
        # for its last bit
        self.regime = pick("normal", "near", "whole" if self.p in (1, 2) else "normal")
        self.R, offset = 1 if self.regime == "near" else self.R, pick(0, 0, 0, 1)
        T, (B, I, J, D) = FLOATS[self.dtype], (self.B, self.I, self.J, self.D)  # noqa: E741
        whole = lambda most, *shape: rng.integers(-most, most + 1, shape).astype(float)
        number = lambda *shape: (
            whole(8, *shape) if self.regime == "whole" else rng.standard_normal(shape)
        )
        U, X = [rows.narrow(number(B, I, D), T) for _ in range(self.R)], number(B, J, D)
        c = rng.uniform(-1, 1, (self.R, I, J))
        if self.regime == "whole":
            c = whole(2, self.R, I, J)
        if self.regime == "near" and I:
            at, j = np.arange(J) % I, np.arange(J)
            X = rows.widen(U[0])[:, at] * c[0, at, j, None]
        one = rng.random() < 0.5
        bands = [rng.integers(-1, J + 1, I), rng.integers(0, J + 2, I)]
        self.arrays = dict(
            U=[Array(u, offset) for u in U],
            c=Array(c),
            X=Array(rows.narrow(X, T), offset),
            band=pick(None, Array(np.stack(bands, 1).astype(np.int32))),
            i_star=Array(rng.integers(-1, I, (1 if one else B, J)).astype(np.int32)),
        )
        self.stride = 0 if one else J

    def args(self, arrays, device, out):
        values = {n: arrays[n] and arrays[n].address for n in ("c", "X", "band", "i_star")}
        args = interface.CostArgs(
            device=device,
            dtype=interface.DTYPES[np.dtype(FLOATS[self.dtype])],
            terms=self.R,
            batch=self.B,
            I=self.I,
            J=self.J,
            D=self.D,
            i_star_batch_stride=self.stride,
            p=self.p,
            out=out.address,
            threads=1,
            **values,
        )
        known = [u.address for u in arrays["U"]]
        args.U[:] = known + [1] * (len(args.U) - len(known))  # those behind are not read
        return args

    def bounds(self):
        """(the costs [B,I,J] in float64, how far a kernel's may lie from them)."""
        T = np.float64 if self.dtype == "float64" else np.float32
        exact = np.longdouble if self.D <= 127 and self.regime != "whole" else np.float64
        U, (X,) = ([rows.widen(u.values).astype(exact) for u in us] for us in self._tensors())
        unit, own, gap, slack = np.finfo(T).eps / 2, np.finfo(exact).eps / 2, -X[:, None], 0
        for u, c in zip(U, self.arrays["c"].values.astype(T).astype(exact), strict=True):
            term = u[:, :, None] * c[None, :, :, None]
            gap = gap + term  # rounded once by the kernel, twice here
            slack = slack + unit * abs(gap) + own * (abs(gap) + abs(term))
        gap, slack = abs(gap), slack * (1 + 8 * unit)
        want = (gap**self.p).mean(-1)
        if self.regime == "whole":
            return want, 0 * want
        off = ((gap + slack) ** self.p - np.maximum(gap - slack, 0) ** self.p).mean(-1)
        # tiles: as many sums in T as a lane has elements of a strip; the rest in float64
        wide = 16 // np.dtype(T).itemsize
        adds = min(256, -(-self.D // (32 * wide)) * wide) * (expected_kernel(self) == "cost_tiles")
        return want, off + (adds * unit + (self.D // 32 + 64) * 2.0**-53) * (want + off)

    def _tensors(self):
        return self.arrays["U"], [self.arrays["X"]]

    def outside(self):
        """Pairs [I,J] that the band leaves out."""
        band, at = self.arrays["band"], np.arange(self.J)
        if band is None:
            return np.zeros((self.I, self.J), bool)
        return (at < band.values[:, :1]) | (at >= band.values[:, 1:])


def expected_kernel(case):
    """The kernel that squares, or pairs of rows, are for."""
    wide, sources = (2, 2) if case.dtype == "float64" else (4, 4 if case.R <= 2 else 2)
    arrays = [*case.arrays["U"], case.arrays["X"]]
    whole = all(a.address % (wide * a.values.itemsize) == 0 for a in arrays)
    tiles = case.p == 2 and sources <= case.I and case.J >= 8 and case.D % wide == 0 and whole
    return "cost_tiles" if tiles else "cost_pairs"


def check_matrix(lib, case, seed):
    inputs, before = copied(case.arrays), case.arrays
    outs = [Array(np.full((case.B, case.I, case.J), -7.0)) for _ in range(2)]
    found = []
    for turn, out in enumerate(outs):
        args = case.args(inputs, interface.CUDA, out)
        room = with_workspace(lib, args, "cost")
        lib.fs_emulated_order((seed + turn) % 7, seed % 2)
        name = expected_kernel(case)
        launches = lib.count(name)
        lib.fs_cost_matrix(args)
        ran = lib.count(name) - launches == bool(case.B and case.I and case.J)
        found += [] if ran else [f"not by {name}"]
        found += [] if room.intact() else ["around workspace"]
    got, outside = outs[0].values, case.outside()
    found += faults(before, inputs) + faults({"repeated": outs[0]}, {"repeated": outs[1]})
    if case.D == 0:
        sound = np.isnan(got[:, ~outside]).all()
    else:
        want, bound = case.bounds()
        sound = (abs(got - want)[:, ~outside] <= bound[:, ~outside]).all()
    return found + ([] if sound and (got[:, outside] == np.inf).all() else ["out"])


def check_gather(lib, case, seed):
    want, got = copied(case.arrays), copied(case.arrays)
    offset, star = case.arrays["X"].offset, got["i_star"].values
    star[star < 0] = case.I if seed % 2 else -1  # no source either, which the host does not see
    for device, arrays in ((interface.CPU, want), (interface.CUDA, got)):
        arrays["out"] = Array(
            np.full((case.B, case.J, case.D), 7, case.arrays["X"].values.dtype), offset
        )
        lib.fs_emulated_order(seed % 7, seed % 2)
        lib.fs_cost_gather(case.args(arrays, device, arrays["out"]))
    star[...] = want["i_star"].values
    return [f"gather: {name}" for name in faults(want, got)]


def check(lib, seed):
    """Names of what the emulated kernels get wrong in case `seed`."""
    case = Costs(seed)
    gathers = case.I > 0 or case.J == 0 or case.B == 0 or (case.arrays["i_star"].values < 0).all()
    return check_matrix(lib, case, seed) + (check_gather(lib, case, seed) if gathers else [])
