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
heavy = ("torch", "scipy", "triton", "diffusers", "matplotlib")
print(imported - start, used - start, *[name for name in heavy if name in sys.modules])
"""


def bench_import(benchmark):
    """Target: at most 0.15 s, and none of the heavy packages loaded."""
    seconds, heavy = [], set()

    def once():
        command = [sys.executable, "-c", CODE]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        words = done.stdout.split()
        seconds.append([float(word) for word in words[:2]])
        heavy.update(words[2:])

    benchmark.group = "import"
    benchmark.pedantic(once, rounds=PAIRS, warmup_rounds=2, iterations=1)
    if heavy:
        raise AssertionError(f"import: loads {sorted(heavy)}")
    milliseconds = [[1e3 * s for s in pair] for pair in seconds[-PAIRS:]]
    alone, with_makers = zip(*milliseconds, strict=True)
    figure(benchmark, "`import fastsample`", alone, "ms", target=150, better="lower")
    what = "`import fastsample` and the first use of solvers, grids, schedules"
    figure(benchmark, what, with_makers, "ms")
