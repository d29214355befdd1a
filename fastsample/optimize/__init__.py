"""Searches: each finds time grids (or coefficients) for one model and returns a `Search` holding
Plans; data, never pictures. `__all__` names those that begin with a model, noise and a budget.
"""

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
