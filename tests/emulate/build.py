"""The library whose FS_CUDA runs the emulated kernels, and programs over it in processes of their
own.
"""

import ctypes
import subprocess
import sys
from pathlib import Path

from c import build
from c.interface import Library

HERE = Path(__file__).parent
EMULATED = ("-DFASTSAMPLE_CUDA=emulated", "-DFASTSAMPLE_WERROR=ON")


class Emulated(Library):
    """The library, with what tests/emulate/controls.cpp adds to it."""

    def __init__(self, path):
        super().__init__(path)
        self.dll.fs_emulated_count.restype = ctypes.c_int64
        for name in ("order", "errors", "where", "ask"):
            getattr(self.dll, f"fs_emulated_{name}").restype = None
        self.dll.fs_emulated_pending.restype = ctypes.c_int32

    def count(self, name=None):
        """Launches of a kernel so far, of all kernels without a name."""
        return self.dll.fs_emulated_count(name and name.encode())

    def asked(self):
        return asked(self.dll)

    def pending(self):
        """The error that is pending."""
        return self.dll.fs_emulated_pending()

    def where(self):
        """(device that is current, device of the last launch, its stream)."""
        current, launched_on, stream = ctypes.c_int32(), ctypes.c_int32(), ctypes.c_void_p()
        self.fs_emulated_where(*map(ctypes.byref, (current, launched_on, stream)))
        return current.value, launched_on.value, stream.value


def asked(dll):
    """What reached the runtime of a library or module so far: launches, copies, waits for a stream,
    allocations.
    """
    counts = (ctypes.c_int64 * 4)()
    dll.fs_emulated_asked(counts)
    return tuple(counts)


def tree():
    """The build tree, which holds the library and the module _C."""
    python = ("-DFASTSAMPLE_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}")
    return build.cmake("csrc", "emulated", *EMULATED, *python)


def library():
    return Emulated(tree() / "libfastsample.so")


def sanitized():
    """Path of the same under AddressSanitizer and UndefinedBehaviorSanitizer."""
    options = (*EMULATED, "-DFASTSAMPLE_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug")
    made = build.cmake("csrc", "emulated-sanitized", *options, target="fastsample")
    return made / "libfastsample.so"


def run_alone(path, kind, first, count, *, sanitizer=False, seconds=600):
    """The finished process that runs cases [first, first + count) of a kind, see run.py."""
    environment = build.environment(OMP_NUM_THREADS="1")
    if sanitizer:
        found = build.run("gcc", "-print-file-name=libasan.so").strip()
        # Python itself leaks, and fibers have no fake stack.
        options = "detect_leaks=0:detect_stack_use_after_return=0"
        environment |= {"LD_PRELOAD": found, "ASAN_OPTIONS": options}
    command = [sys.executable, HERE / "run.py", path, kind, first, count, int(not sanitizer)]
    command = list(map(str, [*command, seconds]))
    return subprocess.run(command, capture_output=True, text=True, env=environment)
