"""A release: one version everywhere, every check in `make release-check`, and the workflows and the
settings of cibuildwheel, which nobody has run: as far as reading tells, they name what is there.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest
import tomllib
import yaml

import fastsample as fs

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEELS = PROJECT["tool"]["cibuildwheel"]
MAKEFILE = (ROOT / "Makefile").read_text()
BLOCKS = {"python", "text", "sh", "cpp", ""}  # what a page shows that no program reads has no name
TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[1].split()


def jobs(path):
    return yaml.safe_load(path.read_text())["jobs"]


def steps(path):
    return [step for job in jobs(path).values() for step in job["steps"]]


def test_one_version_stands_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == fs.__version__
    assert PROJECT["project"]["dynamic"] == ["version", "readme", "urls"]  # as in csrc
    assert "../fastsample/__init__.py" in (ROOT / "csrc/CMakeLists.txt").read_text()


def test_a_release_passes_every_check_of_a_change_and_more():
    release = re.search(r"^RELEASE := (.*)$", MAKEFILE, re.M)[1].split()
    order = ["lint", "test", "soak", "wheel", "docs", "test-integrations"]
    assert [name for name in release if name in order] == order and {*release} <= {*TARGETS}
    change = re.search(r"^exec make (.*) <", (ROOT / ".ci/run").read_text(), re.M)[1].split()
    assert {*change, "types"} <= {*release}


def test_what_only_a_publisher_can_say_is_named_before_a_release():
    node = tomllib.loads((ROOT / "integrations/comfyui/pyproject.toml").read_text())
    theirs = {**node["project"]["urls"], **node["tool"]["comfy"]}
    command = ["make", "-s", "-C", ROOT, "release-check", "RELEASE="]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in ("Repository", "PublisherId"):
        assert (f'{name} = ""' in said) == (theirs[name] == "")


def test_the_doors_of_a_wheel_are_those_of_readme_and_never_the_checkouts():
    """tools/doors.py knows every kind of block, and refuses a package that is no wheel's."""
    assert {block.language for block in pages.blocks(ROOT / "README.md")} == BLOCKS
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    command, env = (
        [sys.executable, ROOT / "tools/doors.py", ROOT],
        os.environ | {"PYTHONPATH": path},
    )
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    said = f"doors: {ROOT / 'fastsample/__init__.py'} is the checkout's; a wheel's is wanted\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_all_four_are_there():
    assert [path.stem for path in WORKFLOWS] == ["docs", "elsewhere", "tests", "wheels"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_names_what_is_there(path):
    text = path.read_text()
    assert re.search(r"^#.*Not run(\s|#)+so far", text, re.M)
    for job in jobs(path).values():
        needs = job.get("needs", [])
        assert {"runs-on", "steps"} <= job.keys()
        assert {needs} if isinstance(needs, str) else {*needs} <= jobs(path).keys()
    for step in steps(path):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"])
            continue
        subprocess.run(["bash", "-n", "-c", step["run"]], check=True)
        for target in re.findall(r"\bmake ([\w-]+)", step["run"]):
            assert target in TARGETS, target
        for name in re.findall(r"-c (constraints[\w.-]*)", step["run"]):
            assert (ROOT / name).exists()
    for name in re.findall(r"\b(?:tests|tools|\.ci)/[\w./-]+", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_job_asks_for_no_more_than_it_needs(path):
    """No rights but to read, no credentials left behind; and pytest, which imports the checkout,
    finds the native code there.
    """
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
    for name, job in jobs(path).items():
        assert name == "publish" or "permissions" not in job
        for step in job["steps"]:
            kept = step.get("with", {}).get("persist-credentials")
            assert kept is False or not step.get("uses", "").startswith("actions/checkout")
        said = "\n".join(step.get("run", "") for step in job["steps"])
        assert "-m pytest" not in said or re.search(r"pip install .*-e \. ", said)


def test_wheels_are_built_for_every_python_that_is_accepted_and_one_file_serves_the_rest():
    minors = sorted(int(re.fullmatch(r"cp3(\d+)-\*", name)[1]) for name in WHEELS["build"])
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert PROJECT["project"]["requires-python"] == f">=3.{minors[0]}"
    named = re.findall(r"Python :: 3\.(\d+)", " ".join(PROJECT["project"]["classifiers"]))
    assert [*map(int, named)] == minors
    tests = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    tested = {"3.11", *tests["pythons"]["strategy"]["matrix"]["python"]}
    assert tested == {f"3.{minor}" for minor in minors}


def test_a_wheel_has_native_code_or_is_none_and_copies_no_libgomp():
    (over,) = WHEELS["overrides"]
    for words in (WHEELS["environment"], over["environment"]):
        assert words["FASTSAMPLE_NATIVE"] == "on"
    assert over["environment"]["FASTSAMPLE_CUDA"] == "on" and "aarch64" not in over["select"]
    assert WHEELS["linux"]["archs"] == ["x86_64", "aarch64"]
    assert "--exclude libgomp.so.1" in WHEELS["linux"]["repair-wheel-command"]
    assert re.search(r"import (\w+);", over["before-all"])[1] == "wheels"
    assert {*re.findall(r"manylinux_\d+_(\d+)", str(WHEELS))} == {"28"}


def test_the_oldest_releases_are_those_that_are_accepted():
    oldest = dict(re.findall(r"^(\w+)==(\S+)$", (ROOT / "constraints-min.txt").read_text(), re.M))
    least = dict(re.findall(r"(\w+)>=([\d.]+)", " ".join(PROJECT["project"]["dependencies"])))
    assert {name: f"{version}.0" for name, version in least.items()} == {
        name: version for name, version in oldest.items() if name in least
    }
