"""What `make test` and `make test-slow` run: together all tests but those of the GPU and what
`make soak` alone runs, each once.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
# The words of a command that leave no test out.
HARMLESS = (
    r"TRITON_INTERPRET=1|OMP_NUM_THREADS=1|-q|--durations=\d+"
    r"|-n 2 --dist loadfile --no-loadscope-reorder"
    r'|-m "[^"]*"|\$\(call marked,\w+\)$'
)


MARKS = ("gpu", "slow", "soak", "alone", "interpreted")


def commands(target):
    """The words that a target's recipe gives to pytest, a string a command."""
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    return [line.replace("$(PY) -m pytest", "") for line in recipe.splitlines() if "pytest" in line]


def chosen(command, marks):
    """Whether a test of these marks is run; without a -m every test is."""
    expression = re.search(r'-m "([^"]*)"', command)
    names = {mark: mark in marks for mark in (*MARKS, "hypothesis")}
    return eval(expression[1], {"__builtins__": {}}, names) if expression else True


def test_every_test_runs_once_and_those_of_the_gpu_never():
    run = commands("test") + commands("test-slow")
    assert len(run) == 4 and chosen(run[1], {"alone"}) and chosen(run[2], {"interpreted"})
    assert chosen(run[3], {"slow", "alone"})
    for flags in itertools.product((False, True), repeat=len(MARKS)):
        marks = set(itertools.compress(MARKS, flags))
        times = [chosen(command, marks) for command in run]
        here = "soak" not in marks or "interpreted" in marks
        assert sum(times) == ("gpu" not in marks and bool(here)), marks


def test_a_soak_runs_what_is_marked_and_the_property_tests():
    (run,) = commands("soak")
    due = {"soak": True, "soak slow": True, "hypothesis": True, "": False, "slow": False}
    for words, ran in due.items():
        marks = set(words.split())
        assert chosen(run, marks) is ran and not chosen(run, {*marks, "gpu"})
    assert " -v " in run, "a name before each test says how far it is"


def test_what_counts_threads_has_them_all():
    workers, alone, _ = commands("test")
    (slow,) = commands("test-slow")
    assert all("OMP_NUM_THREADS=1 " in run and " -n 2 " in run for run in (workers, slow))
    assert "OMP_NUM_THREADS" not in alone and " -n " not in alone


def test_tritons_interpreter_runs_what_is_marked_and_nothing_else():
    run = commands("test") + commands("test-slow")
    assert [command for command in run if "TRITON_INTERPRET=1 " in command] == run[2:3]
    assert not chosen(run[2], set()) and chosen(run[2], {"interpreted"})


def test_a_run_that_reads_the_files_of_a_mark_runs_nothing_without_it():
    """What has the mark has its name in its file: conftest.py refuses it otherwise."""
    asked = {}
    for command in commands("test") + commands("test-slow"):
        for mark in re.findall(r"\$\(call marked,(\w+)\)", command):
            asked[mark] = command
            for flags in itertools.product((False, True), repeat=len(MARKS)):
                assert not chosen(command, set(itertools.compress(MARKS, flags)) - {mark})
    assert asked.keys() == {"alone", "interpreted", "slow"}
    pattern = re.search(r"^marked = \$\(shell (.*)\)$", MAKEFILE, re.MULTILINE)[1]
    for mark in asked:
        line = pattern.replace("$(1)", mark)
        found = subprocess.run(["/bin/sh", "-c", line], cwd=ROOT, capture_output=True, text=True)
        tests = ROOT.glob("tests/**/test_*.py")
        named = {str(p.relative_to(ROOT)) for p in tests if f"pytest.mark.{mark}" in p.read_text()}
        assert set(found.stdout.split()) == named and len(named) > 2


def test_a_mark_that_is_not_named_in_its_file_is_refused(tmp_path):
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "marks.py").write_text("import pytest\nLONG = pytest.mark.slow\n")
    (tmp_path / "test_it.py").write_text("from marks import LONG\n@LONG\ndef test_it(): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only"]
    paths = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=paths)
    assert "test_it: slow, without a pytest.mark.slow in its file" in done.stderr


def test_nothing_else_narrows_a_run(pytestconfig):
    for command in commands("test") + commands("test-slow"):
        assert not re.sub(HARMLESS, "", command).strip(), command
    assert pytestconfig.getini("addopts") == ["--strict-markers"]
    assert pytestconfig.getini("testpaths") == ["tests"]
    registered = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    assert registered >= set(MARKS)


def test_without_nvcc_one_line_says_so(tmp_path):
    line = re.search(r"^test-slow:.*\n\t@(.*nvcc.*)$", MAKEFILE, re.MULTILINE)[1]
    say = lambda: (
        subprocess.run(
            ["/bin/sh", "-c", line], env={"PATH": str(tmp_path)}, capture_output=True, text=True
        ).stdout
    )
    assert say().count("\n") == 1 and "nvcc was not found" in say()
    (tmp_path / "nvcc").touch(mode=0o755)
    assert say() == ""


def test_the_checks_of_a_change_run_all_of_it():
    assert "exec make lint types test test-serve docs test-slow <" in (ROOT / ".ci/run").read_text()
