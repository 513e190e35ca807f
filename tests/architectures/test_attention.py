"""nn.MultiheadAttention and the layers of transformers: what is packed, what is seen, fused inference."""

import pytest
import torch
from block_oracle import RATES, check_updates, remodeled_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Scaled, responsibility
from torch import nn
from torch.nn import functional as F

import bouton

INSIDE = "attention computes these nodes inside one function, where no hook can see them"
BYPASSED = "torch reads this weight without calling the layer"
WIDTH = 8


class Attending(nn.Module):
    """Attention over a sequence, with queries, keys and values of the sizes asked for."""

    def __init__(self, batch_first=True, **sizes):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first, **sizes)
        self.sizes = (WIDTH, sizes.get("kdim", WIDTH), sizes.get("vdim", WIDTH))
        self.head = nn.Linear(WIDTH, 2)
        self.double()

    def loss(self):
        generator = torch.Generator().manual_seed(7)
        q, k, v = (torch.randn(3, 5, size, generator=generator, dtype=torch.float64) for size in self.sizes)
        return self.head(self.attention(q, k, v)[0]).square().mean()

    def blocks(self):
        if self.attention.in_proj_weight is not None:
            return {"attention.in_proj_weight": (3, None)}
        return {f"attention.{name}_proj_weight": (1, None) for name in "qkv"}


SIZES = {"packed": {}, "separate": {"kdim": 6, "vdim": 7}, "biases": {"add_bias_kv": True, "bias": False}}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("mechanism", RATES.values(), ids=RATES)
def test_updates_equal_the_oracle(mechanism, sizes, batch_first):
    net = Attending(batch_first, **sizes)
    blocks = {**net.blocks(), "attention.out_proj.weight": (1, None)}
    check_updates(net, Attending.loss, mechanism, blocks)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_remodeling_equals_the_oracle(sizes):
    net = Attending(**sizes)
    remodeled_by_hand(net, Attending.loss, {**net.blocks(), "attention.out_proj.weight": (1, None)})


@pytest.mark.parametrize(
    "mechanism", [bouton.Grapes(), bouton.MultiSynapse(), bouton.FeedbackAlignment()], ids=str
)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_the_report_says_what_no_hook_can_see(sizes, mechanism):
    net = nn.Sequential(Attending(**sizes), nn.Linear(2, 2), nn.Linear(2, 2))
    rows = {row.weight: row.left_because for row in bouton.attach(net, None, [mechanism]).report().rows}
    for name in net[0].blocks():
        assert INSIDE in rows.pop(f"0.{name}")
    assert BYPASSED in rows.pop("0.attention.out_proj.weight")
    assert list(rows) == ["0.head.weight", "1.weight", "2.weight"] and rows["0.head.weight"] is None


def encoder(**options):
    return nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, **options)


def decoder(**options):
    return nn.TransformerDecoderLayer(WIDTH, 2, 16, dropout=0.0, **options)


LEFT = {
    "self_attn.in_proj_weight": INSIDE,
    "self_attn.out_proj.weight": BYPASSED,
    "multihead_attn.in_proj_weight": INSIDE,
    "multihead_attn.out_proj.weight": BYPASSED,
}


@pytest.mark.parametrize("make", [encoder, decoder])
def test_the_feed_forward_layers_are_hidden_layers_as_any(make):
    net = nn.Sequential(make(), nn.Linear(WIDTH, 2))
    for mechanism in (bouton.Grapes(), bouton.MultiSynapse()):
        handle = bouton.attach(net, None, [mechanism])
        for row in handle.report().rows[:-1]:
            name = row.weight.removeprefix("0.")
            assert (LEFT[name] in row.left_because) if name in LEFT else row.left_because is None
        assert len(handle.report().rows) == 5 if make is encoder else 7
        handle.detach()


def modulated(linear, x):
    factor = responsibility(linear.weight.detach(), (1.0, 2.0), False)
    return Scaled.apply(F.linear(x, linear.weight, linear.bias), x.new_tensor(factor))


def by_hand(layer, x):
    """A TransformerEncoderLayer with batch_first and norm after, written out head by head."""
    attention = layer.self_attn
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (x @ weight.T + bias for weight, bias in zip(weights, biases, strict=True))
    heads, size = [], WIDTH // 2
    for head in (slice(0, size), slice(size, WIDTH)):
        scores = (q[..., head] @ k[..., head].mT / size**0.5).softmax(-1)
        heads.append(scores @ v[..., head])
    attended = torch.cat(heads, -1) @ attention.out_proj.weight.T + attention.out_proj.bias
    x = layer.norm1(x + attended)
    return layer.norm2(x + modulated(layer.linear2, modulated(layer.linear1, x).relu()))


@given(
    layers=st.integers(1, 2), samples=st.integers(1, 3), tokens=st.integers(1, 4), seed=st.integers(0, 99)
)
@settings(max_examples=15)
def test_propagated_grapes_equals_a_transformer_written_out(layers, samples, tokens, seed):
    torch.manual_seed(seed)
    stack = nn.TransformerEncoder(encoder(batch_first=True), layers, enable_nested_tensor=False)
    net = nn.Sequential(stack, nn.Linear(WIDTH, 2)).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(samples, tokens, WIDTH, dtype=torch.float64)
    hidden = x
    for layer in stack.layers:
        hidden = by_hand(layer, hidden)
    expected = torch.autograd.grad(net[1](hidden).square().sum(), list(net.parameters()))
    bouton.attach(net, None, [bouton.Grapes()])
    found = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    for ours, oracle in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-9, atol=1e-10)


@pytest.fixture
def fused_calls(monkeypatch):
    """Counts how often torch runs a whole layer in its fused function."""
    calls, fused = [], torch._transformer_encoder_layer_fwd

    def counted(*arguments):
        calls.append(1)
        return fused(*arguments)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", counted)
    return calls


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_fused_inference_does_not_pass_the_hooks_by(fused_calls, norm_first, batch_first):
    layer = encoder(batch_first=batch_first, norm_first=norm_first)
    net = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, 2))
    x = torch.randn(3, 5, WIDTH)
    with torch.no_grad():
        plain = net.eval()(x)
    assert bool(fused_calls) == batch_first  # torch would take the fused way
    fused_calls.clear()
    bouton.attach(net, None, [bouton.MultiSynapse(where="*.linear1")])
    expected = net.train()(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), expected)
    with torch.inference_mode():
        torch.testing.assert_close(net(x), expected)
    assert not fused_calls
    assert not torch.allclose(plain, expected)


# Torch packs padded sequences in nested tensors for evaluation, and warns of them once in a process.
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "mechanism",
    [example for entry in bouton.registry().values() for example in entry.examples],
    ids=repr,
)
def test_padded_sequences_are_evaluated_as_in_training(mechanism):
    net = nn.Sequential(nn.TransformerEncoder(encoder(batch_first=True), 2), nn.Linear(WIDTH, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, padding = torch.randn(2, 5, WIDTH), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    bouton.attach(net, optimizer, [mechanism])
    for _ in range(3):
        optimizer.zero_grad()
        net[1](net[0](x, src_key_padding_mask=padding)).square().mean().backward()
        optimizer.step()
    trained = net[0](x, src_key_padding_mask=padding).detach()
    with torch.no_grad():
        evaluated = net.eval()[0](x, src_key_padding_mask=padding)
    torch.testing.assert_close(evaluated[~padding], trained[~padding])


@pytest.mark.parametrize("mechanism", [bouton.MultiSynapse(), bouton.Grapes()], ids=str)
def test_samples_of_different_lengths_train_as_one_by_one(mechanism):
    def net():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
        bouton.attach(model, None, [mechanism])
        return model

    samples = [torch.randn(3, 4), torch.randn(5, 4)]
    together, apart = net(), net()
    together(torch.nested.nested_tensor(samples, layout=torch.jagged)).values().square().sum().backward()
    sum(apart(sample).square().sum() for sample in samples).backward()
    for ours, other in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad)
