"""A scheduler is moved to another class: FsScheduler.from_config(…, source=). Imports no diffusers.

What the model was trained for moves along, whether somebody set it or the old class has it by
default, in whatever words the new class has for it:

    levels       sigma/alpha at every training timestep (betas, an SNR shift, zero terminal SNR); on
                 flow scale sigma, by the shift
    labels       what the model is told there
    prediction   what its output stands for
    bounds       clip_sample, thresholding: what is done to the predicted data

What the new class has no option for (a clip, Karras's levels on DDIM) goes into `moved`, which is
read beside its own options; levels that no betas of its own give go into trained_betas. How a grid
is laid out over the levels (timestep_spacing, steps_offset, set_alpha_to_one) and what belongs to
the solver goes by name, as in diffusers: what nobody set is the new class's own. On a flow a class
that has none of its own keeps the old one's grid. What the old class was told stays in the config,
for the way back to it.

Then old and new are compared, the old one as diffusers' own object has it, and what differs is
refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from .consistency import NAME as CM
from .edm import as_ours
from .grids import CONVERSIONS
from .inverse import INVERSE
from .ipndm import NAME as IPNDM
from .options import class_of, defaults, instance, named, parameters, said
from .saving import restored, unbounded
from .scm import NAME as SCM
from .sources import (
    BOUNDING,
    CLOSEST,
    COSINE,
    OURS,
    SAME,
    SOURCES,
    UNBOUNDED,
    flow_of,
    kinds_of,
    not_reproduced,
    settings,
)
from .training import (
    EDMS,
    FLOWS,
    GRIDS,
    NEUTRAL,
    SHIFTS,
    apart,
    betas_of,
    levels_at,
    on_betas,
    own_ends,
    training,
)
from .wuerstchen import NAME as WUERSTCHEN

# whose solvers run on a flow too, on FlowMatchEuler's grid
FLOWING = ("DDIMScheduler", "LCMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler")
ALONE = {  # classes whose models are nobody else's
    CM: "consistency models",
    SCM: "consistency models on TrigFlow",
    COSINE: "models that are told 2/pi·arctan(sigma)",
    WUERSTCHEN: "models on levels of its own",
}
IMPLIED = ("use_flow_sigmas", "prediction_type")
SHARED = ("linear", "scaled_linear", "squaredcos_cap_v2")  # beta schedules that every class knows
TABLE = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas")


def arguments(
    library: object,
    own: Mapping,
    config: Mapping,
    kind: type | None,
    given: Mapping,
    advise: bool = True,
) -> tuple[dict, dict, dict]:
    """(arguments of FsScheduler, what else its config keeps, keywords that nobody knows) for a
    scheduler's config and the keywords given beside it.

    library: diffusers; own: FsScheduler's parameters; kind: the class of the scheduler that has the
    config, None where a config alone was given; advise: say what can be written instead. ValueError
    for a class that is not reproduced, and for a move that would change what the model is asked.
    """
    theirs, given, name = kind, dict(given), kind.__name__ if kind else config.get("_class_name")
    ours = config.keys() >= OURS and not hasattr(library, name or "")
    if ours:
        # "diffusers" is asked for again: other arguments may have changed
        given.setdefault("compat", config["compat"] and "auto")
        config, name, kind = restored(own, config), config["source"], None
    source = getattr(asked := given.pop("source", None), "__name__", asked)
    name = name or class_of(library, config, source)
    base = _base(kind, name)
    source = source or SAME.get(name) or _itself(name, base)
    usual = defaults(library, source)
    changed = name != source
    words = said(config, source, usual, own, changed)
    moved = words.pop("moved", None)
    again = {k: given.get(k, v) for k, v in (ours and moved or {}).items()}
    along = {"moved": again} if again and not changed else {}
    asked = {k: v for k, v in given.items() if k in usual or k in OURS}
    known, kind = {*asked, *again}, kind or getattr(library, name or "", None)
    if changed and kind is None:
        _check_told(name, source, words, {**usual, **asked})
    elif changed:
        old = Origin(kind, base, config, again, given)
        along, known = old.along(source, usual, words), known | old.words.keys()
        option, why = old.differs(source, usual, {**words, **along, **asked})
        if why:
            follow = partial(arguments, library, own, config, theirs, advise=False)
            told = {**given, "source": source}
            instead = _instead(follow, old, told, option) if advise else "another"
            raise ValueError(f"FsScheduler.from_config: {why}; {instead} is accepted")
    found = {**usual, **words, **along, **asked, "source": source}
    kept = _left(source, found, usual, given)
    asked_for = {*words} - set(config.get("_use_default_values", ())) | asked.keys() | along.keys()
    kept["_use_default_values"] = [k for k in named(source, usual, own) if k not in asked_for]
    unknown = {k: v for k, v in given.items() if k not in known}
    return {k: v for k, v in found.items() if k in own}, kept, unknown


def closest(peer: object) -> str | None:
    """The class to read a scheduler, or its config, as, where its own is not reproduced."""
    if isinstance(peer, Mapping):
        return CLOSEST.get(peer.get("_class_name"))
    name = type(peer).__name__
    base = _base(type(peer), name)
    return CLOSEST.get(base, None if base == name else base)


def beside(source: str, usual: Mapping, moved: Mapping | None) -> dict:
    """What a config has moved along, read beside the class's own options (usual); ValueError for
    what no move writes there.
    """
    for key in moved or ():
        if key in usual or not _carries(source, key):
            raise ValueError(
                f"FsScheduler: moved has {key} = {moved[key]!r:.60}, which is no option that a "
                f"plan of {source} can have beside its own; what from_config writes is accepted"
            )
    return dict(moved or {})


class Origin:
    """The scheduler that is moved: `words`, every option of its class; `trained`, those that say
    what its model was trained for; `levels` [T] at its training timesteps.
    """

    def __init__(self, kind: type, name: str, config: Mapping, moved: dict | None, given: dict):
        """name: of the class, or that of diffusers it is made of; moved: what an FsScheduler has
        from an earlier move; given: keywords, of which those that the class knows are its own.
        """
        self.name, self.given = name, given
        made = [c for c in kind.__mro__ if c is kind or c.__name__ == name]  # may hand on its own
        options = [p for c in made[::-1] for p in parameters(c).values()]
        words = {p.name: config.get(p.name, p.default) for p in options}
        words = {k: v for k, v in words.items() if v is not inspect.Parameter.empty}
        for own, other in (("shift", "flow_shift"), ("flow_shift", "shift")):
            if own in words and other in given:
                if given.get(own, given[other]) != given[other]:
                    raise ValueError(
                        f"FsScheduler.from_config: {own} = {given[own]!r} beside {other} = "
                        f"{given[other]!r}; one number is accepted"
                    )
                words[own] = given[other]
        self.words = words | {k: v for k, v in given.items() if k in words} | (moved or {})
        edm = self.name in EDMS
        self.trained = training(self.name, as_ours(self.words) if edm else self.words)
        self.levels = levels_at(self.name, self.words) if moved else self._own_levels(kind)

    def along(self, source: str, usual: dict, words: dict) -> dict:
        """The options of `source` that are neither its defaults (usual) nor in what the config says
        to it (words), and without which the model would be asked for something else.
        """
        if source == IPNDM:  # nothing of it is anybody's
            return {}
        flow = self.trained["use_flow_sigmas"]
        betas = on_betas(self.trained)
        table = TABLE if "trained_betas" in usual else TABLE[:1]  # else it has its own
        want = self.trained | {k: self.words[k] for k in table if k in self.words and betas}
        if betas and "snr_shift_scale" in usual.keys() - self.words.keys():
            want["snr_shift_scale"] = 1.0
        if source in FLOWS:  # it is one, and predicts as one, without a word
            want = {
                k: v for k, v in want.items() if k not in ("use_flow_sigmas", "prediction_type")
            }
        elif source in EDMS:  # by name
            want = {k: v for k, v in want.items() if k not in CONVERSIONS}
        elif "flow_shift" in usual and flow:
            want["flow_shift"] = want.pop("shift")
        elif flow and source in FLOWING:  # which has no grid of its own there
            want["flow_sigmas"] = flow_of(self.name, self.words)
        stands = {
            **NEUTRAL,
            **usual,
            **_ends(source),
            **{k: v for k, v in words.items() if k in usual},
        }
        want = {k: v for k, v in want.items() if k not in stands or not _same(v, stands[k])}
        carried = {k: v for k, v in want.items() if k not in usual and _carries(source, k)}
        want = {k: v for k, v in want.items() if k in usual}
        stands |= want | carried
        if betas and "trained_betas" in usual and not self._given_by(source, stands):
            want["trained_betas"] = betas_of(self.levels)
            if "snr_shift_scale" in self.words:  # they have it in them
                want["snr_shift_scale"] = 1.0
        return want | ({"moved": carried} if carried else {})

    def differs(self, source: str, usual: dict, words: dict) -> tuple[dict | None, str | None]:
        """What the class, told these words, asks its model for otherwise: (the option by which it
        may be asked for, in words); None where nothing differs.
        """
        if source == IPNDM:
            return None, (
                f"{self.name} has levels up to {self.levels.max():.6g} and {source} would have its "
                "own, sigma = sin²(pi s/2), whatever a config says"
            )
        if source in ALONE:
            return None, f"{source} samples {ALONE[source]}, and {self.name} others"
        read = {k: words.get(k, v) for k, v in usual.items()} | words.get("moved", {})
        new = _ends(source) | training(source, as_ours(read) if source in EDMS else read)
        if self.trained["use_flow_sigmas"] != new["use_flow_sigmas"]:
            here = _where(source, new, levels_at(source, read))
            return None, f"{_where(self.name, self.trained, self.levels)} and {here}"
        for key, there in self.trained.items():
            here = new.get(key, NEUTRAL.get(key))
            if (key in IMPLIED or key not in self.given) and not _same(there, here):
                had = f"{self.name} has {key} = {there!r} and {source} would have {here!r}"
                # what is done to samples may be given up, not what the model was trained for
                return {key: here} if key in (*BOUNDING, *GRIDS, "shift_terminal") else None, had
        key = next((k for k in CONVERSIONS if new["use_flow_sigmas"] and self.trained.get(k)), None)
        if key and own_ends(self.name) != own_ends(source):
            kinds = ("its flow", "its betas")[:: 1 if own_ends(self.name) else -1]
            return {key: False}, (
                f"{self.name} has {key} = True between the ends of {kinds[0]} and {source} would "
                f"have it between those of {kinds[1]}"
            )
        kinds, kind = kinds_of(source, read), self.trained["prediction_type"]
        if kinds and kind not in kinds and "prediction_type" not in self.given:
            return None, (
                f"{self.name} has prediction_type = {kind!r} and {source} takes "
                f"{' or '.join(kinds)} there"
            )
        found = settings(source, read)
        # what this class has no option for was asked for to change them
        if any(
            k in TABLE or k.startswith("rescale") for k in self.given.keys() - self.words.keys()
        ):
            return None
        levels = levels_at(source, found)
        off = apart(self.levels, levels, not on_betas(new))
        if not off.any():
            return None, None
        at, what = int(np.argmax(off)), "sigma" if new["use_flow_sigmas"] else "sigma/alpha"
        return None, (
            f"{self.name} has {what} = {self.levels[at]:.6g} at timestep {at} and {source} would "
            f"have {levels[at]:.6g}"
        )

    # -- inside ------------------------------------------------------------------------------------
    def _own_levels(self, kind: type) -> np.ndarray:
        """[T] as diffusers' own object has them."""
        try:
            peer = instance(kind, self.words)
        except Exception as error:
            raise ValueError(
                f"FsScheduler.from_config: {self.name} itself cannot be made with this config "
                f"({type(error).__name__}: {error!s:.80}); one that can is accepted"
            ) from None
        if self.name in EDMS:
            peer.set_timesteps(self.words["num_train_timesteps"])
            return np.asarray(peer.sigmas[: len(peer.timesteps)].cpu(), dtype=np.float64)
        stages = [k for k in ("stages", "scale_factors") if self.words.get(k)]
        if stages or not (self.trained["use_flow_sigmas"] or hasattr(peer, "alphas_cumprod")):
            what = f"{stages[0]} of several sizes" if stages else "no table of noise levels"
            own = f"source={self.name!r}" if self.name in SOURCES else ""
            raise ValueError(
                f"FsScheduler.from_config: {self.name} has {what}, and no other class runs as it "
                f"does; {own or 'one of ' + ', '.join(SOURCES)} is accepted"
            )
        if self.trained["use_flow_sigmas"]:
            levels = getattr(peer, "sigmas", None)
            if self.name not in FLOWS or levels is None:
                return levels_at(self.name, self.words)
            return np.asarray(levels.cpu(), dtype=np.float64)[::-1]
        table = np.asarray(peer.alphas_cumprod.cpu(), dtype=np.float64)
        with np.errstate(divide="ignore"):
            return np.sqrt((1.0 - table) / table)

    def _given_by(self, source: str, words: dict) -> bool:
        """Do these words give the levels, in diffusers' own class too?"""
        if words["trained_betas"] is None and words["beta_schedule"] not in SHARED:
            return False
        try:
            return not apart(self.levels, levels_at(source, words), told=False).any()
        except ValueError:
            return False


# -- inside ----------------------------------------------------------------------------------------
def _base(kind: type | None, name: str | None) -> str | None:
    """The name of the class; of somebody's own class that of diffusers it is made of, if any."""
    made = kind.__mro__ if kind else ()
    return next((c.__name__ for c in made if c.__name__ in (*SOURCES, *CLOSEST)), name)


def _itself(name: str | None, base: str | None) -> str | None:
    """The class that nobody asked to be read as another: the name; ValueError for somebody's own,
    which may have changed what it likes.
    """
    if base != name:
        raise not_reproduced(name, CLOSEST.get(base, base))
    return name


def _check_told(name: str | None, source: str, words: Mapping, read: dict) -> None:
    """ValueError where the config of a class that nobody here knows (words) says something of the
    model's training that is not what the source, told what it has a word for, takes it for. read:
    what is said to the source beside.
    """
    new = {"shift": 1.0, "snr_shift_scale": 1.0, "sigma_data": None, "rho": None, **NEUTRAL}
    new |= training(source, {k: words.get(k, v) for k, v in read.items()})
    new["flow_shift"] = new["shift"]
    for key in (words.keys() & new.keys()) - read.keys():
        if not _same(words[key], new[key]):
            raise ValueError(
                f"FsScheduler.from_config: {name or 'a config without a class'} has {key} = "
                f"{words[key]!r:.60} and {source} would have {new[key]!r}; a config in the words "
                f"of {source} is accepted"
            )


def _where(name: str, what: Mapping, levels: np.ndarray) -> str:
    """What a class with this training stands on, in words."""
    if what["use_flow_sigmas"]:
        return f"{name} is a flow of sigma up to {levels.max():.6g}"
    kind = "betas, with sigma/alpha" if on_betas(what) else "sigma"
    return f"{name} stands on {kind} up to {levels.max():.6g}"


def _left(source: str, found: Mapping, usual: Mapping, given: Mapping) -> dict:
    """What a config says beside the source's own options, which diffusers keeps there too: a
    scheduler that is made from it, of the class it came from, has its options again, and the shift
    that stands now.
    """
    left = {k: given.get(k, v) for k, v in found.items() if k not in usual and k not in OURS}
    left = {k: v for k, v in left.items() if not unbounded(v)}  # nobody's: no file can say it
    stands = {**found, **(left.pop("moved", None) or {})}
    if source in FLOWS or stands.get("use_flow_sigmas"):
        shift = stands.get("flow_shift" if "flow_shift" in usual else "shift", 1.0)
        left |= {k: shift for k in ("shift", "flow_shift") if k in left}
    return left


def _instead(follow: Callable, old: Origin, given: dict, option: dict | None) -> str:
    """What is accepted, in words: the option asked for, or a source that takes all of it over."""
    sources = [s for s in (old.name, CLOSEST.get(old.name), *SOURCES) if s in SOURCES]
    for more in [*([option] if option else []), *({"source": s} for s in sources)]:
        try:
            follow(given={**given, **more})
        except ValueError:
            continue
        (key, value), beside = *more.items(), " beside it" if more is option else ""
        return f"{key}={value!r}{beside}"
    return "a plan for this model, by from_plan,"


def _ends(source: str) -> dict:
    """Where a class ends that has no word for it."""
    return {"final_sigmas_type": "sigma_min"} if SOURCES[source].family.kept else {}


def _same(a: object, b: object) -> bool:
    return a is b or bool(np.array_equal(a, b))


def _carries(source: str, key: str) -> bool:
    """Can a plan of this class do what it has no option for?"""
    if key in BOUNDING:  # of predicted data, where it stores noise, or nobody reads it
        return source not in ("PNDMScheduler", *UNBOUNDED)
    if key == "timestep_type":
        return SOURCES[source].family.scale == "sigma"
    if key in GRIDS:  # these have timesteps of their own
        return source not in ("PNDMScheduler", "LCMScheduler", "TCDScheduler", *INVERSE)
    if key in ("use_flow_sigmas", "flow_sigmas", "shift", *SHIFTS):
        return source in FLOWING and key != "invert_sigmas"
    if key == "sigma_data":
        return source not in ("PNDMScheduler", "LCMScheduler", "TCDScheduler", *FLOWS)
    return key == "rescale_betas_zero_snr" and source not in INVERSE
