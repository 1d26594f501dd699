"""laplace-torch as it comes, on the networks of `everyday`.

Its default is a posterior over the last layer, with Kronecker factors. Such a posterior sees the
rest of a network only through what the last layer takes in, so that is what PyTorch gets, and the
last layer with its weights. Every place of a sequence is an example.
"""

from typing import Any

import flax.linen as nn
import laplace
import numpy as np
import torch
from everyday import Task

CHUNK = 500


def last_layer(task: Task, x) -> tuple[str, np.ndarray]:
    """Its name, and what it takes in: (examples, features)."""
    seen: list[tuple[str, Any]] = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.Dense):
            seen.append((context.module.name, args[0]))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        task.apply_fn(task.params, x)
    name, features = seen[-1]
    return name, np.array(features).reshape(-1, features.shape[-1])


def to_torch(layer) -> torch.nn.Sequential:
    kernel, bias = (torch.tensor(np.array(layer[name])) for name in ("kernel", "bias"))
    linear = torch.nn.Linear(*kernel.shape)
    linear.weight.data, linear.bias.data = kernel.T.contiguous(), bias
    return torch.nn.Sequential(torch.nn.Identity(), linear)


def check_outputs(model, features, task: Task) -> None:
    """The weights handed to PyTorch are the same network."""
    theirs = model(torch.tensor(features[:50])).detach().numpy()
    ours = np.array(task.apply_fn(task.params, task.data.x[:50]))
    np.testing.assert_allclose(theirs, ours.reshape(-1, ours.shape[-1])[:50], rtol=1e-4, atol=1e-4)


def fitted(task: Task, likelihood: str):
    name, features = last_layer(task, task.data.x)
    model, targets = to_torch(task.params[name]), torch.tensor(np.array(task.data.y))
    check_outputs(model, features, task)
    if likelihood == "classification":
        targets = targets.flatten().long()
    data = torch.utils.data.TensorDataset(torch.tensor(features), targets)
    found = laplace.Laplace(model, likelihood)
    found.fit(torch.utils.data.DataLoader(data, CHUNK))
    return found


def in_chunks(predict, task: Task, x) -> np.ndarray:
    parts = torch.tensor(last_layer(task, x)[1]).split(CHUNK)
    return np.concatenate([predict(part) for part in parts])


def classify(task: Task, x) -> np.ndarray:
    """Class probabilities: prior by the evidence, probit."""
    found = fitted(task, "classification")
    found.optimize_prior_precision(method="marglik")
    probs = in_chunks(lambda part: found(part).detach().numpy(), task, x)
    return probs.reshape(*np.shape(task.apply_fn(task.params, x)))


def regress(task: Task, x) -> np.ndarray:
    """Variances of new observations; prior and noise by the evidence, as its README fits them."""
    found = fitted(task, "regression")
    log_prior, log_noise = (torch.zeros(1, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.Adam([log_prior, log_noise], 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        (-found.log_marginal_likelihood(log_prior.exp(), log_noise.exp())).backward()
        optimizer.step()
    noise = float(found.sigma_noise.detach()) ** 2
    return noise + in_chunks(lambda part: found(part)[1].detach().numpy(), task, x).reshape(-1, 1)
