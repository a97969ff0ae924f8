"""Data sets in memory and by name: positions, subsets, hashes, and what goes wrong with them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advfeat.datasets import base, sources

# --- digits: the data set that is always there


def test_digits_split_is_stratified_disjoint_and_complete():
    from sklearn.datasets import load_digits

    train, test = sources.load("digits", "train"), sources.load("digits", "test")
    assert (len(train), len(test)) == (1347, 450)
    assert train.image_shape == (1, 8, 8) and len(train.classes) == 10
    whole, labels = load_digits(return_X_y=True)
    rows = torch.cat([train.images(), test.images()]).flatten(1) * 16
    both = torch.cat([rows, torch.cat([train.labels, test.labels])[:, None].float()], dim=1)
    expected = torch.cat([torch.tensor(whole), torch.tensor(labels)[:, None]], dim=1).float()
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, expected.tolist()))
    share = test.labels.bincount() / torch.tensor(labels).bincount()
    assert float((share - 450 / 1797).abs().max()) < 0.01


def test_digits_never_change():
    """Hashes of the first release: results of other versions are comparable only as long as they hold."""
    assert sources.load("digits", "train").fingerprint[:16] == "33177dfad8ae3b84"
    assert sources.load("digits", "test", seed=5).fingerprint == sources.load("digits", "test").fingerprint


# --- the base class


def _arrays(n: int = 12, classes: int = 3, dtype: torch.dtype = torch.float32) -> base.ArraySource:
    values = torch.arange(n * 8).remainder(256).view(n, 2, 2, 2)
    images = values.to(torch.uint8) if dtype == torch.uint8 else values.float() / 255
    return base.ArraySource(images, torch.arange(n) % classes, tuple("abcdef"[:classes]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    "indices",
    [None, [3, 1, 1], torch.tensor([5]), range(2, 9, 3), slice(1, 5), slice(None, None, -1), [], "mask"],
    ids=str,
)
def test_images_by_position(dtype, indices):
    source = _arrays(dtype=dtype)
    all_images = torch.arange(96).remainder(256).view(12, 2, 2, 2).float() / 255
    if isinstance(indices, str):
        indices = torch.arange(12) % 5 == 0
    chosen = torch.tensor(np.arange(12)[indices.numpy() if isinstance(indices, torch.Tensor) else indices].tolist())
    expected = all_images if indices is None else all_images[chosen.reshape(-1).long()]
    assert torch.equal(source.images(indices), expected)
    if indices is None or len(expected):
        for part in (source.subset(indices), base.Source.subset(source, indices)):
            assert torch.equal(part.images(), expected)
            assert torch.equal(part.labels, source.labels if indices is None else source.labels[chosen.reshape(-1)])


@pytest.mark.parametrize("indices", [[-1], [12], torch.tensor([0.5]), [[0]], torch.ones(3, dtype=torch.bool)], ids=str)
def test_wrong_positions_are_refused(indices):
    with pytest.raises(IndexError):
        _arrays().images(indices)


def test_images_are_the_callers_own():
    source = _arrays()
    before = source.fingerprint
    source.images().zero_()
    source._fingerprint = None
    assert source.fingerprint == before


def test_batches_cover_an_order():
    source, order = _arrays(), torch.tensor([11, 3, 7, 0, 1])
    index, images, labels = (torch.cat(parts) for parts in zip(*source.batches(2, order), strict=True))
    assert torch.equal(index, order)
    assert torch.equal(images, source.images(order)) and torch.equal(labels, source.labels[order])
    assert [len(x) for _, x, _ in source.batches(5)] == [5, 5, 2]


def test_fingerprint_tells_contents_not_names():
    a = _arrays()
    same = base.ArraySource(a.images(), a.labels.clone(), ("x", "y", "z"), "another name", "test")
    assert same.fingerprint == a.fingerprint == a.subset(None).fingerprint
    images = a.images()
    images[5, 1, 1, 1] += 1 / 255
    others = [
        base.ArraySource(images, a.labels, a.classes),
        base.ArraySource(a.images(), a.labels.flip(0), a.classes),
        base.ArraySource(a.images().view(12, 1, 2, 4), a.labels, a.classes),
        _arrays(dtype=torch.uint8),
        a.subset(range(11)),
        base.Source.subset(a, range(11)),
    ]
    assert len({o.fingerprint for o in others} | {a.fingerprint}) == 7


def test_wrong_arrays_are_refused():
    x, y = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
    for images, labels, said in [
        (x[0], y, r"images should be uint8 or float32 \[N, C, H, W\], got torch.float32 of shape \(1, 2, 2\)"),
        (x.long(), y, "images should be uint8 or float32 .* got torch.int64"),
        (x, y[:3], r"labels should be int64 \[4\], .* got torch.int64 of shape \(3,\)"),
        (x, y.float(), "got torch.float32"),
        (x, y > 0, "got torch.bool"),
        (x, y[:, None], r"labels should be int64 \[4\], the number of each sample's class, got .* \(4, 1\)"),
        (x, torch.eye(3)[y], r"got torch.float32 of shape \(4, 3\)"),
        (
            torch.zeros(4, 32, 32, 3, dtype=torch.uint8),
            y,
            r"looks like \[N, H, W, C\]: give images.permute\(0, 3, 1, 2\)",
        ),
        (np.zeros((4, 28, 28, 1), np.float32), y, r"got shape \(4, 28, 28, 1\), which looks like"),
        (x * 255, y, r"lie in \[0, 1\]: sample 0 holds values from"),
        (x[:0], y[:0], "has no samples"),
        (x, y + 1, r"0 .. 2 for 3 classes: sample 2 has label 3"),
        (x, y - 1, "sample 0 has label -1"),
        (x.index_fill(0, torch.tensor([2]), float("nan")), y, "sample 2 holds NaN"),
        (x.index_fill(0, torch.tensor([1]), 1.5), y, r"lie in \[0, 1\]: sample 1 holds values from 1.5"),
    ]:
        with pytest.raises(ValueError, match=said):
            base.ArraySource(images, labels, ("a", "b", "c"))


def test_what_is_no_array_is_refused():
    x, y = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
    for images, labels, said in [
        (x.tolist(), y, "images should be a tensor or a numpy array of numbers, got list"),
        (x, {0, 1, 2}, "labels should be a tensor or a numpy array of numbers, got set"),
        (x, ["a", "b", "c", "a"], "labels should be .* got an array of <U1"),
        (np.array(["a"]), y, "images should be .* got an array of <U1"),
    ]:
        with pytest.raises(TypeError, match=said):
            base.ArraySource(images, labels, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.float16, ">f4"])
@pytest.mark.parametrize("order", ["C", "F", "reversed"])
def test_numpy_arrays_are_taken(dtype, order):
    values = np.arange(4 * 3 * 2 * 2).reshape(4, 3, 2, 2)
    values = values.astype(dtype) if dtype == np.uint8 else (values / 64).clip(0, 1).astype(dtype)
    values = values[::-1] if order == "reversed" else np.asarray(values, order=order)
    values.flags.writeable = False
    source = base.ArraySource(values, np.array([0, 1, 2, 3], np.int32), 4)
    expected = torch.from_numpy(np.ascontiguousarray(values).astype(np.float32))
    assert torch.equal(source.images(), expected / 255 if dtype == np.uint8 else expected)
    assert source.labels.tolist() == [0, 1, 2, 3] and source.classes == ("0", "1", "2", "3")
    same = base.ArraySource(torch.from_numpy(np.array(values.astype(values.dtype.newbyteorder("=")))), [0, 1, 2, 3], 4)
    assert same.fingerprint == source.fingerprint


def test_classes_are_names_or_their_number():
    x, y = torch.rand(2, 1, 2, 2), [0, 1]
    for classes, names in [
        (np.int64(3), ("0", "1", "2")),
        ([7, 8], ("7", "8")),
        ({"cat": 0, "dog": 1}, ("cat", "dog")),
    ]:
        assert base.ArraySource(x, y, classes).classes == names
    with pytest.raises(ValueError, match="classes should be names, or how many there are, at least 1, got 0"):
        base.ArraySource(x, y, 0)


def test_an_array_may_change_afterwards():
    values = np.zeros((2, 1, 2, 2), np.uint8)
    source = base.ArraySource(values, [0, 1], 2)
    values[:] = 255
    assert source.images().max() == 0


@pytest.mark.parametrize(
    "indices", [0, 3.5, "abc", object(), [[0, 1], [2]]], ids=["0", "3.5", "abc", "object", "ragged"]
)
def test_what_are_no_positions_is_said(indices):
    with pytest.raises(TypeError, match=r"indices of 'arrays' should be positions \[k\] as a list.*images\(\[0\]\)"):
        _arrays().images(indices)


def test_numpy_positions_are_taken():
    source = _arrays()
    assert torch.equal(source.images(np.array([3, 1])), source.images([3, 1]))
    assert torch.equal(source.images(np.arange(12) > 8), source.images([9, 10, 11]))
    assert source.images(np.array([], np.int64)).shape == (0, 2, 2, 2)


def test_a_source_of_ones_own_is_told_what_it_lacks():
    class Mine(base.Source):
        name = "mine"

    mine = Mine()
    for use, error, said in [
        (
            lambda: mine.fingerprint,
            TypeError,
            "Mine should have a property fingerprint.*sha256.*datasets.Source",
        ),
        (lambda: mine.images([0]), TypeError, r"Mine should have a method images\(indices=None\) that gives float32"),
        (lambda: len(mine), AttributeError, r"Mine should have labels, int64 \[N\]"),
        (lambda: mine.classes, AttributeError, "Mine should have classes, their names"),
        (lambda: mine.image_shape, AttributeError, r"Mine should have image_shape, \(C, H, W\)"),
        (lambda: mine.weights, AttributeError, "'Mine' object has no attribute 'weights'"),
    ]:
        with pytest.raises(error, match=said):
            use()
    assert not hasattr(mine, "target_success")


def test_the_example_in_the_docstring_is_a_source():
    text = base.Source.__doc__.split("::\n", 1)[1].split("\n\n    Attributes")[0]
    names = {**vars(base), "hashlib": hashlib}
    exec(textwrap.dedent(text), names)
    pixels = torch.arange(2 * 3 * 32 * 32).remainder(256).to(torch.uint8).view(2, 3, 32, 32)
    source = names["Mine"](pixels, torch.tensor([0, 1]))
    assert repr(source) == "Mine('mine', '': 2 3x32x32, 2 classes)" and len(source.fingerprint) == 64
    (index, images, labels), *_ = source.subset([1]).batches(2)
    assert torch.equal(images, pixels[1:].float() / 255) and labels.tolist() == [1] and index.tolist() == [0]


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(sum),
    n=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_subset_is_balanced_and_nested(counts, n, seed):
    labels = torch.cat([torch.full((c,), i) for i, c in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    chosen = base.balanced_subset(labels, n, seed)
    assert len(chosen) == min(n, len(labels)) and torch.equal(chosen, chosen.unique())
    got = labels[chosen].bincount(minlength=len(counts)).tolist()
    # As even as the classes allow: none has two more than another that still had samples left.
    for has, of in zip(got, counts, strict=True):
        assert has == of or has >= max(got) - 1
    assert set(base.balanced_subset(labels, max(1, n - 1), seed).tolist()) <= set(chosen.tolist())


def test_subset_depends_on_the_seed_and_on_nothing_else():
    labels = torch.arange(50) % 2
    first = base.balanced_subset(labels, 10, seed=1)
    torch.manual_seed(12345)
    assert torch.equal(base.balanced_subset(labels, 10, seed=1), first)
    assert not torch.equal(base.balanced_subset(labels, 10, seed=2), first)
    assert base.keyed_order(8, "digits", 0).tolist() == [5, 0, 4, 7, 2, 6, 3, 1]


# --- names


def test_load_refuses_what_it_does_not_know(tmp_path):
    for arguments, said in [
        ({"name": "cifar-10"}, "name should be one of digits, .*, got 'cifar-10'; did you mean cifar10"),
        ({"name": "digits", "split": "validation"}, "split should be train or test, got 'validation'"),
        (
            {"name": "digits", "size": 16},
            "size should be left out for digits: it is for planted, folder and restricted-imagenet, got 16",
        ),
        (
            {"name": "digits", "class_ranges": {"a": (0, 1)}},
            "class_ranges should be left out for digits: it is for folder, got {",
        ),
        (
            {"name": "digits", "channels": 3},
            "channels should be left out for digits: .* folder and restricted-imagenet, got 3",
        ),
        ({"name": ""}, "name should be one of .*, got ''"),
        ({"name": "digits", "limit": 0}, "limit should be a number of samples, at least 1, got 0"),
        ({"name": "digits", "limit": 10.5}, "limit should be a number of samples, at least 1, got 10.5"),
        ({"name": "cifar10"}, "root should be the folder with the data set 'cifar10', got None"),
    ]:
        with pytest.raises(ValueError, match=said):
            sources.load(**arguments)
    with pytest.raises(
        FileNotFoundError, match="root should be the folder with .* 'mnist', got .*nowhere, which is not there"
    ):
        sources.load("mnist", root=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="name should be .*, which has no manifest.json.*'folder' with root"):
        sources.load(tmp_path)


def test_an_archive_is_to_be_unpacked(tmp_path):
    for name in ("cifar-10-python.tar.gz", "pictures.ZIP"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(FileNotFoundError, match="is an archive: unpack it, and give the folder"):
            sources.load("folder", root=tmp_path / name)
    with pytest.raises(
        FileNotFoundError, match=r"not there; unpack cifar-10-python.tar.gz there \(tar xzf\). .* holds"
    ):
        sources.load("cifar10", root=tmp_path)


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set").mkdir()
    with pytest.raises(FileNotFoundError, match="set, which has no manifest.json"):
        sources.load("~/set")


def test_planted_images_may_be_wide():
    source = sources.load("planted", limit=8, size=(16, 32))
    assert source.image_shape == (3, 16, 32)
    assert sources.options_for("planted", (3, 8, 32)) == sources.options_for("digits", (1, 8, 8)) == {}
    assert sources.takes("planted", "size") and not sources.takes("digits", "size")


def test_a_default_device_or_dtype_changes_no_data():
    def all_of(name: str) -> list[torch.Tensor]:
        source = sources.load(name, "test", limit=20)
        return [
            source.images([3, 1]),
            source.images(),
            source.subset([1, 2]).images(slice(None, None, -1)),
            source.labels,
        ]

    expected = {name: all_of(name) for name in ("digits", "planted")}
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = {name: all_of(name) for name in expected}
    finally:
        torch.set_default_dtype(torch.float32)
    for name, tensors in expected.items():
        for a, b in zip(tensors, found[name], strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype


def test_limit_takes_the_same_samples_every_time():
    part = sources.load("digits", "train", limit=100, seed=3)
    assert part.labels.bincount().tolist() == [10] * 10
    assert part.fingerprint == sources.load("digits", "train", limit=100, seed=3).fingerprint
    assert part.fingerprint != sources.load("digits", "train", limit=100, seed=4).fingerprint
    assert len(sources.load("digits", "test", limit=10_000)) == 450


@pytest.mark.slow
def test_importing_sources_is_light():
    heavy = "('torchvision', 'sklearn', 'PIL')"
    code = f"import sys, advfeat.datasets.sources; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
