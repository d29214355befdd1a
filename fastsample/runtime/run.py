"""Run: one batch in flight through a plan, for loops that belong to somebody else.

    run = Run(plan, noise=z, seed=7)
    while not run.done:
        run.step(model(run.model_input, run.t))
    run.x

All memory is allocated once, and `restart` begins again in it; `model_input`, `t`, `x` and `x0` are
views of it, valid until the next step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..kernels import transforms
from ..kernels.backend import select
from ..kernels.narrow import has_float64
from ..kernels.transforms import watched
from ..plan import Plan
from . import arguments, images, inpainting, outputs, pickles, pool, said, sources, unused
from .by_track import Several
from .select import Selectable
from .window import Brownian, Window, parted


class Run(Several, Selectable):
    """One batch of B samples, advanced one row a call; of a dict of plans, several tensors of each
    (`fastsample.runtime.tracks`).

    noise         [B,*] unit normal to start from; or shape = (B,*): drawn from the seeds
    latent        [B,*] instead: the clean image for a plan made with start= (noise= may stand
                  beside it); with start= the state there
    strength, level   with latent an image, in place of start: plan.remake(strength=, level=) is run
    start         row to enter at, one of plan.entries, with the state at it, alpha x0 + sigma eps
                  (row 1 of a plan for noise, begun from noise alone: plan.init_scale times it); a
                  plan for noise needs it for a latent
    seed          int s (sample b takes s + b), B ints, or int64 [B]; None: a fresh s of torch's
                  default CPU generator, taken only where the run draws noise of its own (`seeds`
                  says which). Noise id 0 of a plan is the noise the run started with
    stage         0 to 2^32 - 1, or B of them: another stage draws other noise from the same seed,
                  for the second of two plans run one after the other. None: 0, or 1 from an image
                  and where another run left off (`fastsample.runtime.sources` says what a noise is)
    guidance      a number, K numbers, or a tensor [B,K]; [B] where K = 1
    noise_scale   a number or [B], times every draw that a row makes (0: none), that of an image's
                  start too; not the noise that a run starts with: one of another scale or mean is
                  a state, latent=plan.init_scale·noise with start=1
    noise_source  instead of Philox: callable(row, id) -> [B,*], or a tensor for each noise id in
                  the order the rows first draw it; or the `fastsample.window` of a whole that the
                  batch is, whose noise is drawn there; or `fastsample.brownian()`, the path of each
                  seed
    mask, known   inpainting: mask in [0,1], 1 keeps the known image
    state_dtype   float32 or float64; None: float64 for a float64 noise or latent, else float32
    model_dtype   what the model gets and returns (by default that of the given noise or latent)
    copies        how often model_input and t repeat the batch
    preview       False: x0 is not formed
    backend       a wish, see fastsample.kernels.backend
    check         "end": noise that is no unit normal is refused, and `check()` reads the status (on
                  a device it looks at noise, mask and known image too); None: nothing is looked at

    A model that writes into its input may write into the state. One that is asked with gradients
    keeps its input for them: after mean or log_prob a step leaves that alone, otherwise ask with a
    clone. Raises ValueError or TypeError, one sentence, before any kernel.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        noise: Tensor | None = None,
        latent: Tensor | None = None,
        shape: Sequence[int] | None = None,
        seed=None,
        guidance=None,
        state_dtype: torch.dtype | None = None,
        model_dtype: torch.dtype | None = None,
        device=None,
        noise_scale=None,
        noise_source: Sequence[Tensor] | Callable | Window | Brownian | None = None,
        mask: Tensor | None = None,
        known: Tensor | None = None,
        start: int | None = None,
        strength: float | None = None,
        level: float | None = None,
        stage=None,
        preview: bool = True,
        copies: int = 1,
        backend: str | None = None,
        check: str | None = "end",
    ) -> None:
        begin = {"noise": noise, "latent": latent, "shape": shape, "device": device}
        words = {"seed": seed, "stage": stage, "guidance": guidance, "noise_scale": noise_scale}
        words |= {"noise_source": noise_source, "mask": mask, "known": known}
        if not isinstance(plan, Plan):
            raise TypeError(f"Run: plan is a {type(plan).__name__}; a fastsample.Plan is needed")
        transforms.refuse("Run", noise, latent, *words.values())
        self.plan = images.plan_for("Run", plan, latent, start, strength, level)
        self._judged, copies = arguments.judged(check), arguments.counted("copies", copies)
        self._open(begin, start, words, state_dtype, model_dtype, preview, copies, backend)

    def _open(self, begin, start, words, state, model, preview, copies, backend) -> None:
        """Check what was given, make the pool, and run the rows before the first call."""
        plan, noise, masked = self.plan, begin["noise"], words["mask"] is not None
        given, size, device = arguments.start(**begin, image=plan.sigma[0] == 0, look=self._judged)
        latent = begin["latent"] is not None
        first = arguments.entry(plan, latent, start, noise is not None, masked)
        state = state or arguments.state_dtype(given)
        model = model or (state if given is None else given.dtype)
        arguments.dtypes("Run", state, model)
        self._choice, self._wish = select("step", device, state, backend), backend
        given_blend = words["mask"], words["known"]
        mask, known = inpainting.blend(plan, *given_blend, size, state, device, wait=False)
        later = self._judged and mask is not None and device.type != "cpu"
        self._looks = inpainting.looks(mask, known) if later else []
        noise_scale = arguments.noise_scales(words["noise_scale"], size[0], state, device)
        self._window, source = parted(words["noise_source"], size, plan)
        self._source = source, size, state, device, masked
        self._draws = sources.draws(self._source[0], plan, *self._source[1:], noise)
        unused.refuse_noise(plan, words, given is not None)
        self._still = sources.silent(words["noise_scale"])
        self._drawing = sources.seeded(plan, first, noise, self._source[0], self._still, masked)
        needed, self._staged = self._drawing or given is None, words["stage"] is not None
        self._seeded = needed or words["seed"] is not None
        with torch.inference_mode(False):  # what is made in it cannot be written to outside
            self._pool = pool.empty(
                pool.table(plan, state, device),
                torch.empty(size, device=device) if given is None else given,
                model,
                own_input=copies != 1 or model != state or _scales(plan),
                preview=preview,
                copies=copies,
                scale=arguments.scales(plan, words["guidance"], size[0], state, device),
                stage=sources.stages(words["stage"], plan, first, size[0], device),
                seed=sources.seeds(words["seed"], size[0], device, needed, self._samples),
                noise_scale=noise_scale,
                mask=mask,
                known=known,
            )
        self._bind()
        self._armed &= first == 0 and noise is not None
        self._sum_of(first, given)
        self._begin(first, given)

    def restart(
        self,
        noise: Tensor | None = None,
        *,
        latent: Tensor | None = None,
        start: int | None = None,
        seed=None,
        guidance=None,
        plan: Plan | None = None,
    ) -> None:
        """Begin again in the same memory, from noise or a latent of this run's shape and device;
        plan: another one of the same layout. Noise that lies as this run's does is read there.

        guidance stays where none is given; masks, noise scales, the caller's draws and a stage that
        was given stay.
        Raises as a new run does, and this one then stays where it was.
        """
        plain = latent is None and start is None and guidance is None and plan is None
        plain = plain and self._armed and not watched() and self._lies(noise)
        if not plain or noise.requires_grad:
            self._restart(noise, latent, start, seed, guidance, plan)
            return
        if self._judged and self._here and not self._low <= self._energy(noise) <= self._high:
            arguments.check_values("noise", noise)
        if self._drawing or not (seed is None or _is_small(seed)):
            self._reseed(seed)
        else:
            self._late, self._seeded = seed, False
        if self._judged and not self._here:
            self._sum_of(0, noise)
        if not self._clean():
            self._pool.status.zero_()
        if not self._launch.carry(0, None, noise, None):
            self._launch(0, (), (), noise)
        self.row, self._seen, self._plain = 1, False, self._quick

    def _restart(self, noise, latent, start, seed, guidance, plan) -> None:
        """The same for whatever is not plain noise."""
        new, own = self.plan if plan is None else plan, self._pool
        if not isinstance(new, Plan) or new.layout != self.plan.layout:
            raise ValueError(
                f"Run.restart: plan is {plan!r:.80} in a run of {self.plan!r}; a plan of the same "
                "layout is accepted"
            )
        transforms.refuse("Run.restart", noise, latent)
        given, size, device = arguments.start(
            noise, latent, None, None, image=new.sigma[0] == 0, look=self._judged
        )
        if size != own.x.shape or device != own.x.device:
            raise ValueError(
                f"Run.restart: {list(size)} on {device} was given in a run of "
                f"{list(own.x.shape)} on {own.x.device}; that shape there is accepted"
            )
        masked = own.mask is not None
        first = arguments.entry(new, latent is not None, start, noise is not None, masked)
        inpainting.blend(new, own.mask, own.known, size, own.x.dtype, device, wait=False)
        source = self._source[0]
        draws = sources.draws(source, new, *self._source[1:], noise)
        if guidance is not None:
            scale = arguments.scales(new, guidance, own.batch, own.x.dtype, own.x.device)
        drawing = sources.seeded(new, first, noise, source, self._still, masked)
        window = self._window and self._window.on(new)
        if seed is not None or drawing:
            self._reseed(seed)
        else:
            self._late, self._seeded = None, False
        if guidance is not None:
            own.scale.copy_(scale)
        self._drawing, self._draws, self._window = drawing, draws, window
        if not self._staged:
            self._restage(sources.stages(None, new, first, own.batch, own.x.device))
        if own.model_input is None and _scales(new):
            self._widen()
        self._use(new)
        self._armed &= first == 0 and noise is not None
        own.status.zero_()
        self._sum_of(first, given)
        self._begin(first, given)

    def rewind(self, x: Tensor | None = None, noise_source: Callable | None = None) -> None:
        """Stand again where a model is first asked, with nothing kept: at the state x [B,*], copied
        in and not looked at, or with None for a loop that carries it; noise_source: in place of the
        one there was.
        """
        own = self._pool
        if noise_source is not None:
            self._source = (noise_source, *self._source[1:])
            self._draws = sources.draws(noise_source, self.plan, *self._source[1:], None)
        if not self._clean():
            own.status.zero_()
        self._begun = []
        if x is not None:
            self._begin(1, x)
        else:
            self.row, self._seen = 1, False
            self._next_call()

    # -- what a loop reads -------------------------------------------------------------------------
    @property
    def seeds(self) -> Tensor | None:
        """Seeds [B] int64 of the samples, given or drawn; seed=run.seeds draws the same again. None
        where none was given or needed.
        """
        self._settle()
        return self._pool.seed if self._seeded else None

    @property
    def stages(self) -> Tensor:
        """Stages [B] int64 of the samples, given or by how the run began."""
        stage, zeros = self._pool.stage, torch.zeros_like(self._pool.seed)
        return zeros if stage is None else stage.long() & 0xFFFFFFFF

    def check(self, where: str = "Sampler") -> None:
        """Read the status, once, and on a device what the start, a mask and a known image come to,
        in the same copy. FloatingPointError, one sentence, names the samples whose state became
        non-finite, and the row; ValueError refuses what was given as a run on the CPU does before
        it begins. Nothing is read with check=None.
        """
        if not self._judged or self._clean():
            return
        words, looks = self._pool.status, [*self._begun, *self._looks]
        if looks:
            wide = torch.float64 if has_float64(words.device) else torch.float32  # both hold words
            numbers = [number.to(wide).view(1) for _, number in looks]
            words = torch.cat((*numbers, words.to(wide)))
        words = words.tolist()
        for (refuse, _), number in zip(looks, words, strict=False):
            refuse(number)
        status, own = [int(word) for word in words[len(looks) :]], self._pool
        outputs.refuse_status(status, self.plan, own.model_dtype, own.x.numel(), where)

    __repr__ = said.run

    def __copy__(self) -> Run:
        """Another cursor over the same memory."""
        twin = object.__new__(Run)
        twin.__dict__.update(self.__dict__)
        return twin

    def __reduce__(self) -> tuple:
        return pickles.reduced(self)

    def __deepcopy__(self, memo: dict) -> Run:
        """A run of its own from here on: state copied, plan and table shared."""
        transforms.refuse("Run: a copy")
        self._settle()
        twin, own = copy.copy(self), self._pool
        scale = own.scale if own.scale is None else own.scale.clone()
        twin._stand(own.copied(seed=own.seed.clone(), scale=scale))
        return twin

    def apart(self) -> Run:
        """A copy that shares no number with this run, not even its plan's: what a captured loop
        works on, and copies over.
        """
        twin = copy.deepcopy(self)
        own = twin._pool
        with torch.inference_mode(False):
            table = own.table._replace(f=own.table.f.clone())
            for name in ("stage", "noise_scale", "mask", "known"):
                value = getattr(own, name)
                setattr(own, name, value if value is None else value.clone())
        twin._bind(table)
        return twin

    # -- inside ------------------------------------------------------------------------------------
    # -- inside ------------------------------------------------------------------------------------
    def _sum_of(self, first: int, given: Tensor | None) -> None:
        """On a device what a run starts from is summed up there, and judged by `check`."""
        self._begun = []
        if self._judged and not self._here and given is not None:
            name = "latent" if first or self.plan.sigma[0] == 0 else "noise"
            energy = torch.as_tensor(arguments.sum_of_squares(given))
            self._begun = [(partial(arguments.check_values, name, given), energy)]

    # -- restart -----------------------------------------------------------------------------------
    def _reseed(self, seed) -> None:
        words = self._seed_words
        if words is not None and _is_small(seed):
            np.add(self._offsets, seed, out=words)
        else:
            own = self._pool.seed
            own.copy_(sources.seeds(seed, len(own), own.device, True, self._samples))
        self._late, self._seeded = None, True

    def _settle(self) -> None:
        """Write down the seeds that no row draws from."""
        if self._late is not None:
            self._reseed(self._late)

    @property
    def _samples(self) -> tuple[int, ...] | None:
        """Where in the whole that this is a window of its samples stand."""
        return self._window and self._window.samples

    def _restage(self, stage: Tensor | None) -> None:
        own = self._pool
        if (stage is None) != (own.stage is None):
            own.stage = stage
            self._bind()

    def _widen(self) -> None:
        """Make room for a model input that is not the state itself."""
        own = self._pool
        with torch.inference_mode(False):
            own.model_input = torch.empty_strided(
                own.x.shape, own.x.stride(), dtype=own.x.dtype, device=own.x.device
            )
        self._bind()


def _is_small(seed: object) -> bool:
    """Is it an int so far from the ends of int64 that any batch may count on from it?"""
    return seed.__class__ is int and -(2**62) < seed < 2**62


def _scales(plan: Plan) -> bool:
    """Is the model ever asked with anything but the state itself?"""
    return bool((plan.c[: plan.rows - 2] != 1).any())
