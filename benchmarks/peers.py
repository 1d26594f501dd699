"""The networks of `images` in PyTorch; laplace-torch, curvlinops and ivon-opt around them."""

import time
from collections.abc import Iterator

import images
import jax.numpy as jnp
import laplace
import numpy as np
import torch
from curvlinops import EKFACLinearOperator
from curvlinops.kfac import FisherType
from ivon import IVON
from laplace import curvature
from measure import answers

import l2m_optax as l2m

CHUNK = 50  # inputs at a time: a GLM predictive holds a Jacobian for each


def to_torch(params) -> torch.nn.Sequential:
    """The network with these weights."""
    modules: list[torch.nn.Module] = []
    for name in images.layers(params):
        kernel, bias = (torch.tensor(np.array(params[name][k])) for k in ("kernel", "bias"))
        if kernel.ndim == 4:
            module = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, stride=2, padding=1)
        else:
            module, kernel = torch.nn.Linear(*kernel.shape), kernel.T.contiguous()
            modules.append(torch.nn.Flatten())
        module.weight.data, module.bias.data = kernel, bias
        modules += [module, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


def from_torch(arrays: list[torch.Tensor], like) -> dict:
    """Arrays in the order of a network's `parameters()`, as the tree `like`."""
    tree, found = {}, iter(arrays)
    for name in images.layers(like):
        kernel, bias = (np.array(next(found).detach()) for _ in range(2))
        tree[name] = {
            "kernel": jnp.asarray(kernel if kernel.ndim == 4 else kernel.T),
            "bias": jnp.asarray(bias),
        }
    return tree


def batches(x, y, epochs: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    x, y = torch.tensor(x), torch.tensor(y).long()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(images.BATCH)[: len(x) // images.BATCH]:
            yield x[rows], y[rows]


def train_adam(params, x, y) -> float:
    """Seconds of training as `images.train` does: what PyTorch's own costs are measured by."""
    model = to_torch(params)
    optimizer = torch.optim.Adam(model.parameters(), images.RATE)
    epochs = []
    for _ in range(4):
        start = time.perf_counter()
        for inputs, labels in batches(x, y, 1):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        epochs.append(time.perf_counter() - start)
    return min(epochs) * images.EPOCHS


def train_ivon(params, x, y, seed: int, *, lr: float, hess_init: float):
    """The mean and the deviations that ivon-opt ends with, from these weights on; seconds."""
    torch.manual_seed(seed)
    model = to_torch(params)
    optimizer = IVON(model.parameters(), lr=lr, ess=len(x), hess_init=hess_init)
    steps = images.EPOCHS * (len(x) // images.BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    begin = time.perf_counter()
    for inputs, labels in batches(x, y, images.EPOCHS):
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - begin
    (group,) = optimizer.param_groups
    flat = (len(x) * (group["hess"] + group["weight_decay"])).rsqrt()
    sizes = [p.numel() for p in model.parameters()]
    parts = zip(flat.split(sizes), model.parameters(), strict=True)
    deviations = [part.reshape(p.shape) for part, p in parts]
    mean = list(model.parameters())
    return (from_torch(mean, params), from_torch(deviations, params)), seconds


def laplace_torch(
    params, data: images.Data, *, structure: str, backend: str, subset: str = "all", tuned=False
) -> tuple[np.ndarray, float, float]:
    """Class probabilities (GLM, probit) of all inputs; their seconds per 1,000; those of the fit.

    The prior precision is that of its own evidence or, where `tuned`, the one of 1, 2.2, 4.6, 10,
    ..., 10⁴ that has the best likelihood on the validation images.
    """

    def loss(probs, labels):  # the library's own is never reset: it averages over all tried so far
        return torch.nn.functional.nll_loss(probs.log(), labels)

    def loader(x, y):
        tensors = torch.tensor(x), torch.tensor(y).long()
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors), CHUNK)

    fitted = laplace.Laplace(
        to_torch(params),
        "classification",
        subset_of_weights=subset,
        hessian_structure=structure,
        backend=getattr(curvature, backend),
    )
    start = time.perf_counter()
    fitted.fit(loader(data.x, data.y))
    if tuned:
        fitted.optimize_prior_precision(
            method="gridsearch",
            pred_type="glm",
            val_loader=loader(data.x_val, data.y_val),
            loss=loss,
            log_prior_prec_min=0,
            log_prior_prec_max=4,
            grid_size=13,
        )
    else:
        fitted.optimize_prior_precision(method="marglik")
    seconds = time.perf_counter() - start

    def predict(x):
        parts = torch.tensor(x).split(CHUNK)
        return np.concatenate([fitted(part).detach().numpy() for part in parts])

    return *answers(predict, data.inputs), seconds


def ekfac(params, data: images.Data) -> l2m.SecondMoment:
    """The eigenvalue-corrected Kronecker factors of the GGN: curvlinops', after passes over data.

    Their eigenvectors are a basis for each leaf, and their eigenvalues a moment in it, so that only
    the curvature is another than L2M's, not what is made of it.
    """
    model = to_torch(params)
    tensors = torch.tensor(data.x), torch.tensor(data.y).long()
    operator = EKFACLinearOperator(
        model,
        torch.nn.CrossEntropyLoss(reduction="sum"),
        list(model.parameters()),
        list(zip(*(part.split(images.BATCH) for part in tensors), strict=True)),
        check_deterministic=False,
        fisher_type=FisherType.TYPE2,
    )
    operator.compute_eigenvalue_correction()
    values, inputs, outputs = (
        list(sides.values())
        for sides in (
            operator._corrected_eigenvalues,
            operator._input_covariances_eigenvectors,
            operator._gradient_covariances_eigenvectors,
        )
    )
    eigenvalues = dict(sorted((i, found) for value in values for i, found in value.items()))
    arrays = zip(eigenvalues.values(), model.parameters(), strict=True)
    nu = from_torch([found.reshape(p.shape) / len(data.x) for found, p in arrays], params)

    def basis(kernel, a, g):
        sides = (g, a) if kernel.ndim == 4 else (a, g)
        return {"kernel": l2m.moments.Basis(*sides), "bias": l2m.moments.Basis(g)}

    sides = (map(jnp.asarray, side) for side in (inputs, outputs))
    layers = zip(images.layers(params), *sides, strict=True)
    return l2m.SecondMoment(
        nu, basis={name: basis(params[name]["kernel"], a, g) for name, a, g in layers}
    )
