"""Builds fastsample/_C with CMake and Ninja, or installs without it.

FASTSAMPLE_NATIVE=auto|on|off   auto: build if a C++ compiler works, else say so and go on (backend
                                `reference`: everything works, slower)
FASTSAMPLE_CUDA=auto|on|off     auto: build the CUDA kernels, in a minute and a half, where nvcc is;
                                editable installs leave them out
SOURCE_DATE_EPOCH=seconds        the date of what is packed: one tree then gives the same bytes
FASTSAMPLE_HOME=https://...      the repository, as a package index is to point to it
"""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
PROBE = "#include <vector>\nint main() { return static_cast<int>(std::vector<int>(1)[0]); }\n"


def choice(name: str) -> str:
    """The environment variable `name`: auto (unset), on or off."""
    value = os.environ.get(name, "auto").lower()
    if value not in ("auto", "on", "off"):
        raise SystemExit(f"{name}: '{value}'; auto, on and off are accepted")
    return value


def compiler_fault() -> str | None:
    """None if a C++ program compiles here, else why not in a few words."""
    if sys.platform == "win32":
        return "it is written for Linux and macOS"  # flags and threads as gcc and clang have them
    found = next(filter(shutil.which, ("c++", "g++", "clang++")), "")
    compiler = os.environ.get("CXX", "").split() or [found]
    if not compiler[0]:
        return "no C++ compiler was found"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(PROBE)
        command = [*compiler, "-std=c++17", source, "-o", Path(folder, "probe")]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            return f"{compiler[0]} does not start ({error})"
    return None if done.returncode == 0 else f"{compiler[0]} does not compile a two-line program"


def extensions() -> list[Extension]:
    """[fastsample._C], or nothing where it is not wanted or cannot be built."""
    native, nvcc = choice("FASTSAMPLE_NATIVE"), os.environ.get("CUDACXX", "nvcc")
    if choice("FASTSAMPLE_CUDA") == "on" and not shutil.which(nvcc):
        raise SystemExit(f"FASTSAMPLE_CUDA=on: {nvcc} was not found; install it, or set CUDACXX")
    fault = "FASTSAMPLE_NATIVE=off" if native == "off" else compiler_fault()
    if fault is None:
        return [Extension("fastsample._C", sources=[], optional=native == "auto")]
    if native == "on":
        remedy = "g++ or clang++ on Linux or macOS (CXX names another) is needed"
        raise SystemExit(f"FASTSAMPLE_NATIVE=on: {fault}; {remedy}")
    told = f"built without _C ({fault}); everything works on the backend `reference`"
    print(f"fastsample: {told}", file=sys.stderr)
    return []


class CMakeBuild(build_ext):
    """Writes _C where setuptools expects it: the package (editable) or the build tree (wheel)."""

    def build_extension(self, extension: Extension) -> None:
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        build = ROOT / "build" / f"setup-{sys.implementation.cache_tag}"
        # Always named: a cached path may lead into the build environment of an earlier install,
        # deleted since.
        ninja = shutil.which("ninja")
        if ninja is None:
            raise CompileError("fastsample: ninja was not found; pip install ninja")
        cuda = choice("FASTSAMPLE_CUDA")
        options = {
            "CMAKE_MAKE_PROGRAM": ninja,
            "CMAKE_BUILD_TYPE": "Release",
            "FASTSAMPLE_PYTHON": "ON",
            "FASTSAMPLE_LIBRARY": "OFF",
            "FASTSAMPLE_CUDA": "off" if cuda == "auto" and self.editable_mode else cuda,
            "FASTSAMPLE_PYTHON_DIR": target.parent,
            "FASTSAMPLE_PYBIND11": pybind11_headers(),
            "Python_EXECUTABLE": sys.executable,
        }
        configure = ["cmake", "-S", ROOT / "csrc", "-B", build, "-G", "Ninja"]
        configure += [f"-D{name}={value}" for name, value in options.items()]
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", build, "--target", "_C"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            # In auto mode setuptools says so and goes on without _C.
            raise CompileError(
                f"fastsample: CMake could not build _C ({error}); FASTSAMPLE_NATIVE=off installs "
                "without it"
            ) from error
        if not target.exists():
            raise CompileError(
                f"fastsample: CMake built no {target.name}; is {sys.executable} the interpreter it "
                "was asked to build for?"
            )


def pybind11_headers() -> str:
    try:
        import pybind11  # of the build environment, which must not be there when _C is not built
    except ImportError as error:
        raise CompileError(f"fastsample: {error}; pip install pybind11") from error
    return pybind11.get_include()


class Sdist(sdist):
    """An archive of the tree's bytes and of nothing else: sorted, of one owner, all files for all
    to read, dated by SOURCE_DATE_EPOCH where it is set.
    """

    def make_archive(self, base_name: str, format: str, root_dir=None, base_dir=None, **owner):
        made = super().make_archive(base_name, format, root_dir, base_dir, **owner)
        when = os.environ.get("SOURCE_DATE_EPOCH")
        if when is None or format != "gztar":
            return made
        with tarfile.open(made) as old:
            files = [(p.name, p.mode, old.extractfile(p).read()) for p in old if p.isfile()]
        with (
            open(made, "wb") as out,
            gzip.GzipFile("", "wb", fileobj=out, mtime=int(when)) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
        ):
            for name, mode, data in sorted(files):
                own = tarfile.TarInfo(name)
                own.size, own.mtime = len(data), int(when)
                own.mode = 0o755 if mode & 0o100 else 0o644
                new.addfile(own, io.BytesIO(data))
        return made


def described(home: str) -> str:
    """README for a package index, which has no file of ours beside it. Pictures and links lead to
    this version's in `home`; without one pictures are left out, and links are their words.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    version = re.search(r'__version__ = "(.+)"', (ROOT / "fastsample/__init__.py").read_text())[1]

    def absolute(found: re.Match) -> str:
        picture, words, path = found.groups()
        if home:
            return f"{picture}[{words}]({home}/{'raw' if picture else 'blob'}/v{version}/{path})"
        return "" if picture else words

    return re.sub(r"(!?)\[([^]]*)\]\((?!https?:)([^)\s]+)\)", absolute, text)


HOME = os.environ.get("FASTSAMPLE_HOME", "").rstrip("/")
setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": CMakeBuild, "sdist": Sdist},
    long_description=described(HOME),
    project_urls={"Repository": HOME} if HOME else {},
    long_description_content_type="text/markdown",
)
