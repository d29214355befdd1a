"""asked.py BINARY: the calls that bench/counted_calls.py counts, over the emulated kernels. As
JSON, of each call and kind of check: what every step asked of the runtime (launches, copies, waits,
allocations), what was counted of it (launches, host copies, syncs, allocations), and what the whole
call asked of the runtime.
"""

import ctypes
import json
import sys
from itertools import cycle, pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(ROOT / "tests")]

from emulate import package  # noqa: E402

package.load(sys.argv[1])

import counted_calls as calls  # noqa: E402
from emulate.build import asked  # noqa: E402


def main():
    runtime, marks = ctypes.CDLL(sys.argv[1]), []

    def watched(outputs):
        """The model's outputs in turn; in `marks` what was asked of the runtime as the call began,
        and by each of them.
        """
        marks[:] = [asked(runtime)]
        return (marks.append(asked(runtime)) or f for f in cycle(outputs))

    calls.cycle, told = watched, {}
    for check in (None, "end"):
        for name, call in calls.ours(check).items():
            steps = calls.counted(call).steps
            parts = [*pairwise(marks[1:]), (marks[0], asked(runtime))]
            *reached, whole = ([b - a for a, b in zip(*part, strict=True)] for part in parts)
            fields = ("launches", "host_copies", "syncs", "allocations")
            seen = [[getattr(step, field) for field in fields] for step in steps]
            told[f"{name}, {check}"] = reached, seen, whole
    print(json.dumps(told))


if __name__ == "__main__":
    main()
