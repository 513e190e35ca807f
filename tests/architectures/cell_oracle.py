"""Recurrent cells forward and backward through time by hand, sample by sample, without autograd.

With ``x`` a cell's input, ``h`` its output and ``c`` an LSTM cell's memory, as torch orders the gates:

    RNN:   h' = tanh(a),                           a = W_ih x + b_ih + W_hh h + b_hh
    LSTM:  c' = f c + i g,  h' = o tanh(c'),       i, f, o = sigmoid(a_i, a_f, a_o), g = tanh(a_g)
    GRU:   h' = (1 - z) n + z h,                   r, z = sigmoid(a_r, a_z)
           n = tanh(W_in x + b_in + r (W_hn h + b_hn))

The factor multiplies the whole error of ``h'`` where it leaves the cell, at every step: what comes from
above and from the next step. The error of ``c'`` that comes from the next step's ``c`` is left as
it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from oracles import responsibility
from torch import Tensor, nn

import bouton

GATES = {nn.RNNCell: 1, nn.LSTMCell: 4, nn.GRUCell: 3}


@dataclass
class Trace:
    """What one step computed."""

    x: Tensor
    h: Tensor
    c: Tensor
    from_x: list[Tensor]
    from_h: list[Tensor]


@dataclass
class Cell:
    """A cell's weights, its factor and its gradients."""

    kind: type[nn.Module]
    relu: bool
    weights: dict[str, Tensor]
    factor: Tensor
    gradients: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, cell: nn.Module, grapes: bouton.Grapes | None) -> Cell:
        weights = {name: weight.detach() for name, weight in cell.named_parameters()}
        for name in ("bias_ih", "bias_hh"):
            weights.setdefault(name, torch.zeros(len(cell.weight_hh), dtype=cell.weight_hh.dtype))
        factor = torch.ones(cell.hidden_size, dtype=cell.weight_hh.dtype)
        if grapes:
            synapses = [
                torch.cat(
                    [
                        weights[name][unit :: cell.hidden_size].flatten()
                        for name in ("weight_ih", "weight_hh")
                    ]
                )
                for unit in range(cell.hidden_size)
            ]
            factor = factor.new_tensor(responsibility(torch.stack(synapses), grapes.clip, grapes.normalize))
        gradients = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        return cls(type(cell), getattr(cell, "nonlinearity", "") == "relu", weights, factor, gradients)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Trace]:
        """The next output and memory."""
        gates = GATES[self.kind]
        from_x = list((self.weights["weight_ih"] @ x + self.weights["bias_ih"]).chunk(gates))
        from_h = list((self.weights["weight_hh"] @ h + self.weights["bias_hh"]).chunk(gates))
        trace = Trace(x, h, c, from_x, from_h)
        sums = [a + b for a, b in zip(from_x, from_h, strict=True)]
        if self.kind is nn.RNNCell:
            return (sums[0].clamp(min=0) if self.relu else sums[0].tanh()), c, trace
        if self.kind is nn.LSTMCell:
            i, f, g, o = sums[0].sigmoid(), sums[1].sigmoid(), sums[2].tanh(), sums[3].sigmoid()
            memory = f * c + i * g
            return o * memory.tanh(), memory, trace
        r, z = sums[0].sigmoid(), sums[1].sigmoid()
        n = (from_x[2] + r * from_h[2]).tanh()
        return (1 - z) * n + z * h, c, trace

    def send_back(self, trace: Trace, of_h: Tensor, of_c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Add to the gradients; the errors of the step's input, and of output and memory before it."""
        of_h = self.factor * of_h
        sums = [a + b for a, b in zip(trace.from_x, trace.from_h, strict=True)]
        directly = torch.zeros_like(of_h)  # from h' to h, past all weights
        if self.kind is nn.RNNCell:
            of_sums = [of_h * ((sums[0] > 0) if self.relu else 1 - sums[0].tanh() ** 2)]
            of_from_h = of_sums
        elif self.kind is nn.LSTMCell:
            i, f, g, o = sums[0].sigmoid(), sums[1].sigmoid(), sums[2].tanh(), sums[3].sigmoid()
            memory = (f * trace.c + i * g).tanh()
            of_memory = of_c + of_h * o * (1 - memory**2)
            of_sums = [
                of_memory * g * i * (1 - i),
                of_memory * trace.c * f * (1 - f),
                of_memory * i * (1 - g**2),
                of_h * memory * o * (1 - o),
            ]
            of_from_h, of_c = of_sums, of_memory * f
        else:
            r, z = sums[0].sigmoid(), sums[1].sigmoid()
            n = (trace.from_x[2] + r * trace.from_h[2]).tanh()
            of_n = of_h * (1 - z) * (1 - n**2)
            of_sums = [of_n * trace.from_h[2] * r * (1 - r), of_h * (trace.h - n) * z * (1 - z), of_n]
            of_from_h = [*of_sums[:2], of_n * r]
            directly = of_h * z
        from_x, from_h = torch.cat(of_sums), torch.cat(of_from_h)
        self.gradients["weight_ih"] += torch.outer(from_x, trace.x)
        self.gradients["weight_hh"] += torch.outer(from_h, trace.h)
        self.gradients["bias_ih"] += from_x
        self.gradients["bias_hh"] += from_h
        return self.weights["weight_ih"].T @ from_x, self.weights["weight_hh"].T @ from_h + directly, of_c


def gradients_by_hand(
    stack: list[nn.Module], head: nn.Linear, inputs: Tensor, targets: Tensor, grapes: bouton.Grapes | None
) -> tuple[list[dict[str, Tensor]], Tensor, Tensor]:
    """Of softmax cross-entropy, summed over time and averaged over samples: cells, head and inputs.

    ``inputs`` is ``[time, sample, input]``; the head reads the last cell's output at every step.
    """
    cells = [Cell.of(cell, grapes) for cell in stack]
    of_head, of_inputs = torch.zeros_like(head.weight), torch.zeros_like(inputs)
    samples = inputs.shape[1]
    for sample in range(samples):
        silence = [(torch.zeros_like(cell.factor), torch.zeros_like(cell.factor)) for cell in cells]
        states, traces, errors = list(silence), [], []
        for x in inputs[:, sample]:
            traces.append([])
            for place, cell in enumerate(cells):
                h, c, trace = cell.step(x, *states[place])
                states[place], x = (h, c), h
                traces[-1].append(trace)
            error = torch.softmax(head.weight.detach() @ x + head.bias.detach(), 0) / samples
            error[targets[sample]] -= 1 / samples
            of_head += torch.outer(error, x)
            errors.append(head.weight.detach().T @ error)
        later = list(silence)  # errors of output and memory that come from the next step
        for time in reversed(range(len(inputs))):
            error = errors[time]
            for place in reversed(range(len(cells))):
                of_h, of_c = later[place]
                error, *later[place] = cells[place].send_back(traces[time][place], error + of_h, of_c)
            of_inputs[time, sample] = error
    return [cell.gradients for cell in cells], of_head, of_inputs
