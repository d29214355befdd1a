"""Searches: each finds time grids (or coefficients) for one model and returns a `Search` holding
Plans; data, never pictures.
"""

from ._given import Given as Given
from ._search import Search
from .fit import fit
from .gits import gits
from .model_free import model_free
from .oss import oss

__all__ = ["Search", "fit", "gits", "model_free", "oss"]
