from __future__ import annotations

import gzip
import random
import shutil

import numpy as np
import pytest
import torch

from bouton.lab import fashion_mnist
from bouton.lab.data import DATASETS, Dataset, mnist1d


@pytest.mark.parametrize("name", ["mnist1d", "digits"])
def test_built_in_sets_are_standardised_and_the_same_each_time(name):
    first, second = DATASETS[name](), DATASETS[name]()
    assert abs(first.x_train.mean()) < 0.05 and abs(first.x_train.std() - 1) < 0.05
    assert torch.equal(first.x_train, second.x_train) and torch.equal(first.y_test, second.y_test)
    assert set(first.y_train.tolist()) == set(range(10))


def test_mnist1d_gives_back_the_global_random_numbers():
    np.random.seed(7)
    random.seed(7)
    expected = np.random.rand(), random.random()
    np.random.seed(7)
    random.seed(7)
    mnist1d()
    assert (np.random.rand(), random.random()) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": torch.tensor([0, 1, 2])}, "one int64 label for each"),
        ({"y_test": torch.tensor([0, 9])}, "labels from 0 to 1"),
        ({"x_test": torch.zeros(2, 5)}, "differ in shape"),
        ({"x_train": torch.full((4, 3), torch.nan)}, "not finite"),
        ({"x_train": torch.zeros(4, 3, dtype=torch.int64)}, "floating point"),
    ],
)
def test_a_data_set_that_does_not_fit_together_is_refused(change, message):
    good = {
        "x_train": torch.zeros(4, 3),
        "y_train": torch.tensor([0, 1, 0, 1]),
        "x_test": torch.zeros(2, 3),
        "y_test": torch.tensor([0, 1]),
    }
    Dataset("toy", **good, classes=2)
    with pytest.raises(ValueError, match=message):
        Dataset("toy", **{**good, **change}, classes=2)


def test_labels_that_are_no_whole_numbers_are_refused():
    with pytest.raises(ValueError, match="whole numbers"):
        Dataset.of("toy", np.zeros((2, 3)), np.array([0.5, 1]), np.zeros((2, 3)), np.array([0, 1]))


needs_fashion_mnist = pytest.mark.skipif(
    not fashion_mnist.DEBIAN_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is missing"
)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Nothing but $BOUTON_DATA: no Debian package, an empty cache, a port where nobody answers."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "no-package")
    monkeypatch.setattr(fashion_mnist, "ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BOUTON_DATA", str(tmp_path / "data"))
    return tmp_path


@needs_fashion_mnist
def test_fashion_mnist_from_the_users_folder(no_network):
    source = "/usr/share/datasets/fashion-mnist"
    shutil.copytree(source, no_network / "data" / "fashion-mnist")
    x_train, y_train, x_test, y_test = fashion_mnist.read_fashion_mnist()
    assert x_train.shape == (60000, 28, 28) and x_test.shape == (10000, 28, 28)
    assert np.bincount(y_train).tolist() == [6000] * 10
    assert np.bincount(y_test).tolist() == [1000] * 10


@needs_fashion_mnist
@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_a_damaged_file_is_named(no_network, damage):
    folder = no_network / "data" / "fashion-mnist"
    shutil.copytree("/usr/share/datasets/fashion-mnist", folder)
    file = folder / "t10k-labels-idx1-ubyte.gz"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        content = bytearray(gzip.decompress(file.read_bytes()))
        content[100] ^= 1
        file.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte"):
        fashion_mnist.read_fashion_mnist()


def test_where_no_way_works_the_error_names_the_three(no_network):
    with pytest.raises(ValueError) as caught:
        fashion_mnist.read_fashion_mnist()
    for way in ("dataset-fashion-mnist", "$BOUTON_DATA", "with a network"):
        assert way in str(caught.value)
    assert not (no_network / ".cache" / "bouton").exists()
