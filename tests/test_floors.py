"""The floors of the house, read from the imports themselves: nothing is imported to find out.

A module imports only from lower floors. Exceptions are written out below, each with its reason, and
nowhere else.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fastsample"
CSRC = ROOT / "csrc"

FLOORS = (
    ("plan", "files", "caller", "schedules", "model", "distances"),
    ("grids",),
    ("presets", "solvers", "guidance"),
    ("kernels",),
    ("runtime",),
    ("trajectories", "metrics"),
    ("optimize",),
    ("models", "interop"),
    ("report",),
    ("cli",),
)
FLOOR = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}
# Runners never see makers: the plan is all they get. (A sampler makes the guided plan of its own.)
MAKERS = {"schedules", "files", "grids", "presets", "solvers", "guidance"}
RUNNERS = {"kernels", "runtime"}
# What else may be seen: files written whole, notes read by one strict function, and numbers as
# callers give them.
ALLOWED = {("runtime.sampler", "guidance"), ("plan.file", "files")}
ALLOWED |= {("schedules", "plan"), ("model", "plan")}
# A foreign package and the only files that may import it (relative to the package, as patterns).
CONFINED = {
    "triton": r"kernels/(.+/)?[a-z_]*triton[a-z_]*\.py|kernels/triton/.+\.py",
    "diffusers": r"interop/(diffusers/.+|sglang)\.py",
    "matplotlib": r"report/pictures\.py",
    "torchsde": r"runtime/brownian\.py",
    "torch": r"(kernels|runtime|optimize|models|interop)/.+\.py"
    r"|(trajectories|metrics|report/doctor|cli/(optimize|pipelines|sample|subjects))\.py",
}


def imported(source, module):
    """[(line, dotted name)] of every import in a module, at any depth; relative names made
    absolute.

    module: dotted name, a package's front with "__init__" as its last part, e.g.
    "fastsample.solvers.__init__". Imports under `if TYPE_CHECKING:` never run and are left out.
    """
    names = []
    for node in running(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            names += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
    return names


def running(tree):
    """Every node of a module but those under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from running(node)


def unit_of(dotted):
    """The unit (a name in FLOORS) a dotted name of ours belongs to; None for the package's own
    front.
    """
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__init__" else None


def siblings_allowed(module, target):
    """May a module import this file of its own unit? Where each file is one method, only private
    files are shared, and the front lists them all.
    """
    unit, here, there = unit_of(module), module.split(".")[2:], target.split(".")[2:]
    if unit in ("solvers", "optimize"):
        return here in (["__init__"], ["search"], ["_climb"]) or (
            bool(there) and there[0].startswith("_")
        )
    wholes = ("plan", "schedules", "grids", "kernels", "runtime", "presets", "models", "interop")
    return unit in (*wholes, "report", "cli")


def breaches(source, module):
    """Sentences, one for each import of the module that goes up, sideways, or outside where it
    may.
    """
    path = "/".join(module.split(".")[1:]) + ".py"
    unit, found = unit_of(module), []
    if unit is None or unit == "__main__":  # the front and `python -m fastsample` see every floor
        return found
    if unit not in FLOOR:
        return [f"{path}: stands on no floor; FLOORS names them all"]
    for line, name in imported(source, module):
        head, where = name.split(".")[0], f"{path}:{line}: imports {name}"
        if head != "fastsample":
            if head in CONFINED and not re.fullmatch(CONFINED[head], path):
                found.append(f"{where}; {head} is for {CONFINED[head]} only")
            continue
        target = unit_of(name)
        if target == "_C":
            if unit != "kernels":
                found.append(f"{where}; the binary is for kernels/ only")
        elif target == unit:
            if not siblings_allowed(module, name):
                found.append(
                    f"{where}; a {unit} file imports no other {unit} file but a private one"
                )
        elif {(module.removeprefix("fastsample."), target), (unit, target)} & ALLOWED:
            continue
        elif target in FLOOR:
            if FLOOR[target] >= FLOOR[unit]:
                found.append(f"{where}, floor {FLOOR[target]}, from floor {FLOOR[unit]}")
            elif unit in RUNNERS and target in MAKERS:
                found.append(f"{where}; a runner knows no maker")
        # a name of the front, __version__ apart, has a file of its own
        elif name != "fastsample.__version__":
            found.append(f"{where}; import the file that defines it")
    return found


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(("fastsample", *path.relative_to(PACKAGE).with_suffix("").parts)), path


def test_python_floors():
    seen = list(modules())
    assert len(seen) > 20, "the package was not found"
    found = [sentence for module, path in seen for sentence in breaches(path.read_text(), module)]
    assert not found, "\n".join(found)


def test_the_rulebook_names_what_exists():
    """CONTRIBUTING's table holds the modules there are; those FLOORS keeps a place for are in its
    sentence about parts to come.
    """
    text = (ROOT / "CONTRIBUTING.md").read_text()
    kept = re.search(r"Kept for parts that do not exist yet: (.*)", text)[1]
    rows = re.findall(r"^\| [\d, ]+ \| ([^|]*)", text, re.M)
    here = {
        unit for unit in FLOOR if (PACKAGE / unit).is_dir() or (PACKAGE / f"{unit}.py").exists()
    }
    assert {name.removesuffix("/*") for row in rows for name in re.findall("`(.*?)`", row)} == here
    assert set(FLOOR) - here == {unit for unit in FLOOR if f"`{unit}`" in kept}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fastsample.plan.plan", "import torch"),
        ("fastsample.plan.plan", "from ..schedules import VP"),
        ("fastsample.grids", "def f():\n    from torch import nn"),
        ("fastsample.grids", "from fastsample.solvers import ddim"),
        ("fastsample.solvers.euler", "from .heun import heun"),
        ("fastsample.solvers.euler", "from . import heun"),
        ("fastsample.runtime.run", "from ..grids import karras"),
        ("fastsample.runtime.run", "from ..guidance import guided"),
        ("fastsample.guidance", "import torch"),
        ("fastsample.kernels.step", "from ..schedules import VP"),
        ("fastsample.kernels.reference", "import triton.language as tl"),
        ("fastsample.optimize.oss", "from .klub import klub"),
        ("fastsample.interop.k_diffusion", "import diffusers"),
        ("fastsample.runtime.sampler", "import fastsample as fs"),
        ("fastsample.runtime.sampler", "from fastsample import _C"),
        ("fastsample.models.unet", "import matplotlib.pyplot as plt"),
        ("fastsample.utils", "import math"),
    ],
)
def test_a_breach_is_seen(module, source):
    assert breaches(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fastsample.__init__", "from .plan import Plan"),
        (
            "fastsample.solvers.euler",
            "from ._build import Builder\nfrom ..plan import Plan\nimport numpy as np",
        ),
        ("fastsample.solvers.__init__", "from .euler import euler"),
        ("fastsample.kernels.native", "import torch\nfrom .. import _C\nfrom .noise import fill"),
        ("fastsample.kernels.step_triton", "import triton"),
        (
            "fastsample.optimize.oss",
            "import torch\nfrom ..kernels.cost_matrix import cost_matrix\nfrom ..solvers import "
            "SOLVERS",
        ),
        (
            "fastsample.interop.diffusers.loop",
            "import diffusers\nfrom ...runtime.run import Run",
        ),
        ("fastsample.plan.plan", "from . import file\nif TYPE_CHECKING:\n    import torch"),
        ("fastsample.runtime.sampler", "from ..guidance import guided"),
    ],
)
def test_an_honest_import_passes(module, source):
    assert breaches(source, module) == []


# --- csrc: include <- core <- cpu, cuda <- c_api <- python; include <- engine ---

C_FLOOR = {"include": 0, "engine": 1, "core": 1, "cpu": 2, "cuda": 2, "c_api": 3, "python": 4}
FOREIGN = re.compile(r"^(torch|ATen|c10|caffe2|cub|thrust)/|^cu(blas|dnn|fft|rand|solver|sparse)")
CUDA_HEADERS = re.compile(r"^cuda\w*\.h$|^cooperative_groups")
CUDA_SEEN = r"cuda/.* cuda_(runtime|fp16|bf16)\.h|.*/cuda_memory\.hpp cuda_runtime_api\.h"


def c_unit(relative):
    """The unit of a path below csrc: its first folder, or the file's stem."""
    parts = Path(relative).parts
    return parts[0] if len(parts) > 1 else Path(parts[0]).stem


def c_breaches(source, relative):
    """Sentences, one for each #include of csrc/<relative> that goes up, sideways or to a header it
    may not see.
    """
    unit, found = c_unit(relative), []
    if unit not in C_FLOOR:
        return [f"csrc/{relative}: stands on no floor"]
    for line, text in enumerate(source.splitlines(), 1):
        match = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', text)
        if not match:
            continue
        name, where = match[1], f"csrc/{relative}:{line}: includes {match[1]}"
        if FOREIGN.match(name):
            found.append(f"{where}; no torch header and no CUDA library anywhere")
        if re.match(r"pybind11/|Python\.h$", name) and unit != "python":
            found.append(f"{where}; Python is for python.cpp only")
        if CUDA_HEADERS.match(name) and not re.fullmatch(CUDA_SEEN, f"{relative} {name}"):
            found.append(
                f"{where}; cuda/ sees cuda_runtime.h, cuda_fp16.h and cuda_bf16.h, what users "
                "compile, cuda_memory.hpp, the runtime's header, the others none"
            )
        target = (
            "include" if name.startswith("fastsample/") else c_unit(name) if "/" in name else None
        )
        if target in C_FLOOR and target != unit and C_FLOOR[target] >= C_FLOOR[unit]:
            found.append(f"{where}, which stands no lower than {unit}")
        if "../" in name:
            found.append(f"{where}; name headers from csrc/, not by ..")
    return found


def test_c_floors():
    paths = [
        p
        for p in sorted(CSRC.rglob("*"))
        if p.suffix in (".h", ".hpp", ".cpp", ".cu", ".cuh", ".c")
    ]
    assert len(paths) > 5, "csrc was not found"
    found = [s for p in paths for s in c_breaches(p.read_text(), str(p.relative_to(CSRC)))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("core/plan.cpp", '#include "cpu/step.h"'),
        ("cpu/step.cpp", '#include "cuda/step.h"'),
        ("cpu/step.cpp", "#include <torch/torch.h>"),
        ("core/row.h", "#include <cuda_runtime.h>"),
        ("cuda/step.cu", "#include <cublas_v2.h>"),
        ("c_api.cpp", "#include <pybind11/pybind11.h>"),
        ("include/fastsample/fastsample.h", '#include "core/row.h"'),
    ],
)
def test_a_c_breach_is_seen(relative, source):
    assert c_breaches(source, relative)
