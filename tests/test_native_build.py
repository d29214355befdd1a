"""How the package gets onto a machine: twice, editable, from a wheel, without a compiler. No
network: the build tools are lent.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from c import build

pytestmark = pytest.mark.slow
PARTS = ("csrc", "fastsample", "pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE")
PARTS += ("MANIFEST.in",)
SAY = "import fastsample as fs, importlib.util as u; native = u.find_spec('fastsample._C'); "
SAY += "print(fs.__file__, native is not None)"
USE = "from fastsample import _C; print(_C.build_info()['version'])"


def released():
    """tools/wheels.py, of which every released wheel comes."""
    spec = importlib.util.spec_from_file_location("wheels", build.ROOT / "tools/wheels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the sources, as a fresh clone has them: nothing built."""
    folder = tmp_path_factory.mktemp("clone")
    for part in PARTS:
        path = build.ROOT / part
        if path.is_dir():
            ignore = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(path, folder / part, ignore=ignore)
        else:
            shutil.copy(path, folder / part)
    return folder


@pytest.fixture
def clean(tmp_path):
    """A virtual environment with nothing of its own; NumPy and torch are lent to it by a .pth file,
    as a search path.
    """
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


def pip(python, *arguments, tools=None, **environment):
    """pip of this environment, working on another.

    tools: a folder that holds the only ninja on PATH.
    """
    own = dict(PIP_NO_INDEX="1", PIP_DISABLE_PIP_VERSION_CHECK="1", FASTSAMPLE_CUDA="off")
    env = build.environment(**own | environment)
    env["PATH"] = f"{tools}{os.pathsep}{env['PATH']}" if tools else env["PATH"]
    return build.run(sys.executable, "-m", "pip", "--python", python, *arguments, env=env)


def say(python, code, cwd):
    """What an interpreter prints; it runs away from the sources and without this one's settings."""
    return build.run(python, "-I", "-c", code, cwd=cwd).split()


def tools(folder):
    """A folder with a ninja of its own, like a build environment that is deleted after use."""
    folder.mkdir()
    found = shutil.which("ninja", path=build.environment()["PATH"])
    (folder / "ninja").symlink_to(Path(found).resolve())
    return folder


def test_installed_twice_and_from_a_wheel(source, clean, tmp_path):
    """The second build finds the first one's cache, whose ninja is gone; neither compiles for CUDA,
    though nvcc may be there. The wheel, repaired as for a release, holds one binary that runs in a
    clean environment, with torch's libgomp and no other.
    """
    editable = ["install", "--no-deps", "--no-build-isolation", "--editable", source]
    for name in ("first", "second"):
        pip(clean, *editable, tools=tools(tmp_path / name), FASTSAMPLE_CUDA="auto")
        shutil.rmtree(tmp_path / name)
        where, native = say(clean, SAY, tmp_path)
        assert Path(where).parent == source / "fastsample" and native == "True"
    (cache,) = source.glob("build/setup-*/CMakeCache.txt")
    assert "\nFASTSAMPLE_CUDA:STRING=off\n" in cache.read_text()
    version = say(clean, USE, tmp_path)
    pip(clean, "uninstall", "--yes", "fastsample")

    pip(clean, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source)
    wheels = released()
    (tmp_path / "released").mkdir()
    wheel = wheels.repaired(next(tmp_path.glob("*.whl")), tmp_path / "released")
    assert "manylinux_2_" in wheel.name
    names = build.run(sys.executable, "-m", "zipfile", "-l", wheel).split()
    (binary,) = [name for name in names if name.endswith((".so", ".a"))]
    weights = [path.name for path in (build.ROOT / "fastsample/models/weights").glob("*.safet*")]
    assert len(weights) == 3 and all(any(name.endswith(w) for name in names) for w in weights)
    assert not any(name.startswith(("csrc/", "tests/")) for name in names)
    pip(clean, "install", "--no-deps", wheel)
    where, native = say(clean, SAY, tmp_path)
    assert Path(where).is_relative_to(clean.parents[1]) and native == "True"
    assert say(clean, USE, tmp_path) == version
    (gomp,) = say(clean, wheels.MAPPED, tmp_path)
    assert "torch" in gomp
    dynamic = build.run("readelf", "-d", Path(where).parent / Path(binary).name)
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic and "torch" not in dynamic


FAILING = """#!/bin/sh
case "$*" in *csrc*) echo "out of luck" >&2; exit 1;; esac
exec c++ "$@"
"""


def failing(folder):
    """A compiler that is good for a two-line program, and for no more."""
    path = folder / "failing"
    path.write_text(FAILING)
    path.chmod(0o755)
    return str(path)


def test_a_wheel_that_must_have_native_code_fails_with_its_build(source, tmp_path):
    shutil.rmtree(source / "build", ignore_errors=True)
    command = [sys.executable, "setup.py", "bdist_wheel", "--dist-dir", tmp_path / "dist"]
    env = build.environment(FASTSAMPLE_NATIVE="on", CXX=failing(tmp_path))
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env=env)
    assert done.returncode != 0 and not (tmp_path / "dist").exists()
    assert "fastsample: CMake could not build _C" in done.stderr


@pytest.mark.parametrize(
    "setting",
    [{"FASTSAMPLE_NATIVE": "off"}, {"CXX": "/nonexistent/c++"}, {"CXX": "failing"}],
    ids=["off", "none", "failing"],
)
def test_without_a_compiler_it_installs_and_imports(source, clean, setting, tmp_path):
    if setting.get("CXX") == "failing":
        setting = {"CXX": failing(tmp_path)}
        shutil.rmtree(source / "build", ignore_errors=True)
    pip(clean, "install", "--no-deps", "--no-build-isolation", source, **setting)
    where, native = say(clean, SAY, tmp_path)
    assert Path(where).is_relative_to(clean.parents[1]) and native == "False"
    run = "import fastsample as fs, torch; s = fs.schedules.VP(); "
    run += "p = fs.solvers.ddim(s, fs.grids.uniform(s, 2), prediction='eps'); "
    run += "r = fs.Run(p, shape=(1, 5), seed=1); r.step(r.model_input); r.step(r.model_input); "
    run += "print(r.done, bool(r.x.isfinite().all()))"
    assert say(clean, run, tmp_path) == ["True", "True"]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            {"FASTSAMPLE_CUDA": "on", "CUDACXX": "/nonexistent/nvcc"},
            "FASTSAMPLE_CUDA=on: /nonexistent/nvcc was not found; install it, or set CUDACXX",
        ),
        (
            {"FASTSAMPLE_NATIVE": "on", "CXX": "/nonexistent/c++"},
            "FASTSAMPLE_NATIVE=on: /nonexistent/c++ does not start",
        ),
        (
            {"FASTSAMPLE_NATIVE": "maybe"},
            "FASTSAMPLE_NATIVE: 'maybe'; auto, on and off are accepted",
        ),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(source, setting, sentence):
    command = [sys.executable, "setup.py", "--version"]
    env = build.environment(**setting)
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env=env)
    assert done.returncode != 0 and sentence in done.stderr
