"""What every search of `fastsample.optimize` returns: a Search of plans that say how they were
found.
"""

import inspect
import pydoc
import re

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import optimize
from fastsample.models.analytic import GaussianMixture

SEARCHES = [name for name in optimize.__all__ if name != "Search"]
LAW = GaussianMixture([[1.0, -0.5], [-1.0, 0.3]], [0.4, 0.6], 0.3)


@pytest.mark.filterwarnings("ignore:.*the teacher")
@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_returns_plans_with_their_provenance(name):
    asked = []
    model = LAW.model(fs.schedules.Flow(), "flow")

    def counted(x, t, **cond):
        asked.append(len(x))
        return model(x, t, **cond)

    counted = fs.Model(counted, model.schedule, "flow", time=model.time)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    search = getattr(optimize, name)(counted, z, 3)
    assert isinstance(search, optimize.Search)
    assert {budget: plan.nfe for budget, plan in search.plans.items()} == {1: 1, 2: 2, 3: 3}
    assert search.plan is search.plans[3] and search.samples == 4
    assert sum(asked) == search.nfe * 4, "every evaluation is counted"
    for budget, plan in search.plans.items():
        at = search.indices[budget]
        assert len(at) == budget + 1 and (np.diff(at) > 0).all()
        assert np.isfinite(search.error[budget])
        assert isinstance(plan.note["found"], dict) and plan.note["found"]
        assert fs.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("name", SEARCHES)
def test_a_model_that_writes_into_what_it_is_given_is_refused(name):
    """Its plans would be those of another model."""
    model = LAW.model(fs.schedules.EDM(), "x0")
    writes = lambda x, t: (model(x, t), x.zero_())[0]
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="the model changed its input in place; let it work on a"):
        getattr(optimize, name)(fs.Model(writes, model.schedule, "x0"), z, 2, teacher=8)


@pytest.mark.parametrize("name", ["model_free", "polish", *optimize.__all__[1:]])
def test_help_explains_every_argument_of_a_search(name):
    """help() of a name that a module has too finds the function alone."""
    said = pydoc.plain(pydoc.render_doc(f"fastsample.optimize.{name}")).split("\n", 3)[3]
    for word in {*inspect.signature(getattr(optimize, name)).parameters} - {"model", "given"}:
        entry = rf"^ +(\w+, )*{word}(,| {{2,}})|^ +The arguments of .*\b{word}\b|{word}="
        assert re.search(entry, said, re.M), word
