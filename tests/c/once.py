"""once.py COMPILER ARGUMENT...: compile, or give again what the same text was compiled to before.

CMake puts it before every command of the C++ compiler (CMAKE_CXX_COMPILER_LAUNCHER), so that the
many builds of the tests compile a file once for each set of flags. Two texts are the same where
the preprocessor makes the same of them; two sets of flags, where they differ in nothing but -I and
-D, which the preprocessor has seen, and -Werror: only what compiled without a word is kept, in
build/compiled, and for thirty days after it was last used.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

KEPT = Path(__file__).resolve().parents[2] / "build" / "compiled"
OF_THE_TEXT = ("-I", "-D", "-isystem")
OF_THIS_BUILD = ("-o", "-MF", "-MT", "-MQ", "-c")  # the next word names a file
DAYS = 30


def parted(words):
    """(flags that shape the object, {option: file}) of a command."""
    flags, files, words = [], {}, iter(words)
    for word in words:
        if word in OF_THIS_BUILD:
            files[word] = next(words)
        elif word in OF_THE_TEXT:
            next(words)
        elif not word.startswith(OF_THE_TEXT) and word not in ("-Werror", "-MD"):
            flags.append(word)
    return flags, files


def name_of(command, flags):
    """A name for compiler, flags and text, or None where the preprocessor has anything to say. It
    writes the file of dependencies by the way.
    """
    lines = "-fno-working-directory" if "-g1" in flags else "-P"  # debuggers are told of lines
    at = command.index("-o")
    words = [*command[:at], *command[at + 2 :], "-E", lines]
    done = subprocess.run(words, capture_output=True)
    if done.returncode or done.stderr:
        return None
    compiler = Path(shutil.which(command[0])).resolve()
    about = [str(compiler), str(compiler.stat().st_mtime_ns), *flags]
    return hashlib.sha256("\0".join(about).encode() + b"\0" + done.stdout).hexdigest()


def forget():
    """Remove what nobody has used for DAYS."""
    for path in KEPT.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            if path.stat().st_mtime < time.time() - DAYS * 86400:
                path.unlink()


def main(command):
    flags, files = parted(command[1:])
    name = name_of(command, flags) if files.keys() >= {"-c", "-o"} else None
    if name is None:
        os.execvp(command[0], command)
    KEPT.mkdir(parents=True, exist_ok=True)
    kept, new = KEPT / f"{name}.o", KEPT / f"{name}.{os.getpid()}"
    with open(KEPT / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two builds at once, one compiles it
        if kept.exists():
            os.utime(kept)
            shutil.copyfile(kept, files["-o"])
            return 0
        done = subprocess.run(command, stderr=subprocess.PIPE)
        sys.stderr.buffer.write(done.stderr)
        if done.returncode == 0 and not done.stderr:
            shutil.copyfile(files["-o"], new)
            os.replace(new, kept)
            forget()
        return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
