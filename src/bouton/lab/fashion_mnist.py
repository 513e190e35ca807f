"""Fashion-MNIST's four files: where they may lie, and the proof that they are the right ones."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import tempfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np

from bouton.lab.folder import explained

# SHA-256 of the files' contents after decompression: gzip itself differs from packer to packer.
CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
LARGEST = 47_040_016  # bytes of the largest of them; what is longer, packed or not, is none of them
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"


def read_fashion_mnist() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Reads the train images and labels and the test images and labels, as bytes.

    Returns:
        Images `[sample, 28, 28]` and labels `[sample]` of the training split, then of the test
        split, all uint8.

    Raises:
        ValueError: if a file is damaged, or the files are nowhere and cannot be downloaded.
    """
    folder = _find_folder()
    train, train_labels, test, test_labels = (_read(folder / f"{name}.gz", name) for name in CHECKSUMS)
    return (
        _array(train, 16).reshape(-1, 28, 28),
        _array(train_labels, 8),
        _array(test, 16).reshape(-1, 28, 28),
        _array(test_labels, 8),
    )


def _find_folder() -> Path:
    cache = Path.home() / ".cache" / "bouton" / "fashion-mnist"
    folders = [DEBIAN_FOLDER, cache]
    if "BOUTON_DATA" in os.environ:
        folders.insert(0, Path(os.environ["BOUTON_DATA"]) / "fashion-mnist")
    for folder in folders:
        if all((folder / f"{name}.gz").is_file() for name in CHECKSUMS):
            return folder
    try:
        for name in CHECKSUMS:
            _download(name, cache)
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise ValueError(
            f"Fashion-MNIST was found in none of {', '.join(map(str, folders))}, and "
            f"{ADDRESS} did not answer ({error}). Three ways to have it: install Debian's package "
            "`dataset-fashion-mnist`; or put its four .gz files into the folder fashion-mnist "
            f"under $BOUTON_DATA, or into {cache}; or start once with a network."
        ) from error
    return cache


def _download(name: str, cache: Path) -> None:
    if (cache / f"{name}.gz").is_file():
        return
    with urllib.request.urlopen(f"{ADDRESS}/{name}.gz", timeout=30) as answer:
        packed: bytes = answer.read(LARGEST + 1)
    _checked(packed, name, f"{ADDRESS}/{name}.gz")
    with explained(cache, "put the four .gz files into the folder fashion-mnist under $BOUTON_DATA"):
        cache.mkdir(parents=True, exist_ok=True)
        # Written beside its place and renamed, so that a broken download never lies in the cache.
        with tempfile.TemporaryDirectory(dir=cache) as beside:
            (Path(beside) / name).write_bytes(packed)
            (Path(beside) / name).rename(cache / f"{name}.gz")


def _read(path: Path, name: str) -> bytes:
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): put that right, or replace it"
        ) from error
    return _checked(packed, name, str(path))


def _checked(packed: bytes, name: str, origin: str) -> bytes:
    """Decompresses a file and compares its checksum; never more of it than the right one would be."""
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{origin} is damaged: it does not decompress ({error}). Delete it, or replace it by "
            "a fresh copy."
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != CHECKSUMS[name]:
        raise ValueError(
            f"{origin} is not Fashion-MNIST's {name}: its content has SHA-256 {found}, expected "
            f"{CHECKSUMS[name]}. Delete it, or replace it by a fresh copy."
        )
    return content


def _array(content: bytes, header: int) -> np.ndarray:
    return np.frombuffer(content, dtype=np.uint8, offset=header)
