"""Weights, gradients and learning rates of another kind: refused by name, or as in plain training."""

import math

import pytest
import torch
from numbers_given import EXAMPLES, ON_STEPS
from torch import nn

import bouton

over_examples = pytest.mark.parametrize("mechanism", EXAMPLES.values(), ids=EXAMPLES)
over_steps = pytest.mark.parametrize("mechanism", ON_STEPS.values(), ids=ON_STEPS)
STEPS = 3  # as many as the period of an example


def net(**arguments):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(4, nodes, **arguments) for nodes in (4, 4, 4, 2)))


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


@over_examples
def test_a_complex_model_is_refused(mechanism):
    model = net(dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"found no weight .*1\.weight: of torch\.complex64; mechanisms"):
        bouton.attach(model, sgd(model), [mechanism])


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (torch.ones(4, 4).to(torch.complex128), "of torch.complex128; mechanisms act on real numbers"),
        (
            torch.ones(4, 4).to(torch.float8_e4m3fn),
            "of torch.float8_e4m3fn; mechanisms act on real numbers",
        ),
        (torch.ones(4, 4).to_sparse(), "stored as torch.sparse_coo; mechanisms act on dense weights"),
        (torch.ones(4, 4, dtype=torch.int8), "frozen (requires_grad is False)"),
    ],
    ids=["complex", "float8", "sparse", "integer"],
)
@over_examples
def test_a_weight_of_another_kind_is_left_with_its_reason(mechanism, weight, reason):
    model = net()
    model[1].weight = nn.Parameter(weight, requires_grad=weight.dtype != torch.int8)
    row = bouton.attach(model, sgd(model), [mechanism]).report().rows[1]
    assert row.left_because.startswith(reason)


@over_examples
def test_weights_without_numbers_yet_are_refused(mechanism):
    model = net(device="meta")
    optimizer = sgd(model)
    with pytest.raises(
        ValueError, match=r"on the meta device: .*1\.weight.*to_empty.*bouton\.attach after"
    ):
        bouton.attach(model, optimizer, [mechanism])
    assert not optimizer._optimizer_step_post_hooks
    assert all("_bouton" not in layer.__dict__ for layer in model)


class Table(nn.Module):
    """A dense layer whose weight is a table, too, of which gradients hold only the rows looked up."""

    def __init__(self, dense):
        super().__init__()
        torch.manual_seed(0)
        self.dense, self.tokens = dense, nn.Embedding(6, 4, sparse=True)
        self.first, self.table, self.last = nn.Linear(4, 4), nn.Linear(4, 6, bias=False), nn.Linear(6, 2)
        self.table.weight = self.tokens.weight

    def forward(self, tokens):
        hidden = self.first(self.tokens(tokens))
        return self.last(self.table(hidden)) if self.dense else hidden


@over_steps
def test_a_sparse_gradient_is_refused_and_its_sum_with_a_dense_one_is_taken(mechanism):
    for dense in (True, False):
        model = Table(dense)
        optimizer = sgd(model)
        row = bouton.attach(model, optimizer, [mechanism]).report().rows[0]
        assert row.left_because is None
        assert row.shape == (6, 4)

        def train(model=model, optimizer=optimizer):
            for _ in range(STEPS):
                optimizer.zero_grad()
                model(torch.tensor([0, 1])).sum().backward()
                optimizer.step()

        if dense:
            train()
            assert model.table.weight.grad.layout == torch.strided
        else:
            with pytest.raises(
                ValueError, match=r"has a sparse gradient .*acts on dense ones; use sparse=False"
            ):
                train()


@over_steps
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_a_table_with_sparse_gradients_is_refused_at_once(mechanism, kind):
    model = nn.Sequential(kind(5, 4, sparse=True), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"0\.weight: "):
        bouton.attach(model, torch.optim.SparseAdam(model[0].parameters()), [_only_here(mechanism)])


def _only_here(mechanism):
    return type(mechanism)(**{**vars(mechanism), "where": "0"})


@over_steps
@pytest.mark.parametrize("lr", [0.0, math.inf, math.nan])
def test_odd_learning_rates_do_what_they_do_to_a_plain_model(mechanism, lr):
    def trained(mechanisms):
        model = net()
        optimizer = sgd(model, lr)
        handle = bouton.attach(model, optimizer, mechanisms) if mechanisms else None
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
        if handle is not None:
            handle.stats()
        return torch.cat([layer.weight.detach().flatten() for layer in model])

    plain, attached = trained([]), trained([mechanism])
    assert lr == 0 or not plain.isfinite().any()
    if mechanism.site == "rate":
        assert torch.equal(attached.isfinite(), plain.isfinite())
        assert lr != 0 or torch.equal(attached, plain)
    else:
        assert lr != 0 or attached.isfinite().all()
