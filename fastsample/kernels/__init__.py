"""The three kernels and the noise under them: `step`, `moments`, `cost_matrix` (with `cost_gather`,
`argmin_source`), and how a backend is chosen.
"""

from ..plan.row import Layout as Layout
from .backend import Choice as Choice
from .backend import chosen as chosen
from .backend import select as select
from .cost_matrix import argmin_source as argmin_source
from .cost_matrix import cost_gather as cost_gather
from .cost_matrix import cost_matrix as cost_matrix
from .moments import moments as moments
from .reference.noise import normal as normal
