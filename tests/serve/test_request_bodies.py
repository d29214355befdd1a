"""What the served example checks of requests and of plan files, without a server."""

import os
import threading

import pytest

import fastsample as fs
from examples.ray_serve import body as bodies
from examples.ray_serve.plans import Plans

SHAPES = ((1, 28, 28), (1, 32, 32))
MODEL = fs.Model(None, fs.schedules.EDM(), "edm")


def plan_of(steps):
    return fs.solvers.euler(MODEL, fs.grids.karras(MODEL.schedule, steps))


@pytest.fixture
def folder(tmp_path):
    plan_of(3).save(tmp_path / "a-3.fsplan")
    return tmp_path


def test_a_body_of_a_plan_alone():
    body = bodies.read(b'{"plan": "a"}', SHAPES)
    assert (body.plan, body.label, body.guidance, body.shape) == ("a", 0, None, (1, 28, 28))
    assert 0 <= body.seed < 2**63 and body.seed != bodies.read(b'{"plan": "a"}', SHAPES).seed
    other = bodies.read(b'{"plan": "a", "shape": [1, 32, 32], "guidance": 2, "seed": 0}', SHAPES)
    assert (other.shape, other.guidance, other.seed) == ((1, 32, 32), 2.0, 0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "body: Expecting value.*; a JSON object is accepted"),
        (b"\xff", "body: .*; a JSON object is accepted"),
        (b"[" * 4000, "body: .*; a JSON object is accepted"),
        (b"[1]", "body: a list; a JSON object is accepted"),
        (b"{}", "body: plan is missing; the name of one"),
        (b'{"plan": "a", "n": 1}', "body: 'n' is not known; plan, seed, label"),
        (b'{"plan": "a", "seed": -1}', "body: seed = -1; a whole number from 0 to"),
        (b'{"plan": "a", "seed": true}', "body: seed = True; a whole number"),
        (b'{"plan": "a", "label": 10}', "body: label = 10; a whole number from 0 to 9 is accepted"),
        (b'{"plan": "a", "label": 1.0}', r"body: label = 1\.0; a whole number"),
        (b'{"plan": "a", "guidance": NaN}', "body: guidance = nan; a number from 0 to 100"),
        (b'{"plan": "a", "guidance": "2"}', "body: guidance = '2'; a number"),
        (b'{"plan": "a", "deadline": -1}', "body: deadline = -1; a number from 0 to 3600"),
        (b'{"plan": "a", "deadline": 1' + b"0" * 400 + b"}", "body: deadline = 1000"),
        (b'{"plan": "a", "guidance": 1e999}', "body: guidance = inf; a number"),
        (b'{"plan": "a", "every": 0}', "body: every = 0; a whole number from 1 to 1000"),
        (b'{"plan": "a", "format": "exe"}', "body: format = 'exe'; 'png' or 'npz' is accepted"),
        (b'{"plan": "a", "format": []}', r"body: format = \[\]; 'png' or 'npz'"),
        (b'{"plan": "a", "shape": [1, 4096, 4096]}', r"body: shape = \[1, 4096, 4096\]; one of \["),
        (b'{"plan": "a", "shape": [[1], 28, 28]}', r"body: shape = \[\[1\], 28, 28\]; one of"),
    ],
)
def test_what_a_body_may_not_say(text, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        bodies.read(text, SHAPES)


@pytest.mark.parametrize(
    "name", ["../a-3", "a/b", "", "a" * 65, "a\0", "a-3\n", ".", 7, None, ["a-3"], "\N{DIGIT TWO}é"]
)
def test_names_that_are_no_names(name, folder):
    (folder.parent / "a-3.fsplan").write_bytes((folder / "a-3.fsplan").read_bytes())
    with pytest.raises(ValueError, match="^plan: "):
        Plans(folder).get(name)


def test_a_folder_is_watched(folder):
    plans = Plans(folder)
    first = plans.get("a-3")
    assert plans.get("a-3") is first and first.nfe == 3 and plans.names() == ["a-3"]
    plan_of(5).save(folder / "a-3.fsplan")
    assert plans.get("a-3").nfe == 5 and first.nfe == 3
    plan_of(2).save(folder / "new.fsplan")
    assert plans.names() == ["a-3", "new"] and plans.get("new").nfe == 2
    # half written: the one that stood there before, until it is whole
    text = (folder / "a-3.fsplan").read_bytes()
    (folder / "a-3.fsplan").write_bytes(text[:100])
    assert plans.get("a-3").nfe == 5
    (folder / "new.fsplan").unlink()
    with pytest.raises(ValueError, match="^plan: there is no 'new'; a-3 are accepted$"):
        plans.get("new")
    (folder / "torn.fsplan").write_bytes(b"no plan")
    with pytest.raises(ValueError, match="^plan: 'torn': load: 7 bytes are fewer than"):
        plans.get("torn")


def test_plans_that_are_too_long(folder):
    with pytest.raises(ValueError, match="'a-3' has 3 evaluations in 5 rows; 2 in 1000 at most"):
        Plans(folder, most_evaluations=2).get("a-3")
    with pytest.raises(ValueError, match="'a-3' has 3 evaluations in 5 rows; 200 in 4 at most"):
        Plans(folder, most_rows=4).get("a-3")
    with pytest.raises(ValueError, match=r"'a-3' has \d+ bytes; 10 at most are accepted"):
        Plans(folder, most_bytes=10).get("a-3")


def test_many_threads_ask_while_a_file_changes(folder):
    plans, seen, stop = Plans(folder), set(), threading.Event()

    def ask():
        while not stop.is_set():
            seen.add(plans.get("a-3").nfe)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for steps in (4, 5, 6):
        plan_of(steps).save(folder / "next")
        os.replace(folder / "next", folder / "a-3.fsplan")
    stop.set()
    for thread in threads:
        thread.join()
    assert seen <= {3, 4, 5, 6} and plans.get("a-3").nfe == 6
