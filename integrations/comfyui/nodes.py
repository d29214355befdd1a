"""The three nodes: what they ask for, what they give, and what is checked before anything runs."""

from __future__ import annotations

import hashlib

from comfy_api.latest import ComfyExtension, io, ui

from . import picture, store
from .calibration import EFFORTS, Calibration, calibrate, identity_of
from .sampling import of_plan, of_solver, options_of, solver_names

CATEGORY = "sampling/fastsample"
SAMPLER = "With its own SIGMAS into SamplerCustomAdvanced."
SIGMAS = "The noise levels that the plan runs on; a tail of them begins from an image."
OWN = -1.0  # of eta and s_noise: the solver's own


class FastsamplePlan(io.ComfyNode):
    """A plan of the pack's folder, by its name."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FastsamplePlan",
            display_name="Plan (fastsample)",
            category=CATEGORY,
            description="A searched or published plan: its sampler, and the sigmas it runs on.",
            inputs=[
                io.Combo.Input(
                    "plan",
                    options=store.names(),
                    tooltip="A file of the pack's folder plans, by its name.",
                ),
                io.Combo.Input(
                    "other_sigmas",
                    options=["refuse", "rebuild"],
                    tooltip="What SIGMAS that are not the plan's do: stop with a sentence, or have "
                    "the plan's solver made on them (not for rows that a search found).",
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip=SAMPLER),
                io.Sigmas.Output(tooltip=SIGMAS),
                io.String.Output(display_name="about", tooltip="The plan's table, as text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, plan=None):
        if plan is None:  # linked: execute looks at it
            return True
        try:
            of_plan(store.load(plan), plan, False)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, plan=None, other_sigmas=None):
        told = hashlib.sha256()
        for name in [plan] if plan is not None else store.names():  # linked: any of them
            path = store.path_of(name)
            told.update(path.read_bytes() if path.is_file() else b"none")
        return told.hexdigest()

    @classmethod
    def execute(cls, plan, other_sigmas) -> io.NodeOutput:
        made = store.load(plan)
        return io.NodeOutput(*of_plan(made, plan, other_sigmas == "rebuild"), made.describe())


class FastsampleSolver(io.ComfyNode):
    """A solver of the registry, on any SIGMAS."""

    @classmethod
    def define_schema(cls):
        own = f"{OWN:g}: the solver's own"
        noisy = {"default": OWN, "min": OWN, "max": 100.0, "step": 0.01}
        return io.Schema(
            node_id="FastsampleSolver",
            display_name="Solver (fastsample)",
            category=CATEGORY,
            description="Any solver of fastsample, made on the SIGMAS that are sampled with.",
            inputs=[
                io.Combo.Input(
                    "solver",
                    options=list(solver_names()),
                    default="dpmpp_2m",
                    tooltip="Those of more than one evaluation a step, as heun, take as many times "
                    "longer. `fastsample show solvers` has each one's order.",
                ),
                io.Float.Input("eta", tooltip=f"Noise that a step draws. {own}.", **noisy),
                io.Float.Input("s_noise", tooltip=f"What that is multiplied by. {own}.", **noisy),
                io.Int.Input("order", default=0, min=0, max=9, tooltip="0: the solver's own."),
                io.Combo.Input(
                    "compat",
                    options=["exact", "comfyui"],
                    tooltip="comfyui: what ComfyUI's own sampler of that name does, where it "
                    "differs: dpmpp_2m, res_multistep, dpmpp_2s_ancestral on flow models.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="With any SIGMAS into SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, solver, eta, s_noise, order, compat) -> io.NodeOutput:
        given = {"eta": eta, "s_noise": s_noise, "order": order or None}
        given["compat"] = None if compat == "exact" else compat
        given = {word: None if value == OWN else value for word, value in given.items()}
        return io.NodeOutput(of_solver(solver, options_of(solver, given)))


def _searched():
    """What Calibrate searches for, and how long."""
    return [
        io.Guider.Input("guider", tooltip="Model, one prompt and guidance."),
        io.Latent.Input(
            "latent_image",
            tooltip="Empty, of the size to be sampled; its batch is how many the model is "
            "asked at once.",
        ),
        io.String.Input(
            "name",
            default="my-plan",
            tooltip="The plan's name: letters, digits, '.', '_' and '-'. The same name "
            "goes on with a search that was cancelled.",
        ),
        io.Int.Input(
            "evaluations",
            default=6,
            min=1,
            max=40,
            tooltip="How often the plan asks the model: what other samplers call steps.",
        ),
        io.Combo.Input(
            "effort",
            options=list(EFFORTS),
            default="normal",
            tooltip="Evaluations of one sample, where 6 are searched: quick 1,900, normal "
            "12,500; thorough asks for a limit in minutes.",
        ),
    ]


def _found():
    """What its plan is like, and compared with."""
    return [
        io.Combo.Input(
            "rows",
            options=["free", "consistent"],
            tooltip="free: nearest, from noise alone. consistent: from an image too, by a "
            "tail of its SIGMAS.",
        ),
        io.Boolean.Input(
            "by_hand",
            default=False,
            tooltip="Also try every usual schedule with every usual solver, some 540 plans "
            "on 4 noises: 13,000 evaluations where 6 are searched.",
        ),
        io.Float.Input(
            "minutes",
            default=30.0,
            min=0.0,
            max=10000.0,
            step=1.0,
            tooltip="What would go beyond it is not begun, and the best plan so far is "
            "written. 0: no limit.",
        ),
        io.Int.Input(
            "search_seed",
            default=0,
            min=0,
            max=2**64 - 1,
            tooltip="Of the noises that the plan is searched on.",
        ),
        io.Sampler.Input(
            "before_sampler",
            optional=True,
            tooltip="A SAMPLER to compare with, beside before_sigmas.",
        ),
        io.Sigmas.Input(
            "before_sigmas",
            optional=True,
            tooltip="SIGMAS to compare with, from noise down to 0.",
        ),
    ]


class FastsampleCalibrate(io.ComfyNode):
    """A plan searched for the model, conditioning and guidance that are connected."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FastsampleCalibrate",
            display_name="Calibrate this model (fastsample)",
            category=CATEGORY,
            description="Searches the best plan of so many evaluations for the model and the "
            "conditioning of the guider, and writes it into the pack's folder plans.",
            inputs=[*_searched(), *_found()],
            outputs=[
                io.Sampler.Output(tooltip=SAMPLER),
                io.Sigmas.Output(tooltip=SIGMAS),
                io.String.Output(display_name="report", tooltip="What was gained, in dB."),
                io.Image.Output(display_name="picture", tooltip="The same as bars."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name=None):
        if name is None:  # linked: execute looks at it
            return True
        try:
            store.place_for(name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        guider,
        latent_image,
        name,
        evaluations,
        effort,
        rows,
        by_hand,
        minutes,
        search_seed,
        before_sampler=None,
        before_sigmas=None,
    ) -> io.NodeOutput:
        if (before_sampler is None) != (before_sigmas is None):
            raise ValueError(
                "fastsample: one of before_sampler and before_sigmas is connected; both, or "
                "neither, are accepted"
            )
        steps = EFFORTS[effort].steps
        if evaluations > steps:
            raise ValueError(
                f"fastsample: {evaluations} evaluations at effort {effort}, whose grid has {steps} "
                f"steps; up to {steps}, or more effort, is accepted"
            )
        path, folder = store.place_for(name)
        before = None if before_sampler is None else (before_sampler, before_sigmas)
        how = EFFORTS[effort], rows, by_hand, minutes, search_seed
        job = Calibration(evaluations, *how, folder, identity_of(guider), before)
        search = calibrate(guider, latent_image, job)
        plan = search.plans[evaluations]
        store.save(plan, path)
        found = picture.lines(search, evaluations, job.reached)
        report = picture.words(search, evaluations, name, found)
        image = picture.drawn(found, f"{name}: {evaluations} evaluations, nearer is longer")
        outputs = *of_plan(plan, name, rebuild=False), report, image
        return io.NodeOutput(*outputs, ui=ui.PreviewImage(image, cls=cls))


class Fastsample(ComfyExtension):
    """The pack."""

    async def get_node_list(self):
        return [FastsamplePlan, FastsampleSolver, FastsampleCalibrate]


async def comfy_entrypoint() -> ComfyExtension:
    return Fastsample()
