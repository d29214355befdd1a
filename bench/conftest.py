"""Writes a run of the benchmarks as one small file, bench/results/<machine>-<date>.json."""

import json
import os
import platform
import re
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


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
    """What is kept of one benchmark: its name, seconds with quartiles, figures and counts."""
    extra = dict(item["extra_info"])
    seconds = {key: item["stats"][key] for key in ("median", "q1", "q3", "rounds")}
    row = {"name": item["name"], "group": item["group"] or "", "seconds": seconds}
    row["figures"] = extra.pop("figures", [])
    return {**row, "counts": extra} if extra else row


def rounded(value):
    """Floats to four significant digits: the file is read by people and kept for good."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def pytest_benchmark_update_json(config, benchmarks, output_json):
    date = config.getoption("--date")
    if date is None or config.getoption("--collect-only"):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    made = re.sub(r"[^a-z0-9]+", "-", f"{processor()} {cores} cores".lower()).strip("-")
    name = config.getoption("--machine") or made
    record = {
        "machine": name,
        "processor": processor(),
        "vector": vector_unit(),
        "cores": cores,
        "date": date,
        "versions": versions(),
    }
    path = Path(config.getoption("--results")) / f"{name}-{date}.json"
    # A part of the benchmarks replaces its own rows.
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {row["name"]: row for row in kept}
    rows.update({row["name"]: row for row in map(compact, output_json["benchmarks"])})
    record["rows"] = rounded(list(rows.values()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, sort_keys=False) + "\n")
