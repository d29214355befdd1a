"""Writes the tables of README.md and of pages in docs/ from bench/results/*.json.

A table stands between `<!-- table: GROUPS -->` and `<!-- end -->`, in parts where its rows have
different columns. GROUPS: benchmark groups, by commas, in the order of the table. For each machine
the newest file that has them is shown, its date beneath; a rehearsal (bench/gpu.py), which measures
nothing, never. `--check` writes nothing and fails when a page is out of step. `--show FOLDER`
prints what files in a folder have of GPUs, rehearsals too.
"""

import argparse
import itertools
import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / name for name in ("counts.md", "measured.md", "searches.md")),
)
RESULTS = ROOT / "bench" / "results"
BLOCK = re.compile(r"(<!-- table: ([\w, -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
MARKS = (": ", ", ")
SIGN = {"higher": "≥", "lower": "≤", "equal": "="}


def number(value):
    """Three significant digits, whole numbers whole, no exponent."""
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def measured(figure):
    """The median and, of several measurements, the quartiles: 12.3 x (11.9–12.8)."""
    unit = f" {figure['unit']}" if figure["unit"] else ""
    spread = f" ({number(figure['q1'])}–{number(figure['q3'])})" if "q1" in figure else ""
    return number(figure["value"]) + unit + spread


def goal(figure):
    if "target" not in figure:
        return ""
    unit = f" {figure['unit']}" if figure["unit"] else ""
    missed = "" if figure["met"] else " **missed**"
    return f"{SIGN[figure['better']]} {number(figure['target'])}{unit}{missed}"


def newest(records, group):
    """The newest record of each machine that measured the group."""
    found = {}
    for record in sorted(records, key=lambda r: r["date"]):
        if any(row["group"] == group for row in record["rows"]):
            found[record["machine"]] = record
    return list(found.values())


def table(groups, records):
    """The Markdown of one table, the machines and notes on missed targets beneath; a plain sentence
    when nothing was measured.
    """
    shown = [
        (record, row)
        for group in groups
        for record in newest(records, group)
        for row in record["rows"]
        if row["group"] == group
    ]
    if not shown:
        on_gpu = groups[0].startswith("gpu")
        what, how = ("Not measured on a GPU", "gpu") if on_gpu else ("Not measured", "bench")
        return f"{what} yet: `make {how}`.\n"
    alike = itertools.groupby((row for _, row in shown), key=names)
    parts = (pivot(rows) or plain(rows) for rows in (list(rows) for _, rows in alike))
    lines = "\n\n".join("\n".join(part) for part in parts).split("\n")
    figures = [f for _, row in shown for f in row["figures"] if "note" in f]
    notes = dict.fromkeys(f"Missed: {f['what']}: {f['note']}." for f in figures)
    sources = dict.fromkeys(source(record, row) for record, row in shown)
    return "\n".join([*lines, "", *notes, *sources]) + "\n"


def source(record, row):
    """Where and when a row was measured, or that it was not."""
    words = record["processor"], f"{record['cores']} cores", record["vector"], record["date"]
    quick = ", a quick run" if row.get("quick") else ""
    if rehearsed(record):
        return f"Rehearsed without a GPU, {record['date']}{quick}: nothing here is a measurement."
    return f"Measured on {', '.join(filter(None, words))}{quick}."


def rehearsed(record):
    return record["processor"] == "rehearsed"


def plain(rows):
    """One line a figure."""
    lines = [f"| {f['what']} | {measured(f)} | {goal(f)} |" for row in rows for f in row["figures"]]
    return ["| what | median (quartiles) | target |", "|---|---|---|", *lines]


def case(row):
    """What the names of a benchmark's figures begin with: up to the colon, or where that differs up
    to the last of the commas and colons that all of them have in one place. Empty: nothing.
    """
    whats = [f["what"] for f in row["figures"]]
    before, *others = {what.partition(": ")[0] for what in whats}
    if not others:
        return before
    alike = os.path.commonprefix(whats)
    ends = (k for k in range(len(alike), 0, -1) if all(what[k : k + 2] in MARKS for what in whats))
    return alike[: next(ends, 0)]


def names(row):
    """What a benchmark's figures are called behind their case; None where one has none."""
    found = tuple(f["what"][len(case(row)) + 2 :] for f in row["figures"])
    return found if case(row) and all(found) else None


def pivot(rows):
    """One line a benchmark, one column a figure, for benchmarks of the same figures "case: figure";
    None where there is one alone, or they are not.
    """
    if len(rows) < 2 or names(rows[0]) is None:
        return None
    lines = []
    for row in rows:
        cells = [measured(f) + (f"; {goal(f)}" if goal(f) else "") for f in row["figures"]]
        lines.append(f"| {case(row)} | {' | '.join(cells)} |")
    return [
        f"| median (quartiles); target | {' | '.join(names(rows[0]))} |",
        "|---" * (1 + len(names(rows[0]))) + "|",
        *lines,
    ]


def filled(text, records):
    """A page's text with every marked table made anew, of what was measured."""
    records = [record for record in records if not rehearsed(record)]
    groups = lambda names: [name.strip() for name in names.split(",")]
    return BLOCK.sub(lambda m: m[1] + table(groups(m[2]), records) + m[3], text)


def results(folder=RESULTS):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def of_gpus(records):
    """The tables of all groups of GPUs, in the order in which they were measured."""
    rows = (row for record in records for row in record["rows"])
    groups = dict.fromkeys(row["group"] for row in rows if row["group"].startswith("gpu"))
    return "\n".join(f"{group}\n{table([group], records)}" for group in groups)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    about = "fail when a page is out of step; write nothing"
    parser.add_argument("--check", action="store_true", help=about)
    about = "print the tables of GPUs from this folder; write nothing"
    parser.add_argument("--show", type=Path, metavar="FOLDER", help=about)
    given = parser.parse_args()
    if given.show is not None:
        return print(of_gpus(results(given.show)))
    for page in PAGES:
        text = page.read_text()
        new = filled(text, results())
        if given.check and new != text:
            sys.exit(f"{page.name}: its tables are not those of bench/results; run make tables")
        if not given.check:
            page.write_text(new)


if __name__ == "__main__":
    main()
