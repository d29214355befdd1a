"""What a step asks of CUDA's runtime, counted as calls that reach it (the emulated one): for every
solver and every kind of call one launch and nothing else, as is counted from torch's side.
"""

import json
import sys

import pytest
from c import build as builds
from emulate import build
from test_counts import ENGINE, KINDS

from fastsample.solvers import SOLVERS

pytestmark = pytest.mark.slow  # builds fastsample._C over the emulation
NAMES = [f"{name}, {check}" for check in (None, "end") for name in (*SOLVERS, *KINDS)]


@pytest.fixture(scope="module")
def told():
    (binary,) = build.tree().glob("_C*.so")
    path = f"{builds.ROOT}:{builds.ROOT / 'tests'}"
    environment = builds.environment(PYTHONPATH=path, OMP_NUM_THREADS="1")
    script = builds.ROOT / "tests/emulate/asked.py"
    return json.loads(builds.run(sys.executable, script, binary, env=environment))


def test_every_call_is_told(told):
    assert list(told) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_one_launch_and_asks_for_nothing_else(told, name):
    reached, seen, whole = told[name]
    assert len(reached) >= 5 and reached == [[1, 0, 0, 0]] * len(reached)
    assert whole[0] > len(reached) and whole[1:] == [0, 0, 0]
    if name.startswith(ENGINE):  # torch uploads the rows, and gathers the model's batch
        assert all(step in ([1, 1, 0, 0], [2, 1, 0, 0]) for step in seen)
    else:
        assert seen == reached


def test_what_is_asked_is_counted():
    lib = build.library()
    before = lib.asked()
    lib.fs_emulated_ask()
    assert [b - a for a, b in zip(before, lib.asked(), strict=True)] == [0, 1, 1, 1]
