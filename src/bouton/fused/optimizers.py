"""SGD and AdamW that scale updates synapse by synapse in the pass over the weights that makes them."""

from __future__ import annotations

import torch

from bouton.fused.stepping import Fused, Job
from bouton.tensors.shards import local


class SGD(Fused, torch.optim.SGD):
    r""":class:`torch.optim.SGD`, in one pass over the weights with the rates of its synapses.

    .. math:: b \leftarrow \mu b + (1 - \tau)(g + \lambda w), \qquad w \leftarrow w - r \odot \gamma b

    with momentum :math:`\mu`, dampening :math:`\tau`, weight decay :math:`\lambda`, learning rate
    :math:`\gamma`; at the first step :math:`b = g + \lambda w`; with Nesterov's momentum
    :math:`g + \lambda w + \mu b` is taken in place of :math:`b`. The rates ``r``
    (:class:`bouton.fused.SeededRates`) have the shape of the weight and no unit; they are made in the same
    pass, and never stored. Arithmetic is in float32; weights and buffers keep their dtypes.

    Arguments, ``param_groups``, ``state`` and ``state_dict()`` are those of :class:`torch.optim.SGD`, and
    state dicts can be exchanged both ways. ``foreach`` holds for weights that torch steps. Those are all
    weights without rates, and those with rates that :attr:`path` tells: on a CPU, without Triton, in
    another dtype than float32, bfloat16 and float16, not contiguous (``channels_last``), with a sparse
    gradient, with ``differentiable``, or with a tensor for a setting. The latter are scaled afterwards.

    Raises:
        ValueError: ``fused=True``.

    Note:
        When not to use it: where no weight has rates, since it then is :class:`torch.optim.SGD`. Where most
        weights have less than some 100,000 entries: each one is a kernel of its own. Under
        :class:`torch.amp.GradScaler` it is not told of a skipped step on the device, so that the scaler
        waits for the device, as it does for any optimizer without ``fused=True``.

    Example:
        >>> import bouton.fused, torch
        >>> model = torch.nn.Linear(8, 4)
        >>> optimizer = bouton.fused.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> rates = bouton.fused.SeededRates(key=(1, 2), nu=0.16)
        >>> optimizer.rates[model.weight] = rates
        >>> before = model.weight.clone()
        >>> model(torch.randn(2, 8)).sum().backward()
        >>> optimizer.step()
        >>> update = -0.1 * rates.of(model.weight) * model.weight.grad
        >>> torch.allclose(model.weight, before + update)
        True
    """

    torch_optimizer = torch.optim.SGD

    def _step_fused(self, job: Job) -> None:
        from bouton.fused.launch import step_sgd

        buffer, fresh = None, False
        if job.group["momentum"]:
            state = self.state[job.weight]
            fresh = state.get("momentum_buffer") is None
            if fresh:
                state["momentum_buffer"] = torch.empty_like(job.gradient)
            buffer = local(state["momentum_buffer"])
        step_sgd(local(job.weight), local(job.gradient), buffer, job.group, job.rates, fresh=fresh)


class AdamW(Fused, torch.optim.AdamW):
    r""":class:`torch.optim.AdamW`, in one pass over the weights with the rates of its synapses.

    .. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2,

    .. math:: w \leftarrow w - r \odot \gamma \left(\lambda w + \frac{m / (1 - \beta_1^t)}
       {\sqrt{v / (1 - \beta_2^t)} + \epsilon}\right)

    with learning rate :math:`\gamma` and weight decay :math:`\lambda`, which is a part of the update and is
    scaled with it, at step ``t``. The rates ``r`` (:class:`bouton.fused.SeededRates`) have the shape of the
    weight and no unit; they are made in the same pass, and never stored. Arithmetic is in float32; weights
    and moments keep their dtypes.

    Arguments, ``param_groups``, ``state`` and ``state_dict()`` are those of :class:`torch.optim.AdamW`, and
    state dicts can be exchanged both ways. ``foreach`` holds for weights that torch steps. Those are all
    weights without rates, and those with rates that :attr:`path` tells: on a CPU, without Triton, in
    another dtype than float32, bfloat16 and float16, not contiguous (``channels_last``), with
    ``amsgrad``, ``capturable`` or ``differentiable``, or with a tensor for a setting. The latter are scaled
    afterwards.

    Raises:
        ValueError: ``fused=True``. RuntimeError: a sparse gradient, as from torch.

    Note:
        When not to use it: see :class:`bouton.fused.SGD`.

    References:
        Loshchilov & Hutter, ICLR 2019, arXiv:1711.05101.

    Example:
        >>> import bouton.fused, torch
        >>> model = torch.nn.Linear(8, 4)
        >>> optimizer = bouton.fused.AdamW(model.parameters(), lr=1e-3)
        >>> optimizer.rates[model.weight] = bouton.fused.SeededRates(key=(1, 2), nu=0.16)
        >>> before = model.weight.clone()
        >>> model(torch.randn(2, 8)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.path
        'torch, for the weight is on cpu: 1'
    """

    torch_optimizer = torch.optim.AdamW

    def _step_fused(self, job: Job) -> None:
        from bouton.fused.launch import step_adamw

        state = self.state[job.weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            state["exp_avg"] = torch.zeros_like(job.weight)
            state["exp_avg_sq"] = torch.zeros_like(job.weight)
        state["step"] += 1
        mean, square = local(state["exp_avg"]), local(state["exp_avg_sq"])
        step = int(state["step"].item())  # it is on the CPU
        step_adamw(local(job.weight), local(job.gradient), mean, square, job.group, job.rates, step=step)
