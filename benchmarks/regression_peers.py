"""The network of `tables` in PyTorch; laplace-torch and ivon-opt around it."""

import functools

import jax.numpy as jnp
import laplace
import numpy as np
import torch
from ivon import IVON
from laplace import curvature
from measure import cached
from tables import BATCH_SIZE, DRAWS, EPOCHS, Split


def to_torch(params) -> torch.nn.Sequential:
    """The network with these weights."""
    layers = []
    for name in ("hidden0", "out"):
        kernel, bias = (torch.tensor(np.array(params[name][k])) for k in ("kernel", "bias"))
        layers.append(torch.nn.Linear(*kernel.shape))
        layers[-1].weight.data, layers[-1].bias.data = kernel.T.contiguous(), bias
    return torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1])


def laplace_torch(params, data: Split, *, structure: str, backend: str) -> np.ndarray:
    """Variances for the held-out inputs, with prior and noise by the evidence."""
    fitted = laplace.Laplace(
        to_torch(params),
        "regression",
        subset_of_weights="all",
        hessian_structure=structure,
        backend=getattr(curvature, backend),
    )
    tensors = torch.tensor(data.x), torch.tensor(data.y)
    fitted.fit(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors), 100))
    log_prior, log_noise = (torch.zeros(1, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.Adam([log_prior, log_noise], 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        (-fitted.log_marginal_likelihood(log_prior.exp(), log_noise.exp())).backward()
        optimizer.step()
    variance = fitted(torch.tensor(data.x_test))[1].detach().numpy().reshape(-1, 1)
    return variance + float(fitted.sigma_noise.detach()) ** 2


def ivon(name, params, data: Split, noise: float, seed: int, *, lr: float, hess_init: float):
    """Draws of weights from the posterior that ivon-opt ends with, from these weights on."""

    def train():
        torch.manual_seed(seed)
        model = to_torch(params)
        optimizer = IVON(model.parameters(), lr=lr, ess=len(data.x), hess_init=hess_init)
        inputs, targets, epochs = torch.tensor(data.x), torch.tensor(data.y), EPOCHS[name]
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for rows in torch.randperm(len(data.x)).split(BATCH_SIZE):
                with optimizer.sampled_params(train=True):
                    optimizer.zero_grad()
                    loss = torch.nn.functional.mse_loss(model(inputs[rows]), targets[rows])
                    (0.5 / noise * loss).backward()
                optimizer.step()
            schedule.step()
        draws = []
        for _ in range(DRAWS):
            with optimizer.sampled_params():
                draws.append([p.detach().numpy().copy() for p in model.parameters()])
        return [jnp.stack(leaves) for leaves in zip(*draws, strict=True)]

    key = f"ivon-{name}-{lr}-{hess_init}-{seed}-{len(data.x)}"
    hidden, hidden_bias, out, out_bias = cached(key, train, __file__)
    transpose = functools.partial(jnp.swapaxes, axis1=1, axis2=2)
    return {
        "hidden0": {"kernel": transpose(hidden), "bias": hidden_bias},
        "out": {"kernel": transpose(out), "bias": out_bias},
    }
