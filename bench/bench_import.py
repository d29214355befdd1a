"""`import fastsample`: seconds inside a fresh interpreter; loads nothing heavy."""

import subprocess
import sys

from measure import PAIRS, figure

CODE = (
    "import sys; from time import perf_counter; start = perf_counter(); import fastsample; seconds = perf_counter() - start; "
    "print(seconds, *[name for name in ('torch', 'scipy', 'triton', 'diffusers', 'matplotlib') if name in sys.modules])"
)


def bench_import(benchmark):
    """Target: at most 0.15 s, and none of the heavy packages loaded."""
    seconds, heavy = [], set()

    def once():
        words = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout.split()
        seconds.append(float(words[0]))
        heavy.update(words[1:])

    benchmark.group = "import"
    benchmark.pedantic(once, rounds=PAIRS, warmup_rounds=2, iterations=1)
    if heavy:
        raise AssertionError(f"import: loads {sorted(heavy)}")
    figure(benchmark, "`import fastsample`", seconds[-PAIRS:], "s", target=0.15, better="lower")
