"""What calls ask of a device: launches, syncs, host copies, allocations and bytes, a step and a
call, ours beside diffusers and k-diffusion, counted on a machine without a GPU (counted.py).

A call is one whose tables and memory are there, from noise on the device to the result there, the
model's own doing left out. A step is all between one evaluation and the next: of steps that differ
the most is shown, of bytes the mean. The steps' time is nobody's here; the seconds are those of the
counting.
"""

import pytest
from counted_calls import counted, defined, doors, ours, theirs
from measure import figure

OURS, ENDS = ours(None), ours("end")
CALLS = OURS | {f"{name}, check='end'": call for name, call in ENDS.items()}
CALLS |= defined() | doors() | theirs()
SHOWN = [
    *("dpmpp_2m", "unipc", "dpmpp_2m_sde", "dpmpp_2m, guided", "dpmpp_2m, masked"),
    *("dpmpp_2m_sde, channels_last", "ten earlier predictions", "Engine, 64 mixed requests"),
    *("dpmpp_2m, check='end'", "dpmpp_2m, backend='reference'"),
    *("FsScheduler for DPMSolverMultistep", "k_sample, dpmpp_2m"),
    *("diffusers FlowMatchEulerDiscrete", "diffusers DPMSolverMultistep"),
    *("diffusers UniPCMultistep", "k-diffusion euler", "k-diffusion dpmpp_2m"),
]


def targets(name):
    """What a call of ours is to ask for a step and, of syncs, altogether."""
    ticks = name.startswith("Engine")  # a gather of the model's batch, an upload of the rows
    step = {"launches": 1 + ticks, "syncs": 0, "host copies": int(ticks), "allocations": 0}
    return step, {"syncs": int(name.endswith("'end'")) * (64 if ticks else 1)}


@pytest.mark.parametrize("name", CALLS)
def bench_counts(benchmark, name):
    benchmark.group = "counts" if name in SHOWN else "more counts"
    tally = benchmark.pedantic(counted, args=(CALLS[name],), rounds=1)
    own = name.removesuffix(", check='end'") in OURS
    step, call = targets(name) if own else ({}, {})
    for count in ("launches", "syncs", "host copies", "allocations"):
        field = count.replace(" ", "_")
        most, whole = max(getattr(s, field) for s in tally.steps), getattr(tally.whole, field)
        for what, value, target in (("step", most, step), ("call", whole, call)):
            benchmark.extra_info[f"{field}_a_{what}"] = value
            words = {"target": target.get(count), "better": "lower"}
            figure(benchmark, f"{name}: {count} a {what}", value, **words)
    moved = sum(s.bytes for s in tally.steps) // len(tally.steps)
    benchmark.extra_info["bytes_a_step"] = moved
    figure(benchmark, f"{name}: bytes a step", moved / 1024, "KiB")
