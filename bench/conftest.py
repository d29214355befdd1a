"""Writes a run of the benchmarks as one small file, bench/results/<machine>-<date>.json, and says
what changed against the last committed one of the same machine (compare.py).
"""

import json
import os
import platform
import re
from importlib import metadata
from pathlib import Path

import compare
import pytest

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results"
MEASURED, VERDICT = pytest.StashKey(), pytest.StashKey()


def pytest_addoption(parser):
    about = "the day of the run, YYYY-MM-DD; without it no results file is written"
    parser.addoption("--date", default=None, help=about)
    about = "a short name of the machine; default: made from its processor"
    parser.addoption("--machine", default=None, help=about)
    parser.addoption("--results", default=str(RESULTS), help="the folder of the results file")


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
    for name in ("fastsample", "torch", "numpy", "diffusers", "k-diffusion"):
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
        import torch

        chip, vector = torch.cuda.get_device_name(), ""
    else:
        chip, vector = processor(), vector_unit()
    made = re.sub(r"[^a-z0-9]+", "-", f"{chip} {cores} cores".lower()).strip("-")
    name = config.getoption("--machine") or made
    return {"machine": name, "processor": chip, "vector": vector, "cores": cores}


def pytest_benchmark_update_json(config, benchmarks, output_json):
    config.stash[MEASURED] = rounded([compact(item) for item in output_json["benchmarks"]])


def pytest_sessionfinish(session):
    """Compares the rows measured with the last committed ones, then writes them to the day's file:
    a whole run writes it anew, a part of the benchmarks replaces its own rows.
    """
    config = session.config
    rows, date = config.stash.get(MEASURED, []), config.getoption("--date")
    if not rows or date is None:
        return
    record = machine(config, gpu=any(item.get_closest_marker("gpu") for item in session.items))
    folder = Path(config.getoption("--results"))
    path = folder / f"{record['machine']}-{date}.json"
    asked = compare.selection(config, BENCH)
    whole = asked({}) and not session.testsfailed
    config.stash[VERDICT] = compare.against_committed(folder, record["machine"], rows, asked)
    if config.stash[VERDICT][1]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if not whole and path.exists():
        kept = json.loads(path.read_text())
        whole = kept.get("whole", False)
        rows = list({row["name"]: row for row in kept["rows"] + rows}.values())
    record |= {"date": date, "whole": whole, "versions": versions(), "rows": rows}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, sort_keys=False) + "\n")


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
