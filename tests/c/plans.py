"""Plans that differ in shape, for the tests of the C interface."""

import fastsample as fs


def plans():
    """By name: history, noise, churn, classifier-free guidance."""
    flow, vp = fs.schedules.Flow(shift=3.0), fs.schedules.VP()
    make = fs.solvers.SOLVERS
    return {
        "dpmpp_2m": make["dpmpp_2m"](flow, fs.grids.uniform(flow, 6), prediction="flow"),
        "dpmpp_2m_sde": make["dpmpp_2m_sde"](vp, fs.grids.karras(vp, 5), prediction="eps"),
        "unipc": make["unipc"](vp, fs.grids.karras(vp, 6), prediction="v"),
        "guided": fs.guidance.guided(
            make["euler_ancestral"](vp, fs.grids.karras(vp, 4), prediction="eps")
        ),
    }
