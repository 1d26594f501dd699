"""What a tracker adds to a step of training by Adam.

A step is compiled, with its carry donated, and called from Python, as in a training loop. Methods
take turns in slices of 10 steps, and CPU time is counted, of all threads: other programs on the
machine matter little. "Beside" is a compiled program of its own, called at each tenth step: in a
`lax.cond` or a `lax.scan`, XLA's convolutions on a CPU are four to five times as slow as outside.
Run: `make bench-structure-cost`; `FAST=1` for two slices.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import images
import jax
import jax.numpy as jnp
import optax
import report
from everyday_networks import Transformer

import l2m_optax as l2m

ROUNDS, SLICES = (1, 2) if report.FAST else (3, 20)
EVERY = 10  # steps in a slice, one of which is tracked
KRONECKER = l2m.track_second_moment(0.999, structure="kronecker", every=EVERY)
ADAM = optax.adam(1e-3)
VOCABULARY, PLACES, SEQUENCES = 256, 64, 8

Advance = Callable[[Any, int], Any]
"""``advance(carry, i) -> carry`` after the i-th step."""


class Task(NamedTuple):
    """A network, where its training starts, a batch, and the name of its last layer."""

    apply_fn: Callable[[Any, jax.Array], jax.Array]
    params: Any
    inputs: jax.Array
    labels: jax.Array
    head: str

    def fisher_gradients(self, key, params, inputs):
        return l2m.jacobians.fisher_gradients(key, self.apply_fn, params, inputs)


def of_images(kind: str, batch_size: int = images.BATCH) -> Task:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.uniform(keys[1], (batch_size, 1, 28, 28))
    y = jax.random.randint(keys[2], (batch_size,), 0, 10)
    return Task(images.network, images.initial(kind, keys[0]), x, y, "head")


def of_tokens() -> Task:
    module = Transformer(VOCABULARY, PLACES, width=128, heads=4)
    text = jax.random.randint(jax.random.key(0), (SEQUENCES, PLACES + 1), 0, VOCABULARY)
    params = module.init(jax.random.key(1), text[:, :-1])
    head = max(name for name in params["params"] if name.startswith("Dense"))
    return Task(module.apply, params, text[:, :-1], text[:, 1:], head)


def chained(task: Task, tx=ADAM, *, true: bool = False) -> tuple[Any, Advance]:
    """Where training by `tx` starts, and a step of it."""

    def loss(params, inputs, labels):
        logits = task.apply_fn(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry, inputs, labels):
        params, state, key = carry
        key, now = jax.random.split(key)
        of_model = functools.partial(task.fisher_gradients, now, params, inputs)
        extra = {"moment_updates": of_model} if true else {}
        grads = jax.grad(loss)(params, inputs, labels)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state, key

    params = jax.tree.map(jnp.copy, task.params)
    start = params, tx.init(params), jax.random.key(2)
    return start, lambda carry, i: step(carry, task.inputs, task.labels)


def beside(task: Task) -> tuple[Any, Advance]:
    """Adam's step, and a program of its own for the true Fisher."""
    tracker = l2m.track_second_moment(0.999**EVERY, structure="kronecker")
    start, step = chained(task)

    @functools.partial(jax.jit, donate_argnums=0)
    def follow(tracked, key, params, inputs):
        return tracker.update(task.fisher_gradients(key, params, inputs), tracked)[1]

    def advance(carry, i):
        carry, tracked = carry
        if i % EVERY == 0:
            params, _, key = carry
            tracked = follow(tracked, key, params, task.inputs)
        return step(carry, i), tracked

    return (start, tracker.init(task.params)), advance


def methods(task: Task) -> dict[str, tuple[Any, Advance]]:
    def last(path, shape):
        return "full" if task.head in path else "diagonal"

    full = l2m.track_second_moment(0.999, structure=last, every=EVERY)
    diagonal = l2m.track_second_moment(0.999)
    return {
        "Adam": chained(task),
        "diagonal": chained(task, optax.chain(diagonal, ADAM)),
        "full head, every 10th": chained(task, optax.chain(full, ADAM)),
        "Kronecker, every 10th": chained(task, optax.chain(KRONECKER, ADAM)),
        "Kronecker, true Fisher, every 10th": chained(
            task, optax.chain(KRONECKER, ADAM), true=True
        ),
        "Kronecker, true Fisher, every 10th, beside": beside(task),
    }


def make_run(carry: Any, advance: Advance) -> Callable[[], float]:
    """``run() -> seconds`` of CPU time that a step took, a mean over the next slice."""

    def run() -> float:
        nonlocal carry
        start = time.process_time()
        for i in range(EVERY):
            carry = advance(carry, i)
        jax.block_until_ready(carry)
        return (time.process_time() - start) / EVERY

    return run


def medians(task: Task) -> list[dict[str, float]]:
    """Of each round, by method."""
    runs = {name: make_run(*method) for name, method in methods(task).items()}
    for run in runs.values():
        run()  # compiles
    return [
        {name: statistics.median(turn[name] for turn in turns) for name in runs}
        for turns in (
            [{name: run() for name, run in runs.items()} for _ in range(SLICES)]
            for _ in range(ROUNDS)
        )
    ]


def main() -> None:
    tasks = {
        "perceptron": of_images("mlp"),
        "perceptron, 512": of_images("mlp", 512),
        "convolutional": of_images("cnn"),
        "transformer": of_tokens(),
    }
    found = {}
    for name, task in tasks.items():
        found[name] = medians(task)
        print(name, found[name], flush=True)
    table = {
        method: [
            {name: rounds[i][method] / rounds[i]["Adam"] for name, rounds in found.items()}
            for i in range(ROUNDS)
        ]
        for method in found["perceptron"][0]
    }
    adam = ", ".join(report.duration(rounds[0]["Adam"]) for rounds in found.values())
    report.write(
        "structure-cost",
        {"a step, over Adam's": table},
        f"CPU time; Adam's own is {adam}; {ROUNDS} rounds, ± is the deviation over them; batches "
        f"of {images.BATCH} images, of 512 where it is said, and of {SEQUENCES} x {PLACES} tokens",
    )


if __name__ == "__main__":
    main()
