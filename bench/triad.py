"""The measured bandwidth a step is held against, in C, float32, on the step's threads; and the
bytes a step must move.

    triad     a[i] = b[i] + s*c[i]   the usual measure: its stores go to lines that were not read
    in place  a[i] = s*a[i] + b[i]   a harder one: a line is read, changed and written back, as a
                                     step does with its state

Each moves 12 bytes an element. On most processors the triad's stores cost a read of the line that
nobody counts, so a step, which works in place, can be faster than a triad over as many bytes. The
loops are compiled for this machine (-march=native) and share torch's OpenMP.
"""

import ctypes
import subprocess
from itertools import cycle
from pathlib import Path

import torch

SOURCE = """
#include <stdint.h>
void triad(float* restrict a, const float* restrict b, const float* restrict c, float s, int64_t n,
           int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; ++i) a[i] = b[i] + s * c[i];
}
void in_place(float* restrict a, const float* restrict b, const float* restrict unused, float s,
              int64_t n, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; ++i) a[i] = s * a[i] + b[i];
}
"""
BUILD = Path(__file__).resolve().parents[1] / "build" / "bench"
PARALLEL_FROM = 65536  # elements; below it the step runs on one thread, and so do these loops
SOURCES = 4  # model outputs a benchmark takes in turn; the loops read as many arrays in turn


def load():
    """The compiled loops; built on every run: the binary fits only the machine that built it."""
    BUILD.mkdir(parents=True, exist_ok=True)
    source, library = BUILD / "triad.c", BUILD / "triad.so"
    source.write_text(SOURCE)
    options = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run(["gcc", *options, "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


def moves(total_bytes, elements):
    """{"triad": run, "in place": run}: callables that move `total_bytes` a call, on the threads a
    step of `elements` uses.
    """
    library, n = load(), int(total_bytes) // 12
    threads = torch.get_num_threads() if elements >= PARALLEL_FROM else 1
    a, c, b = torch.zeros(n), torch.rand(n), [torch.rand(n) for _ in range(SOURCES)]
    _check(library, n)
    return {
        name: _call(getattr(library, name.replace(" ", "_")), a, b, c, 0.5, n, threads)
        for name in ("triad", "in place")
    }


def _arguments(a, b, c, s, n, threads):
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, b, c))
    return (*pointers, ctypes.c_float(s), ctypes.c_int64(n), ctypes.c_int32(threads))


def _call(function, a, b, c, s, n, threads):
    """The loop with its arguments made beforehand, b taken in turn."""
    turns, keep = cycle([_arguments(a, part, c, s, n, threads) for part in b]), (a, b, c)

    def run():
        function(*next(turns))
        return keep

    return run


def _check(library, n):
    for name in ("triad", "in_place"):
        a, b, c = (torch.rand(n) for _ in range(3))
        exact = b.double() + 0.5 * c.double() if name == "triad" else 0.5 * a.double() + b.double()
        getattr(library, name)(*_arguments(a, b, c, 0.5, n, 1))
        # Half of a float is exact, and the sum, below 2, is rounded once.
        if not (a.double() - exact).abs().max() <= 2.0**-24:
            raise AssertionError(f"triad: the compiled loop {name} is wrong")


def step_bytes(run):
    """Bytes a fused step of this run must move, the mean over its model rows: every operand it
    reads once, every output once.
    """
    plan, elements = run.plan, run.x.numel()
    # Else the model is asked with the state itself.
    writes_input = run.model_input.data_ptr() != run.x.data_ptr()
    state, model = run.x.element_size(), run.model_input.element_size()
    rows = [row for row in range(plan.rows) if plan.call[row] >= 0]
    moved = [_row_bytes(plan, row, elements, writes_input, state, model) for row in rows]
    return sum(moved) / len(rows)


def _row_bytes(plan, row, elements, writes_input, state, model):
    reads = int(plan.reads[row])
    m_column = 1 + plan.S
    branches = plan.G if reads >> m_column else 0  # m and f itself both read the branches
    x_read = 1 if reads & 1 or (reads >> m_column & 1 and plan.p[row] != 0) else 0
    slots = sum(reads >> (1 + s) & 1 for s in range(plan.S))
    written = 1 + int((plan.dst[row] >= 0).sum())
    return elements * (state * (x_read + slots + written) + model * (branches + writes_input))
