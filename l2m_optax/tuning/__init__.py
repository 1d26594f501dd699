"""Prior, noise and temperature: by the evidence, on validation data, by the variational bound."""

from l2m_optax.tuning._calibrate import calibrate_noise, calibrate_temperature
from l2m_optax.tuning._cold import cold_temperature
from l2m_optax.tuning._evidence import effective_parameters, log_evidence
from l2m_optax.tuning._fit import Fit, FitInfo
from l2m_optax.tuning._logits import calibrate_logits
from l2m_optax.tuning._scale_check import ScaleCheck, check_scale, rescale
from l2m_optax.tuning._variational import elbo, kl_divergence

__all__ = [
    "Fit",
    "FitInfo",
    "ScaleCheck",
    "calibrate_logits",
    "calibrate_noise",
    "calibrate_temperature",
    "check_scale",
    "cold_temperature",
    "effective_parameters",
    "elbo",
    "kl_divergence",
    "log_evidence",
    "rescale",
]
