"""What `make bench` says of a run against results committed in a small folder, and one benchmark of
a microsecond that goes all the way through bench/'s own conftest.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("bench_compare", BENCH / "compare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """A results folder that git tracks, with a file of another machine."""
    git(tmp_path, "init", "-q")
    results = tmp_path / "bench" / "results"
    write(results, "2025-01-01", [row("bench_c")], machine="box-2-cores")
    commit(tmp_path)
    return results


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


def commit(folder):
    git(folder, "add", "-A", ".")
    git(folder, "commit", "-qm", "a state")


def row(name, median=4e-5, **counts):
    seconds = {"median": median, "q1": 0.9 * median, "q3": 1.2 * median, "rounds": 21}
    return {"name": name, "file": f"{name}.py", "seconds": seconds, "counts": counts}


def write(folder, date, rows, machine="box", whole=True):
    folder.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine, "date": date, "whole": whole, "rows": rows}
    (folder / f"{machine}-{date}.json").write_text(json.dumps(record))


def against(compare, folder, rows, asked):
    return compare.against_committed(compare.before(folder, "box"), "box", rows, asked)


EVERY = lambda row: True
PART = lambda row: row.get("file") == "bench_a.py"


def test_first_file(compare, folder):
    first = "box: no file of this machine is committed; nothing to compare with"
    assert against(compare, folder, [row("bench_a")], EVERY) == ([first], [])


def test_ratio_with_medians_and_quartiles(compare, folder):
    write(folder, "2026-01-01", [row("bench_a"), row("bench_b", 2.0)])
    commit(folder)
    rows = [row("bench_a", 3e-5), row("bench_b", 4e-3), row("bench_new")]
    changes, faults = against(compare, folder, rows, EVERY)
    a = "0.75 x the time, 30 µs (27–36); was 40 µs (36–48) (box-2026-01-01.json)"
    b = "0.002 x the time, 4 ms (3.6–4.8); was 2 s (1.8–2.4) (box-2026-01-01.json)"
    assert changes == [f"bench_a: {a}", f"bench_b: {b}", "bench_new: 40 µs (36–48); new"]
    assert faults == []


def test_slower_alone_is_no_fault(compare, folder):
    write(folder, "2026-01-01", [row("bench_a")])
    commit(folder)
    assert against(compare, folder, [row("bench_a", 1.0)], EVERY)[1] == []


def test_count_that_grew(compare, folder):
    old = row("bench_a", launches=10, bytes_per_step=314600.0, threads="1")
    write(folder, "2026-01-01", [old])
    commit(folder)
    new = row("bench_a", launches=11, bytes_per_step=314600.0, threads="2")
    changes, faults = against(compare, folder, [new], EVERY)
    assert changes[1:] == ["  launches: 10 -> 11"]
    assert faults == [
        "bench_a: launches grew from 10 to 11 against box-2026-01-01.json; "
        "a count is at most that of the machine's last committed results"
    ]


def test_counts_that_shrank_came_and_went(compare, folder):
    write(folder, "2026-01-01", [row("bench_a", launches=10, syncs=2)])
    commit(folder)
    new = row("bench_a", launches=9, bytes=12000)
    changes, faults = against(compare, folder, [new], EVERY)
    assert faults == []
    told = ["  launches: 10 -> 9", "  syncs: 2, no longer counted", "  bytes: 12,000, new"]
    assert changes[1:] == told


def test_lost_row(compare, folder):
    write(folder, "2026-01-01", [row("bench_a"), row("bench_b")])
    commit(folder)
    lost = [
        "bench_b: box-2026-01-01.json has this row and this run lacks it; "
        "every row of the machine's last committed results is measured again"
    ]
    assert against(compare, folder, [row("bench_a")], EVERY)[1] == lost
    assert against(compare, folder, [row("bench_a")], PART)[1] == []
    assert len(against(compare, folder, [row("bench_b")], PART)[1]) == 1


def test_rows_come_from_the_newest_file_back_to_the_last_whole_run(compare, folder):
    write(folder, "2026-01-01", [row("bench_a"), row("bench_b"), row("bench_gone")])
    write(folder, "2026-01-02", [row("bench_a"), row("bench_b", launches=1)])
    write(folder, "2026-01-03", [row("bench_a", launches=3)], whole=False)
    commit(folder)
    found = compare.baseline(compare.committed(folder, "box"))
    newest = {"bench_a": "box-2026-01-03.json", "bench_b": "box-2026-01-02.json"}
    assert {name: file for name, (file, _) in found.items()} == newest
    rows = [row("bench_a", launches=3), row("bench_b", launches=2)]
    (fault,) = against(compare, folder, rows, EVERY)[1]
    assert "bench_b: launches grew from 1 to 2 against box-2026-01-02.json" in fault


def test_what_is_not_committed_does_not_count(compare, folder):
    write(folder, "2026-01-01", [row("bench_a", launches=10)])
    commit(folder)
    write(folder, "2026-01-01", [row("bench_a", launches=11)])
    git(folder, "add", "-A", ".")
    write(folder, "2026-01-02", [row("bench_a", launches=11)])
    rows = [row("bench_a", launches=11)]
    (fault,) = against(compare, folder, rows, EVERY)[1]
    assert "from 10 to 11 against box-2026-01-01.json" in fault
    # Without git the newest file is the one to compare with.
    shutil.rmtree(folder.parents[1] / ".git")
    changes, faults = against(compare, folder, rows, EVERY)
    assert faults == [] and "(box-2026-01-02.json)" in changes[0]


def run(folder, *words):
    """(exit status, output, the day's record) of benchmarks in the folder, under bench/'s own
    conftest.
    """
    fixed = ("-q", "-p", "no:cacheprovider", "-c", "bench/pytest.ini", "--benchmark-json=out.json")
    day = ("--machine=box", "--date=2026-01-02", f"--results={folder / 'bench/results'}")
    command = [sys.executable, "-m", "pytest", *fixed, *day, *words]
    # pytest-benchmark measures nothing where a variable says that it is a worker of xdist.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=clean)
    path = folder / "bench/results/box-2026-01-02.json"
    assert path.exists(), done.stdout + done.stderr
    return done.returncode, done.stdout, json.loads(path.read_text())


def test_a_whole_run_and_a_part_of_it(folder):
    bench = folder.parent
    for name in ("conftest.py", "compare.py", "pytest.ini"):
        shutil.copy(BENCH / name, bench)
    body = (
        "(benchmark):\n    benchmark.extra_info.update(launches=2)\n    benchmark.pedantic(int)\n"
    )
    for name in "ab":
        (bench / f"bench_{name}.py").write_text(f"def bench_{name}{body}")
    write(folder, "2026-01-01", [row("bench_a", launches=2), row("bench_b"), row("bench_c")])
    commit(folder.parents[1])

    status, out, record = run(bench.parent, "bench")
    assert status == 1 and "2 passed" in out and record["whole"]
    assert [(r["name"], r["file"]) for r in record["rows"]] == [
        ("bench_a", "bench_a.py"),
        ("bench_b", "bench_b.py"),
    ]
    assert "bench_c: box-2026-01-01.json has this row and this run lacks it" in out
    assert "launches: 2, new" in out and "grew" not in out

    (bench / "bench_b.py").write_text(f"def bench_b{body.replace('=2', '=3')}")
    status, out, record = run(bench.parent, "bench/bench_b.py")
    assert status == 0 and "bench_a" not in out and "bench_c" not in out
    assert record["whole"] and [r["counts"]["launches"] for r in record["rows"]] == [2, 3]

    (bench / "bench_a.py").write_text(f"def bench_a{body.replace('=2', '=3')}")
    status, out, _ = run(bench.parent, "bench", "-k", "bench_a")
    assert status == 1 and "bench_a: launches grew from 2 to 3" in out and "bench_c" not in out
