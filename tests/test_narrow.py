"""tests/on_narrow.py in a process of its own: torch has one stand-in for a device, for all that a
process does later too.
"""

import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("on_narrow.py")


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_a_device_without_float64(which):
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, str(FILE)]
    ran = subprocess.run(words, cwd=FILE.parents[1], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-1000:]
    assert " passed" in ran.stdout
