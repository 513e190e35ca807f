"""The rules of the mechanisms once more, slowly, with loops over single synapses."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def responsibility(weight: Tensor, clip: tuple[float, float] | None, normalize: bool) -> list[float]:
    """GRAPES factor of every node of a weight ``[node, fan-in...]``."""
    totals = [sum(abs(w.item()) for w in node.flatten()) for node in weight]
    largest = max(totals)
    factors = []
    for total in totals:
        factor = 2 * total / largest if largest else 1.0
        factors.append(factor if clip is None else min(max(factor, clip[0]), clip[1]))
    if normalize:
        mean = sum(factors) / len(factors)
        factors = [factor / mean for factor in factors]
    return factors


def scaled_update(before: Tensor, after: Tensor, rate: Tensor) -> Tensor:
    """Weights after a step whose update is scaled synapse by synapse."""
    scaled = torch.empty_like(before)
    for index in itertools.product(*(range(size) for size in before.shape)):
        scaled[index] = before[index] + rate[index] * (after[index] - before[index])
    return scaled


def remodeled(weight: Tensor, uniform: Tensor, d_re: float, published: bool) -> Tensor:
    """Weights after one event, from one draw from (0, 1] per synapse."""
    largest = max(abs(w.item()) for w in weight.flatten())
    bound = largest if published else 1 / math.sqrt(weight[0].numel())
    chance, new = replaced_share(weight, d_re), weight.clone()
    for index in itertools.product(*(range(size) for size in weight.shape)):
        if uniform[index].item() <= chance[index].item():
            new[index] = -bound + 2 * bound * (uniform[index].item() / chance[index].item())
    return new


def rates_of(state: dict[str, Tensor], nu: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """The rates that a state of PlasticityDiversity stands for, where nothing clips them."""
    return (1 + nu * state["deviation"].double()).to(dtype)


def weight_following_rate(weight: Tensor, deviation: Tensor, clip: tuple[float, float]) -> Tensor:
    """Rates that spread less the larger a weight is, from one deviation per synapse."""
    mean = sum(abs(w.item()) for w in weight.flatten()) / weight.numel()
    rate = torch.ones_like(weight)
    for index in itertools.product(*(range(size) for size in weight.shape)):
        spread = min(max(2 - abs(weight[index].item()) / mean, 0.5), 1.5) if mean else 1.5
        rate[index] = min(max(1 + deviation[index].item() * spread, clip[0]), clip[1])
    return rate


def activity_following_rate(outputs: list[Tensor], axis: int, deviation: Tensor) -> Tensor:
    """Rates that spread less the more often a node's output was beyond 0.01 in size."""
    counts = [0] * len(deviation)
    for output in outputs:
        for index in itertools.product(*(range(size) for size in output.shape)):
            counts[index[axis]] += abs(output[index].item()) > 0.01
    mean = sum(counts) / len(counts)
    rate = torch.ones_like(deviation)
    for node, count in enumerate(counts):
        share = count / mean if mean else 1.0
        rate[node] += deviation[node] * (2 - min(max(1 + 0.1 * (share - 1), 0.8), 1.2))
    return rate


def time_following_rate(
    rate: Tensor, noises: list[Tensor], steps: int, decay: float, period: int, clip: tuple[float, float]
) -> Tensor:
    """Rates after ``steps`` steps, from the first ones and one draw for every ten periods."""
    rate, noises = rate.clone(), iter(noises)
    for step in range(1, steps + 1):
        noise = next(noises) if step % (10 * period) == 0 else torch.zeros_like(rate)
        for index in itertools.product(*(range(size) for size in rate.shape)):
            if step % period == 0:
                later = 1 + (rate[index].item() - 1) * decay + noise[index].item()
                rate[index] = min(max(later, clip[0]), clip[1])
    return rate


def dale(weight: Tensor, outgoing: bool, excitatory: float | None) -> Tensor:
    """Weights once every node has one sign."""
    axis = 1 if outgoing else 0
    sums = [0.0] * weight.shape[axis]
    for index in itertools.product(*(range(size) for size in weight.shape)):
        sums[index[axis]] += weight[index].item() * abs(weight[index].item())
    positive = [total >= 0 for total in sums]
    if excitatory is not None:
        ranked = sorted(range(len(sums)), key=lambda node: -sums[node])
        positive = [node in ranked[: round(excitatory * len(sums))] for node in range(len(sums))]
    obeying = weight.clone()
    for index in itertools.product(*(range(size) for size in weight.shape)):
        if (weight[index] < 0) == positive[index[axis]]:
            obeying[index] = 0
    return obeying


def replaced_share(weight: Tensor, d_re: float) -> Tensor:
    """Probability that spine remodeling replaces each entry of ``weight``."""
    largest = max(abs(w.item()) for w in weight.flatten())
    shares = [math.erfc(abs(w.item()) * d_re / (largest * math.sqrt(2))) for w in weight.flatten()]
    return torch.tensor(shares, dtype=torch.float64).reshape(weight.shape)


def crystallizing(weight: Tensor, gradient: Tensor, threshold: float) -> Tensor:
    """Which synapses crystallize."""
    mean = sum(abs(w.item()) for w in weight.flatten()) / weight.numel()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for index in itertools.product(*(range(size) for size in weight.shape)):
        size, pull = abs(weight[index].item()), abs(gradient[index].item())
        share = pull / size if size else math.inf if pull else math.nan
        mask[index] = share < threshold or pull > mean
    return mask


def volume_rate(weight: Tensor, stability: float) -> Tensor:
    """Mean rate of every synapse at base 1."""
    sizes = [abs(w.item()) for w in weight.flatten()]
    rates = [math.exp(-stability * size / (size + 1)) for size in sizes]
    return weight.new_tensor(rates).reshape(weight.shape)


def pool_nodes(output: Tensor, gamma: int, phi: callable, axis: int) -> Tensor:
    """Multi-synaptic connectivity on a layer's output, one entry at a time."""
    axis = axis % output.ndim
    pooled = torch.zeros_like(output)
    for index in itertools.product(*(range(size) for size in output.shape)):
        first = index[axis] // gamma * gamma
        for member in range(first, first + gamma):
            pooled[index] += phi(output[(*index[:axis], member, *index[axis + 1 :])])
    return pooled


def grapes_gradients(
    weights: list[Tensor], inputs: Tensor, targets: Tensor, activation: str, local: bool
) -> list[Tensor]:
    """Gradients of a bias-free net under softmax cross-entropy, by hand, sample by sample."""
    gradients = [torch.zeros_like(weight) for weight in weights]
    for x, y in zip(inputs, targets, strict=True):
        signals = [x]
        sums = []
        for weight in weights:
            sums.append(torch.stack([(row * signals[-1]).sum() for row in weight]))
            signals.append(torch.relu(sums[-1]) if activation == "relu" else torch.tanh(sums[-1]))
        error = torch.softmax(sums[-1], 0)
        error[y] -= 1
        for layer in reversed(range(len(weights))):
            own = error
            if layer < len(weights) - 1:  # hidden: through the activation, then modulated
                slope = (sums[layer] > 0).to(error) if activation == "relu" else 1 - signals[layer + 1] ** 2
                factor = error.new_tensor(responsibility(weights[layer], (1.0, 2.0), False))
                plain = error * slope
                own = factor * plain
                error = plain if local else own
            gradients[layer] += torch.outer(own, signals[layer]) / len(inputs)
            error = weights[layer].T @ error
    return gradients


def feedback_gradients(
    weights: list[Tensor],
    feedback: list[Tensor],
    inputs: Tensor,
    targets: Tensor,
    activation: str,
    kind: str,
    modulated: bool,
) -> list[Tensor]:
    """Gradients of a bias-free net under softmax cross-entropy by fa, dfa or ifa, sample by sample.

    ``feedback[l]`` leads to the input of layer ``l``.
    """
    last = len(weights) - 1
    gradients = [torch.zeros_like(weight) for weight in weights]
    for x, y in zip(inputs, targets, strict=True):
        signals, slopes = [x], []
        for layer, weight in enumerate(weights):
            total = torch.stack([(row * signals[-1]).sum() for row in weight])
            signals.append(torch.relu(total) if activation == "relu" else torch.tanh(total))
            slope = (total > 0).to(total) if activation == "relu" else 1 - signals[-1] ** 2
            if modulated and layer < last:
                slope = slope * total.new_tensor(responsibility(weight, (1.0, 2.0), False))
            slopes.append(slope)
        output_error = torch.softmax(total, 0)
        output_error[y] -= 1
        errors = {last: output_error / len(inputs)}
        for layer in reversed(range(last)) if kind == "fa" else range(last):
            if kind == "ifa" and layer > 0:
                sent = weights[layer] @ errors[layer - 1]
            else:
                source = errors[layer + 1] if kind == "fa" else errors[last]
                sent = feedback[layer + 1].to(source).T @ source
            errors[layer] = sent * slopes[layer]
        for layer, error in errors.items():
            gradients[layer] += torch.outer(error, signals[layer])
    return gradients


def angle(first: Tensor, second: Tensor) -> float:
    """Angle between two vectors in degrees."""
    product = sum(a * b for a, b in zip(first.tolist(), second.tolist(), strict=True))
    lengths = [math.sqrt(sum(a * a for a in vector.tolist())) for vector in (first, second)]
    return math.degrees(math.acos(max(-1, min(1, product / (lengths[0] * lengths[1])))))


def expanded(layer: torch.nn.Module, gamma: int, phi: callable, inputs: Tensor) -> Tensor:
    """What ``gamma`` consecutive nodes of ``layer`` make together, one synapse bundle at a time."""
    if isinstance(layer, torch.nn.Linear):
        outputs = inputs.new_zeros(*inputs.shape[:-1], layer.out_features // gamma)
        for index in itertools.product(*(range(size) for size in outputs.shape)):
            for node in range(index[-1] * gamma, (index[-1] + 1) * gamma):
                sums = sum(w * x for w, x in zip(layer.weight[node], inputs[index[:-1]], strict=True))
                outputs[index] += phi(sums + (0 if layer.bias is None else layer.bias[node]))
        return outputs
    channels = []
    for first in range(0, layer.out_channels, gamma):
        members = (phi(channel(layer, node, inputs)) for node in range(first, first + gamma))
        channels.append(sum(members))
    return torch.cat(channels, 1)


def channel(layer: torch.nn.Module, node: int, inputs: Tensor) -> Tensor:
    """One output channel of a convolution, by a convolution that has no other."""
    own_inputs, own_nodes = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    group = node // own_nodes
    inputs = inputs[:, group * own_inputs : (group + 1) * own_inputs]
    if layer.transposed:
        weight = layer.weight[group * own_inputs : (group + 1) * own_inputs, node % own_nodes, None]
    else:
        weight = layer.weight[node, None]
    single = type(layer)(
        own_inputs,
        1,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        padding_mode=layer.padding_mode,
        dtype=inputs.dtype,
    )
    bias = torch.zeros(1) if layer.bias is None else layer.bias[node, None]
    with torch.no_grad():
        single.weight.copy_(weight)
        single.bias.copy_(bias)
        return single(inputs)


class Scaled(torch.autograd.Function):
    """The identity, whose error is multiplied."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(factor)
        return x.clone()

    @staticmethod
    def backward(ctx, error):
        return error * ctx.saved_tensors[0], None


def random_word(key: tuple[int, int], place: int) -> int:
    """The 32 random bits of one place."""
    x = (place ^ key[0]) % 2**32
    x = (mixed(x, 16) * 0x7FEB352D ^ key[1]) % 2**32
    x = mixed(x, 15) * 0x846CA68B % 2**32
    return mixed(x, 16) * 0x9E3779B1 % 2**32


def random_short(key: tuple[int, int], place: int) -> int:
    """The 16 random bits of one place, as a number with a sign."""
    word = random_word(key, place // 2)
    return with_sign(word >> 16 if place % 2 else word & 0xFFFF, 16)


def random_uniform(key: tuple[int, int], place: int) -> float:
    """A draw from U[0, 1) of 24 bits."""
    return (with_sign(random_word(key, place), 32) >> 8) / 2**24 + 0.5


def random_normal(key: tuple[int, int], place: int) -> float:
    """A draw from N(0, 1) by Box and Muller."""
    first, second = (random_uniform(key, 2 * place + i) for i in (0, 1))
    return math.sqrt(-2 * math.log(1 - first)) * math.cos(2 * math.pi * second)


def mixed(x: int, shift: int) -> int:
    """32 bits, mixed with themselves after an arithmetic shift to the right."""
    return (x ^ (with_sign(x, 32) >> shift)) % 2**32


def with_sign(word: int, bits: int) -> int:
    """An unsigned number as the signed one of the same bits."""
    return word - 2**bits if word >> (bits - 1) else word
