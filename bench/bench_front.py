"""The front of `optimize.search` beside all that finds or makes a plan without training, on noises
that no search saw, and on other models.

Every dB of this file is to end points of a solver apart from the searches' teachers, which agree
with those at twice as many evaluations as the row says. Rows from quick to long: the searches on
their own, other models, grids made by hand, the whole front, and what a classifier sees in it.
"""

import copy
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from math import inf, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from bench_search import noise, subject
from measure import figure

import fastsample as fs
from fastsample import metrics, models, optimize, solvers
from fastsample.kernels import normal
from fastsample.models.unet import NO_LABEL

long = pytest.mark.long
UNSEEN, FIRST_UNSEEN = 256, 1_000_000
SEARCHED, NOISES = 16, 208
# evaluations -> dB that polished plans are to reach
REACH = {3: 28, 4: 32, 5: 36, 6: 40, 8: 45, 10: 50}


@dataclass(frozen=True)
class Judge:
    """A model, unseen noises and the end points they should have.

    words(n): what the model is told of n samples; agreement: dB of the target to that of twice as
    many evaluations.
    """

    model: Any
    words: Any
    fresh: torch.Tensor
    target: torch.Tensor
    agreement: float

    @classmethod
    def of(cls, model, words, fresh, at_least):
        """The target agrees to at_least dB, or whatever 400 evaluations do."""
        make = lambda parts: solvers.dpmpp_3m(model, fs.grids.fine(model.schedule, 100 * parts))
        ended = lambda plan: metrics.run(plan, model, fresh, **words(len(fresh)))
        _, agreement, target = metrics.settled(make, ended, at_least, 400)
        return cls(model, words, fresh, target, agreement)

    def each(self, plan, n=None):
        """PSNR [n] of every one of the first n unseen noises, all of them by default; -inf where
        the run does not stay finite.
        """
        n = len(self.fresh) if n is None else n
        try:
            end = metrics.run(plan, self.model, self.fresh[:n], **self.words(n))
        except FloatingPointError:
            return np.full(n, -inf)
        return metrics.psnr_each(end, self.target[:n])

    def figures(self, benchmark, name, plans, reach=None):
        """The mean of each sample's dB as a figure, quartiles and the pooled dB beside it; {M: dB
        of every sample}.
        """
        found = {m: self.each(plan) for m, plan in plans.items()}
        for m, each in found.items():
            words = f"{name}: {m} evaluations"
            figure(benchmark, words, each.mean(), "dB", target=reach and reach[m])
            low, middle, high = np.quantile(each, [0.25, 0.5, 0.75])
            said = f"quartiles {low:.2f}, {middle:.2f}, {high:.2f} dB; pooled {pooled(each):.2f} dB"
            benchmark.extra_info[f"{name}, {m} evaluations"] = said
        return found


def pooled(each):
    """The dB of the mean squared error over all samples, from each one's own."""
    return -10 * np.log10(np.mean(10 ** (-np.asarray(each) / 10)))


@pytest.fixture(scope="module")
def judge():
    model, words = subject()
    found = Judge.of(model, words, noise(UNSEEN, FIRST_UNSEEN), 60)
    if found.agreement < 60:
        raise AssertionError(f"the teacher agrees to {found.agreement:.1f} dB; 60 are needed")
    return found


# -- the other searches on the same noises ---------------------------------------------------------


PUBLISHED = {"aggregate": "median", "start": "fixed", "amplitude": False}
# name -> (search, its words)
BESIDE = {
    "OSS as published": (optimize.oss, PUBLISHED),
    "OSS as published, start label free": (optimize.oss, PUBLISHED | {"start": "free"}),
    "OSS as published, start label and amplitude free": (
        optimize.oss,
        {"aggregate": "median", "start": "free", "amplitude": True},
    ),
    "OSS, joint, fixed start": (optimize.oss, {"start": "fixed", "amplitude": False}),
    "OSS, joint": (optimize.oss, {}),
    "GITS, dpmpp_2m": (optimize.gits, {"solver": "dpmpp_2m"}),
    "AYS, power 1, dpmpp_2m": (
        optimize.ays,
        {"solver": "dpmpp_2m", "power": 1.0, "sigma_min": 0.01},
    ),
    "AYS, power 2, dpmpp_2m": (optimize.ays, {"solver": "dpmpp_2m", "power": 2.0}),
    "fit, beam 1": (optimize.fit, {"beam": 1}),
}


@pytest.mark.parametrize("name", BESIDE)
def bench_front_beside(benchmark, judge, name):
    benchmark.group = "front"
    search, given = BESIDE[name]
    model, told = judge.model, judge.words(SEARCHED)
    own = lambda: search(model, noise(SEARCHED, 0), max(REACH), **given, **told)
    found = benchmark.pedantic(own, rounds=1)
    benchmark.extra_info.update(evaluations_per_sample=found.nfe)
    judge.figures(benchmark, name, {m: found.plans[m] for m in REACH})


def bench_front_karras(benchmark, judge):
    """dpmpp_2m on Karras' times, what people use today."""
    benchmark.group = "front"
    karras = lambda m: solvers.dpmpp_2m(judge.model, fs.grids.karras(judge.model.schedule, m))
    plans = benchmark.pedantic(lambda: {m: karras(m) for m in REACH}, rounds=1)
    judge.figures(benchmark, "dpmpp_2m, Karras", plans)


def bench_front_few_noises(benchmark, judge):
    """fit with beam 1 on 8 noises, five times, at most 2 dB below the same on all 256 that these
    are the first of. Eight noises have eight classes of ten.
    """
    benchmark.group = "front noises"
    z, labels, budgets = noise(256, 0), torch.arange(256) % 10, (4, 6, 8)

    def fit(at):
        cond = {"label": labels[at]}
        plans = optimize.fit(judge.model, z[at], max(budgets), beam=1, cond=cond).plans
        return {m: plans[m] for m in budgets}

    draws = [slice(k, k + 8) for k in range(0, 40, 8)]
    few, many = benchmark.pedantic(lambda: ([*map(fit, draws)], fit(slice(256))), rounds=1)
    many = judge.figures(benchmark, "fit on 256 noises", many)
    few = [{m: judge.each(plan).mean() for m, plan in plans.items()} for plans in few]
    for m in budgets:
        gains = [each[m] - many[m].mean() for each in few]
        figure(benchmark, f"8 noises over 256, {m} evaluations", gains, "dB", target=-2)
        benchmark.extra_info[f"the worst of the five draws at {m}"] = f"{min(gains):.2f} dB"


# -- other models ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Other:
    """make() -> Model; shape of a sample; given: what search and runs are told beside the labels;
    labelled: is the model told a class?
    """

    make: Any
    shape: tuple = (1, 28, 28)
    given: dict = field(default_factory=dict)
    labelled: bool = True

    def words(self, n):
        return {"cond": {"label": torch.arange(n) % 10}} | self.given if self.labelled else {}

    def noise(self, n, seed):
        seeds = torch.arange(n, dtype=torch.int64) + seed
        flat = normal(seeds, torch.zeros_like(seeds), int(np.prod(self.shape)))
        return flat.reshape(n, *self.shape)


def in_bfloat16():
    """The embedded model, its network rounded to bfloat16."""
    model = models.fashion()
    return replace(model, fn=copy.deepcopy(model.fn).to(torch.bfloat16))


FLOW = lambda: models.fashion(fs.schedules.Flow(3), "flow")
GUIDED = {"uncond": {"label": torch.tensor(NO_LABEL)}, "guidance": 3.0}
OTHERS = {
    "a ring in the plane": Other(
        lambda: models.analytic.ring().model(fs.schedules.EDM()), (2,), labelled=False
    ),
    "sixteen images of waves": Other(
        lambda: models.analytic.waves().model(fs.schedules.EDM()), (3, 32, 32), labelled=False
    ),
    "Flow(3)": Other(FLOW),
    "guidance 3": Other(models.fashion, given=GUIDED),
    "bf16": Other(in_bfloat16, given={"model_dtype": torch.bfloat16}),
    "flow transformer": Other(lambda: models.fashion_flow()),
}
OTHER_BUDGETS, OTHER_NOISES = (4, 6, 8), 64


@long
@pytest.mark.parametrize("name", OTHERS)
def bench_front_other(benchmark, name):
    """What the climb finds itself, over the best hand-made schedule of any solver, which is chosen
    on the noises it is judged on. A figure below 0 is a failed row: the search then returns the
    schedule made by hand.
    """
    benchmark.group = "front other"
    other = OTHERS[name]
    model, n, z = other.make(), OTHER_NOISES, other.noise(OTHER_NOISES, 0)
    fresh = other.noise(n, FIRST_UNSEEN)
    judge = Judge.of(model, other.words, fresh, 60)
    given = other.words(n) | {"held_out": fresh}
    own = lambda: optimize.search(model, z, OTHER_BUDGETS, seed=0, **given)
    search = benchmark.pedantic(own, rounds=1)
    figure(benchmark, f"{name}: the teacher's agreement", judge.agreement, "dB", target=60)
    benchmark.extra_info.update(evaluations_per_noise=search.nfe, teacher=search.about_teacher())
    rungs(benchmark, name, search, judge)


def rungs(benchmark, name, search, judge):
    """Every rung's figures, and the best that was found over the best by hand, of the mean of each
    sample's dB and of the pooled one.
    """
    each = {}
    for rung in search.rungs:
        each[rung.name] = judge.figures(benchmark, f"{name}, {rung.name}", rung.plans)
        benchmark.extra_info[f"{name}, {rung.name}: time"] = f"{rung.seconds:.1f} s"
        if rung.name == "by hand":
            hand = {m: plan.note["found"] for m, plan in rung.plans.items()}
    for m, which in hand.items():
        found = {rung: at[m] for rung, at in each.items() if rung != "by hand"}
        best = max(found, key=lambda rung: found[rung].mean())
        for word, of in (("", np.mean), (", pooled", pooled)):
            words = f"{name}, {m} evaluations: {best} over the best by hand{word}"
            gain = of(found[best]) - of(each["by hand"][m])
            figure(benchmark, words, gain, "dB", target=0)
        said = (
            f"{search.plans[m].note['found']['method']}; by hand {which['solver']}, {which['grid']}"
        )
        benchmark.extra_info[f"{name}, {m} evaluations: the answer"] = said


# -- by hand ---------------------------------------------------------------------------------------

# Forms of the usual solvers that people choose by hand, beside SOLVERS as they are.
FORMS = {
    "unipc, order 2": partial(solvers.unipc, order=2),
    "dpmpp_2m, first order last": partial(solvers.dpmpp_2m, lower_order_final=True),
    "dpmpp_3m, lower order last": partial(solvers.dpmpp_3m, lower_order_final=True),
}
SCREENED, FINALISTS = 8, 8


@long
@pytest.mark.parametrize("m", REACH)
def bench_front_by_hand(benchmark, judge, monkeypatch, m):
    """Every grid of `metrics.hand_made` with every deterministic solver, none of which is of an
    order above 3: all on the first unseen noises, the best on all of them.
    """
    benchmark.group = "front by hand"
    for name, form in FORMS.items():
        monkeypatch.setitem(solvers.SOLVERS, name, form)
    plans = metrics.by_hand(judge.model, m)

    def ranked():
        first = [judge.each(plan, SCREENED).mean() for *_, plan in plans]
        return [plans[k] for k in np.argsort(first)[::-1][:FINALISTS]]

    last = benchmark.pedantic(ranked, rounds=1)
    name, grid, plan = max(last, key=lambda one: judge.each(one[-1]).mean())
    judge.figures(benchmark, "the best by hand", {m: plan})
    benchmark.extra_info["which"] = f"{name}, {grid}"
    tried = Counter(solver for solver, *_ in plans)
    text = "; ".join(f"{solver}: {n} grids" for solver, n in tried.items())
    benchmark.extra_info.update(plans=len(plans), solvers=text)
    benchmark.extra_info["grids"] = "; ".join(sorted({grid for _, grid, _ in plans}))


# -- the whole front -------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def front():
    """The search, every budget; the same for every row that looks at its plans."""
    model, words = subject()
    given = words(NOISES) | {"held_out": noise(UNSEEN, FIRST_UNSEEN), "seed": 0}
    return optimize.search(model, noise(NOISES, 0), list(REACH), **given)


@long
@pytest.mark.parametrize("name", ["by hand", "model-free", "fit", "polish"])
def bench_front(benchmark, judge, name):
    """A rung of the search: fit with beam 3 on 16 noises, polish on 192 more. The first row waits
    for all of them.
    """
    benchmark.group = "front"
    search = benchmark.pedantic(front, rounds=1)
    benchmark.extra_info.update(evaluations_per_noise=search.nfe, teacher=search.about_teacher())
    benchmark.extra_info["the target's agreement"] = f"{judge.agreement:.1f} dB"
    rung = next(rung for rung in search.rungs if rung.name == name)
    benchmark.extra_info["time"] = f"{rung.seconds:.1f} s"
    judge.figures(benchmark, name, rung.plans, REACH if name == "polish" else None)


@long
def bench_front_whole(benchmark, judge):
    """What all of it took, and how far each answer is from the best by hand."""
    benchmark.group = "front whole"
    search = benchmark.pedantic(front, rounds=1)
    figure(benchmark, "the whole front", search.seconds / 60, "min", target=10, better="lower")
    rungs(benchmark, "front", search, judge)


# -- what a classifier sees ------------------------------------------------------------------------

JUDGED, FIRST_JUDGED, TEACHER = 2048, 2_000_000, 100


@long
def bench_front_classes(benchmark):
    """The front's plan of 10 evaluations beside a teacher of 100 on the same noises: how many are
    of the class they were made for, and the Fréchet distance on fashion-classifier features.
    """
    benchmark.group = "front classes"
    model, words = subject()
    z, told, labels = noise(JUDGED, FIRST_JUDGED), words(JUDGED), torch.arange(JUDGED) % 10
    teacher = solvers.dpmpp_3m(model, fs.grids.fine(model.schedule, TEACHER))
    plan = front().plans[10]
    end = {"teacher": metrics.run(teacher, model, z, **told)}
    end["plan"] = benchmark.pedantic(lambda: metrics.run(plan, model, z, **told), rounds=1)
    right = {name: hits(images, labels) for name, images in end.items()}
    accuracy = {name: each.mean() for name, each in right.items()}
    figure(benchmark, "the teacher's class accuracy", 100 * accuracy["teacher"], "%", target=85)
    share = 100 * accuracy["plan"] / accuracy["teacher"]
    figure(benchmark, "class accuracy at 10 evaluations, of the teacher's", share, "%", target=99.4)
    gained = int((right["plan"] & ~right["teacher"]).sum())
    lost = int((right["teacher"] & ~right["plan"]).sum())
    low, high = (100 * end for end in paired_interval(gained, lost, JUDGED))
    text = f"{100 * (gained - lost) / JUDGED:+.3f} points, 95 % interval {low:+.3f} to {high:+.3f}"
    text += f"; {gained} right by the plan alone, {lost} by the teacher alone, of {JUDGED}"
    benchmark.extra_info["class accuracy over the teacher's"] = text
    for name, images in end.items():
        distance = models.classifier.frechet_distance(images)
        figure(benchmark, f"Fréchet distance of the {name}", distance, better="lower")


def hits(images, labels):
    """Is each image of its class? bool [B]"""
    net = models.classifier.load_classifier()
    with torch.inference_mode():
        said = torch.cat([net(chunk.float()).argmax(1) for chunk in images.split(512)])
    return (said == labels).numpy()


def paired_interval(gained, lost, n, z=1.959964):
    """The score interval of the difference of two paired proportions, (gained - lost)/n (Tango
    1998): all d that McNemar's test of d does not refuse,

        |gained - lost - n d| <= z sqrt(n (2 q + d (1 - d)))

    q the likeliest share of pairs lost, given d.
    """

    def far(d):
        b = -gained - lost + (2 * n - gained + lost) * d
        q = (sqrt(b * b + 8 * n * lost * d * (1 - d)) - b) / (4 * n)
        return (gained - lost - n * d) / sqrt(max(n * (2 * q + d * (1 - d)), 1e-300))

    def crossing(low, high, value):
        """far(d) falls from low to high; where it is value."""
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if far(middle) > value else (low, middle)
        return low

    at = (gained - lost) / n
    return crossing(-1 + 1e-9, at, z), crossing(at, 1 - 1e-9, -z)
