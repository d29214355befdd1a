"""What needs a package that is not installed says so in one sentence with the extra that has it;
`import *` and help() go on without it. One list, pyproject.toml's, says which extras there are.
"""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import torch

import fastsample as fs
from fastsample.report import pictures
from fastsample.runtime import drive, meter

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def sampled(**words):
    plan = fs.solvers.euler(fs.schedules.Flow(), [1.0, 0.5, 0.0], prediction="flow")
    return fs.Sampler(plan, lambda x, t: x)(noise=torch.zeros(1, 2), **words)


# (extra, module that is missing, what needs it)
NEEDS = [
    ("demo", "matplotlib", lambda out: pictures.error_picture(out / "a.png", {"a": {4: 1.0}}, "")),
    ("demo", "safetensors", lambda out: fs.models.fashion(weights=out / "a.safetensors")),
    ("demo", "tqdm", lambda out: drive.bar("Sampler", True, 1)),
    ("optimize", "scipy", lambda out: fs.grids.beta_comfyui(fs.schedules.Flow(), 4)),
    ("serve", "prometheus_client", lambda out: meter.prometheus({})),
    ("serve", "ray", lambda out: runpy.run_path(str(ROOT / "examples/ray_serve/__main__.py"))),
    ("brownian", "torchsde", lambda out: sampled(noise_source=fs.brownian(), seed=1)),
    ("onnx", "onnxruntime", lambda out: fs.interop.onnx(out / "a.onnx", fs.schedules.Flow())),
    ("bench", "pytest_benchmark", lambda out: runpy.run_path(str(ROOT / "bench/conftest.py"))),
    ("docs", "zensical", lambda out: runpy.run_path(f"{ROOT}/tools/docs.py", run_name="__main__")),
    ("dev", "hypothesis", lambda out: runpy.run_path(str(ROOT / "tests/conftest.py"))),
]
WITHOUT = """
import importlib.abc, pydoc, sys

class Gone(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Gone())
from fastsample import *
import fastsample as fs
page = pydoc.render_doc(fs)
assert "Few-step" in page or "few-step" in page
print(*fs.__all__)
for name in sys.argv[2].split():
    try:
        print(name, getattr(fs, name) is None)
    except ImportError as error:
        print(error)
if sys.argv[1] == "diffusers":
    for name in ("fastsample.interop.diffusers", "fastsample.interop.sglang"):
        try:
            __import__(name)
        except ImportError as error:
            print(error)
"""


@pytest.mark.parametrize(("extra", "module", "use"), NEEDS, ids=[f"{e}-{m}" for e, m, _ in NEEDS])
def test_what_is_missing_is_named_with_its_extra(extra, module, use, tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"")
    monkeypatch.syspath_prepend(ROOT / "bench")  # as pytest does
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises((ImportError, pytest.UsageError, SystemExit)) as caught:
        use(tmp_path)
    said = str(caught.value)
    assert re.fullmatch(rf"\w.*\b{module.replace('_', '.')}\b.*; pip install .*", said), said
    assert f"'fastsample[{extra}]'" in said and "\n" not in said
    assert module.replace("_", "-") in " ".join(EXTRAS[extra]).replace("_", "-")


def without(package, names=()):
    """(names of the front, what is said of `names` and below) where a package is missing."""
    command = [sys.executable, "-c", WITHOUT, package, " ".join(names)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    front, *said = done.stdout.splitlines()
    return front.split(), said


def test_without_diffusers_the_front_is_whole_but_for_its_scheduler():
    front, said = without("diffusers", ["FsScheduler"])
    assert front == [name for name in fs.__all__ if name != "FsScheduler"]
    assert len(said) == 3 and len({*said}) == 1
    assert said[0] == "FsScheduler: diffusers is not installed; pip install 'fastsample[diffusers]'"


def test_without_torch_the_front_is_what_needs_none():
    front, _ = without("torch")
    assert {"Plan", "Model", "grids", "schedules", "solvers"} <= {*front}
    rest = [name for name in fs.__all__ if name not in front]
    _, said = without("torch", rest)
    needs = "needs torch, which is not installed; pip install torch"
    assert {f"fastsample.{name}: {needs}" for name in rest if name != "FsScheduler"} <= {*said}
    assert not any(line.endswith(("True", "False")) for line in said)


def test_every_extra_is_named_by_what_misses_it():
    named = {extra for extra, _, _ in NEEDS} | {"diffusers"}
    assert named == EXTRAS.keys()
