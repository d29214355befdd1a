"""What tracks cannot be is refused, and what the sentences advise holds."""

import pytest
import torch
from cases import same
from choosing import unit
from tracked import SIZES, apart, noises, plan_of, plans, velocity

import fastsample as fs
from fastsample import schedules, solvers
from fastsample.model import Model

OWN, Z = plans(), noises()
REFUSED = {
    "unlike counts": (
        lambda: fs.Sampler({**OWN, "audio": plan_of("audio", n=5)}, apart),
        "track 'video' asks the model 8 times and 'audio' 5; .*after=3",
    ),
    "noise of one": (lambda: fs.Run(OWN, noise=Z["video"]), "noise is a Tensor; a dict of the"),
    "another track": (lambda: fs.Run(OWN, noise=Z | {"text": Z["audio"]}), "'text'; a dict of"),
    "no noise": (lambda: fs.Run(OWN, noise={"video": Z["video"]}), "track 'audio': .*exactly one"),
    "batches": (
        lambda: fs.Run(OWN, noise=Z | {"audio": Z["audio"][:1]}),
        "'video' holds a batch of 2, 'audio' holds a batch of 1; one number",
    ),
    "stage": (lambda: fs.Run(OWN, noise=Z, stage=2**24), "stage is 16777216 for tracks"),
    "stages": (lambda: fs.Run(OWN, noise=Z, stage=[0, 1]), "stage is .*for tracks"),
    "loop": (
        lambda: fs.Sampler(OWN, apart, mode="compile-loop"),
        "mode='compile-loop' with tracks",
    ),
    "graph": (lambda: fs.Sampler(OWN, apart, mode="graph"), "mode='graph' with tracks"),
    "gradients": (lambda: fs.Sampler(OWN, apart, differentiable=True), "=True with tracks"),
    "words": (
        lambda: fs.Sampler(OWN, Model(apart, schedules.Flow(3.0), "flow")),
        "an fs.Model, whose words are those of one tensor",
    ),
    "empty": (lambda: fs.Sampler({}, apart), "plan is a dict of nothing"),
    "no plan": (lambda: fs.Run({"video": 3}, noise=Z), "plan is a dict of 'video': a int"),
    "models": (lambda: fs.Sampler(OWN, [apart, apart]), "track 'video': .*2 models are given"),
    "engine": (
        lambda: fs.Engine(apart, shape=(7,)).submit(OWN, seed=1),
        "plan is a dict of tracks in an Engine of one tensor a request; a Plan, or an Engine whose",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_tracks_cannot_be_is_refused(case):
    make, sentence = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=sentence) as error:
        make()
    assert "\n" not in str(error.value)


def test_gradients_and_transforms_are_refused_with_no_advice_that_fails():
    leaf = {"video": Z["video"].clone().requires_grad_(), "audio": Z["audio"]}
    for make in (lambda: fs.Sampler(OWN, apart)(noise=leaf), lambda: fs.Run(OWN, noise=leaf)):
        with pytest.raises(RuntimeError, match="noise of track 'video' requires grad, and tracks"):
            make()

    def whole(z):
        return fs.Sampler(OWN, apart)(noise={"video": z, "audio": Z["audio"]})["video"]

    with pytest.raises(RuntimeError, match=r"called under torch\.func \(vmap\), .*outside it"):
        torch.func.vmap(whole)(unit(3, *SIZES["video"]))


def test_the_advice_on_unlike_counts_holds():
    few = {"video": plan_of("video"), "audio": solvers.held(plan_of("audio", n=5), after=3)}
    x = fs.Sampler(few, apart)(noise=Z)
    one = lambda x, t: velocity("audio", x, t)
    assert same(x["audio"], fs.Sampler(plan_of("audio", n=5), one)(noise=Z["audio"]))
