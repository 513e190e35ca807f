from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import bouton
from bouton.lab import data as lab_data
from bouton.lab import define, training
from bouton.lab.arms import arms_of
from bouton.lab.dataset import Dataset
from bouton.lab.models import cnn, mlp
from bouton.lab.setup import OPTIMIZERS
from bouton.lab.sources import load_data


@pytest.fixture
def config(small):
    return small.config(small.arms[0], seed=1)


def spy_on_steps(monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Records the labels of each batch and the first layer's weight before the first step."""
    seen = []
    original = training._one_epoch

    def one_epoch(model, optimizer, dataset, batches, number):
        batches = list(batches)
        seen.append((torch.cat(batches), next(model.parameters()).detach().clone()))
        return original(model, optimizer, dataset, batches, number)

    monkeypatch.setattr(training, "_one_epoch", one_epoch)
    return seen


def test_arms_of_one_seed_share_weights_and_batches_and_seeds_do_not(small, monkeypatch):
    seen = spy_on_steps(monkeypatch)
    for arm in arms_of(["Grapes", "PlasticityDiversity", "MultiSynapse"]):
        torch.rand(3)  # whatever was drawn before
        training.train(dataclasses.replace(small, epochs=1).config(arm, seed=1))
    batches, weights = zip(*seen, strict=True)
    assert all(torch.equal(b, batches[0]) for b in batches)
    assert all(torch.equal(w, weights[0]) for w in weights)
    training.train(dataclasses.replace(small, epochs=1).config(small.arms[0], seed=2))
    assert not torch.equal(seen[-1][0], batches[0])
    assert not torch.equal(seen[-1][1], weights[0])


def test_a_plain_run_equals_a_bare_torch_loop(config):
    result = training.train(config)
    dataset = load_data(config.data)
    torch.manual_seed(config.seed)
    model = mlp(dataset)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
    for batches in training._orders(config, len(dataset.x_train)):
        for i in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(dataset.x_train[i]), dataset.y_train[i]).backward()
            optimizer.step()
    right = (model(dataset.x_test).argmax(1) == dataset.y_test).float().mean().item()
    assert result.epochs[-1].test_accuracy == pytest.approx(right, abs=1e-7)
    assert result.epochs[-1].step == config.epochs * -(-len(dataset.x_train) // config.batch_size)


def test_a_run_leaves_the_global_random_numbers_alone(config):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    training.train(config)
    assert torch.equal(torch.rand(2), expected)


def test_the_matched_control_trains_at_the_learning_rate_times_the_mean_factor(small):
    config = small.config(small.arms[1], seed=0)
    torch.manual_seed(0)
    model = mlp(load_data(config.data))
    factors = [
        (2 * rows / rows.max()).clamp(1, 2).mean().item()
        for rows in (model[i].weight.detach().abs().sum(1) for i in (1, 3))
    ]
    result = training.train(config)
    assert result.lr == pytest.approx(config.lr * sum(factors) / 2)
    assert result.stats == {}  # matched, not attached


def test_divergence_is_a_result(small):
    result = training.train(dataclasses.replace(small, lr=1e6).config(small.arms[0], 0))
    assert result.status == "diverged"
    assert "not finite in epoch" in result.error


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_optimizer_learns(small, optimizer):
    comparison = dataclasses.replace(small, optimizer=optimizer, lr=0.01, epochs=3)
    epochs = training.train(comparison.config(small.arms[0], 0)).epochs
    assert epochs[-1].train_loss < epochs[0].train_loss
    assert epochs[-1].test_accuracy > 0.5


@pytest.mark.parametrize("name", ["mnist1d", "digits"])
def test_both_models_fit_each_data_set(name):
    dataset = lab_data.DATASETS[name]()
    for build in (mlp, cnn):
        assert build(dataset)(dataset.x_train[:3]).shape == (3, 10)


def test_cnn_refuses_flat_samples():
    x, y = torch.zeros(2, 5), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="--model mlp"):
        cnn(Dataset.of("flat", x, y, x, y))


def test_stats_of_the_mechanisms_are_kept(small):
    result = training.train(small.config(small.arms[2], 0))
    assert set(result.stats) == {"Grapes"}
    assert bouton.__version__ == result.environment["bouton"]


SPIKES = """
import torch
from bouton.lab import Dataset
from bouton.lab.spikes import SpikeTrains

def make_data():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(2).repeat(60)
    images = (100 + 100 * y).byte()[:, None].repeat(1, 9)
    spikes = SpikeTrains.draw(images, 5, generator)
    return Dataset("spikes", spikes, y, spikes, y, classes=2)
"""


@pytest.mark.parametrize("model", ["snn", "mlp", "lstm", "transformer", "cnn"])
def test_models_train_on_spikes_and_are_tested_batch_by_batch(model, user_file, monkeypatch):
    comparison = define(
        data=f"{user_file(SPIKES)}:make_data",
        model=model,
        samples=100,
        epochs=6,
        batch_size=10,
        lr=0.003,
        optimizer="adam",
    )
    config = comparison.config(comparison.arms[0], 0)
    whole = training.train(config).epochs
    assert whole[-1].test_accuracy > 0.8 and whole[-1].step == 60
    monkeypatch.setattr(training, "TEST_BATCH", 7)
    parts = training.train(config).epochs
    assert [epoch.test_accuracy for epoch in parts] == [epoch.test_accuracy for epoch in whole]
    assert parts[-1].test_loss == pytest.approx(whole[-1].test_loss, rel=1e-4)
