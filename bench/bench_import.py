"""`import fastsample` in a fresh interpreter, and the first use of its makers (NumPy, no torch);
neither loads anything heavy.
"""

import subprocess
import sys

from measure import PAIRS, figure

CODE = """
import sys
from time import perf_counter
start = perf_counter()
import fastsample
imported = perf_counter()
fastsample.solvers, fastsample.grids, fastsample.schedules, fastsample.Plan, fastsample.Model
used = perf_counter()
print(imported - start, used - start, *[name for name in ("torch", "scipy", "triton", "diffusers", "matplotlib") if name in sys.modules])
"""


def bench_import(benchmark):
    """Target: at most 0.15 s, and none of the heavy packages loaded."""
    seconds, heavy = [], set()

    def once():
        words = subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
        ).stdout.split()
        seconds.append([float(word) for word in words[:2]])
        heavy.update(words[2:])

    benchmark.group = "import"
    benchmark.pedantic(once, rounds=PAIRS, warmup_rounds=2, iterations=1)
    if heavy:
        raise AssertionError(f"import: loads {sorted(heavy)}")
    alone, with_makers = zip(*seconds[-PAIRS:], strict=True)
    figure(
        benchmark, "`import fastsample`", [1e3 * s for s in alone], "ms", target=150, better="lower"
    )
    figure(
        benchmark,
        "`import fastsample` and the first use of solvers, grids, schedules",
        [1e3 * s for s in with_makers],
        "ms",
    )
