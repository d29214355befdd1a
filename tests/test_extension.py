"""What CONTRIBUTING promises to whoever adds a solver, a backend or a search: one file and its line
in the registry, and the tests, `doctor` and `show` take it up by themselves.

A copy of the package and its tests gets one of each, and wrong ones beside them, which those tests
must notice.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]

SOLVER = '''"""{name}: Euler's step on x0."""
import math

from ._begin import begin
from ._build import M, X


def {name}(model, grid, *, prediction=None, start=None, inpaint=False, clip=0.0, compat="exact"):
    """x' = (sigma'/sigma) x - alpha' expm1(-h) x0."""
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    level = b.half_log_snr
    for i in range(b.n):
        if b.sigma[i + 1] == 0.0:
            step = b.alpha[i + 1] * M
        else:
            h = level[i + 1] - level[i]
            step = (b.sigma[i + 1] / b.sigma[i]) * X - b.alpha[i + 1] * math.expm1(-h) * M
        b.row(b.t[i], to=b.t[i + 1], x=step)
    orders = [{order}] * b.n
    return b.build("{name}", arguments={{"compat": compat}}, order={order}, orders=orders)
'''
BACKEND = '''"""{name}: a step of its own, and nothing else."""
from .reference import bind as definition
from .reference import fill as fill


def covers(kernel, device, dtype):
    return None if kernel == "step" else "a toy has the step alone"


def bind(pool):
    launch = definition(pool)

    def own(row, f=(), noise=(), x_in=None, x_out=None):
        launch(row, f, noise, x_in, x_out)
        {fault}

    return own
'''
SEARCH = '''"""toy_search: an even grid."""
import numpy as np

from .. import grids, solvers
from ._search import Search


def toy_search(model, z, budget):
    """Plans of 1..budget evaluations; nothing is asked."""
    grid = grids.uniform(model.schedule, 12)
    indices = {m: np.linspace(0, 12, m + 1).astype(int) for m in range(1, budget + 1)}
    plans = {
        m: solvers.euler(model, grid[at]).with_note(found={"search": "toy_search"})
        for m, at in indices.items()
    }
    error = dict.fromkeys(plans, 0.0)
    return Search(plans, error, indices, grid, plans[budget], 0, len(z), 0.0)
'''
COMMANDS = """
import fastsample as fs
from fastsample import cli
from fastsample.plan import Plan


def test_doctor_and_show(tmp_path, capsys):
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "step, cpu, float32" in said and "toy (covers cpu/float32)" in said
    assert "toy: a toy has the step alone" in said
    s = fs.schedules.Flow()
    plan = fs.solvers.SOLVERS["toy_solver"](s, fs.grids.uniform(s, 3), prediction="flow")
    plan.save(tmp_path / "a.fsplan")
    assert cli.main(["show", str(tmp_path / "a.fsplan")]) == 0
    assert "toy_solver" in capsys.readouterr().out
    assert Plan.load(tmp_path / "a.fsplan").remake(start=1).nfe == 2
"""
FAULT = "(pool.x if x_out is None else x_out).mul_(1 + 2.0**-22)"
FILES = {
    "solvers/toy_solver.py": SOLVER.format(name="toy_solver", order=1),
    "solvers/wrong_solver.py": SOLVER.format(name="wrong_solver", order=2),
    "kernels/toy.py": BACKEND.format(name="toy", fault="pass"),
    "kernels/wrong.py": BACKEND.format(name="wrong", fault=FAULT),
    "optimize/toy_search.py": SEARCH,
}
LINES = {  # file: what stands there, and what stands there then
    "solvers/__init__.py": [
        (
            "from .unipc import unipc as unipc\n",
            "from .toy_solver import toy_solver as toy_solver\n",
        ),
        (
            "from .unipc import unipc as unipc\n",
            "from .wrong_solver import wrong_solver as wrong_solver\n",
        ),
        ("        unipc,\n", "        toy_solver,\n        wrong_solver,\n"),
    ],
    "kernels/backend.py": [("BACKENDS = [", '"toy", "wrong", ')],
    "optimize/__init__.py": [
        ("from .oss import oss\n", "from .toy_search import toy_search\n"),
        ('__all__ = ["Search", ', '"toy_search", '),
    ],
}
TESTS = {  # test: is it to fail?
    "kernels/test_step.py::test_backend_is_the_reference_bit_for_bit[toy-base]": False,
    "kernels/test_step.py::test_backend_is_the_reference_bit_for_bit[wrong-base]": True,
    "kernels/test_step.py::test_backend_is_the_reference_on_any_case[toy]": False,
    "test_run.py::test_float32_is_the_interpreters_float32_to_the_bit[toy_solver-toy]": False,
    "test_run.py::test_float32_is_the_interpreters_float32_to_the_bit[toy_solver-reference]": False,
    "test_run.py::test_float32_is_the_interpreters_float32_to_the_bit[unipc-wrong]": True,
    "test_run.py::test_inpainting_is_the_interpreters[toy_solver-reference]": False,
    "test_solvers.py::test_a_thousand_evaluations[toy_solver-0]": False,
    "test_order.py::test_b_slope_from_exact_history[toy_solver]": False,
    "test_order.py::test_c_slope_as_users_run_it[toy_solver]": False,
    "test_order.py::test_c_slope_as_users_run_it[wrong_solver]": True,
    "test_searches.py::test_a_search_returns_plans_with_their_provenance[toy_search]": False,
    "test_toy_commands.py::test_doctor_and_show": False,
}


def extended(folder: Path) -> None:
    """A copy of the package and the tests in the folder, with what is new in it."""
    skipped = shutil.ignore_patterns("__pycache__", "gpu", "golden", "c")
    shutil.copytree(ROOT / "fastsample", folder / "fastsample", ignore=skipped)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=skipped)
    for name, text in FILES.items():
        (folder / "fastsample" / name).write_text(text)
    for name, changes in LINES.items():
        path = folder / "fastsample" / name
        text = path.read_text()
        for before, new in changes:
            assert text.count(before) == 1, f"{name}: {before!r}"
            text = text.replace(before, before + new)
        path.write_text(text)
    (folder / "tests" / "test_toy_commands.py").write_text(COMMANDS)


@pytest.mark.slow
def test_new_parts_are_taken_up_and_wrong_ones_noticed(tmp_path):
    extended(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=out.xml"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command += [f"tests/{test}" for test in TESTS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    said = (done.stdout + done.stderr)[-3000:]
    cases = list(ElementTree.parse(tmp_path / "out.xml").iter("testcase"))
    assert len(cases) == len(TESTS), said
    failed = {case.get("name"): case.find("failure") is not None for case in cases}
    assert failed == {test.partition("::")[2]: bad for test, bad in TESTS.items()}, said
