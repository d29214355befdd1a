"""Writes a run of the benchmarks as one small file, bench/results/<machine>-<date>.json, row by row
as they are measured, and says what changed against the last committed one of the same machine
(compare.py). A machine is named after its processor, or for the benchmarks of a GPU after that.
"""

import json
import os
import platform
import re
from importlib import metadata
from importlib.util import find_spec
from math import inf
from pathlib import Path
from time import perf_counter

import compare
import pytest

from fastsample.files import write_whole

if find_spec("pytest_benchmark") is None:
    said = "bench: pytest-benchmark is not installed; pip install 'fastsample[bench]'"
    raise pytest.UsageError(said)
BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results"
MEASURED, ABSENT, BEFORE, VERDICT, BEGUN = (pytest.StashKey() for _ in range(5))
# Of a GPU's benchmarks those that decide most come first: a run may be cut off.
ORDER = "bits", "step", "loop", "moments", "cost_matrix", "search", "latency", "peer", "sanitizer"
QUICK = 11  # interleaved pairs of a quick run


def pytest_addoption(parser):
    about = "the day of the run, YYYY-MM-DD; without it no results file is written"
    parser.addoption("--date", default=None, help=about)
    about = "a short name of the machine; default: made from its processor"
    parser.addoption("--machine", default=None, help=about)
    parser.addoption("--results", default=str(RESULTS), help="the folder of the results file")
    about = "fewer sizes and rounds; each row of the results says so"
    parser.addoption("--quick", action="store_true", help=about)
    about = "seconds after which no further benchmark is begun"
    parser.addoption("--limit", type=float, default=inf, help=about)


def pytest_configure(config):
    config.stash[MEASURED], config.stash[ABSENT], config.stash[BEGUN] = [], set(), perf_counter()
    if config.getoption("--quick"):
        import measure

        measure.PAIRS = QUICK


def pytest_ignore_collect(collection_path, config):
    """Of a GPU's benchmarks only files that have one are loaded: a machine with a GPU may lack what
    the others compare with.
    """
    bench = collection_path.name.startswith("bench_") and collection_path.suffix == ".py"
    if bench and config.getoption("markexpr") == "gpu":
        return "mark.gpu" not in collection_path.read_text() or None
    return None


@pytest.hookimpl(trylast=True)  # after -m has left out what it leaves out
def pytest_collection_modifyitems(config, items):
    if config.getoption("--quick"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    if any(item.get_closest_marker("gpu") for item in items):
        items.sort(key=place)


def place(item):
    """Where a benchmark of a GPU stands in the order; one that is not named there comes last."""
    named = (k for k, word in enumerate(ORDER) if item.name.startswith(f"bench_{word}"))
    return next(named, len(ORDER))


def processor():
    """The processor's own name, e.g. "AMD EPYC"."""
    try:
        return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1].strip()
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def vector_unit():
    """The widest vector instructions the processor names, e.g. "AVX-512"."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    if "avx512f" in flags:
        return "AVX-512"
    return "AVX2" if "avx2" in flags else ""


def versions():
    found = {"python": platform.python_version()}
    for name in ("fastsample", "torch", "triton", "numpy", "diffusers", "k-diffusion"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def compact(item):
    """What is kept of one benchmark: its name, group and file, seconds with quartiles, figures, and
    counts, in which a number is a count (compare.py) and text is anything else.
    """
    extra = dict(item["extra_info"])
    seconds = {key: item["stats"][key] for key in ("median", "q1", "q3", "rounds")}
    file = item["fullname"].partition("::")[0]
    row = {"name": item["name"], "group": item["group"] or "", "file": file, "seconds": seconds}
    row["figures"] = extra.pop("figures", [])
    return {**row, "counts": extra} if extra else row


def rounded(value):
    """Floats to four significant digits: the file is read by people and kept for good."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def machine(config, gpu):
    """What a results file says of the machine: the GPU where the benchmarks are its, else the
    processor, and the cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if gpu:
        from gpu import CUDA

        chip, vector = CUDA.get_device_name(), ""
    else:
        chip, vector = processor(), vector_unit()
    made = re.sub(r"[^a-z0-9]+", "-", f"{chip} {cores} cores".lower()).strip("-")
    name = config.getoption("--machine") or made
    return {"machine": name, "processor": chip, "vector": vector, "cores": cores}


def pytest_collection_finish(session):
    """What was committed of this machine, read before the run writes any file."""
    config = session.config
    if session.items and config.getoption("--date") is not None:
        record = machine(config, gpu=any(item.get_closest_marker("gpu") for item in session.items))
        folder = Path(config.getoption("--results"))
        config.stash[BEFORE] = record, compare.before(folder, record["machine"])


def late(config):
    """Is the time over in which benchmarks are begun?"""
    return perf_counter() - config.stash[BEGUN] > config.getoption("--limit")


def pytest_runtest_setup(item):
    if late(item.config):
        pytest.skip(f"not begun: {item.config.getoption('--limit'):g} s are over")


def pytest_runtest_makereport(item, call):
    """Writes a benchmark's row once it has measured: a run that is cut off leaves those it had."""
    config, fixture = item.config, (item.funcargs or {}).get("benchmark")
    if call.excinfo is not None and call.excinfo.errisinstance(pytest.skip.Exception):
        config.stash[ABSENT].add(item.name)
    elif call.when == "call" and fixture and fixture.stats is not None and not fixture.has_error:
        quick = {"quick": True} if config.getoption("--quick") else {}
        row = rounded(compact(fixture.stats.as_dict(include_data=False)))
        config.stash[MEASURED].append(row | quick)
        if BEFORE in config.stash:
            write(config, whole=False)


def write(config, whole):
    """The rows so far, to the day's file: a whole run's alone, else beside those that it has."""
    rows, (record, _) = config.stash[MEASURED], config.stash[BEFORE]
    folder, date = Path(config.getoption("--results")), config.getoption("--date")
    path = folder / f"{record['machine']}-{date}.json"
    if not whole and path.exists():
        kept = json.loads(path.read_text())
        whole = kept.get("whole", False)
        rows = list({row["name"]: row for row in kept["rows"] + rows}.values())
    record = record | {"date": date, "whole": whole, "versions": versions(), "rows": rows}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(record, indent=1, sort_keys=False) + "\n").encode())


def pytest_sessionfinish(session):
    """Compares the rows with the last committed ones. A whole run writes the day's file anew; a
    part of the benchmarks has replaced its own rows in it.
    """
    config = session.config
    rows, quick = config.stash[MEASURED], config.getoption("--quick")
    if not rows or BEFORE not in config.stash:
        return
    record, before = config.stash[BEFORE]
    asked = compare.selection(config, BENCH)
    owed = lambda row: asked(row) and not quick and row["name"] not in config.stash[ABSENT]
    config.stash[VERDICT] = compare.against_committed(before, record["machine"], rows, owed)
    if config.stash[VERDICT][1]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if asked({}) and not quick and not late(config) and not session.testsfailed:
        write(config, whole=True)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    if VERDICT not in config.stash:
        return
    terminalreporter.section("against the last committed results of this machine")
    changes, faults = config.stash[VERDICT]
    for line in changes:
        terminalreporter.write_line(line)
    for sentence in faults:
        terminalreporter.write_line(sentence, red=True)
