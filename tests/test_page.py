"""The page of a search: sound and closed HTML whatever its strings and figures are, and what it
says; the same figures as comma-separated values.
"""

import base64
import csv
import hashlib
import io
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import read_png

import fastsample as fs
from fastsample import report
from fastsample.optimize import Search
from fastsample.optimize._search import Compared, Rung
from fastsample.plan.text import printable
from fastsample.report import chart, style

ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "id", "class", "href", "src", "alt"),
    *("role", "scope", "tabindex", "open", "aria-label", "aria-hidden", "viewbox"),
    *("preserveaspectratio", "d", "x", "y", "x1", "x2", "y1", "y2", "dy", "height"),
}


class Page(HTMLParser):
    """A page read strictly: every element closed in order, no attribute but those known."""

    known = ATTRIBUTES

    def __init__(self, text):
        super().__init__(convert_charrefs=False)
        self.stack, self.shape, self.attributes, self.texts = [], [], [], [""]
        self.feed(text)
        self.close()
        assert self.stack == [] and not self.rawdata

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names) and set(names) <= self.known, (tag, names)
        self.shape.append((tag, *names))
        self.attributes += [(tag, *pair) for pair in attrs]
        self.texts.append("")
        if tag not in ("meta", "img"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag
        self.texts.append("")

    def handle_data(self, data):
        assert "<" not in data or self.stack[-1] == "style"
        self.texts[-1] += data

    def handle_entityref(self, name):
        self.texts[-1] += {"lt": "<", "gt": ">", "amp": "&", "quot": '"'}[name]

    def handle_charref(self, name):
        self.texts[-1] += {"x27": "'"}[name]

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    handle_startendtag = handle_pi = unknown_decl = handle_comment

    def of(self, attribute):
        return [value for _, name, value in self.attributes if name == attribute]


def opened(search, folder, **words):
    """The page of a search as a parser reads it, after all that holds for every page."""
    report.page(search, folder / "page.html", **words)
    text = (folder / "page.html").read_text("utf-8")
    assert text.startswith("<!DOCTYPE html>\n<html")
    page = Page(text.removeprefix("<!DOCTYPE html>\n"))
    assert {"script", "link", "iframe", "object", "base", "form"}.isdisjoint(
        tag for tag, *_ in page.shape
    )
    ids = Counter(page.of("id"))
    assert set(ids.values()) == {1}
    assert {f"#{name}" for name in ids} >= set(page.of("href"))
    assert all(src.startswith("data:image/png;base64,") for src in page.of("src"))
    sheets = [i for i, (tag, *_) in enumerate(page.shape) if tag == "style"]
    assert len(sheets) == 1
    digest = hashlib.sha256(re.search("<style>(.*)</style>", text, re.S)[1].encode()).digest()
    policy = dict(part.split(" ", 1) for part in page.of("content")[0].split("; "))
    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{base64.b64encode(digest).decode()}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    # The policy stands before everything that it is to rule.
    order = [tag for tag, *_ in page.shape]
    assert order[:4] == ["html", "head", "meta", "meta"] and "style-src" in page.of("content")[0]
    return page


def plan(m, solver="euler", schedule=None, **note):
    s = schedule or fs.schedules.EDM()
    made = getattr(fs.solvers, solver)(s, fs.grids.karras(s, m), prediction="x0")
    return made.with_note(**note) if note else made


def rung(name, budgets, first=20.0, shape=(1, 4, 4), solver="euler", ends=True):
    noise = np.random.default_rng(0)
    return Rung(
        name,
        {m: plan(m, solver) for m in budgets},
        {m: (first + m, first + m - 1.5, first + m + 0.25, first + m + 2) for m in budgets},
        {m: first + m - 0.5 for m in budgets},
        12.0,
        3.5,
        {m: noise.uniform(-1, 1, (3, *shape)).astype(np.float32) for m in budgets} if ends else {},
    )


def a_search(budgets=(2, 4), **more):
    plans = more.pop("plans", None) or {m: plan(m) for m in budgets}
    error = {m: 0.1 / m for m in plans}
    return Search(plans, error, {}, np.linspace(1, 0, 5), plan(8), 30.0, 16, 1.25, 61.5, **more)


def a_front(budgets=(2, 4), shape=(1, 4, 4), **more):
    rungs = rung("by hand", budgets, 10, shape, "dpmpp_2m"), rung("fit", budgets, 20, shape)
    target = torch.zeros(3, *shape)
    more = {"rungs": rungs, "target": target, "plans": rungs[-1].plans, **more}
    return a_search(**more, command="fastsample optimize --budgets 2,4")


def compared(budgets=(2, 4), grid="Karras"):
    by_hand = {m: plan(m, "dpmpp_2m", found={"grid": grid, "solver": "dpmpp_2m"}) for m in budgets}
    return {m: Compared(p, "dpmpp_2m", grid, 20.0, 21.5, 8) for m, p in by_hand.items()}


# -- what a page says ------------------------------------------------------------------------------
def test_a_front_is_shown_whole(tmp_path):
    search = a_front()
    page = opened(search, tmp_path)
    said = " ".join(page.texts)
    for figure in ("22.00", "20.50 – 24.00", "21.50", "20.50 / 22.25 / 24.00"):
        assert figure in page.texts, figure
    assert search.command in page.texts and search.about_teacher() in said
    for held in [*search.rungs[0].plans.values(), *search.rungs[1].plans.values()]:
        assert {f"{v:.6g}" for v in held.M[1:, 0, : held.W].ravel() if v} <= set(page.texts)
        assert {printable(c) for c in held.note["citations"]} <= set(page.texts)
    # Teacher and two rungs at two budgets, three samples each.
    images = [read_png(base64.b64decode(src.split(",")[1])) for src in page.of("src")]
    assert len(images) == 2 * 3 * 3
    fit = report.image_grid(search.rungs[1].ends[2][:1], pad=0)
    np.testing.assert_array_equal(images[3], fit)
    assert (images[0] == 128).all()


def test_kept_plans_are_set_off_whatever_their_notes_say(tmp_path):
    search = a_front((3, 4))
    kept = {3: search.rungs[0].plans[3].with_note(found={"x": 1}), 4: search.rungs[1].plans[4]}
    page = opened(replace(search, plans=kept), tmp_path)
    best = re.findall(r'class="best">([\d.]+)', (tmp_path / "page.html").read_text())
    assert best == ["13.00", "24.00"]
    assert page.of("class").count("best") == 2


@pytest.mark.parametrize("judged", [True, False])
def test_a_search_without_rungs_shows_what_it_has(tmp_path, judged):
    plans = {m: plan(m, found={"method": "oss"}) for m in (2, 4)}
    search = a_search(plans=plans, compared=compared() if judged else {})
    assert "oss" in (texts := opened(search, tmp_path).texts)
    assert ("20.00" in texts and "21.50" in texts and "by hand" in texts) == judged
    assert ("No noise was held out" in " ".join(texts)) != judged
    assert ("0.05" in texts) != judged
    report.write(search, tmp_path / "all")
    assert {p.name for p in (tmp_path / "all").glob("*.png")} == {"schedules.png"}, "no empty one"


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((4, 8, 8), "Samples of shape [4, 8, 8] are no images"),
        ((2,), "Samples of shape [2] are no images"),
        ((6,), None),
        ((5, 5), None),
        ((3, 6, 4), None),
    ],
)
def test_samples_by_their_shape(tmp_path, shape, said):
    page = opened(a_front(shape=shape), tmp_path)
    assert (said is None) == ("none is shown" not in " ".join(page.texts))
    assert said is None or any(text.startswith(said) for text in page.texts)
    drawn = page.of("class").count("lines" if len(shape) == 1 else "row")
    assert drawn == (0 if said else 6)


def test_large_images_are_shown_small(tmp_path):
    front = a_front((2,), (3, 260, 130))
    page = opened(front, tmp_path)
    image = read_png(base64.b64decode(page.of("src")[3].split(",")[1]))
    assert image.shape == (86, 43, 3)
    mean = front.rungs[1].ends[2][0, :, :3, :3].mean((1, 2))
    np.testing.assert_allclose(image[0, 0], (mean + 1) * 127.5, atol=0.5 + 1e-3)
    assert any("mean of 3 x 3" in text for text in page.texts)


def test_a_level_without_data_stands_at_the_edge(tmp_path):
    flow = plan(4, schedule=fs.schedules.Flow())  # it begins where alpha is 0
    assert not np.isfinite(flow.sigma[1] / flow.alpha[1] if flow.alpha[1] else np.inf)
    page = opened(a_search(plans={4: flow}), tmp_path)
    assert "100.00%" in page.of("x")
    assert any("at the edge, 0 or infinite" in text for text in page.texts)


# -- whatever is in it -----------------------------------------------------------------------------
def hostile(text):
    """A front in which a text stands wherever one can."""
    found = {"method": text, text: [text, {text: text}]}
    note = {"solver": text, "found": found, "model": {"model_id": text}, text: text}
    plans = {2: plan(2).with_note(**note)}
    last = replace(rung("fit", (2,)), name=text, plans=plans)
    rungs = (replace(last, plans={2: plan(2, found={"grid": text})}), last)
    front = a_front((2,), rungs=rungs, plans=plans)
    return replace(front, teacher=plan(8).with_note(solver=text), command=text)


EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "</style></title></pre><!-- ]]>",
    "&lt;b&gt; &amp;amp; &#60;",
    "javascript:alert(1)",
    "//example.org/x http://example.org",
    "\x1b[31m\u202e\x00\ufeff",
)
WORDS = st.text(min_size=1, max_size=12) | st.sampled_from(EVIL)


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    return opened(hostile("a"), tmp_path_factory.mktemp("page"), title="a").shape


@settings(max_examples=12)
@given(text=WORDS)
def test_a_string_is_never_markup(tmp_path_factory, harmless, text):
    page = opened(hostile(text), tmp_path_factory.mktemp("page"), title=text)
    assert page.shape == harmless
    assert printable(text) in page.texts


@pytest.mark.parametrize("text", [*EVIL, "\ud800"])
def test_a_title_is_never_markup(tmp_path, text):
    assert opened(a_front(), tmp_path, title=text).texts.count(printable(text)) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, 5e-324, 0.0])
def test_any_figure_can_be_shown(tmp_path, value):
    odd = replace(rung("odd", (2, 4)), psnr={2: (value,) * 4, 4: (30.0,) * 4}, pooled={2: value})
    with np.errstate(over="ignore"):
        ends = np.float32(value) * np.ones((3, 1, 4, 4), np.float32)
    page = opened(a_front(rungs=(replace(odd, ends={2: ends}),)), tmp_path)
    figure = f"{value:.2f}" if math.isfinite(value) else str(value)
    assert figure in page.texts
    shown = [text for text in page.texts if re.match("odd, [24]: ", text)]
    assert len(shown) == 1 + (abs(value) < 1e300)
    marks = [float(place[:-1]) for place in page.of("x") + page.of("y") if place.endswith("%")]
    assert all(0 <= place <= 100 for place in marks)
    assert not re.search(r"nan|inf", " ".join(page.of("d")))
    opened(replace(a_search(), error={2: value, 4: 0.5}), tmp_path)
    lines = replace(odd, ends={2: ends.reshape(3, 16)})
    page = opened(a_front(rungs=(lines,), target=None), tmp_path)
    assert "lines" in page.of("class") and not re.search(r"nan|inf", " ".join(page.of("d")))


def test_one_number_of_evaluations_and_forty(tmp_path):
    one = opened(a_front((5,)), tmp_path)
    assert one.of("open") == [None] and "5 evaluations" in one.texts
    many = rung("fit", range(1, 41), ends=False)
    forty = opened(a_front(rungs=(many,), plans=many.plans), tmp_path)
    assert forty.of("open") == [None] and "1 evaluation" in forty.texts
    assert sum(bool(re.fullmatch("m[0-9]+", name)) for name in forty.of("id")) == 40
    six = opened(a_front(range(1, 7), (2,)), tmp_path)
    assert len(six.of("open")) == 6


# -- the file --------------------------------------------------------------------------------------
def test_the_same_search_gives_the_same_bytes(tmp_path):
    for name in "ab":
        report.page(a_front(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")

    def fails(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="could not be written"):
        report.page(a_front(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"] and path.read_text() == "old"
    with pytest.raises(TypeError, match="page: search is a SimpleNamespace; a Search is accepted"):
        report.page(SimpleNamespace(), path)


# -- charts and colours ----------------------------------------------------------------------------
@pytest.mark.parametrize("log", [False, True])
@given(values=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=6))
@settings(max_examples=30)
def test_an_axis_holds_its_values_in_order(log, values):
    axis = chart.Axis.over(values, log)
    drawn = sorted(v for v in values if axis.holds(v))
    places = [axis.at(v) for v in drawn]
    assert places == sorted(places) and all(3.99 < place < 96.01 for place in places)
    moderate = [v for v in values if 1e-300 < abs(v) < 1e300 and (v > 0 or not log)]
    assert set(moderate) <= set(drawn)
    assert all(axis.at(v) in (0, 100) for v in values if not axis.holds(v))
    ticks = axis.thinned(axis.ticks())
    assert len(ticks) <= 12 and all(map(axis.holds, ticks))


def test_ticks_are_round():
    assert chart.Axis.over([18.2, 43.9]).ticks() == [20, 25, 30, 35, 40]
    assert chart.Axis.over([0.03, 6], log=True).ticks() == pytest.approx(
        [0.05, 0.1, 0.2, 0.5, 1, 2, 5]
    )
    assert chart.Axis.over([1e-4, 80], log=True).ticks() == pytest.approx(
        [1e-4, 1e-3, 0.01, 0.1, 1, 10]
    )
    assert chart.Axis.over([0.1, 10], log=True).ticks() == pytest.approx(
        [0.1, 0.2, 0.5, 1, 2, 5, 10]
    )


def test_more_decibels_stand_higher_and_more_evaluations_further_right(tmp_path):
    text = str(chart.curves([("a", {2: (20, 19, 21), 4: (30, 29, 31)})], "x", "y"))
    marks = re.findall(r'<title>a, (\d): \d+</title><use href="#mark0" x="(.*?)%" y="(.*?)%"', text)
    (two, x2, y2), (four, x4, y4) = marks
    assert (two, four) == ("2", "4") and float(x2) < float(x4) and float(y2) > float(y4)


def luminance(colour):
    """Relative luminance (WCAG 2.2)."""
    parts = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_can_be_read():
    """WCAG 2.2: text 4.5:1 at least, marks 3:1, in light and dark."""
    for variables in re.findall(r":root\{(?:color-scheme:light dark;)?(--.*?)\}", style.STYLE):
        colour = dict(re.findall(r"--(\w+):(#\w{6});", variables))
        assert len(colour) == 12

        def contrast(name):
            low, high = sorted(luminance(colour[k]) for k in (name, "ground"))  # noqa: B023
            return (high + 0.05) / (low + 0.05)

        assert contrast("ink") >= 4.5 and contrast("soft") >= 4.5 and contrast("c0") >= 4.5
        assert all(contrast(f"c{k}") >= 3 for k in range(8))


# -- comma-separated values ------------------------------------------------------------------------
def test_csv():
    lines = list(csv.DictReader(io.StringIO(report.csv(a_front()), newline="")))
    assert len(lines) == 4
    assert lines[-1] == {
        "method": "fit",
        "evaluations": "4",
        "mean_db": "24",
        "q25_db": "22.5",
        "median_db": "24.25",
        "q75_db": "26",
        "pooled_db": "23.5",
        "solver": "euler",
        "evaluations_spent": "12.0",
        "seconds": "3.5",
    }
    odd = replace(rung('=1+1,"\n', (2,)), psnr={}, pooled={2: math.nan})
    (line,) = csv.DictReader(io.StringIO(report.csv(a_front((2,), rungs=(odd,))), newline=""))
    assert line["method"] == "'=1+1,\"\\n" and line["mean_db"] == "" and line["pooled_db"] == "nan"
    text = io.StringIO(report.csv(a_search(compared=compared())), newline="")
    beside = list(csv.DictReader(text))
    assert [(row["method"], row["pooled_db"], row["solver"]) for row in beside[1:3]] == [
        ("by hand", "20.0", "dpmpp_2m (Karras)"),
        ("found", "21.5", "euler"),
    ]
