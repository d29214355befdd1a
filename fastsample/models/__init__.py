"""Models to try things on: the embedded image models, their judge, and problems whose answer is
known.

fashion(...)   class-conditional 28x28 garments, as a fastsample.Model (the function; its
               module is fastsample.models.fashion)
fashion_flow() the same garments by a transformer that predicts a flow's velocity
classifier     class accuracy and the Fréchet distance on fashion-classifier features
analytic       Point, Gaussian, GaussianMixture: exact denoisers; ring and waves, two mixtures of 2
               and of 3,072 dimensions
"""

from . import analytic, classifier
from .fashion import fashion
from .transformer import fashion_flow

__all__ = ["analytic", "classifier", "fashion", "fashion_flow"]
