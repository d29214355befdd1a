"""What a notebook shows of plans and searches, and what a prompt shows of everything that runs:
sound and closed markup whatever the strings are, drawn where the numbers are, one line each.
"""

import math
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_page import ATTRIBUTES, Page, a_front, a_search, compared, plan

import fastsample as fs
from fastsample.cli import lists
from fastsample.plan import card
from fastsample.trajectories import record

HOSTILE = "<script>alert(1)</script>\"' & \x1b[2J\u202e"
SHOWN = "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27; &amp; \\x1b[2J\\u202e"


class Card(Page):
    """A card read as strictly as a page: nothing in it runs, loads or styles what is around it."""

    known = (ATTRIBUTES - {"src", "href", "id", "content", "http-equiv"}) | {
        *("style", "fill", "stroke", "stroke-width", "stroke-dasharray", "font-size", "width"),
        *("cx", "cy", "r", "text-anchor"),
    }

    def __init__(self, it):
        super().__init__(it._repr_html_())
        tags = {tag for tag, *_ in self.shape}
        assert tags <= {
            *("div", "p", "strong", "details", "summary", "figure", "figcaption"),
            *(
                "table",
                "thead",
                "tbody",
                "tr",
                "th",
                "td",
                "svg",
                "path",
                "circle",
                "title",
                "text",
            ),
        }
        assert set(self.of("style")) <= {"margin:0"}
        assert {*self.of("fill"), *self.of("stroke")} == {"currentColor", "none"}


def circles(it):
    """[(x, y)] of the points drawn."""
    found = Card(it)
    return list(zip(map(float, found.of("cx")), map(float, found.of("cy")), strict=True))


def test_a_plan_is_shown_with_its_levels_rows_and_note():
    made = plan(4, "dpmpp_2m")
    said = Card(made).texts
    assert "dpmpp_2m" in said and ": 4 evaluations, 6 rows, 1 slot, 1 branch" in said
    assert any(line.startswith("Made for EDM(sigma_min=0.002") for line in said)
    assert {f"{v:.6g}" for v in made.M[1:, 0, : made.W].ravel() if v} <= set(said)
    assert "schedule › name" in said and "dpmpp_2m" in said
    heights = [y for _, y in circles(made)]
    level = np.log(made.sigma[made.call >= 0] / made.alpha[made.call >= 0])
    slope = np.diff(heights) / np.diff(level)  # a straight line of the logarithm, down the page
    np.testing.assert_allclose(slope, slope.mean(), atol=0.1 / np.abs(np.diff(level)).min())
    assert slope.mean() < 0


def test_an_infinite_level_stands_at_the_edge():
    s = fs.schedules.Flow()
    made = fs.solvers.euler(s, fs.grids.uniform(s, 3), prediction="flow")
    (_, first), (_, second), _ = circles(made)
    assert first == card.TOP < second and "evaluation 1: inf" in Card(made).texts


@pytest.mark.parametrize("m", [1, 60])
def test_one_level_and_many_fit_into_the_figure(m):
    points = circles(plan(m))
    assert len(points) == m
    assert all(0 < x < card.WIDTH - card.RIGHT + 1 and 0 < y < card.HEIGHT for x, y in points)
    labels = re.findall(r"<text[^>]*middle[^>]*>(\d+)<", plan(m)._repr_html_())
    assert labels == (["1"] if m == 1 else ["1", "60"])


def test_every_string_of_a_note_is_escaped():
    made = plan(2, solver="euler").with_note(
        solver=HOSTILE,
        schedule={"name": HOSTILE, HOSTILE: HOSTILE},
        prediction=HOSTILE,
        x=[HOSTILE],
    )
    text = made._repr_html_()
    Card(made)
    assert text.count(SHOWN) >= 6 and "<script" not in text and "\x1b" not in text
    search = a_search(plans={2: made})
    Card(search)
    assert search._repr_html_().count(SHOWN) >= 7


def test_a_solver_of_a_note_may_be_anything():
    for odd in (["a", {"b": 1}], {"a": 1}, 7):
        made = plan(2, solver="euler").with_note(solver=odd)
        Card(made)
        assert made.describe()


@pytest.mark.parametrize("odd", [None, True, 7, "abc", {"a": 1}, [[1], None]])
def test_what_a_note_says_under_a_known_key_may_be_anything(odd):
    made = plan(2, solver="euler")
    for key in made.note.keys() - {"stored"}:
        twin = made.with_note(**{key: odd})
        Card(twin)
        assert twin.describe() and repr(twin) and lists.levels_of(twin) == [80.0, 0.002, 0.0]
        if key not in ("solver", "schedule", "times", "grid", "prediction"):
            fs.interop.k_sigmas(twin)
        if key != "solver":
            fs.FsScheduler.from_plan(twin).set_timesteps(2)


def test_what_a_note_says_at_length_takes_no_more_than_a_line():
    """The thousand numbers of a table's schedule, and what a file calls its solver."""
    table = fs.schedules.DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    made = fs.solvers.euler(table, [999, 500, 100, -1], prediction="eps")
    (said,) = [line for line in Card(made).texts if line.startswith("Made for DiscreteVP(alphas_")]
    assert said.endswith("...), prediction eps") and len(said) < 200
    long = made.with_note(solver=HOSTILE * 2000, prediction="p" * 9000)
    said = [line for line in Card(long).texts if line.strip()]
    assert any(line.startswith("<script>") and len(line) == 60 for line in said)
    assert any(line.startswith("Made for DiscreteVP") and len(line) < 300 for line in said)
    sampler = fs.Sampler(long.with_note(prediction="eps"), lambda x, t: x)
    for it in (long, a_search(plans={3: long}), sampler, fs.Run(long, noise=torch.zeros(1, 2))):
        assert len(repr(it)) < 400


def test_levels_that_no_float_divides_are_shown_without_a_warning():
    """A file's own: alpha next to 0, where sigma/alpha is beyond float64, and 1 - s is 0."""
    made = plan(4, solver="euler")
    for tiny in (5e-324, 1e-300, 1e-17):
        odd = made.with_numbers(alpha=[*made.alpha[:2], tiny, *made.alpha[3:]])
        first = made.with_numbers(alpha=[made.alpha[0], tiny, *made.alpha[2:]])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for it in (odd, first):
                assert Card(it).texts and it.describe()


def test_a_search_is_shown_with_what_each_rung_reached():
    """Means where every plan has one; where the best by hand has a pooled figure alone, those of
    both, never one beside the other.
    """
    front = a_front((2, 4))
    said = Card(front).texts
    assert front.about_teacher() in " ".join(said) and "by hand, dB" in said and "fit, dB" in said
    assert {"12.00", "22.00", "14.00", "24.00"} <= set(said)
    assert any("mean of each sample" in line for line in said)
    single = a_search(compared=compared())
    said = Card(single).texts
    assert {"20.00", "21.50"} <= set(said) and any("mean squared error" in line for line in said)
    each = {m: replace(c, psnr=(30.0, 29.0, 30.0, 31.0)) for m, c in compared().items()}
    assert Card(a_search(compared=each)).texts == said
    alone = Card(a_search()).texts
    assert "0.05" in alone and not any("dB" in line for line in alone if "agrees" not in line)
    assert said.count("The plan of 2 evaluations") == 1


def test_labels_of_curves_that_end_together_stand_apart():
    lines = [(name, {1: 1.0, 2: 2.0 + 1e-3 * k}) for k, name in enumerate("abc")]
    drawn = card.figure(lines, "x", "y")
    at = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*start">[abc]<', drawn)]
    assert len(at) == 3 and np.diff(at).min() >= card.LINE - 0.05
    card.figure([("", {1: math.inf, 2: math.nan})], "x", "y", log=True)  # is drawn all the same


# -- one line each ---------------------------------------------------------------------------------
def test_a_prompt_shows_one_line_and_no_tensor():
    made, z = plan(4, "dpmpp_2m"), torch.zeros(2, 3)
    net = torch.nn.Linear(3, 3)
    model = fs.Model(lambda x, t: x, fs.schedules.EDM(), "x0")
    run = fs.Run(made, noise=z, check=None)
    run.step(z)
    engine = fs.Engine(model, shape=(3,), capacity=2)
    tickets = [engine.submit(made, seed=k) for k in range(3)]
    tracks = fs.Engine(lambda x, t: x, shape={"video": (3,), "audio": (2,)})
    bad = made.with_note(solver="a\nb\x1b")
    for it, said in (
        (run, "Run(dpmpp_2m, row 2 of 5, x [2, 3] float32 on cpu)"),
        (fs.Sampler(made, net), "Sampler(dpmpp_2m, 4 evaluations of Linear, mode='eager')"),
        (
            fs.Sampler(made, model, differentiable=True),
            "Sampler(dpmpp_2m, 4 evaluations of test_a_prompt_shows_one_line_and_no_tensor."
            "<locals>.<lambda>, mode='eager', differentiable=True)",
        ),
        (engine, "Engine(samples of [3], float32 on cpu, 2 running of 2, 1 waiting)"),
        (
            tracks,
            "Engine(samples of video [3], audio [2], float32 on cpu, 0 running of 64, 0 waiting)",
        ),
        (tickets[0], "Ticket(dpmpp_2m, row 0 of 5, running)"),
        (tickets[2], "Ticket(dpmpp_2m, row 0 of 5, waiting)"),
        (record(made, model, z), "Trajectory(4 evaluations of [2, 3], float32 on cpu)"),
        (fs.Sampler(bad, net), "Sampler(a\\nb\\x1b, 4 evaluations of Linear, mode='eager')"),
    ):
        assert repr(it) == said
    for it in (bad, a_search(plans={2: bad}), a_front()):
        assert "\n" not in repr(it) and "\x1b" not in repr(it) and "tensor" not in repr(it)
