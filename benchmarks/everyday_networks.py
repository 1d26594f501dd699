"""The networks of `everyday`, in flax, as people write them."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp


class MLP(nn.Module):
    """Layers of these widths with ReLU between them; the last are the outputs."""

    widths: Sequence[int]

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        for width in self.widths[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class CNN(nn.Module):
    """Two convolutions with pooling, one hidden layer, ten outputs; images are (n, h, w, 1)."""

    channels: Sequence[int] = (16, 32)
    hidden: int = 64

    @nn.compact
    def __call__(self, x, train=False):
        for width in self.channels:
            x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


class NormalisedCNN(nn.Module):
    """The same with batch normalisation and dropout."""

    channels: Sequence[int] = (16, 32)
    hidden: int = 64

    @nn.compact
    def __call__(self, x, train=False):
        for width in self.channels:
            x = nn.BatchNorm(use_running_average=not train)(nn.Conv(width, (3, 3))(x))
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(len(x), -1)))
        return nn.Dense(10)(nn.Dropout(0.3, deterministic=not train)(x))


class Transformer(nn.Module):
    """The next token at every place: (n, places) to (n, places, vocabulary)."""

    vocabulary: int
    places: int
    width: int = 32
    heads: int = 2
    blocks: int = 2

    @nn.compact
    def __call__(self, tokens, train=False):
        mask = nn.make_causal_mask(tokens)
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        x = x + nn.Embed(self.places, self.width)(jnp.arange(tokens.shape[1]))
        for _ in range(self.blocks):
            x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), mask=mask)
            inner = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(inner)
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))
