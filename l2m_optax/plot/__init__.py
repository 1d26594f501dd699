"""Pictures of calibration, of a posterior and of a training: arrays in, Matplotlib axes out.

Each function draws on ``ax=``, or on a new figure, and returns the axes; `training` has four of
them. It shows and saves nothing. Matplotlib comes with ``pip install 'l2m-optax[plot]'``; only a
new figure imports it.
"""

from l2m_optax.plot._band import regression_band
from l2m_optax.plot._entropy import entropy_histogram
from l2m_optax.plot._layers import posterior_layers
from l2m_optax.plot._reliability import reliability_diagram
from l2m_optax.plot._risk_coverage import risk_coverage
from l2m_optax.plot._training import training

__all__ = [
    "entropy_histogram",
    "posterior_layers",
    "regression_band",
    "reliability_diagram",
    "risk_coverage",
    "training",
]
