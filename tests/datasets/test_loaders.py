"""A DataLoader in the place of a data set: its dataset counts, and what it makes of that is honoured or refused."""

from __future__ import annotations

import pytest
import torch
from support.constructed_set import build as build_set
from support.tensor_source import blobs
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)
from torch.utils.data.distributed import DistributedSampler

from advfeat import L2, PGD, models
from advfeat.datasets import store
from advfeat.datasets.building import build
from advfeat.datasets.loader import batch_size_for, dataset_of
from advfeat.datasets.recipes import PerturbTowardsTarget
from advfeat.datasets.torch_dataset import as_source
from advfeat.evaluation import accuracy, evaluate, label_agreement
from advfeat.training import TrainConfig, paper_attack, train

SOURCE, TEST = blobs(60), blobs(30, seed=1)
PAIRS = TensorDataset(SOURCE.images(), SOURCE.labels)
QUICK = TrainConfig(epochs=1, batch_size=16, lr=0.1, width=2)


@pytest.fixture(scope="module")
def model():
    return train(QUICK.replace(epochs=3), SOURCE).model


def _same(found, wanted):
    assert found.to_dict() == wanted.to_dict()
    for name in ("index", "labels", "prediction", "margins"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


@pytest.mark.parametrize("data", [SOURCE, PAIRS], ids=["source", "dataset"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"batch_size": 20}, id="plain"),
        pytest.param({"batch_size": 20, "shuffle": True}, id="shuffled"),
        pytest.param({"batch_size": 20, "num_workers": 2, "persistent_workers": True}, id="with workers"),
        pytest.param({"batch_size": 20, "drop_last": True, "shuffle": True}, id="of 60 none is dropped"),
        pytest.param({"batch_size": None}, id="without batches"),
        pytest.param({"batch_size": 20, "sampler": SequentialSampler(PAIRS)}, id="sequential sampler"),
        pytest.param({"batch_size": 20, "sampler": RandomSampler(PAIRS)}, id="random sampler"),
    ],
)
def test_an_evaluation_of_a_loader_is_that_of_its_dataset(model, data, settings):
    loader = DataLoader(data, **settings)
    batch_size = settings["batch_size"] or 500
    attacks = [("pgd", PGD(L2(0.3), steps=2))]
    _same(evaluate(model, loader, attacks=attacks), evaluate(model, data, attacks=attacks, batch_size=batch_size))
    _same(evaluate(model, loader, limit=7), evaluate(model, data, limit=7, batch_size=batch_size))
    assert accuracy(model, loader) == accuracy(model, data)
    assert label_agreement(model, loader) == label_agreement(model, data)


def test_a_limit_on_a_loader_is_one_on_what_is_read(model):
    class Counted(Dataset):
        asked: set[int] = set()

        def __len__(self):
            return len(PAIRS)

        def __getitem__(self, i):
            self.asked.add(i)
            return PAIRS[i]

    evaluate(model, DataLoader(Counted(), batch_size=4), limit=6, same_classes=True)
    assert Counted.asked == {0, 10, 20, 30, 40, 50}


@pytest.mark.parametrize("ask", [evaluate, accuracy, label_agreement])
def test_the_batches_of_an_evaluation_are_the_loaders_unless_asked_otherwise(model, ask):
    sizes = []

    def watched(x):
        sizes.append(len(x))
        return model(x)

    for settings, wanted in [({}, 8), ({"batch_size": 30}, 30)]:
        sizes.clear()
        ask(watched, DataLoader(SOURCE, batch_size=8), **settings)
        assert max(sizes) == wanted
    sizes.clear()
    ask(watched, SOURCE)
    assert max(sizes) == 60


def test_batch_sizes():
    assert batch_size_for(SOURCE, None, 7) == 7 and batch_size_for(SOURCE, 3, 7) == 3
    assert batch_size_for(DataLoader(SOURCE), None, 7) == 1 and batch_size_for(DataLoader(SOURCE), 3, 7) == 3
    assert batch_size_for(DataLoader(SOURCE, batch_size=None), None, 7) == 7
    with pytest.raises(ValueError, match="batch_size should be an integer, at least 1, got 0"):
        batch_size_for(DataLoader(SOURCE), 0, 7)


@pytest.mark.parametrize("wrapped", [SOURCE, PAIRS], ids=["source", "dataset"])
def test_a_training_on_loaders_is_that_on_their_datasets(tmp_path, wrapped):
    test = TEST if wrapped is SOURCE else TensorDataset(TEST.images(), TEST.labels)
    wanted = train(QUICK, wrapped, test, tmp_path / "run")
    for shuffle in (False, True):
        loaders = DataLoader(wrapped, batch_size=16, shuffle=shuffle, num_workers=2), DataLoader(test, batch_size=10)
        found = train(QUICK, *loaders)
        assert models.fingerprint(found.model) == models.fingerprint(wanted.model)
        assert found.history[-1]["test_accuracy"] == wanted.history[-1]["test_accuracy"]
        again = train(QUICK, *loaders, tmp_path / "run")  # a finished run is found, not made again
        assert again.history == wanted.history


def test_a_training_s_batch_size_is_said_once():
    loader = DataLoader(SOURCE, batch_size=12, shuffle=True)
    with pytest.raises(ValueError, match="config.batch_size should be that of the DataLoader .* 12, got 16: set it"):
        train(QUICK, loader)
    train(QUICK.replace(batch_size=12), loader)
    train(QUICK, DataLoader(SOURCE, batch_size=None))


def test_tests_of_a_training_are_in_the_loaders_batches(monkeypatch):
    from advfeat.training import loop as training

    sizes, given = [], training.evaluate

    def watched(model, source, **settings):
        sizes.append(settings["batch_size"])
        return given(model, source, **settings)

    monkeypatch.setattr(training, "evaluate", watched)
    config = QUICK.replace(eval_attack=paper_attack(0.1, steps=1))
    train(config, SOURCE, DataLoader(TEST, batch_size=11))
    train(config, SOURCE, TEST)
    assert sizes == [11, 11, 500, 500]


def test_a_set_is_built_from_a_loader(tmp_path, model):
    recipe = PerturbTowardsTarget("det", 0.5, 2, 0.2)
    wanted = build(recipe, model, SOURCE, tmp_path / "a", batch_size=25)
    found = build(recipe, model, DataLoader(SOURCE, batch_size=25, shuffle=True), tmp_path / "b")
    assert found.manifest == wanted.manifest and torch.equal(found.images(), wanted.images())
    part = build(recipe, model, Subset(SOURCE, range(10)), tmp_path / "c")
    assert part.manifest["batch_size"] == 250 and len(part) == 10


def test_a_loader_of_part_of_the_samples_is_that_part(model):
    for part in (Subset(SOURCE, [5, 3, 58]), random_split(SOURCE, [50, 10])[1]):
        _same(evaluate(model, DataLoader(part)), evaluate(model, SOURCE.subset(part.indices), batch_size=1))
    chosen = SubsetRandomSampler([7, 4, 20])
    _same(evaluate(model, DataLoader(SOURCE, sampler=chosen)), evaluate(model, SOURCE.subset([7, 4, 20]), batch_size=1))
    assert as_source(DataLoader(SOURCE, batch_size=3, sampler=chosen, drop_last=True)).labels.tolist() == [1, 1, 2]
    assert as_source(DataLoader(PAIRS, sampler=chosen)).labels.tolist() == [1, 1, 2]
    joined = ConcatDataset([SOURCE, TEST])
    assert evaluate(model, DataLoader(joined, batch_size=50)).clean.n == 90


def test_a_model_is_trained_and_evaluated_on_loaders_of_a_constructed_set(tmp_path):
    build_set(tmp_path / "set")
    made = store.ConstructedSet.open(tmp_path / "set")
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 4))
    wanted = evaluate(net, made, batch_size=4)
    _same(evaluate(net, DataLoader(made, batch_size=4, num_workers=1, shuffle=True)), wanted)
    assert wanted.data_fingerprint == made.fingerprint
    train(QUICK.replace(augment="none"), DataLoader(made, batch_size=16, shuffle=True), model=net)


class _Stream(IterableDataset):
    def __iter__(self):
        return iter(PAIRS)


class _Turned(DataLoader):
    def __iter__(self):
        return ((x.flip(3), y) for x, y in super().__iter__())


class _Every(BatchSampler):
    pass


def _mixed(samples):
    return torch.utils.data.default_collate(samples)


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (
            DataLoader(PAIRS, collate_fn=_mixed),
            ValueError,
            "with torch's own collate_fn.* got collate_fn=_mixed: give a",
        ),
        (
            DataLoader(PAIRS, batch_sampler=_Every(SequentialSampler(PAIRS), 4, False)),
            ValueError,
            "with no batch_sampler, .* got batch_sampler=_Every: give its dataset, loader.dataset",
        ),
        (
            DataLoader(PAIRS, batch_size=7, drop_last=True),
            ValueError,
            "with drop_last=False.* got drop_last=True: give",
        ),
        (
            DataLoader(PAIRS, sampler=WeightedRandomSampler(torch.ones(60), 60)),
            ValueError,
            "with a sampler that takes each of the 60 samples once, .* got sampler=WeightedRandomSampler: give",
        ),
        (DataLoader(PAIRS, sampler=[0, 1, 2]), ValueError, "got sampler=list: give torch.utils.data.Subset"),
        (DataLoader(PAIRS, sampler=iter([0])), ValueError, "got sampler=list_iterator"),
        (DataLoader(PAIRS, sampler=RandomSampler(PAIRS, replacement=True)), ValueError, "got sampler=RandomSampler"),
        (DataLoader(PAIRS, sampler=RandomSampler(PAIRS, num_samples=9)), ValueError, "got sampler=RandomSampler"),
        (DataLoader(PAIRS, sampler=SequentialSampler(range(5))), ValueError, "got sampler=SequentialSampler"),
        (DataLoader(PAIRS, sampler=DistributedSampler(PAIRS, 2, 0)), ValueError, "got sampler=DistributedSampler"),
        (DataLoader(_Stream()), TypeError, "should have samples by position, got the iterable dataset _Stream"),
        (_Turned(PAIRS), TypeError, "should be a DataLoader of torch or a data set, got _Turned, which makes batches"),
        (DataLoader([(PAIRS[0][0], 0)]), TypeError, "should be a data set, got list, which has no images, labels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_loader_would_make_of_its_dataset_is_not_ignored(loader, error, message, tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(error, match=f"^source .*{message}"):
        evaluate(net, loader)
    with pytest.raises(error, match=f"^test_source .*{message}"):
        train(QUICK, SOURCE, loader, tmp_path / "run")
    with pytest.raises(error, match=f"^source .*{message}"):
        build(PerturbTowardsTarget("det", 0.5, 2, 0.2), net, loader, tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_what_is_no_loader_is_as_it_is():
    for data in (SOURCE, PAIRS, None, "digits"):
        assert dataset_of(data, "source") is data
