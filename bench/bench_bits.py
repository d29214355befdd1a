"""What `make gpu` does before it measures, and after: the tests of tests/gpu, a short set of them
under compute-sanitizer, each in a process of its own, so that a fault there leaves the benchmarks
their device.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest
from gpu import REHEARSED
from measure import figure

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[1]
SHORT = "test_moments or test_fill or (cost_matrix and native) "
SHORT += "or (test_whole_runs and (unipc or dpmpp_2m_sde) and shape0)"
FOUND = 97  # what compute-sanitizer ends with where it found an error
BITS, TOOL = 150, 45  # seconds for the tests, and for each tool of compute-sanitizer


def tests(*words):
    """The command that runs tests/gpu."""
    stand_in = ["-p", "stand_in"] if REHEARSED else []
    own = ["--confcutdir=tests/gpu", "-p", "no:cacheprovider", "tests/gpu"]
    return [sys.executable, "-m", "pytest", "-q", *stand_in, "-m", "gpu", *own, *words]


def run(command, seconds, **environment):
    """The finished process; 124 is the status of one that was not done in so many seconds."""
    command = ["timeout", "-k", "5", str(seconds), *command]
    words = {"cwd": ROOT, "env": {**os.environ, **environment}}
    return subprocess.run(command, capture_output=True, text=True, **words)


def number(said, words):
    """The last number before these words, or 0."""
    return int((re.findall(rf"(\d+) {words}", said) or [0])[-1])


def bench_bits(benchmark, pytestconfig):
    """Triton compiles nearly every configuration of the kit, so a quick run leaves its part out."""
    benchmark.group = "gpu bits"
    quick = ["-k", "not triton"] if pytestconfig.getoption("--quick") else []
    workers = ["-n", "4"] if find_spec("xdist") and not REHEARSED else []
    done = benchmark.pedantic(run, args=(tests(*quick, *workers), BITS), rounds=1)
    last = done.stdout.strip().rpartition("\n")[2]
    failed = number(last, "failed") + number(last, "error") or int(done.returncode != 0)
    figure(benchmark, "tests of bits on the GPU: passed", number(last, "passed"))
    figure(benchmark, "tests of bits on the GPU: failed", failed, target=0, better="equal")
    if done.returncode:
        raise AssertionError(
            f"tests/gpu ended with {done.returncode}:\n{done.stdout[-8000:]}{done.stderr[-2000:]}"
        )


@pytest.mark.long
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def bench_sanitizer(benchmark, tool):
    """Of our kernels alone, on memory that torch does not keep in larger blocks."""
    benchmark.group = "gpu bits"
    if which("compute-sanitizer") is None:
        pytest.skip("compute-sanitizer is not on PATH")
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(FOUND)]
    command += ["--kernel-name", "kns=_ZN2fs", *tests("-k", SHORT)]
    words = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = benchmark.pedantic(run, args=(command, TOOL), kwargs=words, rounds=1)
    if done.returncode not in (0, FOUND):
        why = "not done in time" if done.returncode == 124 else f"ended with {done.returncode}"
        pytest.skip(f"compute-sanitizer {tool}: {why}: {done.stdout[-200:]!r}")
    said = done.stdout + done.stderr
    what, errors = f"compute-sanitizer {tool}", number(said, "error")
    figure(benchmark, f"{what}: tests passed", number(done.stdout, "passed"))
    figure(benchmark, f"{what}: errors", errors, target=0, better="equal")
    if done.returncode:
        raise AssertionError(f"{what}:\n{said[-8000:]}")
