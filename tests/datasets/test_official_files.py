"""The official files of CIFAR-10, CIFAR-10.1, MNIST and Fashion-MNIST: what is read, and what goes wrong with them."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from support import official_files

from advfeat.datasets import official, sources

# --- CIFAR-10


def _batch(labels: list[int], pixels: bytes, protocol: int = 2) -> bytes:
    return pickle.dumps({b"batch_label": b"x", "labels": labels, "data": pixels.decode("latin-1")}, protocol=protocol)


@pytest.fixture
def small_cifar10(tmp_path, monkeypatch):
    official_files.cifar10(tmp_path, monkeypatch)
    return tmp_path


def test_cifar10_is_read_without_unpickling(small_cifar10, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "load", never)
    monkeypatch.setattr(pickle, "loads", never)
    monkeypatch.setattr(pickle, "Unpickler", never)
    source = sources.load("cifar10", "train", small_cifar10)
    assert source.labels.tolist() == [1, 2, 3, 0, 1, 2, 3, 1] and source.image_shape == (3, 32, 32)
    expected = np.random.default_rng(1).integers(0, 256, 4 * 3072, dtype=np.uint8).reshape(4, 3, 32, 32)
    assert torch.equal(source.images([4, 5, 6, 7]), torch.from_numpy(expected).float() / 255)


def test_a_malicious_batch_file_runs_nothing(tmp_path):
    mark = tmp_path / "was-run"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    data = pickle.dumps({"labels": [1], "data": Evil(), "more": "x" * 3072}, protocol=2)
    official.scan_cifar_batch(data, Path("data_batch_1"))
    assert not mark.exists()


@pytest.mark.parametrize(
    "data",
    [b"", b"not a pickle", _batch([1, 2], b"\0" * 3072), _batch([], b"\0" * 3072), _batch([1], b"\0" * 3071)],
    ids=["empty", "text", "too few pixels", "no labels", "a pixel less"],
)
def test_what_is_no_batch_file_is_named(data):
    with pytest.raises(ValueError, match="some-file is not a batch file of CIFAR-10"):
        official.scan_cifar_batch(data, Path("some-file"))


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_damaged_cifar10_file_is_named(small_cifar10, damage):
    file = small_cifar10 / "cifar-10-batches-py" / "data_batch_2"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data if damage == "altered" else data[:-10])
    with pytest.raises(ValueError, match="data_batch_2 is truncated or altered"):
        sources.load("cifar10", "train", small_cifar10)
    assert len(sources.load("cifar10", "test", small_cifar10)) == 4


def test_wrong_cifar10_folder_says_what_is_there(small_cifar10):
    with pytest.raises(FileNotFoundError, match=r"should lie in .*cifar-10-batches-py: not there.*holds data_batch_1,"):
        sources.load("cifar10", "train", small_cifar10 / "cifar-10-batches-py")
    (small_cifar10 / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_batch is missing.*holds data_batch_1, data_batch_2"):
        sources.load("cifar10", "test", small_cifar10)


# --- MNIST and Fashion-MNIST


@pytest.fixture
def small_mnist(tmp_path):
    official_files.fashion_mnist(tmp_path)
    return tmp_path


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(small_mnist, packed):
    raw = small_mnist / "FashionMNIST" / "raw"
    if packed:
        for file in list(raw.iterdir()):
            (raw / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    source = sources.load("fashion-mnist", "test", small_mnist)
    assert source.labels.tolist() == [9, 0, 4] and source.classes[9] == "Ankle boot"
    assert torch.equal(source.images().flatten() * 255, (torch.arange(3 * 784) % 256).float())


def test_damaged_idx_files_are_named(small_mnist):
    raw = small_mnist / "FashionMNIST" / "raw"
    images = raw / "t10k-images-idx3-ubyte"
    whole = images.read_bytes()
    for data, said in [
        (whole[:-1], "t10k-images-idx3-ubyte is truncated or altered: 2,367 bytes, expected 2,368"),
        (whole + b"\0", "2,369 bytes, expected 2,368"),
        (whole[:7], "truncated"),
        (b"<html>not found</html>", "should start with the bytes 0 0 8 3"),
        (official_files.idx(np.zeros((2, 28, 28), np.uint8)), "2 images but 3 labels"),
    ]:
        images.write_bytes(data)
        with pytest.raises(ValueError, match=said):
            sources.load("fashion-mnist", "test", small_mnist)
    images.unlink()
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte.gz is truncated or altered"):
        sources.load("fashion-mnist", "test", small_mnist)
    with pytest.raises(FileNotFoundError, match=r"mnist should lie in .*raw: not there.*holds FashionMNIST/"):
        sources.load("mnist", "test", small_mnist)


def test_a_small_archive_of_many_zeros_is_not_unpacked(small_mnist):
    """The head says what there is; a few MB of .gz can hold many GB."""
    raw = small_mnist / "FashionMNIST" / "raw"
    images = raw / "t10k-images-idx3-ubyte"
    for shape, values, said in [
        ((2_000_000_000, 28, 28), 0, r"should have the shape \[at most 10,000, 28, 28\], got \[2000000000, 28, 28\]"),
        ((3, 100_000, 100_000), 0, r"got \[3, 100000, 100000\] in its head"),
        ((3, 28, 28), 1 << 28, "truncated or altered: more bytes, expected 2,368"),
    ]:
        head = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in shape)
        images.unlink(missing_ok=True)
        with gzip.open(raw / f"{images.name}.gz", "wb", compresslevel=1) as file:
            file.write(head)
            for _ in range(values >> 22):
                file.write(bytes(1 << 22))
        tracemalloc.start()
        with pytest.raises(ValueError, match=said):
            sources.load("fashion-mnist", "test", small_mnist)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 24
        images.write_bytes(head)
        with open(images, "r+b") as file:
            file.truncate(1 << 40)  # takes no room on the disk
        with pytest.raises(ValueError, match=r"in its head|1,099,511,627,776 bytes, expected 2,368"):
            sources.load("fashion-mnist", "test", small_mnist)


def test_labels_out_of_range_name_the_file(small_mnist):
    file = small_mnist / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    file.write_bytes(official_files.idx(np.array([9, 200, 4], dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte should hold labels in 0 .. 9, got 200 for sample 1"):
        sources.load("fashion-mnist", "test", small_mnist)


def test_the_files_of_another_set_are_refused(tmp_path):
    """MNIST's and Fashion-MNIST's files have one name and form."""
    for folder, name, prefix, first, said in [
        ("MNIST", "mnist", "t10k", (9, 2, 1, 1, 6, 1, 4, 6, 5, 7), "its t10k files are those of fashion-mnist, test"),
        ("MNIST", "mnist", "train", (7, 2, 1, 0, 4, 1, 4, 9, 5, 9), "its train files are those of mnist, test"),
        ("FashionMNIST", "fashion-mnist", "train", (5, 0, 4, 1, 9, 2, 1, 3, 1, 4), "are those of mnist, train"),
    ]:
        raw = tmp_path / folder / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(official_files.idx(np.zeros((10, 28, 28), np.uint8)))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(official_files.idx(np.array(first, np.uint8)))
        with pytest.raises(ValueError, match=rf"raw should hold {name}, but .*{said}"):
            sources.load(name, "train" if prefix == "train" else "test", tmp_path)


def test_a_folder_or_a_fifo_in_the_place_of_a_file_is_named(small_mnist, small_cifar10):
    raw = small_mnist / "FashionMNIST" / "raw"
    for file, load in [
        (raw / "t10k-images-idx3-ubyte", lambda: sources.load("fashion-mnist", "test", small_mnist)),
        (small_cifar10 / "cifar-10-batches-py" / "test_batch", lambda: sources.load("cifar10", "test", small_cifar10)),
    ]:
        file.unlink()
        file.mkdir()
        with pytest.raises(ValueError, match=f"{file.name} should be a regular file, got a folder"):
            load()
        file.rmdir()
        os.mkfifo(file)
        with pytest.raises(ValueError, match=f"{file.name} should be a regular file, got a FIFO"):
            load()
    huge = small_cifar10 / "cifar-10-batches-py" / "data_batch_1"
    with open(huge, "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="data_batch_1 is no batch file of CIFAR-10: it has 1,099,511,627,776 bytes"):
        sources.load("cifar10", "train", small_cifar10)


# --- CIFAR-10.1


@pytest.mark.parametrize("folder", ["", "cifar10.1", "CIFAR-10.1", "CIFAR-10.1/datasets"])
def test_cifar10_1_is_found(tmp_path, folder):
    images, labels = official_files.cifar10_1(tmp_path / folder)
    official_files.cifar10_1(tmp_path, "v4", seed=1)  # only where there is no v6
    source = sources.load("cifar10.1", "test", tmp_path)
    assert (source.name, source.split, source.classes) == ("cifar10.1", "test", official.CIFAR10_CLASSES)
    assert source.image_shape == (3, 32, 32) and source.labels.tolist() == labels.tolist()
    assert torch.equal(source.images([3, 1999]), torch.tensor(images[[3, 1999]]).permute(0, 3, 1, 2).float() / 255)
    assert sources.load("cifar10.1", "test", tmp_path, limit=30).labels.bincount().tolist() == [3] * 10


def test_cifar10_1_v4_where_v6_is_missing(tmp_path):
    images, _ = official_files.cifar10_1(tmp_path / "cifar10.1", "v4")
    source = sources.load("cifar10.1", "test", tmp_path)
    assert len(source) == 2021
    assert torch.equal(source.images([2020])[0], torch.tensor(images[2020]).permute(2, 0, 1).float() / 255)


def test_cifar10_1_is_a_test_set(tmp_path):
    with pytest.raises(ValueError, match="cifar10.1 is a test set: it has no train split"):
        sources.load("cifar10.1", "train", tmp_path)


def test_missing_cifar10_1_says_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"v6_data.npy .* should lie in .*CIFAR-10.1/datasets: not .* is empty"):
        sources.load("cifar10.1", "test", tmp_path)
    (tmp_path / "CIFAR-10.1" / "notebooks").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"holds CIFAR-10.1/\. .*CIFAR-10.1 holds notebooks/\."):
        sources.load("cifar10.1", "test", tmp_path)
    # Half of v6 is not passed over in favour of v4, nor a whole one elsewhere in favour of a half.
    official_files.cifar10_1(tmp_path, "v4")
    folder = tmp_path / "CIFAR-10.1" / "datasets"
    official_files.cifar10_1(folder)
    (tmp_path / "cifar10.1_v6_labels.npy").write_bytes(b"")
    assert len(sources.load("cifar10.1", "test", tmp_path)) == 2000
    (tmp_path / "cifar10.1_v6_labels.npy").unlink()
    (folder / "cifar10.1_v6_data.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"datasets/cifar10.1_v6_data.npy is missing.*holds cifar10.1_v6_lab"):
        sources.load("cifar10.1", "test", tmp_path)


def test_damaged_cifar10_1_is_named(tmp_path):
    images, labels = official_files.cifar10_1(tmp_path)
    data_file, labels_file = (tmp_path / f"cifar10.1_v6_{kind}.npy" for kind in ("data", "labels"))

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was-run"),)

    high, low = labels.copy(), labels.astype(np.int64)
    high[7], low[8] = 10, -1
    for file, array, said in [
        (data_file, images[:1999], r"data.npy should hold uint8 \[2000, 32, 32, 3\], got uint8 of shape \(1999, 32"),
        (data_file, images.transpose(0, 3, 1, 2), r"got uint8 of shape \(2000, 3, 32, 32\)"),
        (data_file, images.astype(np.float32) / 255, "got float32"),
        (labels_file, labels[:-1], r"labels.npy should hold 2000 integers, got int32 of shape \(1999,\)"),
        (labels_file, labels.astype(np.float64), "should hold 2000 integers, got float64"),
        (labels_file, labels[:, None], "should hold 2000 integers"),
        (labels_file, high, "labels.npy should hold labels in 0 .. 9, got 0 .. 10"),
        (labels_file, low, "should hold labels in 0 .. 9, got -1 .. 9"),
        (labels_file, np.array([Evil()] * 2000), "labels.npy is truncated or altered: Object arrays cannot be loaded"),
    ]:
        before = file.read_bytes()
        np.save(file, array)
        with pytest.raises(ValueError, match=said):
            sources.load("cifar10.1", "test", tmp_path)
        file.write_bytes(before)
    whole = data_file.read_bytes()
    for shape in ((2000, 32, 32, 3 << 40), (1 << 62, 1 << 62)):  # nothing of the size is asked for
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
        data_file.write_bytes(head.getvalue())
        with pytest.raises(ValueError, match=r"data.npy should hold uint8 \[2000, 32, 32, 3\], got uint8 of shape"):
            sources.load("cifar10.1", "test", tmp_path)
    for data in (whole[:-1], whole[:60], b"", b"<html>not found</html>", whole.replace(b"(2000,", b"(20(0,", 1)):
        data_file.write_bytes(data)
        with pytest.raises(ValueError, match="v6_data.npy is truncated or altered"):
            sources.load("cifar10.1", "test", tmp_path)
    assert not (tmp_path / "was-run").exists()


# --- the real files


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [("cifar10", 50_000, 10_000), ("mnist", 60_000, 10_000), ("fashion-mnist", 60_000, 10_000)],
)
def test_real_files_as_torchvision_reads_them(data_root, name, train, test):
    folder = {"cifar10": "cifar-10-batches-py", "mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name]
    if not (data_root / folder).is_dir():
        pytest.skip(f"ADVFEAT_DATA holds no {folder}")
    for split, n in (("train", train), ("test", test)):
        source = sources.load(name, split, data_root)
        assert len(source) == n and len(source.labels.unique()) == 10
        datasets = pytest.importorskip("torchvision.datasets")
        kind = {"cifar10": "CIFAR10", "mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name]
        theirs = getattr(datasets, kind)(data_root, train=split == "train", download=False)
        data = torch.as_tensor(theirs.data)
        data = data.permute(0, 3, 1, 2) if data.dim() == 4 else data.unsqueeze(1)
        assert torch.equal(source.labels, torch.as_tensor(theirs.targets))
        rows = torch.arange(0, n, 97)
        assert torch.equal(source.images(rows), data[rows].float() / 255)


def test_real_cifar10_1_is_balanced(data_root):
    try:
        source = sources.load("cifar10.1", "test", data_root)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if len(source) == 2000:
        assert source.labels.bincount().tolist() == [200] * 10
    assert 0.3 < float(source.images().mean()) < 0.6
