"""Runs diffusers' own scheduler tests with FsScheduler in place of the classes it reproduces.

DIR is a checkout of diffusers of the installed version, its tests folder or tests/schedulers
itself; nothing of it is kept here. In every test module a class that is reproduced is replaced by
one that has the class's own name and signature and makes
`FsScheduler.from_config({its own arguments}, compat=...)`; from_config and from_pretrained are
FsScheduler's. What a test does with the scheduler is left as it is, and tests of other classes are
not run. A module that cannot be imported counts as one failed test.

Prints passed, failed and skipped of every test class, then each failure with its error and the
reason that REASONS has for it, a line each. Strings are hashed from seed 0, for one test goes
through a set. Needs no network. Exit status: 0 if nothing failed, 1 if something did, 2
where nothing is to run.
"""

import argparse
import contextlib
import inspect
import io
import os
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

MODES = {"diffusers": "diffusers", "none": None, "auto": "auto"}
PLACES = ("tests/schedulers", "schedulers", ".")
EXACT = ("none",)
# (what of Class::test_name, the modes, why it fails)
REASONS = (
    (
        "PNDM.*::test_(betas|inference_steps|prediction_type|schedules|step|time)",
        EXACT,
        "writes ets, which is refused: an exact run keeps its history itself",
    ),
    ("::test_betas", MODES, "asks for a beta of 2, which is refused: betas lie between 0 and 1"),
    (
        "DDPM.*::test_full_loop_with_noise",
        MODES,
        "the sum it expects has 5.3e-5 of float32 rounding in it; float64 gives 387.967",
    ),
    ("DDPM.*::test_variance_type", MODES, "a variance_type that no class knows is refused"),
    (
        "::test_compatibles",
        MODES,
        "goes through other classes and back and expects its config again; a move keeps the clip "
        "of the class before it (DDIM and DDPM clip unless told), or is refused",
    ),
    (
        "UnCLIP.*::test_time_indices",
        MODES,
        "tells a step to end at another timestep than the run's next one, which is refused",
    ),
    (
        "UnCLIP.*::test_variance_type",
        MODES,
        "hands a step that reads a learned variance an output without one, which is refused",
    ),
    (
        "UnCLIP.*::test_full_loop",
        EXACT,
        "expects sums of a last step that divides a beta by what float32 leaves of it, 4e-4 less",
    ),
    (
        "PNDM.*::test_full_loop",
        EXACT,
        "expects a sum of the class's leading strides; exact ones go from its first timestep to 0",
    ),
    (
        "::test_full_loop_with_no_set_alpha_to_one",
        EXACT,
        "in the class the last step begins and ends at timestep 0; exact strides have no such step",
    ),
    (
        "::test_(eta|inference_steps|steps_offset|time_indices|timestep_spacing)",
        EXACT,
        "steps at a timestep that is none of the run's, which is refused",
    ),
    (
        "::test_full_loop_with_(karras|lu)",
        EXACT,
        "expects a sum of labels rounded to whole timesteps; exact ones keep their fraction",
    ),
    (
        "Heun.*::test_full_loop",
        EXACT,
        "hands the scaled model input to step as the sample; an exact Heun goes on from its own",
    ),
    (
        "Euler.*::test_full_loop_with_noise",
        EXACT,
        "expects a sum of float32 levels, 1.2e-6 from that of exact ones",
    ),
    (
        "Heun.*::test_custom_timesteps",
        EXACT,
        "timesteps handed back are float32, and so are the levels read from them",
    ),
    (
        "::test_rescale_betas_zero_snr",
        EXACT,
        "predicts eps where there is no signal, of which nothing exact is known: refused",
    ),
)


def stand_in(upstream, compat):
    """A class that is called as `upstream` is and makes an FsScheduler of it."""
    from fastsample.interop.diffusers import FsScheduler

    signature, name = inspect.signature(upstream.__init__), upstream.__name__

    class Made:
        _deprecated_kwargs = upstream._deprecated_kwargs

        def __new__(cls, *args, **given):
            words = dict(signature.bind(None, *args, **given).arguments)
            words.pop("self")
            words |= words.pop("kwargs", {})
            return cls.from_config({"_class_name": name, **words})

        def __init__(self):
            """For its signature alone: __new__ makes another class."""

        @classmethod
        def from_config(cls, config, **given):
            return FsScheduler.from_config(config, source=name, compat=compat, **given)

        from_pretrained = FsScheduler.from_pretrained

    Made.__init__.__signature__ = signature
    Made.__name__ = Made.__qualname__ = name
    return Made


class Swap:
    """A pytest plugin: puts the stand-ins into the test modules and counts what happens."""

    def __init__(self, compat):
        import diffusers

        from fastsample.interop.diffusers.sources import SOURCES

        classes = (getattr(diffusers, name) for name in SOURCES)
        self.made = {upstream: stand_in(upstream, compat) for upstream in classes}
        self.counts, self.failed, self.of = defaultdict(Counter), [], {}

    def swapped(self, value):
        if isinstance(value, (tuple, list)):
            return type(value)(map(self.swapped, value))
        return self.made.get(value, value) if isinstance(value, type) else value

    def put_into(self, owner):
        """True if a class of ours stands in it now, as a name or in a tuple."""
        found = False
        for name, value in list(vars(owner).items()):
            other = self.swapped(value)
            if other != value:
                setattr(owner, name, other)
            inside = other if isinstance(other, (tuple, list)) else (other,)
            found |= any(v in self.made.values() for v in inside if isinstance(v, type))
        return found

    def pytest_collection_modifyitems(self, config, items):
        ours, modules = {}, {item.module for item in items}
        for module in modules | {sys.modules[c.__module__] for i in items for c in i.cls.__mro__}:
            if Path(getattr(module, "__file__", None) or "/").is_relative_to(config.rootpath):
                self.put_into(module)
        for item in items:
            if item.cls not in ours:
                ours[item.cls] = any([self.put_into(c) for c in item.cls.__mro__[:-1]])
            self.of[item.nodeid] = item.cls.__name__
        config.hook.pytest_deselected(items=[i for i in items if not ours[i.cls]])
        items[:] = [i for i in items if ours[i.cls]]

    def pytest_collectreport(self, report):
        if report.failed:
            self.note(report, Path(report.nodeid).stem, "failed")

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            self.note(report, self.of[report.nodeid], report.outcome)

    def note(self, report, where, outcome):
        self.counts[where][outcome] += 1
        if outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            # an assertion's further lines show its parts
            lines = (crash.message if crash else str(report.longrepr)).strip().splitlines()
            self.failed.append((report.nodeid, lines[0] if crash else lines[-1]))


def run(folder, only, compat):
    """The Swap after all tests in the folder's files that have `only` in their name."""
    import pytest

    swap = Swap(compat)
    options = ["-p", "no:cacheprovider", "-p", "no:warnings", "-o", "addopts=", "--noconftest"]
    options += ["--continue-on-collection-errors", "--rootdir", str(folder), "-c", os.devnull]
    files = [str(p) for p in sorted(folder.glob("test_sched*.py")) if only in p.name]
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main([*options, *files], plugins=[swap])
    return swap


def reason(where, mode):
    """Why this test fails in this mode, in a list of one; empty where it is not known."""
    return [
        f"    {why}" for part, modes, why in REASONS if mode in modes and re.search(part, where)
    ][:1]


def table(swap, mode):
    """The counts in lines of Markdown, then the failures."""
    columns = ("passed", "failed", "skipped")
    total = sum(swap.counts.values(), Counter())
    lines = ["| class | passed | failed | skipped |", "|---|---|---|---|"]
    for name, counts in [*sorted(swap.counts.items()), ("all", total)]:
        lines.append(" | ".join([f"| {name}", *(str(counts[c]) for c in columns)]) + " |")
    for where, error in swap.failed:
        lines += [where, f"    {error}", *reason(where, mode)]
    return lines


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if "PYTHONHASHSEED" not in os.environ:
        words = [sys.executable, *sys.argv]
        os.execve(sys.executable, words, os.environ | {"PYTHONHASHSEED": "0"})
    parser.add_argument("folder", metavar="DIR", type=Path, help="where diffusers' tests are")
    parser.add_argument("--compat", choices=MODES, default="diffusers", help="FsScheduler's compat")
    parser.add_argument("--only", default="", metavar="PART", help="of a test file's name")
    given = parser.parse_args()
    found = [given.folder / p for p in PLACES if any((given.folder / p).glob("test_sched*.py"))]
    if not found:
        parser.error(
            f"{given.folder} has no test_sched*.py; a checkout of diffusers, its tests folder or "
            "tests/schedulers is accepted"
        )
    # read when the hub's library is imported, and when pytest starts
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    swap = run(found[0].resolve(), given.only, MODES[given.compat])
    if not swap.counts:
        parser.error(f"{found[0]} has no test of a class that FsScheduler reproduces")
    print(f"compat = {given.compat}", *table(swap, given.compat), sep="\n")
    return int(bool(swap.failed))


if __name__ == "__main__":
    sys.exit(main())
