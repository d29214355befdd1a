"""run.py LIBRARY KIND FIRST COUNT CANARIES SECONDS: random cases of a kind, emulated kernels
against the CPU's. It exits with 1 and the first case that differs, or dies of SIGXCPU after so many
seconds of a core.
"""

import resource
import sys
from importlib import import_module
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emulate import memory  # noqa: E402
from emulate.build import Emulated  # noqa: E402


def main(path, kind, first, count, canaries, seconds):
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
    memory.GUARDED = bool(int(canaries))
    lib, check = Emulated(path), import_module(f"emulate.{kind}").check
    with np.errstate(all="ignore"):
        for seed in range(int(first), int(first) + int(count)):
            found = check(lib, seed)
            if found:
                sys.exit(f"{kind} {seed}: {', '.join(found)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
