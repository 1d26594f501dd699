"""The optimizer already measured how sure it is; `l2m_optax` reads it.

The names of the first day are here. What they are made of is in the submodules: `moments`,
`transforms`, `jacobians`, `posterior`, `predict` and `tuning`.
"""

from l2m_optax import (
    checkpoint,
    decisions,
    fitting,
    jacobians,
    likelihoods,
    metrics,
    moments,
    plot,
    posterior,
    predict,
    transforms,
    tuning,
)
from l2m_optax._version import __version__
from l2m_optax.fitting._fit import fit
from l2m_optax.moments._identify import identify
from l2m_optax.moments._moment import SecondMoment
from l2m_optax.moments._second_moment import second_moment
from l2m_optax.posterior._diagnosis import diagnose
from l2m_optax.posterior._laplace import laplace
from l2m_optax.posterior._posterior import variance
from l2m_optax.posterior._sampling import log_prob, sample
from l2m_optax.posterior._selection import release, restrict
from l2m_optax.predict._classify import classify
from l2m_optax.predict._dataset import predict_dataset
from l2m_optax.predict._draws import monte_carlo
from l2m_optax.predict._last_layer import last_layer
from l2m_optax.predict._linearized import linearized
from l2m_optax.predict._regress import regress
from l2m_optax.predict._serving import make_predictive
from l2m_optax.predict._summaries import classification, regression
from l2m_optax.predict._variance import output_covariance, output_variance
from l2m_optax.transforms._evidence_decay import evidence_weight_decay
from l2m_optax.transforms._expose import expose_second_moment
from l2m_optax.transforms._track import track_second_moment
from l2m_optax.tuning._noise import fit_noise_variance
from l2m_optax.tuning._prior import fit_prior_precision
from l2m_optax.tuning._validation import tune

__all__ = [
    "SecondMoment",
    "__version__",
    "checkpoint",
    "classification",
    "classify",
    "decisions",
    "diagnose",
    "evidence_weight_decay",
    "expose_second_moment",
    "fit",
    "fit_noise_variance",
    "fit_prior_precision",
    "fitting",
    "identify",
    "jacobians",
    "laplace",
    "last_layer",
    "likelihoods",
    "linearized",
    "log_prob",
    "make_predictive",
    "metrics",
    "moments",
    "monte_carlo",
    "output_covariance",
    "output_variance",
    "plot",
    "posterior",
    "predict",
    "predict_dataset",
    "regress",
    "regression",
    "release",
    "restrict",
    "sample",
    "second_moment",
    "track_second_moment",
    "transforms",
    "tune",
    "tuning",
    "variance",
]
