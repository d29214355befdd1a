"""Random calls of fs_moments: 1 to 5 tensors by 0 to 24, few and many chunks, every dtype."""

import ctypes

import numpy as np
from c import interface, rows
from c.cases import FLOATS
from emulate.memory import Array, copied, faults

SIZES = (0, 1, 15, 64, 127, 1024, 1025, 1028, 2048, 4097, 16_384, 20_000, 32_768, 70_001)


class Moments:
    def __init__(self, seed):
        self.rng = rng = np.random.default_rng(seed)
        pick = lambda *values: values[rng.integers(len(values))]
        self.P, self.Q, self.B = (
            pick(1, 1, 2, 3, 4, 5),
            pick(0, 0, 1, 3, 4, 5, 9, 24),
            pick(0, 1, 2, 4),
        )
        self.regime = pick("normal", "normal", "zeros", "odd", "mixed")
        whole = self.regime == "zeros" and rng.random() < 0.7  # no 0 fills a chunk up
        self.D = pick(*(1024, 2048) if whole else SIZES if self.P * self.Q < 40 else SIZES[:-3])
        if self.D == 0:
            self.B = pick(self.B, 300)
        self.dtype, offset = pick(*FLOATS, "float32"), pick(0, 1, 2, 2)
        odd = pick(None, 0, self.P, rng.integers(self.P + self.Q))  # who lies so; None = all
        tensor = lambda k: Array(self._numbers(), offset if odd in (None, k) else 0)
        wanted = pick((1, 1), (1, 1), (1, 0), (0, 1))
        out = lambda there, *shape: Array(np.full(shape, -7.0)) if there else None
        self.arrays = dict(
            a=[tensor(k) for k in range(self.P)],
            b=[tensor(self.P + k) for k in range(self.Q)],
            dots=out(wanted[0], self.B, self.P, self.Q),
            max_abs=out(wanted[1], self.B, self.P),
        )

    def _numbers(self):
        rng, shape = self.rng, (self.B, self.D)
        v = rng.standard_normal(shape)
        if self.regime == "zeros":  # products of -0 and 0
            v = np.copysign(0.0, v if rng.random() < 0.3 else np.full(shape, rng.choice([-1, 1])))
        elif self.regime == "mixed":  # sums that lose most of their bits
            v = v * 10.0 ** rng.integers(-4, 5, shape)
        elif self.regime == "odd":
            odd = rng.choice([np.nan, np.inf, -np.inf, 1e-40, -0.0], shape)
            v = np.where(rng.random(shape) < 2 / max(self.D, 1), odd, v)
        with np.errstate(all="ignore"):
            return rows.narrow(v, FLOATS[self.dtype])

    def args(self, arrays, device):
        args = interface.MomentsArgs(
            device=device,
            dtype=interface.DTYPES[np.dtype(FLOATS[self.dtype])],
            P=self.P,
            Q=self.Q,
            threads=1,
            batch=self.B,
            elements=self.D,
        )
        for name in ("dots", "max_abs"):
            if arrays[name] is not None:
                setattr(args, name, arrays[name].address)
        for name in ("a", "b"):
            for k, array in enumerate(arrays[name]):
                getattr(args, name)[k] = array.address
        return args


def with_workspace(lib, args, kind):
    """The array that a call needs beside its own, of garbage, put into its arguments."""
    size = ctypes.c_int64()
    getattr(lib, f"fs_{kind}_workspace")(args, ctypes.byref(size))
    room = Array(np.full(size.value // 8, np.nan))
    args.workspace, args.workspace_bytes = room.address, size.value
    return room


def expected_launches(case):
    """Sums of more than 16 chunks of 1024 are halved by a second launch of each kind."""
    wanted = [case.arrays["dots"] is not None and case.Q > 0, case.arrays["max_abs"] is not None]
    if case.B == 0 or not any(wanted):
        return 0
    return sum(wanted) * (case.D == 0 or case.D > 16 * 1024) + (case.D > 0)


def expected_kernel(case):
    """The kernel that the rules ask for: quads where every one of them begins on 16 bytes, on 8 of
    shorter numbers.
    """
    least = 8 if FLOATS[case.dtype]().itemsize == 2 else 16
    tensors = [*case.arrays["a"], *case.arrays["b"]]
    whole = case.D % 4 == 0 and all(tensor.address % least == 0 for tensor in tensors)
    return "moments(whole)" if whole else "moments"


def check(lib, seed):
    """Names of what the emulated kernels get wrong in case `seed`, by the CPU's."""
    case = Moments(seed)
    want, got = copied(case.arrays), copied(case.arrays)
    lib.fs_moments(case.args(want, interface.CPU))
    args = case.args(got, interface.CUDA)
    room = with_workspace(lib, args, "moments")
    lib.fs_emulated_order(seed % 7, seed % 2)
    name, launches = expected_kernel(case), expected_launches(case)
    before, own = lib.count(), lib.count(name)
    lib.fs_moments(args)
    ran = lib.count() - before, lib.count(name) - own
    found = [] if ran == (launches, launches > 0 and case.D > 0) else [f"not by {name}"]
    return found + faults(want, got) + ([] if room.intact() else ["around workspace"])
