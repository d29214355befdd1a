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
ONCE = f"{sys.executable};-IS;{ROOT / 'tests/c/once.py'}"  # a list, as CMake writes one
PLAIN = ("-DFASTSAMPLE_WERROR=ON", "-DFASTSAMPLE_CUDA=off")


def environment(**changes):
    """The environment with this interpreter's cmake and ninja first on PATH, and once.py before
    the compiler of what CMake configures.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "CMAKE_CXX_COMPILER_LAUNCHER": ONCE, **changes}


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


def package(prefix, name="fastsample"):
    """What a package's .pc file says, as pkg-config does: {name: text}."""
    path = next(prefix.glob(f"lib*/pkgconfig/{name}.pc"))
    said = {"pcfiledir": str(path.parent)}
    for name, value in re.findall(r"^([\w.]+)(?:=|: )(.*)$", path.read_text(), re.MULTILINE):
        said[name] = re.sub(r"\$\{(\w+)\}", lambda found: said[found[1]], value)
    return said


def linked(prefix, out):
    """version_1.c as fastsample.pc says, then server.cpp as fastsample-engine.pc does, each with
    the shared library and with the static one.
    """
    said, engine = package(prefix), package(prefix, "fastsample-engine")
    assert engine["Requires"] == "fastsample"
    compilers = {"c99": ("gcc", "tests/c/version_1.c"), "c++17": ("g++", "examples/server.cpp")}
    for standard, (compiler, source) in compilers.items():
        libs = said["Libs"] if standard == "c99" else f"{engine['Libs']} {said['Libs']}"
        made = out / f"{standard}.o"
        run(compiler, f"-std={standard}", *said["Cflags"].split(), "-c", ROOT / source, "-o", made)
        static = re.sub(r"-l(fastsample\w*)", r"-l:lib\1.a", libs) + " " + said["Libs.private"]
        shared = f"{libs} -Wl,-rpath,{said['libdir']}"
        for name, words in (("shared", shared), ("static", static)):
            run(compiler, made, *words.split(), "-o", out / f"{standard}-{name}")
            yield standard, name, out / f"{standard}-{name}"


def sanitized(program="hostile", sanitizers="ON"):
    """A program built with the library under AddressSanitizer and UndefinedBehaviorSanitizer, or
    others. Without OpenMP for "thread": nothing tells it what libgomp does.
    """
    options = ["-DCMAKE_BUILD_TYPE=Debug", "-DFASTSAMPLE_CUDA=off"]
    options += [f"-DFASTSAMPLE_SANITIZE={sanitizers}"]
    options += ["-DFASTSAMPLE_OPENMP=OFF"] * (sanitizers == "thread")
    name = "c-sanitized" + f"-{sanitizers}" * (sanitizers != "ON")
    return cmake("tests/c", name, *options, target=program) / program
