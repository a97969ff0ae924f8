"""Sources as datasets of torch: items, batches, DataLoaders with workers, and what torch makes of data sets."""

from __future__ import annotations

import functools
import multiprocessing
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import official_files
from support.constructed_set import build
from support.image_files import picture, save
from support.tensor_source import TensorSource, blobs
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split

from advfeat.datasets import base, exchange, sources
from advfeat.datasets.concatenated import Concatenated
from advfeat.datasets.folder import FolderSource
from advfeat.datasets.planted import Planted
from advfeat.datasets.store import ConstructedSet
from advfeat.datasets.torch_dataset import TorchDataset, as_source

FLOAT = torch.rand(17, 2, 4, 3, generator=torch.Generator().manual_seed(0))
UINT8 = (FLOAT * 255).byte()
LABELS = torch.arange(17) % 4


class Pairs(Dataset):
    """A user's own, which gives one sample at a time."""

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, i):
        return UINT8[i], int(LABELS[i])


def _folder(root):
    for i in range(11):
        save(root / "train" / "abc"[i % 3] / f"{i}.png", picture(i))
    return FolderSource(root)


def _built(root, dtype="float32"):
    build(root / "set", dtype=dtype)
    return ConstructedSet.open(root / "set")


def _lists(root):
    exchange.export_lists(base.ArraySource(FLOAT, LABELS, 4), root)
    return exchange.import_lists(root, tuple("abcd"))


def _cifar10(root):
    with pytest.MonkeyPatch.context() as patch:
        official_files.cifar10(root, patch)
        return sources.load("cifar10", root=root)


def _cifar10_1(root):
    official_files.cifar10_1(root)
    return sources.load("cifar10.1", "test", root, limit=12)


def _fashion_mnist(root):
    official_files.fashion_mnist(root)
    return sources.load("fashion-mnist", "test", root)


KINDS = {
    "digits": lambda root: sources.load("digits", "test", limit=30),
    "planted": lambda root: Planted("test", n=20),
    "uint8": lambda root: base.ArraySource(UINT8, LABELS, 4),
    "float32": lambda root: base.ArraySource(FLOAT, LABELS, 4),
    "float16": lambda root: base.ArraySource(FLOAT.half(), LABELS, 4),
    "numpy": lambda root: base.ArraySource(UINT8.numpy(), LABELS.tolist(), tuple("abcd")),
    "lists": _lists,
    "cifar10": _cifar10,
    "cifar10.1": _cifar10_1,
    "fashion-mnist": _fashion_mnist,
    "folder": _folder,
    "folder, scaled": lambda root: FolderSource(_folder(root).root.parent, size=4),
    "part of a folder": lambda root: _folder(root).subset(range(8, 1, -1)),
    "set": _built,
    "set of float16": functools.partial(_built, dtype="float16"),
    "set of uint8": functools.partial(_built, dtype="uint8"),
    "part of a set": lambda root: _built(root).subset([22, 0, 5, 5, 4, 21]),
    "several": lambda root: Concatenated([_built(root), _built(root / "b").subset(range(3, 9))]),
    "torch": lambda root: TorchDataset(Pairs(), "abcd"),
    "torch, many at once": lambda root: TorchDataset(Subset(Pairs(), range(16, 2, -2)), "abcd"),
    "one's own": lambda root: blobs(20),
}


@pytest.fixture(scope="module")
def source_of(tmp_path_factory):
    return functools.cache(lambda kind: KINDS[kind](tmp_path_factory.mktemp("data")))


def _equal(items, images, labels):
    assert len(items) == len(images) == len(labels)
    for (image, label), expected, wanted in zip(items, images, labels.tolist(), strict=True):
        assert image.dtype == torch.float32 and torch.equal(image, expected)
        assert type(label) is int and label == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_its_image_and_label(source_of, kind):
    source = source_of(kind)
    images, labels, n = source.images(), source.labels, len(source)
    assert isinstance(source, Dataset) and images.shape == (n, *source.image_shape)
    _equal([source[i] for i in range(n)], images, labels)
    _equal([source[i - n] for i in range(n)], images, labels)
    _equal(list(source), images, labels)  # an iteration ends
    for index in (np.int64(1), torch.tensor(1), np.int32(-1)):
        _equal([source[index]], source.images([int(index) % n]), labels[[int(index) % n]])
    image, _ = source[0]
    image.zero_()  # the caller's own
    assert torch.equal(source.images(), images)


@given(data=st.data(), kind=st.sampled_from(sorted(KINDS)))
def test_many_samples_are_those_one_by_one(source_of, data, kind):
    source = source_of(kind)
    n = len(source)
    indices = data.draw(st.lists(st.integers(-n, n - 1), max_size=12))
    positions = torch.tensor(indices, dtype=torch.int64) % n
    _equal(source.__getitems__(indices), source.images(positions), source.labels[positions])
    _equal(source.__getitems__(indices), [source[i][0] for i in indices], source.labels[positions])
    if indices:
        _equal(list(source.subset(positions)), source.images(positions), source.labels[positions])


@pytest.mark.parametrize("kind", ["uint8", "folder", "set", "several", "torch"])
def test_what_is_no_position_is_told(source_of, kind):
    source = source_of(kind)
    n = len(source)
    for beyond in (n, -n - 1, 10**30):
        with pytest.raises(IndexError, match=f"index of .* should be in {-n} .. {n - 1}, got {beyond}"):
            source[beyond]
        with pytest.raises(IndexError, match="should be in"):
            source.__getitems__([0, beyond])
    for wrong in (slice(3), [0, 1], torch.arange(2), None, "0", 1.0, True):
        with pytest.raises(TypeError, match="should be one position, an integer, got .*subset.indices. makes them a"):
            source[wrong]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_gives_the_images_of_its_positions(source_of, kind):
    source = source_of(kind)
    expected, labels = source.images(), source.labels
    for workers in (0, 2) if kind in ("uint8", "folder", "set", "several") else (0,):
        loader = DataLoader(source, batch_size=4, num_workers=workers)
        images, found = (torch.cat(part) for part in zip(*loader, strict=True))
        assert torch.equal(images, expected) and torch.equal(found, labels)
    order = torch.randperm(len(source)).tolist()
    images, found = (torch.cat(part) for part in zip(*DataLoader(source, 3, sampler=order), strict=True))
    assert torch.equal(images, expected[order]) and torch.equal(found, labels[order])
    shuffled = torch.cat([y for _, y in DataLoader(source, batch_size=5, shuffle=True)])
    assert torch.equal(shuffled.sort().values, labels.sort().values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_goes_to_another_process(source_of, kind):
    """As worker processes get it that are not forked."""
    source = source_of(kind)
    before = source.fingerprint
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    sender.send_bytes(ForkingPickler.dumps(source))
    copy = receiver.recv()
    assert type(copy) is type(source) and copy.fingerprint == source.fingerprint == before
    assert torch.equal(copy.images(), source.images()) and torch.equal(copy.labels, source.labels)
    assert copy.classes == source.classes and repr(copy) == repr(source)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "set"])
def test_workers_that_start_anew_read_it(source_of, kind):
    source = source_of(kind)
    loader = DataLoader(source, batch_size=6, num_workers=1, multiprocessing_context="spawn")
    images, labels = (torch.cat(part) for part in zip(*loader, strict=True))
    assert torch.equal(images, source.images()) and torch.equal(labels, source.labels)


class Counted(TensorSource):
    """Notes how many images are asked for at once."""

    def __init__(self):
        super().__init__(FLOAT, LABELS, tuple("abcd"), "counted")
        self.asked = []

    def images(self, indices=None):
        self.asked.append(len(self) if indices is None else len(indices))
        return super().images(indices)


def test_a_loader_reads_a_batch_at_once():
    source = Counted()
    for data in (source, Subset(source, range(17)), random_split(source, [17])[0]):
        source.asked.clear()
        assert sum(len(y) for _, y in DataLoader(data, batch_size=6)) == 17 and source.asked == [6, 6, 5]


@pytest.mark.parametrize("kind", ["digits", "float32", "folder", "set", "part of a set", "one's own"])
def test_what_torch_makes_of_a_source_is_one_again(source_of, kind):
    source = source_of(kind)
    n = len(source)
    some = [n - 1, -n, 2, 2]
    part = as_source(Subset(source, some))
    assert type(part) is type(source.subset([0])) and part.name == source.name
    assert part.fingerprint == source.subset([n - 1, 0, 2, 2]).fingerprint
    assert torch.equal(part.images(), source.images([n - 1, 0, 2, 2]))
    first, second = random_split(source, [2, n - 2])
    assert torch.equal(as_source(first).images(), source.images(first.indices))
    nested = as_source(Subset(Subset(source, range(n - 1, -1, -1)), [0, 1]))
    assert torch.equal(nested.images(), source.images([n - 1, n - 2]))
    joined = as_source(ConcatDataset([first, second, source]))
    order = [*first.indices, *second.indices, *range(n)]
    assert isinstance(joined, Concatenated) and (joined.name, joined.split) == (source.name, source.split)
    assert joined.built_from == source.built_from and joined.classes == tuple(source.classes)
    assert torch.equal(joined.images(), source.images(order)) and torch.equal(joined.labels, source.labels[order])
    assert torch.equal(joined.images([2 * n - 1, 0]), source.images([n - 1, first.indices[0]]))
    assert len(as_source(source + source)) == 2 * n


def test_what_torch_makes_of_a_source_is_read_many_at_once():
    source = Counted()
    for data in (Subset(source, range(3, 17)), ConcatDataset([source, Subset(source, [0])])):
        made = as_source(data)
        source.asked.clear()
        made.images(range(10))
        assert source.asked == [10]


def test_a_fingerprint_of_several_tells_them_apart():
    one, two = (base.ArraySource(FLOAT[rows], LABELS[rows], 4) for rows in (slice(5), slice(5, 17)))
    whole = base.ArraySource(FLOAT, LABELS, 4)
    found = {as_source(ConcatDataset(parts)).fingerprint for parts in ([one, two], [two, one], [one], [whole])}
    assert len(found | {one.fingerprint, whole.fingerprint}) == 6
    assert as_source(one + two).fingerprint == Concatenated([one, two]).fingerprint


def test_several_that_differ_are_refused():
    whole = base.ArraySource(FLOAT, LABELS, tuple("abcd"), "d")
    for other, said in [
        (base.ArraySource(FLOAT, LABELS, tuple("abdc")), "should have the same classes in one order, got several"),
        (base.ArraySource(FLOAT[:, :1], LABELS, whole.classes), r"one shape, got \(1, 4, 3\), \(2, 4, 3\)"),
    ]:
        with pytest.raises(ValueError, match=said):
            as_source(ConcatDataset([whole, other]))
    with pytest.raises(ValueError, match="parts should be at least one data set, got none"):
        Concatenated([])
    with pytest.raises(ValueError, match="data set 'd' has no samples"):
        as_source(Subset(whole, []))
    named = base.ArraySource(FLOAT, LABELS, whole.classes, "e", "test")
    both = as_source(whole + named)
    assert both.name == "d + e" and both.split == "" and len(both) == 34


def test_wrappers_of_ones_own_are_read_as_they_are():
    """Not through, to the source that they hold: they may give other samples."""
    source = base.ArraySource(FLOAT, LABELS, tuple("abcd"))

    class Inverted(Subset):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return 1 - image, label

        def __getitems__(self, indices):
            return [self[i] for i in indices]

    inverted = as_source(Inverted(source, range(5)))
    assert isinstance(inverted, TorchDataset) and torch.equal(inverted.images(), 1 - FLOAT[:5])
    assert inverted.name == "Inverted" and inverted.classes == source.classes
    renamed = Subset(source, range(5))
    renamed.classes = ["w", "x", "y", "z"]
    assert as_source(renamed).classes == ("w", "x", "y", "z")
    mixed = as_source(ConcatDataset([source, TensorDataset(FLOAT[:3], LABELS[:3])]))
    assert isinstance(mixed, TorchDataset) and mixed.classes == ("0", "1", "2", "3")  # one of them says no names
    assert torch.equal(mixed.images(), torch.cat([FLOAT, FLOAT[:3]]))


def test_a_source_that_lacks_something_is_not_read_item_by_item():
    class Mine(base.Source):
        labels = LABELS
        image_shape = (2, 4, 3)

    with pytest.raises(TypeError, match="source should be a data set, got Mine, which has no classes"):
        as_source(Mine())


def test_a_default_device_or_dtype_changes_no_sample(source_of):
    for kind in ("uint8", "set", "several"):
        source = source_of(kind)
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                items = source.__getitems__([2, -1])
        finally:
            torch.set_default_dtype(torch.float32)
        _equal(items, source.images([2, len(source) - 1]), source.labels[[2, -1]])
