"""The optimizer already measured how sure it is; `l2m_optax` reads it."""

from l2m_optax import checkpoint, decisions, likelihoods, metrics, plot
from l2m_optax._moment import SecondMoment, debiased
from l2m_optax._version import __version__
from l2m_optax.dataset import predict_dataset
from l2m_optax.diagnostics import Diagnosis, diagnose, empirical_fisher
from l2m_optax.evidence import effective_parameters, log_evidence
from l2m_optax.examples import ExampleMoments, second_moment_of_examples
from l2m_optax.identify import Identification, LeafMoment, identify
from l2m_optax.posterior import (
    DiagonalPosterior,
    data_precision,
    laplace,
    precision,
    release,
    restrict,
    variance,
)
from l2m_optax.predictive import (
    Classification,
    Plan,
    Regression,
    classification,
    heteroscedastic_regression,
    laplace_bridge,
    linearized,
    linearized_regression,
    mean_field_0,
    mean_field_1,
    mean_field_2,
    monte_carlo,
    output_covariance,
    output_variance,
    plan,
    predict,
    probit,
    regression,
)
from l2m_optax.prior import Fit, FitInfo, fit_noise_variance, fit_prior_precision
from l2m_optax.sampling import entropy, log_prob, sample
from l2m_optax.second_moment import second_moment
from l2m_optax.serving import Predictive, make_predictive
from l2m_optax.temperature import fit_temperature
from l2m_optax.transforms import expose_second_moment, track_second_moment
from l2m_optax.tuning import tune
from l2m_optax.variational import elbo, kl_divergence

__all__ = [
    "Classification",
    "Diagnosis",
    "DiagonalPosterior",
    "ExampleMoments",
    "Fit",
    "FitInfo",
    "Identification",
    "LeafMoment",
    "Plan",
    "Predictive",
    "Regression",
    "SecondMoment",
    "__version__",
    "checkpoint",
    "classification",
    "data_precision",
    "debiased",
    "decisions",
    "diagnose",
    "effective_parameters",
    "elbo",
    "empirical_fisher",
    "entropy",
    "expose_second_moment",
    "fit_noise_variance",
    "fit_prior_precision",
    "fit_temperature",
    "heteroscedastic_regression",
    "identify",
    "kl_divergence",
    "laplace",
    "laplace_bridge",
    "likelihoods",
    "linearized",
    "linearized_regression",
    "log_evidence",
    "log_prob",
    "make_predictive",
    "mean_field_0",
    "mean_field_1",
    "mean_field_2",
    "metrics",
    "monte_carlo",
    "output_covariance",
    "output_variance",
    "plan",
    "plot",
    "precision",
    "predict",
    "predict_dataset",
    "probit",
    "regression",
    "release",
    "restrict",
    "sample",
    "second_moment",
    "second_moment_of_examples",
    "track_second_moment",
    "tune",
    "variance",
]
