"""The networks of the benchmark: a residual net for small images, and decoder-only transformers."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention


def perceptron(*widths: int) -> nn.Sequential:
    """A fully connected net with ReLU between its layers.

    Args:
        widths: of input, hidden layers and output.

    Example:
        >>> [layer.out_features for layer in perceptron(784, 256, 10) if isinstance(layer, nn.Linear)]
        [256, 10]
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and the input added to what they give.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first convolution; where shapes change, a 1x1 convolution fits the input to them.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Images `[sample, channel, height, width]`."""
        return relu(self.shortcut(x) + self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))


class ResNet18(nn.Module):
    """ResNet-18 for 32x32 images: a 3x3 stem, no max-pooling (He et al., CVPR 2016, as used on CIFAR).

    Args:
        classes: the number of classes.

    Example:
        >>> sum(parameter.numel() for parameter in ResNet18(10).parameters())
        11173962
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        blocks, inputs = [], 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """One number per class, `[sample, class]`."""
        output: Tensor = self.head(self.blocks(relu(self.bn1(self.conv1(x)))).mean((2, 3)))
        return output


class DecoderLayer(nn.Module):
    """Causal self-attention and a feed-forward net, each behind a layer normalisation.

    Args:
        width: of a token.
        heads: of the attention; they divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[sample, position, width]`."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.projection(mixed)
        output: Tensor = x + self.feedforward(self.norm2(x))
        return output


class Decoder(nn.Module):
    """A decoder-only transformer with learned positions, as GPT-2 (Radford et al., 2019).

    Args:
        layers: how many.
        width: of a token.
        heads: of each attention.
        sequence: the longest sequence.
        vocabulary: the number of tokens that there are.
        tied: whether the read-out shares the embedding's weight.

    Example:
        >>> model = Decoder(layers=1, width=8, heads=2, sequence=5, vocabulary=11)
        >>> model(torch.zeros(2, 5, dtype=torch.int64)).shape
        torch.Size([2, 5, 11])
    """

    def __init__(
        self, *, layers: int, width: int, heads: int, sequence: int, vocabulary: int, tied: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.position = nn.Parameter(0.02 * torch.randn(sequence, width))
        self.layers = nn.Sequential(*(DecoderLayer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """One number per token of the vocabulary, `[sample, position, token]`."""
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        output: Tensor = self.head(self.norm(self.layers(x)))
        return output
