"""fastsample convert: plans and lists in every form, there and back, and what is refused."""

import io
import json
import os
import sys

import numpy as np
import pytest

import fastsample as fs
from fastsample import cli
from fastsample.cli import lists

FLOW, TABLE = fs.schedules.Flow(3.0), fs.schedules.DiscreteVP.scaled_linear()
MODEL = fs.Model(None, FLOW, "flow", time=1000)
PLANS = {
    "flow": lambda: fs.solvers.heun(MODEL, fs.grids.uniform(FLOW, 3)),
    "table": lambda: fs.solvers.unipc(TABLE, fs.grids.karras(TABLE, 5), prediction="eps"),
}
# what makes the plan again of its list
WORDS = {
    "flow": ["--schedule", "Flow(shift=3.0)", "--solver", "heun", "--time", "1000"],
    "table": ["--schedule", "DiscreteVP.scaled_linear", "--solver", "unipc", "--prediction", "eps"],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the plans and nothing else."""
    monkeypatch.chdir(tmp_path)
    for name, make in PLANS.items():
        make().save(f"{name}.fsplan")
    return tmp_path


def converted(capsys, *words):
    assert cli.main(["convert", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_and_its_lists_there_and_back(here, capsys, name):
    """Exactly as JSON; through 15 digits of a list, and float32 for ComfyUI, to their rounding."""
    plan, file = PLANS[name](), f"{name}.fsplan"
    assert fs.Plan.from_json(converted(capsys, file, "--to", "json")) == plan
    assert converted(capsys, file, "--out", "p.json") == "wrote p.json\n"
    converted(capsys, "p.json", "--out", "again.fsplan")
    assert (here / "again.fsplan").read_bytes() == (here / file).read_bytes()
    times = np.array(plan.note["times"])
    schedule = fs.schedules.from_json(plan.note["schedule"])
    ratio = schedule.alpha(times) if name == "table" else 1.0
    levels = schedule.sigma(times) / ratio
    for form in lists.FORMS:
        text = converted(capsys, file, "--to", form)
        is_float32, told = "comfyui" in form, "timesteps" if form == "timesteps" else "sigmas"
        rounding = 2.0**-24 if is_float32 else 1e-14
        said, numbers = lists.read(text)
        want = times[:-1] if form == "timesteps" else levels
        np.testing.assert_allclose(numbers, want, rtol=rounding)
        assert said in (None, told) and "e-" not in text
        (here / "list.txt").write_text(text)
        converted(capsys, "list.txt", "--from", told, "--out", "made.fsplan", *WORDS[name])
        made = fs.Plan.load("made.fsplan")
        assert made.program == plan.program
        np.testing.assert_allclose(made.M, plan.M, atol=1e-4 if is_float32 else 1e-10)


def test_a_list_in_other_forms_needs_a_schedule_only_to_change_its_kind(here, capsys):
    assert converted(capsys, "1, 0.75;0.5 0", "--to", "comfyui") == "1.0, 0.75, 0.5, 0.0\n"
    node = json.loads(converted(capsys, "[1, 1e-5, 0]", "--to", "comfyui-json"))
    assert node == {"1": {"class_type": "ManualSigmas", "inputs": {"sigmas": "1.0, 0.00001, 0.0"}}}
    linked = {"0": {"inputs": {"sigmas": ["1", 0]}}}  # the node that is fed by ManualSigmas
    assert converted(capsys, json.dumps(linked | node), "--to", "sigmas") == "1.0,0.00001,0.0\n"
    again = converted(capsys, json.dumps(node), "--to", "sdcpp-json")
    assert json.loads(again) == {"sample_params": {"custom_sigmas": [1.0, 1e-5, 0.0]}}
    made = ["--schedule", '{"name": "Flow", "shift": 3.0}']
    told = converted(capsys, "1,0.9,0", "--to", "timesteps", *made)
    assert told == "1.0,0.75\n"
    assert (
        converted(capsys, told, "--from", "timesteps", "--to", "sigmas", *made) == "1.0,0.9,0.0\n"
    )


@pytest.mark.parametrize("schedule", [fs.schedules.TrigFlow(), fs.schedules.Cosine(), FLOW])
def test_a_single_step_from_pure_noise_is_a_flows_on_a_flow_alone(here, capsys, schedule):
    """Its two points, (0, 1) and (1, 0), lie on all three; the list makes the plan again."""
    plan = fs.solvers.euler(schedule, fs.grids.uniform(schedule, 1), prediction="x0")
    plan.save("one.fsplan")
    said = converted(capsys, "one.fsplan", "--to", "sigmas")
    assert said == ("1.0,0.0\n" if schedule is FLOW else "inf,0.0\n")
    assert cli.main(["show", "one.fsplan", "--sigmas"]) == 0 and capsys.readouterr().out == said
    words = [
        "--solver",
        "euler",
        "--prediction",
        "x0",
        "--schedule",
        json.dumps(schedule.to_json()),
    ]
    (here / "list.txt").write_text(said)
    converted(capsys, "list.txt", "--out", "again.fsplan", *words)
    assert fs.Plan.load("again.fsplan") == plan


def test_a_list_from_standard_input(here, capsys, monkeypatch):
    given = lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    given(b"14.6\n7.8\n3.5\n0\n")
    assert converted(capsys, "-", "--to", "sigmas") == "14.6,7.8,3.5,0.0\n"
    given((here / "flow.fsplan").read_bytes())
    assert converted(capsys, "-", "--to", "json") == converted(
        capsys, "flow.fsplan", "--to", "json"
    )
    given(b"\xff\xfe")
    assert cli.main(["convert", "-", "--to", "sigmas"]) == 2
    assert "-: no text" in capsys.readouterr().err


def test_a_pipe_is_read_once(here, capsys):
    """A plan and a list, as a shell's <(command) hands them; and - is standard output, too."""
    for data in ((here / "flow.fsplan").read_bytes(), b"1,0.857142857142857,0.6,0"):
        reader, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        said = converted(capsys, f"/dev/fd/{reader}", "--to", "sigmas", "--out", "-")
        os.close(reader)
        assert said == "1.0,0.857142857142857,0.6,0.0\n" and not os.path.exists("-")


def test_a_list_says_what_it_leaves_out(here, capsys):
    """The rows that a search fitted, and the factor of the first noise, are in no list."""
    found = {"amplitude": 0.97}
    PLANS["flow"]().with_note(solver="fit", rows="free", found=found).save("fit.fsplan")
    for line in (["convert", "fit.fsplan", "--to", "sigmas"], ["show", "fit.fsplan", "--sigmas"]):
        assert cli.main(line) == 0
        said = capsys.readouterr()
        assert said.out == "1.0,0.857142857142857,0.6,0.0\n"
        assert "does not hold the rows of fit and the factor 0.97" in said.err


@pytest.mark.parametrize("name", PLANS)
def test_levels_of_a_plan_whose_note_names_no_schedule_are_those_of_its_rows(here, capsys, name):
    """Where a step begins, and not where it asks in between."""
    plan = PLANS[name]()
    plan.with_note(schedule=None).save("bare.fsplan")
    said, bare = (converted(capsys, f"{file}.fsplan", "--to", "sigmas") for file in (name, "bare"))
    assert len(bare.split(",")) == len(plan.note["times"])
    numbers, want = (lists.read(text)[1] for text in (bare, said))
    np.testing.assert_allclose(numbers, want, rtol=1e-14)
    assert cli.main(["convert", "bare.fsplan", "--to", "timesteps"]) == 2
    assert "names no schedule" in capsys.readouterr().err


BAD = [
    ("1,0", "it is not said what to"),
    ("absent --to sigmas", "absent: No such file"),
    (". --to sigmas", "Is a directory"),
    ("bytes.bin --to sigmas", "bytes.bin: no text"),
    ("cut.fsplan --to sigmas", "cut.fsplan: load:"),
    ("words,more --to sigmas", "is no list of numbers"),
    ("1,nan --to sigmas", "is no list of numbers"),
    ("1_0,0 --to sigmas", "is no list of numbers"),
    ("[true,false] --to sigmas", "is no list of numbers"),
    ('["3",0] --to sigmas', "is no list of numbers"),
    (f"[1{400 * '0'},0] --to sigmas", "is no list of numbers"),
    ('{"sigmas":[1,0],"custom_sigmas":[2,0]} --to sigmas', "the JSON holds 2 lists; JSON that"),
    ("{} --to sigmas", "the JSON has keys ''"),
    ("[1,2 --to sigmas", "the JSON cannot be read"),
    ('{"fastsample_plan":1} --to sigmas', "from_json: keys are"),
    ("1,0 --to fsplan", "--out FILE.fsplan is needed"),
    ("1,0 --to json", "does not say its solver"),
    ("1,0 --to json --solver euler", "does not say its prediction"),
    ("1,0 --to json --solver euler --prediction x0", "does not say its schedule"),
    ("1,0 --to timesteps", "does not say its schedule"),
    ("1,2,0 --to json --solver euler --schedule Flow", "grids.from_sigmas"),
    ("5,3,8 --to comfyui", "has the level 8 after 3; levels"),
    ("3,-1 --to sigmas", "has the level -1 after 3; levels"),
    ("3,1 --to sigmas --solver euler", "--solver belongs to a plan that is made of a list"),
    ("3,1 --to comfyui --time 1000", "--time belongs to a plan that is made of a list"),
    ("flow.fsplan --to json --schedule Flow", "--schedule belongs to a list"),
    ("flow.fsplan --to sigmas --from sigmas", "--from belongs to a list"),
    ('{"timesteps":[1]} --to sigmas --from sigmas', "says it is of timesteps"),
    ("inf,1,0 --to comfyui", "begins at an infinite level"),
    ("1e39,1,0 --to comfyui-json", "begins at an infinite level"),  # in float32
    ("flow.fsplan --out no/folder/a.json", "no/folder"),
    ("1,0 --to odd", "invalid choice: 'odd'"),
    ("1,0 --to sigmas --schedule Floww", "'Floww' is no schedule"),
    ("1,0 --to sigmas --schedule Flow(shift=-1)", "is no schedule (Flow: shift"),
    ("1,0 --to sigmas --schedule __import__('os')", "is no schedule (no such name)"),
    (
        "1,0 --to sigmas --schedule Flow(shift=__import__('os'))",
        "is no schedule (shift=__import__('os')); one",
    ),
    ("1,0 --to sigmas --schedule DiscreteVP.to_json", "is no schedule (no such name)"),
    ("1,0 --to sigmas --time soon", "argument --time: 'soon'"),
]


@pytest.mark.parametrize("line, words", BAD, ids=[line[:60] for line, _ in BAD])
def test_bad_input_is_one_sentence_and_leaves_nothing(here, capsys, line, words):
    (here / "bytes.bin").write_bytes(b"\xff\xfe")
    (here / "cut.fsplan").write_bytes((here / "flow.fsplan").read_bytes()[:50])
    before = sorted(os.listdir())
    try:
        code = cli.main(["convert", *line.split()])
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1 and words in said
    assert said.startswith("fastsample convert: ") and sorted(os.listdir()) == before
