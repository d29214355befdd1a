"""`make gpu` on the stand-in for torch.cuda: its benchmarks run in the order that they are to have,
each row is written once it is there, and what was rehearsed is never taken for measured.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
DAY = "2026-01-02"
ORDER = ["bits", "step", "loop", "moments", "cost_matrix", "search", "latency", "peer", "sanitizer"]


def rehearse(folder, *words, cwd=ROOT, **environment):
    """(exit status, output, the record written or None) of a run on the stand-in."""
    fixed = ["-q", "-rs", "-c", "bench/pytest.ini", "-p", "no:cacheprovider", "-p", "stand_in"]
    fixed += ["-m", "gpu", f"--date={DAY}", f"--results={folder}"]
    # pytest-benchmark measures nothing where a variable says that it is a worker of xdist.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    clean |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "pytest", *fixed, *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=clean)
    (path,) = list(Path(folder).glob("*.json")) or [None]
    record = path and json.loads(path.read_text())
    assert path is None or path.name.startswith("rehearsed-") and path.name.endswith(f"{DAY}.json")
    return done.returncode, done.stdout + done.stderr, record


def names(record):
    return [row["name"] for row in record["rows"]]


@pytest.fixture
def tables():
    path = ROOT / "tools" / "readme_tables.py"
    spec = importlib.util.spec_from_file_location("readme_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_benchmark_from_end_to_end(tmp_path, tables):
    words = ("--quick", "bench", "-k", "step and fp32 or loop and 50x32 or moments and 2x4")
    status, said, record = rehearse(tmp_path, *words)
    assert status == 0, said
    assert record["processor"] == "rehearsed" and not record["whole"]
    sizes = [f"bench_step_cuda[dpmpp_2m-fp32-{size}]" for size in ("64KB", "32MB", "256MB")]
    assert names(record) == [*sizes, "bench_loop_cuda[50x32]", "bench_moments_cuda[2x4]"]
    assert all(row["quick"] and row["seconds"]["rounds"] == 11 for row in record["rows"])
    assert all(row["figures"] and row["figures"][0]["value"] > 0 for row in record["rows"])
    (share,) = (f for f in record["rows"][1]["figures"] if "triad" in f["what"])
    assert share["target"] == 90 and share["n"] == 11
    assert tables.of_gpus([record]).count("Rehearsed without a GPU") == 3
    empty = "<!-- table: gpu, gpu step -->\nNot measured on a GPU yet: `make gpu`.\n<!-- end -->\n"
    assert tables.filled(empty, [record]) == empty
    made = tables.filled(empty, [record | {"processor": "NVIDIA H200"}])
    assert "Measured on NVIDIA H200, " in made and "a quick run" in made


@pytest.fixture
def small(tmp_path):
    """A folder bench/ with benchmarks of a microsecond, in files whose names are in no order."""
    bench = tmp_path / "bench"
    bench.mkdir()
    for name in ("conftest.py", "compare.py", "pytest.ini", "gpu.py", "measure.py"):
        shutil.copy(ROOT / "bench" / name, bench)
    head, mark = "import os, pytest\n", "@pytest.mark.gpu\n"
    one = "def bench_{}(benchmark):\n    {}\n    benchmark.pedantic(int)\n"
    work = {"search_cuda": "", "other": "", "bits": "", "loop_cuda": "", "step_cuda": ""}
    work |= {"peer": 'pytest.importorskip("no_peer", reason="peer absent: no_peer")'}
    for k, (name, line) in enumerate(work.items()):
        text = head + mark + one.format(name, line or "pass")
        (bench / f"bench_{k}.py").write_text(text)
    (bench / "bench_cpu.py").write_text("import no_peer\n" + one.format("cpu", "pass"))
    return bench


def test_order_and_what_is_absent(small, tmp_path):
    status, said, record = rehearse(tmp_path / "out", "bench", cwd=tmp_path)
    assert status == 0 and record["whole"], said
    order = ["bench_bits", "bench_step_cuda", "bench_loop_cuda", "bench_search_cuda", "bench_other"]
    assert names(record) == order
    assert "peer absent: no_peer" in said and "bench_cpu" not in said

    # a row that was absent is not lost, one that is gone is
    (path,) = (tmp_path / "out").glob("*.json")
    gone = [record["rows"][0] | {"name": name} for name in ("bench_peer", "bench_gone")]
    path.write_text(json.dumps(record | {"rows": record["rows"] + gone}))
    status, said, _ = rehearse(tmp_path / "out", "bench", cwd=tmp_path)
    assert status == 1 and "bench_gone: " in said and "bench_peer: " not in said


def test_a_run_that_is_cut_off_leaves_what_it_had(small, tmp_path):
    path = small / "bench_3.py"
    path.write_text(path.read_text().replace("pass", "os._exit(9)"))
    status, _, record = rehearse(tmp_path / "out", "bench", cwd=tmp_path)
    assert status == 9
    assert names(record) == ["bench_bits", "bench_step_cuda"] and not record["whole"]


def test_nothing_is_begun_after_the_limit(small, tmp_path):
    status, said, record = rehearse(tmp_path / "out", "bench", "--limit=0", cwd=tmp_path)
    assert status == 0 and record is None and "not begun: 0 s are over" in said


def test_the_order_of_all_that_runs():
    listed = rehearse("build/none", "--collect-only", "bench")[1].splitlines()
    found = [re.search(r"::bench_(\w+)", line) for line in listed]
    found = [name[1] for name in found if name]
    at = [next(k for k, word in enumerate(ORDER) if name.startswith(word)) for name in found]
    assert at == sorted(at) and set(at) == set(range(len(ORDER)))
    recipe = re.search(r"^gpu: \$\(if.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    assert " bench || " in recipe and "bench_" not in recipe and "bench/" not in recipe


def test_what_compute_sanitizer_finds(tmp_path):
    found = '*racecheck*) echo "========= SUMMARY: 3 hazards (3 errors, 0 warnings)"; exit 97;;'
    clean = '*) echo "7 passed in 1s"; echo "========= ERROR SUMMARY: 0 errors";;'
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f'#!/bin/sh\ncase "$*" in {found} {clean} esac\n')
    tool.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    status, said, record = rehearse(tmp_path / "out", "bench", "-k", "sanitizer", PATH=path)
    assert status == 1 and "1 failed, 1 passed" in said
    errors = {row["name"]: row["figures"][1]["value"] for row in record["rows"]}
    assert errors == {"bench_sanitizer[memcheck]": 0, "bench_sanitizer[racecheck]": 3}
    assert record["rows"][0]["figures"][0]["value"] == 7


def test_all_of_a_quick_run(tmp_path):
    """The tests of tests/gpu and every benchmark but those that a quick run leaves out."""
    status, said, record = rehearse(tmp_path, "--quick", "bench")
    assert status == 0, said
    groups = {row["group"] for row in record["rows"]}
    words = ("bits", "step", "moments", "cost_matrix", "search")
    assert groups == {"gpu", *(f"gpu {word}" for word in words)}
    passed, failed = record["rows"][0]["figures"]
    assert passed["value"] > 90 and failed["value"] == 0
