"""Calibrate, the node that searches on the model that ComfyUI has connected, in a host of ours."""

import re

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import metrics
from tests import comfyui_host as host
from tests.comfyui_pack import KINDS, levels, loaded, network, noise, sampled  # noqa: F401

LATENT = {"samples": torch.zeros(8, 3, 2, 2)}
WORDS = {
    "latent_image": LATENT,
    "name": "mine",
    "evaluations": 3,
    "effort": "quick",
    "minutes": 0.0,
}


def guider(kind="eps", fn=network, **words):
    return host.Guider(fn, KINDS[kind](), **words)


def decibels(report):
    """{what: dB} of a report's lines, and what was kept."""
    found = re.findall(r"^(->)? +(\S+) dB  (.*)$", report, re.MULTILINE)
    kept = [label for arrow, _, label in found if arrow]
    return {label: float(number) for _, number, label in found}, kept


@pytest.mark.parametrize("kind", ["v", "flow"])
def test_it_writes_a_plan_that_is_nearer(pack, kind):
    """Than the SAMPLER and SIGMAS connected; the plan it gives is the one that the Plan node loads,
    and ends where its figures say.
    """
    (euler,), asked = pack.run("Solver", solver="euler"), guider(kind, cfg=1.5)
    before = {"before_sampler": euler, "before_sigmas": levels(kind, 3)}
    sampler, sigmas, report, picture = pack.run("Calibrate", guider=asked, **WORDS, **before)
    found, kept = decibels(report)
    assert kept == ["fit"] and found["fit"] > found["model-free"]
    assert found["fit"] > found["before: connected SAMPLER and SIGMAS"] + 3
    assert picture.shape[0] == 1 and picture.shape[-1] == 3 and 0.2 < picture.mean() < 1
    shown = host.Host.bars  # the teacher, its end points, the fit
    assert len({total for _, total in shown}) == 3 and shown[-1][0] == shown[-1][1] == 744
    assert any(0 < value < total for value, total in shown)
    plan = fs.Plan.load(pack.folder / "mine.fsplan")
    assert plan.nfe == 3 == len(sigmas) - 1 and sigmas[-1] == 0
    again, same, about = pack.run("Plan", plan="mine")
    assert torch.equal(same, sigmas) and "fit" in about
    z = noise(11, (64, 3, 2, 2), torch.float32)
    fine = sampled(pack.run("Solver", solver="heun")[0], levels(kind, 60), kind, z, cfg=1.5)
    ends = [sampled(each, sigmas, kind, z, cfg=1.5) for each in (sampler, again)]
    assert torch.equal(*ends)
    assert abs(metrics.psnr_each(ends[0], fine).mean() - found["fit"]) < 3


def test_it_is_interrupted_and_goes_on(pack):
    """The host's own exception, no plan, and then the same plan without asking again for what was
    finished.
    """
    pack.run("Calibrate", guider=guider(), **WORDS)
    path, looks = pack.folder / "mine.fsplan", host.Host.looks
    whole = path.read_bytes()
    host.Host.reset()
    pack.run("Calibrate", guider=guider(), **WORDS)
    assert path.read_bytes() == whole and host.Host.looks <= 5, "only what the model answers"
    words = {**WORDS, "name": "cut"}
    host.Host.reset(interrupt_after=looks // 2)
    with pytest.raises(host.InterruptProcessingException):
        pack.run("Calibrate", guider=guider(), **words)
    assert not (pack.folder / "cut.fsplan").exists()
    host.Host.reset()
    pack.run("Calibrate", guider=guider(), **words)
    assert (pack.folder / "cut.fsplan").read_bytes() == whole
    assert host.Host.looks < 0.8 * looks
    assert sorted(p.name for p in pack.folder.iterdir()) == [
        ".searches",
        "cut.fsplan",
        "mine.fsplan",
    ]


def test_a_name_belongs_to_one_search(pack):
    told = {"positive": torch.ones(1, 2), "negative": torch.zeros(1, 2)}
    ask = lambda x, t, words: network(x, t, words.mean())
    run = lambda **changed: pack.run(
        "Calibrate", **{**WORDS, "guider": guider(fn=ask, **told), **changed}
    )
    run()
    other = guider(fn=ask, positive=torch.ones(1, 2) * 2, negative=torch.zeros(1, 2))
    for changed in (
        {"guider": other},
        {"guider": guider(fn=ask, cfg=2.0, **told)},
        {"search_seed": 1},
    ):
        with pytest.raises(
            ValueError, match="the plan mine belongs to another search .*another name"
        ):
            run(**changed)
    (pack.folder / "theirs.fsplan").write_bytes((pack.folder / "mine.fsplan").read_bytes())
    with pytest.raises(host.Refused, match="'theirs' is there already and was not searched here"):
        run(name="theirs")


def test_what_has_no_name_is_known_by_the_models_answers(pack):
    """A ControlNet's strength, say, which the guider's numbers and conditions do not hold."""
    run = lambda strength, **words: pack.run(
        "Calibrate", guider=guider(fn=lambda x, t: network(x, t, strength)), **{**WORDS, **words}
    )[1]
    found = run(0.5)
    assert torch.equal(run(0.5001), found), "as half precision may answer"
    kept = pack.folder / ".searches" / "mine" / "answers.npy"
    kept.write_bytes(b"cut short")
    assert torch.equal(run(0.5), found) and len(kept.read_bytes()) > 99, "kept again"
    with pytest.raises(ValueError, match="plan mine belongs to another search .*ControlNets"):
        run(0.8)
    assert not torch.equal(run(0.8, name="stronger"), found)
    with pytest.raises(ValueError, match="not finite"):
        run(np.nan, name="broken")
    run(0.5, name="broken")  # which was no model before
    with pytest.raises(ValueError, match="batch_size=0"):
        run(0.5, name="none", latent_image={"samples": torch.zeros(0, 3, 2, 2)})
    assert not (pack.folder / ".searches" / "none").exists(), "nothing was finished"


def test_noise_that_is_larger_is_searched_as_it_is(pack, monkeypatch):
    monkeypatch.setitem(KINDS, "loud", host.Loud)
    (euler,), asked = (
        pack.run("Solver", solver="euler"),
        guider("loud", lambda x, t: network(x / 8, t)),
    )
    before = {"before_sampler": euler, "before_sigmas": levels("flow", 3)}
    sampler, sigmas, report, _ = pack.run("Calibrate", guider=asked, **WORDS, **before)
    found, kept = decibels(report)
    assert kept == ["fit"] and found["fit"] > found["before: connected SAMPLER and SIGMAS"] + 3
    z, latent = noise(11, (64, 3, 2, 2), torch.float32), torch.zeros(64, 3, 2, 2)
    end = lambda sampler, sigmas: asked.sample(z, latent, sampler, sigmas) / 8
    fine = end(pack.run("Solver", solver="heun")[0], levels("flow", 60))
    assert abs(metrics.psnr_each(end(sampler, sigmas), fine).mean() - found["fit"]) < 3


class Adapted(torch.nn.Module):
    """A network with a LoRA, in its weights or, where memory is short, beside them."""

    def __init__(self, weight, adds, inside):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight + adds * inside), requires_grad=False)
        self.beside = adds * (not inside)

    def forward(self, x, t):
        return network(x, t, self.weight + self.beside)


def test_a_search_goes_on_however_the_host_has_loaded_its_model(pack):
    run = lambda *net: pack.run("Calibrate", guider=guider(fn=Adapted(*net)), **WORDS)[1]
    found = run(0.5, 0.25, True)
    assert torch.equal(run(0.5, 0.25, False), found)
    with pytest.raises(ValueError, match="plan mine belongs to another search .*weights"):
        run(0.5, 0.0, True)


def test_an_empty_latent_has_the_models_own_size(pack):
    """As the host fits it: of a model with 16 pixels to a number where it has 8, half of it."""
    asked = guider(fn=lambda x, t: shapes.append(x.shape) or network(x, t))
    asked.pixels, shapes = 16, []
    empty = {"samples": torch.zeros(8, 3, 4, 4), "downscale_ratio_spacial": 8}
    pack.run("Calibrate", guider=asked, **{**WORDS, "latent_image": empty})
    assert {shape[1:] for shape in shapes} == {(3, 2, 2)}


def test_a_search_that_cannot_be_read_is_told(pack):
    pack.run("Calibrate", guider=guider(), **WORDS)
    (pack.folder / ".searches" / "mine" / "search.json").write_text("{")
    with pytest.raises(
        ValueError, match="kept of the search for the plan mine cannot be read .*name"
    ):
        pack.run("Calibrate", guider=guider(), **WORDS)


def test_the_name_may_come_from_another_node(pack):
    """Then the host's validation has None in its place, and the node looks at it itself."""
    calibrate, plan = pack.node("Calibrate"), pack.node("Plan")
    assert calibrate.validate_inputs(None) is True and plan.validate_inputs(None) is True
    with pytest.raises(ValueError, match="the plan's name is '../x'"):
        calibrate.execute(guider(), *[*WORDS.values()][:1], "../x", 3, "quick", "free", False, 0, 0)
    with pytest.raises(ValueError, match="there is no plan 'none'"):
        plan.execute("none", "refuse")
    empty = plan.fingerprint_inputs(None, "refuse")
    pack.run("Calibrate", guider=guider(), **WORDS)
    assert plan.fingerprint_inputs(None, "refuse") != empty
    assert plan.fingerprint_inputs(None, "refuse") == plan.fingerprint_inputs("mine", "refuse")


def test_what_is_refused_before_the_model_is_asked(pack):
    ask = lambda x, t, words: pytest.fail("the model was asked")
    two = guider(fn=ask, positive=torch.ones(2, 7), negative=torch.ones(1, 7))
    with pytest.raises(ValueError, match="positive conditioning holds 2 prompts as a batch"):
        pack.run("Calibrate", guider=two, **WORDS)
    with pytest.raises(ValueError, match="one of before_sampler and before_sigmas is connected"):
        pack.run("Calibrate", guider=guider(), before_sigmas=levels("eps"), **WORDS)
    (euler,) = pack.run("Solver", solver="euler")
    for other in (levels("eps")[3:], levels("eps")[:3], levels("eps")[:1], levels("eps")[:0]):
        before = {"before_sampler": euler, "before_sigmas": other}
        with pytest.raises(
            ValueError, match="before_sigmas are .*; SIGMAS from noise, which is 14"
        ):
            pack.run("Calibrate", guider=guider(), **WORDS, **before)
    plan = fs.solvers.euler(fs.schedules.EDM(0.03, 14.6), [14.6, 1.0, 0.0], prediction="x0")
    theirs, _ = pack.sampling.of_plan(plan, "theirs", rebuild=False)
    before = {"before_sampler": theirs, "before_sigmas": levels("eps")}
    with pytest.raises(ValueError, match="the plan theirs does not run on the SIGMAS connected"):
        pack.run("Calibrate", guider=guider(), **WORDS, **before)
    with pytest.raises(ValueError, match="21 evaluations at effort quick, whose grid has 20 steps"):
        pack.run("Calibrate", guider=guider(fn=ask), **{**WORDS, "evaluations": 21})
    with pytest.raises(host.Refused, match="evaluations = 0"):
        pack.run("Calibrate", guider=guider(), **{**WORDS, "evaluations": 0})
    assert not list(pack.folder.iterdir())


def test_too_few_minutes_are_told_in_minutes(pack):
    with pytest.raises(
        ValueError, match="minutes is 1e-08, and .* of them .* more minutes"
    ) as error:
        pack.run("Calibrate", guider=guider(), **{**WORDS, "minutes": 1e-8})
    assert "time_limit" not in str(error.value) and "held_out" not in str(error.value)
    assert not list(pack.folder.glob("*.fsplan"))


@pytest.mark.parametrize("seconds, minutes", [(7380, 123), (246, 5), (130, 3), (0.011, 1)])
def test_the_minutes_named_are_enough(pack, monkeypatch, seconds, minutes):
    said = f"search: no time; a time_limit above {seconds} s, a smaller teacher= is accepted"

    def refuses(*given, **words):
        raise ValueError(said)

    monkeypatch.setattr(fs.optimize, "search", refuses)
    with pytest.raises(ValueError, match=f"takes up to {minutes} of them"):
        pack.run("Calibrate", guider=guider(), **{**WORDS, "minutes": 0.001})


def test_a_model_that_fails_leaves_no_plan(pack):
    """Its own error, and what was finished."""
    asked = []

    def failing(x, t):
        asked.append(len(x))
        if len(asked) > 200:
            raise MemoryError("the card is full")
        return network(x, t)

    with pytest.raises(MemoryError, match="the card is full"):
        pack.run("Calibrate", guider=guider(fn=failing), **WORDS)
    assert host.Host.bars[-1][1] == 744, "in the fit"
    assert [p.name for p in pack.folder.iterdir()] == [".searches"]


def test_consistent_rows_begin_from_an_image(pack):
    """On a tail of their SIGMAS, which free ones refuse."""
    image, kind = noise(3), "flow"
    for rows in ("consistent", "free"):
        words = {**WORDS, "name": rows, "rows": rows}
        sampler, sigmas, *_ = pack.run("Calibrate", guider=guider(kind), **words)
        if rows == "free":
            with pytest.raises(ValueError, match="of a plan whose rows leave the schedule"):
                sampled(sampler, sigmas[1:], kind, latent=image)
            continue
        end = sampled(sampler, sigmas[1:], kind, latent=image)
        fine = torch.linspace(float(sigmas[1]), 0, 60)
        exact = sampled(pack.run("Solver", solver="heun")[0], fine, kind, latent=image)
        usual = sampled(pack.run("Solver", solver="euler")[0], sigmas[1:], kind, latent=image)
        assert (end - exact).norm() < (usual - exact).norm()


def test_a_teacher_that_is_no_target_is_told(pack):
    """In the report, which is what one sees there, not by the search's warning alone."""
    restless = lambda x, t: network(x, t) + 0.5 * torch.sin(30 * x)
    with pytest.warns(UserWarning, match="a target needs 45 dB"):
        report = pack.run("Calibrate", guider=guider(fn=restless), **WORDS)[2]
    assert "less than 45 dB, too far off to be a target: effort thorough" in report
    assert (
        "too far off"
        not in pack.run("Calibrate", guider=guider("flow"), **WORDS | {"name": "b"})[2]
    )


def test_more_noises_polish_what_was_fitted(pack, monkeypatch):
    """In the host's inference mode too, in which nothing has a gradient."""
    effort = pack.calibration.EFFORTS["quick"]._replace(noises=48)
    monkeypatch.setitem(pack.calibration.EFFORTS, "thorough", effort)
    *_, report, _ = pack.run("Calibrate", guider=guider(), **{**WORDS, "effort": "thorough"})
    found, kept = decibels(report)
    assert kept == ["polish"] and found["polish"] > found["fit"]


def test_audio_and_video_are_calibrated_packed(pack):
    latent = host.NestedTensor([torch.zeros(8, 2, 3), torch.zeros(8, 5)])
    words = {**WORDS, "latent_image": {"samples": latent}}
    sampler, sigmas, *_ = pack.run("Calibrate", guider=guider("flow"), **words)
    parts = [noise(1, (2, 2, 3)), noise(2, (2, 5))]
    ends = sampled(sampler, sigmas, "flow", host.NestedTensor(parts), host.NestedTensor(parts))
    assert [tuple(end.shape) for end in ends.unbind()] == [(2, 2, 3), (2, 5)]


@pytest.mark.slow
def test_the_embedded_model_gains_3_db_over_its_best_sigmas_by_hand(pack, monkeypatch):
    """6 evaluations, 8 noises: over every hand-made grid with dpmpp_2m and with the solver that is
    the best of all here, gradient_estimation, which takes a fifth of the evaluations of all.
    """
    every = metrics.by_hand
    some = lambda model, n, solver=None: [
        plan for name in ("dpmpp_2m", "gradient_estimation") for plan in every(model, n, name)
    ]
    monkeypatch.setattr(metrics, "by_hand", some)
    net = fs.models.fashion().fn.net
    ask = lambda x, t, label: net(x, t, label.view(-1).long())
    asked = host.Guider(ask, host.EDM(data=net.sigma_data), positive=torch.tensor([[3]]))
    words = {**WORDS, "evaluations": 6, "latent_image": {"samples": torch.zeros(64, 1, 28, 28)}}
    *_, report, picture = pack.run("Calibrate", guider=asked, by_hand=True, **words)
    found, kept = decibels(report)
    (best,) = [value for label, value in found.items() if label.startswith("best by hand")]
    assert kept == ["fit"] and best > 28 and found["fit"] >= best + 3
    assert np.isfinite(picture.numpy()).all()
