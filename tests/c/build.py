"""CMake for the C tests: build trees stay in build/, so that only what changed is compiled
again, and one process at a time touches them.
"""

import contextlib
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
PLAIN = ("-DFASTSAMPLE_WERROR=ON", "-DFASTSAMPLE_CUDA=off")


def environment(**changes):
    """The environment with this interpreter's cmake and ninja first on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, **changes}


def run(*command, **options):
    """Standard output of a command that must succeed; its own words on failure."""
    options.setdefault("env", environment())
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout


@contextlib.contextmanager
def alone(name):
    """Wait until no other process builds or installs under that name."""
    BUILD.mkdir(exist_ok=True)
    with open(BUILD / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed
        yield


def cmake(source, name, *options, target=None):
    """Configure and build a tree; its folder."""
    folder = BUILD / name
    with alone(name):
        run("cmake", "-S", ROOT / source, "-B", folder, "-G", "Ninja", *options)
        run("cmake", "--build", folder, *(["--target", target] if target else []))
    return folder


def installed(name="c", cuda="off", options=PLAIN):
    """(prefix of an installed libfastsample, folder of programs built against it by
    find_package, which must say `cuda` of it, a pattern).
    """
    library, prefix = cmake("csrc", f"{name}-library", *options), BUILD / f"{name}-prefix"
    with alone(f"{name}-prefix"):
        run("cmake", "--install", library, "--prefix", prefix)
    words = f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCUDA_BUILT={cuda}"
    return prefix, cmake("tests/c", f"{name}-programs", *words)


def package(prefix):
    """What fastsample.pc says, as pkg-config does: {name: text}."""
    path = next(prefix.glob("lib*/pkgconfig/fastsample.pc"))
    said = {"pcfiledir": str(path.parent)}
    for name, value in re.findall(r"^([\w.]+)(?:=|: )(.*)$", path.read_text(), re.MULTILINE):
        said[name] = re.sub(r"\$\{(\w+)\}", lambda found: said[found[1]], value)
    return said


def linked(prefix, out):
    """version_1.c as fastsample.pc says, with the shared library and the static one."""
    said, source = package(prefix), ROOT / "tests/c/version_1.c"
    own, libs = said["Cflags"].split(), said["Libs"]
    static = libs.replace("-lfastsample", "-l:libfastsample.a") + " " + said["Libs.private"]
    for name, words in (("shared", f"{libs} -Wl,-rpath,{said['libdir']}"), ("static", static)):
        run("gcc", "-std=c99", *own, source, *words.split(), "-o", out / name)
    return out / "shared", out / "static"


def sanitized():
    """hostile, built with the library under AddressSanitizer and UndefinedBehaviorSanitizer."""
    options = ("-DFASTSAMPLE_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug", "-DFASTSAMPLE_CUDA=off")
    return cmake("tests/c", "c-sanitized", *options) / "hostile"
