"""What a diffusers class reads of its sisters' options, which move along in a config. Pure data."""

# of what sister classes say, what a class takes for its own, and as what
SISTER = {
    "solver_type": {k: "midpoint" for k in ("logrho", "bh1", "bh2")},
    "algorithm_type": {
        "deis": "dpmsolver++",
        "data_prediction": "dpmsolver++",
        "noise_prediction": "dpmsolver",
    },
}
SISTERS = {
    "UniPCMultistepScheduler": {"solver_type": {k: "bh2" for k in ("midpoint", "heun", "logrho")}},
    "DEISMultistepScheduler": {
        "solver_type": {k: "logrho" for k in ("midpoint", "heun", "bh1", "bh2")},
        "algorithm_type": {
            k: "deis" for k in ("dpmsolver", "dpmsolver++", *SISTER["algorithm_type"])
        },
    },
    # its grid is FlowMatchEuler's, whose own noise it has none of
    "LTXEulerAncestralRFScheduler": {"stochastic_sampling": {True: False}},
    "SASolverScheduler": {
        "algorithm_type": {
            "deis": "data_prediction",
            "dpmsolver++": "data_prediction",
            "sde-dpmsolver++": "data_prediction",
            "dpmsolver": "noise_prediction",
            "sde-dpmsolver": "noise_prediction",
        }
    },
}
