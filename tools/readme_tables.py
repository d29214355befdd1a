"""Writes the tables of README.md and of pages in docs/ from bench/results/*.json.

A table stands between `<!-- table: GROUPS -->` and `<!-- end -->`, in parts where its rows have
different columns. GROUPS: benchmark groups, by commas, in the order of the table. For each machine
the newest file that has them is shown, its date beneath; a rehearsal (bench/gpu.py), which measures
nothing, never. `<!-- short table: GROUPS -->` shows the medians of the columns in SHORT alone, a †
behind those that miss their target; `<!-- words table: GROUPS -->` what is said in words beside the
figures, as quartiles of samples and what was tried. `--check` writes nothing and fails when a page
is out of step. `--show FOLDER` prints what files in a folder have of GPUs, rehearsals too.
`--picture` draws README's picture of what the short table of the searches says.
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
BLOCK = re.compile(r"(<!-- (short |words )?table: ([\w, -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
# What a short table shows: the name of a figure behind its case -> the head of its column. A table
# without any of them is left out.
SHORT = {
    **{f"{n} evaluations": str(n) for n in (3, 4, 5, 6, 8, 10)},
    "whole call of 10 steps": "a call",
    "a loop by hand, eager": "over a loop by hand",
    "a loop by hand, with a compiled step": "over its compiled step",
    "one step of a whole loop": "a step of a loop",
    "against diffusers, a whole loop": "against diffusers",
    "a call, the denoiser's answers x/2": "a call",
    "a call, the denoiser's answers x/2, against k-diffusion": "against k-diffusion",
    "one step": "one step",
    "against diffusers": "against diffusers",
}
# of the searches it has these rows alone, in this order: what is usual, what is published, ours
FRONT = ("dpmpp_2m, Karras", "OSS as published", "GITS, dpmpp_2m", "the best by hand")
FRONT = (*FRONT, "model-free", "fit", "polish")
PICTURE = ROOT / "docs" / "front.png"
MARKS = (": ", ", ")
EACH = re.compile(r"(.+), (\d+) evaluations")  # what words are said of, for each budget
LONG = 70  # characters of words that several rows have and one line says
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
    spread = f" ({number(figure['q1'])}–{number(figure['q3'])})" if "q1" in figure else ""
    return median(figure) + spread


def joined(rows):
    """The rows, those of one figure each that have one case as one row."""
    found = {}
    for number, row in enumerate(rows):
        key = (row["group"], case(row)) if len(row["figures"]) == 1 and case(row) else number
        found.setdefault(key, {**row, "figures": []})["figures"] += row["figures"]
    return list(found.values())


def of_front(rows):
    """What README shows of the searches; all rows where they are of something else."""
    found = sorted((r for r in rows if case(r) in FRONT), key=lambda row: FRONT.index(case(row)))
    return found or rows


def picture(records):
    """README's picture, of the newest rows of the searches."""
    from fastsample.report.pictures import error_picture

    rows = [
        row
        for group in ("front", "front by hand")
        for row in newest(records, group)[-1]["rows"]
        if row["group"] == group
    ]
    curves = {
        case(row): {int(f["what"].split()[-2]): f["value"] for f in row["figures"]}
        for row in of_front(joined(rows))
    }
    error_picture(PICTURE, curves, "How near few evaluations come to a fine run, on unseen noises")


def median(figure):
    return number(figure["value"]) + (f" {figure['unit']}" if figure["unit"] else "")


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


def table(groups, records, kind=None):
    """The Markdown of one table, the machines and notes on missed targets beneath, which a short
    one and one of words leave out; a plain sentence when nothing was measured.
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
    form = {"short ": brief, "words ": worded}.get(kind, usual)
    alike = itertools.groupby(joined(row for _, row in shown), key=names)
    alike = [(None, (row for _, row in shown))] if form is worded else alike
    parts = filter(None, (form(list(rows)) for _, rows in alike))
    lines = "\n\n".join("\n".join(part) for part in parts).split("\n")
    figures = [f for _, row in shown for f in row["figures"] if "note" in f and form is usual]
    notes = dict.fromkeys(f"Missed: {f['what']}: {f['note']}." for f in figures)
    sources = dict.fromkeys(source(record, row) for record, row in shown)
    return "\n".join([*lines, "", *notes, *sources]) + "\n"


def usual(rows):
    return pivot(rows) or plain(rows)


def worded(rows):
    """What rows say in words beside their figures: a line a case and a column a budget where it is
    said for each, and a line for all else; what is long and the same in several rows stands once,
    with the names of all of them.
    None where nothing is said.
    """
    every = [(row, *said) for row in rows for said in row["counts"].items()]
    each, lines = {}, {}
    for row, name, text in every:
        if not isinstance(text, str):
            continue
        if found := EACH.fullmatch(name):
            each.setdefault(found[1], {})[found[2]] = text
        else:
            own = row["figures"][0]["what"] if len(row["figures"]) == 1 else case(row)
            same = (name, text) if len(text) > LONG else (name, text, own)
            lines.setdefault(same, []).append("" if name.startswith(own) else own)
    heads = sorted({m for said in each.values() for m in said}, key=int)
    cells = [[name, *(said.get(m, "") for m in heads)] for name, said in each.items()]
    first, *rest = (
        f"| {' | '.join(line)} |" for line in [["", *(f"{m} evaluations" for m in heads)], *cells]
    )
    parts = ["\n".join([first, "|---" * (1 + len(heads)) + "|", *rest])] if each else []
    if lines:
        whose = lambda owns: together([own for own in owns if own])
        said = [
            f"| {': '.join(filter(None, [whose(owns), name]))} | {text} |"
            for (name, text, *_), owns in lines.items()
        ]
        parts.append("\n".join(["| of | said |", "|---|---|", *said]))
    return "\n\n".join(parts).split("\n") if parts else None


def together(names):
    """Names in one: a first part that all have stands once."""
    parts = [name.rpartition(": ") for name in names]
    if len({head for head, *_ in parts}) != 1:
        return "; ".join(names)
    return "".join(parts[0][:2]) + ", ".join(tail for *_, tail in parts)


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
    return [f"| what | {head(rows)} | target |", "|---|---|---|", *lines]


def head(rows):
    """What the figures are: medians where any of them is of several measurements."""
    several = any("q1" in f for row in rows for f in row["figures"])
    return "median (quartiles)" if several else "measured"


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
        f"| {head(rows)}; target | {' | '.join(names(rows[0]))} |",
        "|---" * (1 + len(names(rows[0]))) + "|",
        *lines,
    ]


def brief(rows):
    """As `pivot`, the medians of the figures in SHORT alone; None where none of them is there."""
    heads = [SHORT.get(name) for name in names(rows[0]) or ()]
    if not any(heads):
        return None
    columns = ["", *filter(None, heads)]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in of_front(rows):
        shown = (f for f, head in zip(row["figures"], heads, strict=True) if head)
        cells = [median(f) + " †" * (f.get("met") is False) for f in shown]
        lines.append(f"| {case(row)} | {' | '.join(cells)} |")
    return lines


def filled(text, records):
    """A page's text with every marked table made anew, of what was measured."""
    records = [record for record in records if not rehearsed(record)]
    groups = lambda names: [name.strip() for name in names.split(",")]
    made = lambda found: table(groups(found[3]), records, found[2])
    return BLOCK.sub(lambda found: found[1] + made(found) + found[4], text)


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
    about = f"draw {PICTURE.relative_to(ROOT)}"
    parser.add_argument("--picture", action="store_true", help=about)
    given = parser.parse_args()
    if given.picture:
        return picture(results())
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
