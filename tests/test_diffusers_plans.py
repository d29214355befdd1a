"""A scheduler made of a plan: held to the pipeline's own, and to what the plan's rows can do."""

import diffusers
import numpy as np
import pytest
import torch
from test_fitted import ENTERED, SENTENCE, fitted, learned, on_schedule
from test_provenance import BELOW, FLOW, MODEL, TABLE, UNLIKE, Z, plan_for

import fastsample as fs
from fastsample import schedules, solvers

diffusers.utils.logging.set_verbosity_error()


def of_pipeline(name, **config):
    return getattr(diffusers, name)(**config)


SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V = {"prediction_type": "v_prediction"}
ON_SIGMA = schedules.EDM(0.03, 14.6)  # the ends of the table
AS_EULER = {
    "time": lambda sigma: TABLE.time(-np.log(sigma)),
    "input_scale": "vp",
}


@pytest.mark.parametrize(
    ("plan", "like", "word"),
    [
        (plan_for(TABLE, "eps"), ("DDIMScheduler", {}), "schedule"),
        (plan_for(TABLE, "eps"), ("EulerDiscreteScheduler", SCALED | V), "prediction"),
        (plan_for(TABLE, "eps"), ("FlowMatchEulerDiscreteScheduler", {}), "prediction"),
        (UNLIKE["shift"][0], ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}), "schedule"),
        (UNLIKE["time"][0], ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}), "time"),
        (UNLIKE["shift"][0], ("DDIMScheduler", SCALED), "prediction"),
        (solvers.euler(fs.Model(None, FLOW, "eps"), BELOW), ("DDIMScheduler", SCALED), "schedule"),
        (plan_for(ON_SIGMA, "eps", **AS_EULER), ("DDIMScheduler", {}), "time"),
        (plan_for(TABLE, "eps"), ("DDIMScheduler", SCALED), None),
        (plan_for(TABLE, "eps"), ("EulerDiscreteScheduler", SCALED), None),
        (plan_for(ON_SIGMA, "eps", **AS_EULER), ("DDIMScheduler", SCALED), None),
        (UNLIKE["shift"][0], ("FlowMatchEulerDiscreteScheduler", {}), None),
        (
            plan_for(FLOW, "flow", time=1000),
            ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
            None,
        ),
    ],
)
def test_a_scheduler_is_held_to_the_pipelines_own(plan, like, word):
    like = of_pipeline(like[0], **like[1])
    for given in (like, dict(like.config)):
        if word is None:
            made = fs.FsScheduler.from_plan(plan, like=given)
            assert fs.FsScheduler.from_config(made).plan == plan
            continue
        sentence = f"^FsScheduler.from_plan: the plan was made for {word} = .* and the model's is"
        with pytest.raises(ValueError, match=sentence):
            fs.FsScheduler.from_plan(plan, like=given)


def test_a_plan_says_nothing_of_the_pipeline():
    plan = plan_for(TABLE, "eps")
    with pytest.raises(ValueError, match="like is a scheduler of a plan itself; the pipeline's"):
        fs.FsScheduler.from_plan(plan, like=fs.FsScheduler.from_plan(plan))


def test_a_config_keeps_its_plans_prediction():
    config = fs.FsScheduler.from_plan(plan_for(TABLE, "eps")).config
    with pytest.raises(ValueError, match="'v_prediction' beside a plan .*; 'epsilon' is accepted"):
        fs.FsScheduler.from_config(config, **V)


def by_scheduler(call):
    def door(plan):
        scheduler = fs.FsScheduler.from_plan(plan)
        scheduler.set_timesteps(plan.nfe)
        call(scheduler)

    return door


REFUSED = {
    "FsScheduler.set_begin_index": by_scheduler(lambda s: s.set_begin_index(2)),
    "FsScheduler.add_noise": by_scheduler(lambda s: s.add_noise(Z, Z, s.timesteps[2:3])),
    "remake, of a step": by_scheduler(lambda s: s.step(Z, s.timesteps[2], Z)),
}


@pytest.mark.parametrize("door", REFUSED)
def test_rows_that_leave_the_schedule_begin_from_noise_alone(door):
    where = door.split(",")[0]
    for plan in (fitted("free", ENTERED), *([] if where == "remake" else [learned()])):
        with pytest.raises(ValueError, match=SENTENCE.format(where)):
            REFUSED[door](plan)


def test_consistent_rows_begin_at_any_step():
    plan = fitted("consistent", on_schedule())
    scheduler = fs.FsScheduler.from_plan(plan)
    scheduler.set_timesteps(plan.nfe)
    scheduler.set_begin_index(2)
    noised = scheduler.add_noise(Z, Z, scheduler.timesteps[2:3])
    assert torch.allclose(noised, (plan.alpha[3] + plan.sigma[3]) * Z)
    found = noised
    for t in scheduler.timesteps[2:]:
        found = scheduler.step(MODEL(found, t), t, found).prev_sample
    begun = fs.Run(plan.remake(2), latent=noised, start=1)
    while not begun.done:
        begun.step(MODEL(begun.model_input, begun.t))
    assert torch.allclose(found, begun.x)
