"""What a run of the benchmarks changed against the last committed results of the same machine.

Times are told as ratios and fail nothing. Counts, the numbers of a row's `counts`, are
deterministic: one that grew is a fault, and so is a row that was asked for and is lost. Committing
the new file accepts it.
"""

import json
import subprocess

LAST = "the machine's last committed results"


def committed(folder, machine):
    """{file name: record} of a machine, newest first: as git's HEAD has them, so that a file not
    yet committed does not count; where git does not track the folder, as they lie there.
    """
    try:
        listed = _git(folder, "ls-tree", "--name-only", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        listed = ""
    if listed:
        names = [name for name in listed.splitlines() if name.startswith(f"{machine}-")]
        texts = {name: _git(folder, "show", f"HEAD:./{name}") for name in names}
    else:
        texts = {path.name: path.read_text() for path in folder.glob(f"{machine}-*.json")}
    records = {name: json.loads(text) for name, text in texts.items()}
    own = [name for name, record in records.items() if record["machine"] == machine]
    return {name: records[name] for name in sorted(own, reverse=True)}


def _git(folder, *words):
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def before(folder, machine):
    """{row's name: (file name, row)} that a run of this machine is compared with."""
    return baseline(committed(folder, machine))


def against_committed(before, machine, rows, asked):
    """(lines that say what changed, sentences that say what fails) for the rows of a run.

    asked: a row of an earlier file -> whether this run was to measure it.
    """
    if not before:
        return [f"{machine}: no file of this machine is committed; nothing to compare with"], []
    return changes(rows, before), faults(rows, before, asked)


def baseline(records):
    """{row's name: (file name, row)}, each row from the newest file that has it, back to the newest
    file of a whole run: what older files have and that run had not is gone for good.
    """
    rows = {}
    for name, record in records.items():
        rows = {row["name"]: (name, row) for row in record["rows"]} | rows
        if record.get("whole"):
            break
    return rows


def changes(rows, before):
    """A line for each row measured: its time, and what became of each count."""
    lines = []
    for row in rows:
        now = row["seconds"]
        if row["name"] not in before:
            lines.append(f"{row['name']}: {_spread(now)}; new")
            continue
        name, old = before[row["name"]]
        was = old["seconds"]
        ratio = now["median"] / was["median"]
        lines.append(
            f"{row['name']}: {ratio:.3g} x the time, {_spread(now)}; was {_spread(was)} ({name})"
        )
        counts, earlier = _counts(row), _counts(old)
        for count, value in earlier.items():
            if count not in counts:
                lines.append(f"  {count}: {value:,}, no longer counted")
            elif counts[count] != value:
                lines.append(f"  {count}: {value:,} -> {counts[count]:,}")
        lines += [f"  {count}: {counts[count]:,}, new" for count in counts.keys() - earlier.keys()]
    return lines


def faults(rows, before, asked):
    """A sentence for each count that grew, and for each row that asked(row) says should have been
    measured and was not.
    """
    sentences, found = [], {row["name"]: _counts(row) for row in rows}
    for row_name, (name, old) in before.items():
        if row_name not in found:
            if asked(old):
                sentences.append(
                    f"{row_name}: {name} has this row and this run lacks it; "
                    f"every row of {LAST} is measured again"
                )
            continue
        for count, was in _counts(old).items():
            now = found[row_name].get(count, was)
            if now > was:
                sentences.append(
                    f"{row_name}: {count} grew from {was:,} to {now:,} against {name}; "
                    f"a count is at most that of {LAST}"
                )
    return sentences


def _counts(row):
    """A row's counts: the numbers; settings and measurements are kept as text."""
    kept = row.get("counts", {}).items()
    return {count: value for count, value in kept if isinstance(value, (int, float))}


def _spread(seconds):
    """The median and the quartiles, in a unit that suits them: 12.3 µs (11.9–12.8)."""
    scale, unit = next(
        (scale, unit)
        for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs"))
        if seconds["median"] >= scale or unit == "µs"
    )
    median, q1, q3 = (f"{seconds[key] / scale:.3g}" for key in ("median", "q1", "q3"))
    return f"{median} {unit} ({q1}–{q3})"


def selection(config, bench):
    """asked(row) of a pytest run: whether the run was to measure the row, by the files and folders
    it was given; a run narrowed by -k or to one function owes no other row.

    bench: the folder of the benchmarks; a row's `file` stands in it. A row of a file written before
    rows named theirs is owed by a run of the whole folder.
    """
    narrowed = config.getoption("keyword") or any("::" in arg for arg in config.args)
    given = (
        [] if narrowed else [(config.invocation_params.dir / arg).resolve() for arg in config.args]
    )
    return lambda row: any((bench / row.get("file", "")).is_relative_to(path) for path in given)
