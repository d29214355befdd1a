"""Models to try things on: the embedded image model, its judge, and problems whose answer is known.

fashion(...)   class-conditional 28x28 garments, as a fastsample.Model (the function; its
               module is fastsample.models.fashion)
classifier     class accuracy and the Fréchet distance on fashion-classifier features
analytic       Point, Gaussian, GaussianMixture: exact denoisers; ring and waves, two mixtures of 2
               and of 3,072 dimensions
"""

from . import analytic, classifier
from .fashion import fashion

__all__ = ["analytic", "classifier", "fashion"]
