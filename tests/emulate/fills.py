"""Random calls of fs_noise_fill: both dtypes, seeds and stages of all bits, odd addresses."""

import numpy as np
from c import interface
from emulate.memory import Array, faults

SIZES = (0, 1, 2, 3, 4, 127, 128, 1024, 4097, 120_000)


def check(lib, seed):
    """Names of what the emulated kernels get wrong in case `seed`, by the CPU's."""
    rng = np.random.default_rng(seed)
    pick = lambda *values: values[rng.integers(len(values))]
    B, D, dtype = pick(0, 1, 2, 5), pick(*SIZES), pick(np.float32, np.float64)
    seeds = pick(None, Array(rng.integers(0, 2**64, B, np.uint64)))
    stages = pick(None, Array(rng.integers(0, 2**32, B, np.uint32)))
    noise, offset, gpu = int(rng.integers(0, 2**32)), pick(0, 0, 1), pick(0, 1, 2)
    outs = [Array(np.full((B, D), np.nan, dtype), offset) for _ in range(2)]
    lib.fs_emulated_order(seed % 7, seed % 2)
    whole = D % 4 == 0 and outs[1].address % 16 == 0
    name, count = "fill" if whole else "fill(any)", lib.count()
    own = lib.count(name)
    for device, out in zip((interface.CPU, interface.CUDA), outs, strict=True):
        args = interface.NoiseArgs(
            device=device,
            gpu=gpu if device == interface.CUDA else 0,
            dtype=interface.DTYPES[np.dtype(dtype)],
            id=noise,
            batch=B,
            elements=D,
            seed=seeds and seeds.address,
            stage=stages and stages.address,
            out=out.address,
        )
        lib.fs_noise_fill(args)
    ran = lib.count() - count == lib.count(name) - own == bool(B and D)
    ran &= lib.where()[0] == 0
    return faults({"out": outs[0]}, {"out": outs[1]}) + ([] if ran else [f"not by {name}"])
