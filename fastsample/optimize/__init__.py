"""Searches: each finds time grids (or coefficients) for one model and returns a `Search` holding
Plans; data, never pictures. `__all__` names those that begin with a model, noise and a budget.
"""

from inspect import cleandoc as _cleandoc
from sys import modules as _modules

from ._given import Given as Given
from ._search import Search
from .ays import ays
from .fit import fit
from .gits import gits
from .model_free import model_free as model_free
from .oss import oss
from .polish import polish as polish
from .search import search

__all__ = ["Search", "ays", "fit", "gits", "oss", "search"]

# help() knows the function alone, of the name that its module has too, where the arguments stand
for _made in (ays, fit, gits, model_free, oss, polish, search):
    _made.__doc__ = f"{_cleandoc(_made.__doc__ or '')}\n\n{_modules[_made.__module__].__doc__}"
