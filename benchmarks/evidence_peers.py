"""Other ways to keep a network from learning by heart: early stopping, dropout, laplace-torch.

Early stopping takes the parameters of the epoch that has the best NLL on validation data. Dropout
takes the better of two rates, by the same. laplace-torch's `marglik_training` gets a network of the
same shape, started as PyTorch starts it, and Adam with the same rate, schedule, batches and epochs;
all else is its own default: Kronecker factors of the GGN, one prior precision for each array, ten
steps of Adam on these after each epoch, and the parameters of the epoch with the best evidence.
"""

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import laplace
import numpy as np
import torch
import training
from evidence_tasks import Task
from evidence_training import (
    Found,
    added,
    found,
    mean_loss,
    of_outputs,
    prepared,
    timed,
    validation,
)

RATES = (0.2, 0.5)
torch.set_num_threads(1)  # more gain nothing for layers as small as these


@functools.partial(jax.jit, static_argnums=(0, 1))
def stopped_early(
    task: Task, optimizer: Callable, strength: Any, seed: Any, data: tuple
) -> tuple[Any, Any]:
    """As `trained`, with the parameters of the epoch that validation data choose."""
    tx, params, keys = prepared(task, optimizer, strength, seed, data)
    loss = functools.partial(mean_loss, task)
    (_, state), every = training.run(loss, tx, params, keys, *data[:2], task.batch_size)
    losses = jax.lax.map(lambda params: loss(params, *data[2:4]), every)
    return jax.tree.map(lambda leaf: leaf[jnp.argmin(losses)], every), state


@functools.partial(jax.jit, static_argnums=(0, 1))
def dropped_out(
    task: Task, optimizer: Callable, rate: Any, seed: Any, data: tuple
) -> tuple[Any, Any]:
    """As `trained`, with this rate of dropout and no decay."""
    tx, params, keys = prepared(task, optimizer, 0.0, seed, data)

    def loss(params: Any, x: jax.Array, y: jax.Array, key: Any) -> jax.Array:
        return of_outputs(task, task.apply_fn(params, x, key, rate), y)

    return training.run(loss, tx, params, keys, *data[:2], task.batch_size, dropout=True)[0]


def early_stopping(task: Task, seed: int) -> dict[str, Found]:
    data = task.data(seed)
    one = found(task, data, *timed(task, added, 0.0, seed, data, stopped_early))
    return {"early stopping, by validation data": one}


def dropout(task: Task, seed: int) -> dict[str, Found]:
    data = task.data(seed)
    tried = [found(task, data, *timed(task, added, r, seed, data, dropped_out)) for r in RATES]
    return {"dropout, by validation data": min(tried, key=validation)}


def in_torch(widths: list[int]) -> torch.nn.Sequential:
    layers = [torch.nn.Linear(n, m) for n, m in itertools.pairwise(widths)]
    return torch.nn.Sequential(*[m for layer in layers for m in (layer, torch.nn.ReLU())][:-1])


def from_torch(model: torch.nn.Sequential, names: list[str]) -> dict[str, Any]:
    layers = [module for module in model if isinstance(module, torch.nn.Linear)]
    return {
        name: {
            "kernel": jnp.asarray(layer.weight.detach().numpy().T.copy()),
            "bias": jnp.asarray(layer.bias.detach().numpy().copy()),
        }
        for name, layer in zip(names, layers, strict=True)
    }


def marglik_training(task: Task, seed: int) -> dict[str, Found]:
    """By laplace-torch: 20 to 290 times as long as a training without a decay."""
    data = task.data(seed)
    initial = task.initial(seed, data)
    kernels = [initial[name]["kernel"] for name in sorted(initial)]
    torch.manual_seed(seed)
    model = in_torch([kernels[0].shape[0], *(kernel.shape[1] for kernel in kernels)])
    x, y = torch.tensor(np.reshape(data[0], (len(data[0]), -1))), torch.tensor(data[1])
    examples = torch.utils.data.TensorDataset(x, y if task.kind == "gaussian" else y.long())
    batches = torch.utils.data.DataLoader(examples, task.batch_size, shuffle=True)
    steps = task.epochs * len(batches)
    start = time.process_time()
    posterior, model, _, _ = laplace.marglik_training(
        model,
        batches,
        "regression" if task.kind == "gaussian" else "classification",
        optimizer_kwargs={"lr": task.rate},
        scheduler_cls=torch.optim.lr_scheduler.CosineAnnealingLR,
        scheduler_kwargs={"T_max": steps, "eta_min": 0.01 * task.rate},
        n_epochs=task.epochs,
    )
    seconds = time.process_time() - start
    noise = float(posterior.sigma_noise) ** 2
    params = from_torch(model, sorted(initial))
    one = found(task, data, params, None, seconds, noise)
    print("marglik_training", round(one.test, 4), posterior.prior_precision, noise, flush=True)
    return {"laplace-torch, `marglik_training`": one}
