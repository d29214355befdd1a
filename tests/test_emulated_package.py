"""The package over the emulated kernels: the kernel kit against the definition, whole runs of every
solver, an Engine of mixed requests and whole searches, by the tests that hold the CPU's kernels to
it.
"""

import sys

import pytest
from c import build as builds
from emulate import build

pytestmark = pytest.mark.slow  # builds fastsample._C over the emulation
KERNELS = ("step", "noise", "moments", "cost_matrix", "launch", "kit", "search")
OTHERS = ("test_engine.py", "test_run.py", "test_memory_format.py")
SUITES = (*(f"kernels/test_{name}.py" for name in KERNELS), *OTHERS)


def test_the_suites_of_the_cpu_pass_on_the_emulated_kernels():
    tests, (binary,) = builds.ROOT / "tests", build.tree().glob("_C*.so")
    environment = builds.environment(
        EMULATED_BINARY=str(binary), PYTHONPATH=f"{builds.ROOT}:{tests}", OMP_NUM_THREADS="1"
    )
    words = ["-q", "-p", "emulate.package", "-p", "no:cacheprovider"]
    # the definition has no kernels to emulate, and what torch makes of an operator no more
    words += ["-m", "not slow and not alone", "-k", "not reference] and not opcheck"]
    suites = [tests / suite for suite in SUITES]
    said = builds.run(sys.executable, "-m", "pytest", *words, *suites, env=environment)
    passed = int(said.splitlines()[-1].split(" passed")[0])
    assert passed > 500, said[-400:]
