"""The ways to a prediction that `tasks` compares: functions of a trained `Task`.

`CLASSIFIERS` return `Classes`, `REGRESSIONS` return `Numbers`; (v) is given the validation data.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import everyday
import jax
import numpy as np
from everyday import Task, mean_loss
from measure import cached
from scipy.optimize import minimize_scalar
from scipy.stats import norm

import l2m_optax as l2m

CHUNK = 250  # inputs at a time
LEVEL = 0.9
WIDTH = float(norm.ppf(0.5 + LEVEL / 2))
PEERS = str(Path(__file__).with_name("everyday_peers.py"))


class Classes(NamedTuple):
    """Probabilities of the test inputs, then of the shifted, and a score of novelty of each."""

    probs: np.ndarray
    novelty: np.ndarray
    chosen: str = "-"  # what `fit` chose
    temperature: float = np.nan


class Numbers(NamedTuple):
    """Of every test input: the mean, the variance of an observation, half of a 90% interval."""

    mean: np.ndarray
    variance: np.ndarray
    half: np.ndarray
    chosen: str = "-"
    temperature: float = np.nan


def inputs(task: Task) -> np.ndarray:
    """All that is predicted."""
    if task.data.shifted is None:
        return task.data.x_test
    return np.concatenate([task.data.x_test, task.data.shifted])


def outputs(task: Task, x) -> np.ndarray:
    return in_chunks(jax.jit(lambda part: task.apply_fn(task.params, part)), x)


def in_chunks(predict: Callable, x):
    """Predictions for all of `x`, joined leaf by leaf."""
    found = [predict(x[i : i + CHUNK]) for i in range(0, len(x), CHUNK)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def entropy(probs) -> np.ndarray:
    return -np.sum(probs * np.log(np.maximum(probs, 1e-30)), axis=-1)


def of_probs(probs) -> Classes:
    probs = np.asarray(probs, np.float64)
    return Classes(probs, entropy(probs))


def gaussian(mean, variance) -> Numbers:
    mean, variance = (np.asarray(array, np.float64) for array in (mean, variance))
    variance = np.broadcast_to(variance, mean.shape)
    return Numbers(mean, variance, WIDTH * np.sqrt(variance))


def mode(task: Task) -> Classes:
    return of_probs(jax.nn.softmax(outputs(task, inputs(task))))


def scaled(task: Task) -> Classes:
    """Logits over the temperature, of 0.2 to 10, that suits the validation data best."""
    logits = outputs(task, task.data.x_val)

    def loss(log_temperature):
        return float(mean_loss(logits / np.exp(log_temperature), task.data.y_val))

    best = minimize_scalar(loss, bounds=np.log((0.2, 10)), method="bounded").x
    return of_probs(jax.nn.softmax(outputs(task, inputs(task)) / np.exp(best)))


def residuals(task: Task, x, y) -> np.ndarray:
    return np.asarray(y, np.float64) - outputs(task, x)


def mode_of_training(task: Task) -> Numbers:
    """The noise is that of the training residuals."""
    noise = np.mean(np.square(residuals(task, task.data.x, task.data.y)))
    return gaussian(outputs(task, task.data.x_test), noise)


def mode_of_validation(task: Task) -> Numbers:
    noise = np.mean(np.square(residuals(task, task.data.x_val, task.data.y_val)))
    return gaussian(outputs(task, task.data.x_test), noise)


def conformal(task: Task) -> Numbers:
    """Split conformal: an interval of one width, and no density."""
    errors = np.abs(residuals(task, task.data.x_val, task.data.y_val))
    half = l2m.decisions.conformal_quantile(errors.ravel(), level=LEVEL)
    mean = outputs(task, task.data.x_test)
    nothing = np.full(mean.shape, np.nan)
    return Numbers(mean, nothing, np.full(mean.shape, float(half)))


def observations(task: Task) -> int:
    """Of one input: a sequence has one at every place."""
    return int(np.size(task.data.y[0]))


def all_layers(task: Task):
    """The posterior before anything is fitted, as the first documentation built it."""
    moment = l2m.second_moment(task.opt_state, task.params, tx=task.tx)
    return l2m.laplace(
        task.params,
        moment,
        num_data=len(task.data.x) * observations(task),
        batch_size=task.batch_size * observations(task),
        loss_scale=task.loss_scale,
        prior_mean=task.prior_mean,
    )


def classified(task: Task, posterior) -> Classes:
    found = in_chunks(functools.partial(l2m.classify, task.apply_fn, posterior), inputs(task))
    return Classes(np.asarray(found.probs, np.float64), found.epistemic)


def last_layer(task: Task) -> Classes:
    """What the documentation recommended before there was `fit`: the last layer at T = 1."""
    head = max(name for name in task.params if name.startswith("Dense"))
    posterior = l2m.restrict(all_layers(task), head)
    return classified(task, l2m.fit_prior_precision(posterior).posterior)


def of_evidence(task: Task) -> Numbers:
    """All layers at T = 1, noise and prior by the evidence."""
    posterior = l2m.fit_noise_variance(
        task.apply_fn, all_layers(task), task.data.x, task.data.y
    ).posterior
    return regressed(task, posterior)


def regressed(task: Task, posterior) -> Numbers:
    found = in_chunks(functools.partial(l2m.regress, task.apply_fn, posterior), task.data.x_test)
    return gaussian(found.mean, found.total)


def front_door(task: Task, validation=None) -> Classes | Numbers:
    options = {} if task.prior_mean is None else {"prior_mean": task.prior_mean}
    posterior, said = l2m.fit(
        task.apply_fn,
        task.params,
        task.opt_state,
        tx=task.tx,
        data=(task.data.x, task.data.y),
        batch_size=task.batch_size,
        validation=validation,
        likelihood=task.kind,
        loss_scale=task.loss_scale,
        **options,
    )
    choice = {"chosen": said.chosen, "temperature": float(posterior.temperature)}
    if task.kind == "gaussian":
        return regressed(task, posterior)._replace(**choice)
    novelty = in_chunks(
        functools.partial(l2m.decisions.novelty, task.apply_fn, posterior), inputs(task)
    )
    return classified(task, posterior)._replace(novelty=novelty, **choice)


def front_door_of_validation(task: Task) -> Classes | Numbers:
    return front_door(task, (task.data.x_val, task.data.y_val))


def laplace_torch(task: Task) -> Classes | Numbers:
    """Its default; kept on disk, so that PyTorch is needed only once."""

    def find():
        import everyday_peers as peers

        if task.kind == "gaussian":
            return peers.regress(task, task.data.x_test)
        return peers.classify(task, inputs(task))

    slug = "".join(letter if letter.isalnum() else "-" for letter in task.name)
    name = f"laplace-torch-{slug}-{task.seed}-{len(inputs(task))}"
    found = np.asarray(cached(name, find, PEERS, *everyday.TRAINING))
    if task.kind == "gaussian":
        return gaussian(outputs(task, task.data.x_test), found)
    return of_probs(found)


CLASSIFIERS = {
    "mode": mode,
    "mode, temperature scaling (v)": scaled,
    "laplace-torch, default": laplace_torch,
    "L2M, last layer, T = 1": last_layer,
    "L2M, fit": front_door,
    "L2M, fit (v)": front_door_of_validation,
}
REGRESSIONS = {
    "mode": mode_of_training,
    "mode, noise of validation (v)": mode_of_validation,
    "split conformal (v)": conformal,
    "laplace-torch, default": laplace_torch,
    "L2M, all layers, T = 1": of_evidence,
    "L2M, fit": front_door,
    "L2M, fit (v)": front_door_of_validation,
}
