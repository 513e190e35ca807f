from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import http.server
import random
import shutil
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bouton.lab import fashion_mnist
from bouton.lab.data import DATASETS, mnist1d
from bouton.lab.dataset import Dataset
from bouton.lab.folder import FolderError


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
        ({"y_test": torch.tensor([0, 9])}, "labels counted from 0, up to 1"),
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


def test_labels_that_are_counted_from_one_are_refused_and_a_missing_class_need_not_be():
    x, y = np.zeros((3, 3)), np.array([1, 2, 3])
    with pytest.raises(ValueError, match=r"counted from 0; .* begin at 1. Subtract 1 from both"):
        Dataset.of("toy", x, y, x, y)
    assert Dataset.of("toy", x, y, x, np.array([0, 1, 2])).classes == 4
    labels = torch.tensor([1, 2, 3])
    assert Dataset("toy", torch.zeros(3, 3), labels, torch.zeros(3, 3), labels, classes=4).classes == 4


def classes(labels: torch.Tensor) -> Dataset:
    """A data set in which each training sample's input is its number."""
    x = torch.arange(len(labels)).float()[:, None]
    return Dataset("toy", x, labels, x[:1], labels[:1], classes=int(labels.max()) + 1)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60).map(torch.tensor))
def test_the_first_samples_mix_the_classes_and_fewer_are_part_of_more(labels):
    whole = classes(labels)
    taken: list[float] = []
    for samples in range(1, len(labels) + 1):
        part = whole.first(samples)
        numbers = part.x_train[:, 0].tolist()
        assert numbers[:-1] == taken and len(set(numbers)) == samples
        taken = numbers
        assert torch.equal(part.y_train, labels[part.x_train[:, 0].long()])
        assert part.x_test is whole.x_test and part.classes == whole.classes
        share = samples / len(labels) * labels.bincount()
        assert (part.y_train.bincount(minlength=len(share)) - share).abs().max() <= len(share)


def test_of_classes_of_one_size_the_first_samples_hold_each_as_often():
    # sorted by class, as files often are
    labels = torch.arange(10).repeat_interleave(30)
    for samples in (10, 50, 100):
        assert classes(labels).first(samples).y_train.bincount().tolist() == [samples // 10] * 10
    assert classes(labels).first(15).y_train.bincount().max() == 2
    numbers = classes(labels).first(100).x_train[:, 0]
    assert numbers.std() > 70 and not torch.equal(numbers, numbers.sort().values)


def test_all_samples_stay_in_their_order():
    whole = classes(torch.tensor([0, 1, 0]))
    assert whole.first(None) is whole


@pytest.mark.parametrize("samples", [0, -1, 4])
def test_more_samples_than_there_are_cannot_be_taken(samples):
    with pytest.raises(ValueError, match=f"asked for are {samples}: type --samples .* 1 to 3"):
        classes(torch.tensor([0, 1, 0])).first(samples)


@pytest.fixture
def files(monkeypatch, tmp_path):
    """Four small files in Fashion-MNIST's format, taken for the real ones; no way to them is open yet."""
    folder = tmp_path / "files"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in fashion_mnist.CHECKSUMS:
        shape = (20, 28, 28) if "images" in name else (20,)
        header = bytes(16 if "images" in name else 8)
        content = header + generator.integers(0, 10, shape, dtype=np.uint8).tobytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        monkeypatch.setitem(fashion_mnist.CHECKSUMS, name, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "no-package")
    monkeypatch.setattr(fashion_mnist, "ADDRESS", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("BOUTON_DATA", raising=False)
    return folder


@pytest.fixture
def server(files, monkeypatch):
    """The files on a web server of this machine."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=files)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(fashion_mnist, "ADDRESS", f"http://127.0.0.1:{running.server_port}")
        yield
        running.shutdown()


def images(folder):
    packed = (folder / "train-images-idx3-ubyte.gz").read_bytes()
    return np.frombuffer(gzip.decompress(packed)[16:], np.uint8).reshape(20, 28, 28)


@pytest.mark.parametrize("way", ["package", "variable", "cache"])
def test_fashion_mnist_is_found_in_each_of_three_folders(files, way, tmp_path, monkeypatch):
    folders = {
        "package": tmp_path / "no-package",
        "variable": tmp_path / "data" / "fashion-mnist",
        "cache": tmp_path / ".cache" / "bouton" / "fashion-mnist",
    }
    if way == "variable":
        monkeypatch.setenv("BOUTON_DATA", str(tmp_path / "data"))
    shutil.copytree(files, folders[way])
    x_train, y_train, x_test, y_test = fashion_mnist.read_fashion_mnist()
    assert np.array_equal(x_train, images(files))
    assert y_train.shape == y_test.shape == (20,) and x_test.shape == (20, 28, 28)


def test_fashion_mnist_is_downloaded_once(files, server, tmp_path, monkeypatch):
    assert np.array_equal(fashion_mnist.read_fashion_mnist()[0], images(files))
    monkeypatch.setattr(fashion_mnist, "ADDRESS", "http://127.0.0.1:9")
    assert np.array_equal(fashion_mnist.read_fashion_mnist()[0], images(files))


def test_the_sequential_images_are_the_images_row_by_row(files, tmp_path):
    shutil.copytree(files, tmp_path / "no-package")
    rows, whole = DATASETS["sequential-fashion-mnist"](), DATASETS["fashion-mnist"]()
    assert rows.x_train.shape == (20, 28, 28)
    assert torch.equal(rows.x_train, whole.x_train[:, 0]) and torch.equal(rows.y_test, whole.y_test)


def test_the_rate_coded_images_are_spikes_of_their_pixels(files, tmp_path):
    shutil.copytree(files, tmp_path / "no-package")
    spikes, again = DATASETS["rate-coded-fashion-mnist"](), DATASETS["rate-coded-fashion-mnist"]()
    assert spikes.x_train.shape == spikes.x_test.shape == (20, 25, 784)
    assert torch.equal(spikes.x_train[:], again.x_train[:])
    assert not torch.equal(spikes.x_train[:], spikes.x_test[:])
    assert set(spikes.x_train[:].unique().tolist()) == {0, 1}
    intensity = torch.tensor(images(files)).flatten(1) / 255
    assert (spikes.x_train[:].mean(1) - intensity).mean().abs() < 0.005
    assert not spikes.x_train[:].transpose(1, 2)[intensity == 0].any()
    few = spikes.first(7)
    assert few.x_train.shape == (7, 25, 784) and few.x_train[:2].shape == (2, 25, 784)
    with pytest.raises(ValueError, match="one int64 label for each of the 20"):
        dataclasses.replace(spikes, y_train=spikes.y_train[:3])


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_a_damaged_download_is_named_and_not_kept(files, server, damage, tmp_path):
    file = files / "t10k-labels-idx1-ubyte.gz"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        file.write_bytes(gzip.compress(b"another content"))
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte"):
        fashion_mnist.read_fashion_mnist()
    assert not (tmp_path / ".cache" / "bouton" / "fashion-mnist" / file.name).exists()


def test_a_damaged_file_is_named(files, tmp_path):
    shutil.copytree(files, tmp_path / "no-package")
    file = tmp_path / "no-package" / "train-labels-idx1-ubyte.gz"
    file.write_bytes(gzip.compress(b"another content"))
    with pytest.raises(ValueError, match=f"{file} is not Fashion-MNIST's"):
        fashion_mnist.read_fashion_mnist()


@pytest.mark.parametrize("damage", ["cut", "empty", "no gzip"])
def test_a_file_that_cannot_be_unpacked_is_named(damage, files, tmp_path):
    shutil.copytree(files, tmp_path / "no-package")
    file = tmp_path / "no-package" / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:-10], "empty": b"", "no gzip": b"plain"}[damage])
    with pytest.raises(ValueError, match=f"{file} is .*Delete it, or replace it by a fresh copy"):
        fashion_mnist.read_fashion_mnist()


def test_a_file_that_may_not_be_read_is_named(files, tmp_path, monkeypatch):
    shutil.copytree(files, tmp_path / "no-package")

    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", closed)
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte.gz cannot be read \(Permission denied\)"
    ):
        fashion_mnist.read_fashion_mnist()


@pytest.mark.parametrize("way", ["file", "download"])
def test_a_bomb_is_not_unpacked(way, files, server, tmp_path, monkeypatch):
    """A small file that unpacks to a large one: no more of it is unpacked than the right one would be."""
    monkeypatch.setattr(fashion_mnist, "LARGEST", 20_000)
    (files / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(100_000_000), 1))
    if way == "file":
        shutil.copytree(files, tmp_path / "no-package")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="train-images"):
            fashion_mnist.read_fashion_mnist()
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_cache_that_cannot_be_written_is_named(files, server, tmp_path):
    (tmp_path / ".cache").write_text("a file")
    with pytest.raises(FolderError, match=r"a file is where a folder must be .*or put the four .gz files"):
        fashion_mnist.read_fashion_mnist()


def test_where_no_way_works_the_error_names_the_three(files, tmp_path):
    with pytest.raises(ValueError) as caught:
        fashion_mnist.read_fashion_mnist()
    for way in ("dataset-fashion-mnist", "$BOUTON_DATA", "with a network"):
        assert way in str(caught.value)
    assert not (tmp_path / ".cache" / "bouton").exists()


@pytest.mark.skipif(
    not fashion_mnist.DEBIAN_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_the_real_fashion_mnist():
    x_train, y_train, x_test, y_test = fashion_mnist.read_fashion_mnist()
    assert x_train.shape == (60000, 28, 28) and x_test.shape == (10000, 28, 28)
    assert np.bincount(y_train).tolist() == [6000] * 10
    assert np.bincount(y_test).tolist() == [1000] * 10
