"""Models of every kind under evaluation: masked classes, one logit, half and double precision, functions; what a result
says about model, data and samples; and what is no model or data set."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from support.linear_net import NAMES, Then, labelled_by, labelled_images, linear_net, random_images
from support.tensor_source import TensorSource, blobs
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import advfeat
from advfeat import models
from advfeat.datasets.building import build
from advfeat.datasets.recipes import MatchRepresentation, PerturbTowardsTarget
from advfeat.evaluation import accuracy, evaluate, label_agreement
from advfeat.json_files import to_json

# --- logits that are not finite


def test_classes_that_are_out_by_minus_infinity_do_not_make_samples_wrong():
    mask = torch.zeros(10).index_fill(0, torch.arange(5, 10), -math.inf)
    model = Then(linear_net(), lambda x, z: z + mask)
    source = labelled_by(model, random_images())
    found = evaluate(model, source, attacks=[0.05])
    assert found.clean.value == 1 and found.nonfinite_logits == 0 and 0 < found.margin < math.inf
    assert torch.equal(found.margins, _margin(linear_net()(source.images())[:, :5], source.labels))
    assert (
        found.robustness[0].accuracy.count == evaluate(_net_of(5), source, attacks=[0.05]).robustness[0].accuracy.count
    )


@pytest.mark.slow
@pytest.mark.parametrize("left", [7, 3])
def test_the_strongest_attacks_do_not_aim_at_classes_that_are_out(left):
    mask = torch.zeros(10).index_fill(0, torch.arange(left, 10), -math.inf)
    model = Then(linear_net(), lambda x, z: z + mask)
    source = labelled_by(model, random_images())
    found = evaluate(model, source, attacks=[0.05, advfeat.Auto(advfeat.L2(0.08), steps=10)])
    assert [r.nonfinite_gradient for r in found.robustness] == [0, 0]
    few = Then(linear_net(), lambda x, z: z[:, :left])
    wanted = evaluate(few, TensorSource(source.images(), source.labels, NAMES[:left]), attacks=[0.05])
    assert found.robustness[0].accuracy == wanted.robustness[0].accuracy


def _net_of(classes: int):
    return Then(linear_net(), lambda x, z: torch.cat([z[:, :classes], z[:, classes:] - 1e4], 1))


def _margin(logits, labels):
    own = logits.gather(1, labels[:, None])
    return (own[:, 0] - logits.scatter(1, labels[:, None], -math.inf).amax(1)).detach()


def test_a_sample_whose_other_classes_are_all_out_is_right_by_an_infinite_margin():
    only = Then(linear_net(), lambda x, z: torch.where(torch.arange(10) == 3, z, -math.inf))
    source = TensorSource(random_images(6), torch.tensor([3, 3, 3, 3, 2, 2]), NAMES)
    found = evaluate(only, source)
    assert found.clean.count == 4 and found.nonfinite_logits == 0
    assert found.margins.tolist() == [math.inf] * 4 + [-math.inf] * 2 and found.margin is None  # inf - inf
    found = evaluate(only, source, limit=1)
    assert found.margin == math.inf
    assert json.loads(to_json(found.to_dict(samples=True)))["mean_margin"] == "inf"


@pytest.mark.parametrize("value, rows", [(math.nan, [0]), (math.inf, [0, 1])])
def test_nan_and_several_plus_infinities_are_no_prediction(value, rows):
    columns = torch.zeros(10, dtype=torch.bool).index_fill(0, torch.tensor(rows), True)
    model = Then(linear_net(), lambda x, z: torch.where(columns & (x[:, 0, 0, :1] > 0.5), value, z))
    images = random_images(20)
    source = TensorSource(images, torch.zeros(20, dtype=torch.int64), NAMES)
    found, hit = evaluate(model, source), images[:, 0, 0, 0] > 0.5
    assert 0 < hit.sum() < 20 and found.nonfinite_logits == int(hit.sum())
    assert (found.prediction[hit] == -1).all() and (found.prediction[~hit] >= 0).all()
    assert not found.correct[hit].any()
    assert [row["prediction"] for row in found.samples()].count(None) == int(hit.sum())
    agreement = label_agreement(model, source)
    assert agreement["other"].count >= int(hit.sum())


def test_one_plus_infinity_is_a_certain_class():
    model = Then(linear_net(), lambda x, z: torch.where(torch.arange(10) == 7, math.inf, z))
    found = evaluate(model, TensorSource(random_images(5), torch.full((5,), 7), NAMES))
    assert found.clean.count == 5 and found.nonfinite_logits == 0


# --- one logit


@pytest.mark.parametrize("flat", [False, True])
def test_a_binary_model_with_one_logit_is_evaluated_by_its_sign(flat):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 1), *([nn.Flatten(0)] if flat else []))
    images = random_images()
    with torch.no_grad():
        net[1].bias -= net(images).mean()
        z = net(images).reshape(-1)
    source = TensorSource(images, (z > 0).long(), ("no", "yes"))
    found = evaluate(net, source)
    assert found.clean.value == 1 and 0.2 < source.labels.float().mean() < 0.8
    torch.testing.assert_close(found.margins, z.abs())
    assert accuracy(net, TensorSource(images, (z <= 0).long(), ("no", "yes"))).count == 0
    assert label_agreement(net, source)["label"].value == 1
    two = Then(net, lambda x, z: torch.stack([-z.reshape(-1) / 2, z.reshape(-1) / 2], 1))
    one, both = (evaluate(m, source, attacks=[0.1, advfeat.APGD(advfeat.Linf(0.02), steps=5)]) for m in (net, two))
    assert [r.accuracy for r in one.robustness] == [r.accuracy for r in both.robustness]
    assert 0 < one.robustness[0].accuracy.value < 1
    with pytest.raises(ValueError, match=r"should give logits \(40, 3\) for this data"):
        evaluate(net, TensorSource(images, source.labels, ("a", "b", "c")))


# --- precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["plain", "classifier", "adapted"])
def test_a_model_is_evaluated_in_the_precision_it_is_in(dtype, kind):
    source = blobs(30)
    if kind == "classifier":
        model = models.create("small-convnet", 3, (1, 8, 8), mean=[0.2], std=[0.3], width=4)
    else:
        model = linear_net(64, 3)
        if kind == "adapted":
            model = models.adapt(model, num_classes=3, input_shape=(1, 8, 8), mean=[0.2], std=[0.3])
    exact = evaluate(model, source)
    found = evaluate(model.to(dtype), source, attacks=[0.1, advfeat.APGD(advfeat.Linf(0.05), steps=3)])
    assert (found.prediction == exact.prediction).float().mean() > 0.8
    assert all(p.dtype == dtype for p in model.parameters())
    assert all(0 < r.largest_distance <= r.eps * (1 + 1e-5) for r in found.robustness) or not found.clean.count


def test_only_the_module_that_is_adapted_may_be_in_half():
    model = models.adapt(linear_net(64, 3).half(), num_classes=3, input_shape=(1, 8, 8), mean=[0.2], std=[0.3])
    assert evaluate(model, blobs(30), attacks=[0.1]).clean.n == 30
    # A parameter beside the weights decides nothing, and a model whose weights differ casts by itself.
    model = Then(linear_net(64, 3), lambda x, z: z)
    model.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))
    model._parameters = {"temperature": model._parameters["temperature"]}
    assert evaluate(model, blobs(30)).clean.n == 30
    model.table = nn.Embedding(4, 3).half()
    model._modules = {name: model._modules[name] for name in ("table", "net")}
    assert evaluate(model, blobs(30), attacks=[0.1]).clean.n == 30


@pytest.mark.parametrize("dtype, iterates", [(torch.float16, torch.float32), (torch.bfloat16, torch.float32)])
def test_iterates_stay_in_the_precision_of_the_images(dtype, iterates):
    x, y = random_images(), torch.arange(40) % 10
    net = linear_net().to(dtype)
    result = advfeat.PGD(advfeat.L2(0.3), steps=5).run(net, x, y)
    assert result.x_adv.dtype == iterates
    assert ((result.x_adv - x).flatten(1).norm(dim=1) <= 0.3 * (1 + 1e-5)).all()
    assert (result.zero_grad_steps == 0).all() and not torch.equal(result.x_adv, x)
    function = advfeat.PGD(advfeat.L2(0.3), steps=5).run(lambda x: net(x), x, y)
    assert torch.equal(function.x_adv, result.x_adv)
    assert advfeat.PGD(advfeat.L2(0.3), steps=5).run(linear_net().double(), x.double(), y).x_adv.dtype == torch.float64


class _OwnFeatures(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 8), nn.Linear(8, 3)

    def representation(self, x):
        return self.body(x.flatten(1)).relu()

    def forward(self, x):
        return self.head(self.representation(x))


@pytest.mark.filterwarnings("ignore:the model classifies:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sets_are_built_with_a_model_in_another_precision(dtype, tmp_path):
    model = models.create("small-convnet", 3, (1, 8, 8), width=4).to(dtype).eval()
    made = build(PerturbTowardsTarget("det", 0.5, 3, 0.2), model, blobs(12), tmp_path / "det")
    assert made.images().dtype == torch.float32 and made.distance.max() <= 0.5 * (1 + 1e-5)
    matched = build(MatchRepresentation("nonrobust", 3, 0.2), model, blobs(12), tmp_path / "matched")
    assert matched.objective.isfinite().all()
    own = build(MatchRepresentation("nonrobust", 3, 0.2), _OwnFeatures().to(dtype), blobs(12), tmp_path / "own")
    assert own.objective.isfinite().all() and own.distance.min() > 0


# --- what a result says


@pytest.mark.slow
def test_a_result_names_model_data_and_every_sample():
    net, source = labelled_images(40)
    found = evaluate(net, source, attacks=[0.02, 0.05])
    written = json.loads(to_json(found.to_dict(samples=True)))
    assert written["model_fingerprint"] == models.fingerprint(net)
    assert written["data_fingerprint"] == source.fingerprint
    assert [row["index"] for row in written["samples"]] == list(range(40))
    assert [row["label"] for row in written["samples"]] == source.labels.tolist()
    for name, kept in found.robust.items():
        assert [row["robust"][name] for row in written["samples"]] == kept.tolist()
        assert sum(kept.tolist()) == {r.name: r.accuracy.count for r in found.robustness}[name]
    assert written["samples"][3]["margin"] == pytest.approx(float(found.margins[3]))
    assert "samples" not in found.to_dict()


def test_a_part_of_the_data_has_a_hash_of_its_own():
    net, source = labelled_images(40)
    part, again, whole = evaluate(net, source, limit=8), evaluate(net, source, limit=8), evaluate(net, source)
    assert part.data_fingerprint == again.data_fingerprint != whole.data_fingerprint
    assert part.data_fingerprint == source.subset(part.index).fingerprint


def test_a_model_that_cannot_be_hashed_is_evaluated_all_the_same():
    class Odd(nn.Sequential):
        def get_extra_state(self):
            return {1, 2}

        def set_extra_state(self, state):
            pass

    source = labelled_images(40)[1]
    assert evaluate(Odd(*linear_net(192)), source).model_fingerprint is None
    assert evaluate(lambda x: x.flatten(1)[:, :10], source).model_fingerprint is None


# --- functions, and data sets of torch


def test_a_function_is_evaluated_with_its_modules_in_eval_mode():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), linear_net()[1]).train()
    source = labelled_by(linear_net(), random_images())
    found = evaluate(lambda x: net(x), source, attacks=[0.05])
    assert found.deterministic and found.clean.value == 1 and 0 < found.robustness[0].accuracy.value < 1
    assert all(m.training for m in net.modules())
    assert evaluate(net.__call__, source).clean.value == 1


class _Pairs(Dataset):
    def __init__(self, images, labels, **given):
        self.images_, self.labels_ = images, labels
        self.__dict__.update(given)

    def __len__(self):
        return len(self.labels_)

    def __getitem__(self, i):
        return self.images_[i], int(self.labels_[i])


@pytest.mark.slow
def test_a_dataset_of_torch_is_evaluated_as_it_is():
    net, images = linear_net(), random_images()
    source = labelled_by(net, images)
    wanted = evaluate(net, source, attacks=[0.05])
    small = torch.utils.data.Subset(TensorDataset(images, source.labels), range(40))
    for dataset in (TensorDataset(images, source.labels), _Pairs(images, source.labels), small):
        found = evaluate(net, dataset, attacks=[0.05], batch_size=7)
        assert torch.equal(found.prediction, wanted.prediction) and found.clean.value == 1
        assert found.robustness[0].accuracy == wanted.robustness[0].accuracy
        assert len(found.data_fingerprint) == 64
    with torch.device("meta"):  # a script's default device is not the data's
        assert evaluate(net, _Pairs(images, source.labels), batch_size=7).to_dict() == found.to_dict() | {
            "data": "_Pairs",
            "robustness": [],
            "verdict": evaluate(net, source).to_dict()["verdict"],
        }
    eight_bit = _Pairs((images * 255).round().byte(), source.labels)
    assert evaluate(net, eight_bit).clean.value == 1
    assert evaluate(net, TensorDataset(images[:3], source.labels[:3])).clean.n == 3  # not every class is there


def test_classes_of_a_dataset_of_torch_are_its_own_or_the_models():
    model = models.adapt(linear_net(), num_classes=10, input_shape=(3, 4, 4), classes=NAMES)
    images, labels = random_images(), torch.arange(40) % 10
    evaluate(model, TensorDataset(images, labels))
    evaluate(model, _Pairs(images, labels, classes=list(NAMES)))
    with pytest.raises(ValueError, match="'a' only in the former, 'z' only in the latter"):
        evaluate(model, _Pairs(images, labels, classes=[*"zbcdefghij"]))


class _Stream(IterableDataset):
    def __iter__(self):
        return iter(())


class _Listed(TensorSource):
    def __init__(self, images, labels):
        super().__init__(images, labels.tolist(), NAMES[:4])


X, Y = random_images(4), torch.arange(4)
SOURCE = TensorSource(X, Y, NAMES[:4])
FOUR = linear_net(48, 4)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: evaluate(FOUR, DataLoader(TensorDataset(X, Y), collate_fn=list)),
            ValueError,
            "source should be a DataLoader with torch's own collate_fn, .* got collate_fn=list",
        ),
        (lambda: evaluate(FOUR, _Stream()), TypeError, "samples by position, got the iterable dataset _Stream"),
        (lambda: evaluate(FOUR, (X, Y)), TypeError, "got tuple, which has no images, .*ArraySource"),
        (lambda: evaluate(FOUR, X), TypeError, "source should be a data set, got Tensor"),
        (lambda: evaluate(FOUR, "digits"), TypeError, "source should be a data set, got str"),
        (lambda: evaluate(FOUR, None), TypeError, "source should be a data set, got NoneType"),
        (lambda: evaluate(FOUR, _Pairs([np.zeros(3)] * 4, Y)), TypeError, "tensors .C, H, W.*got ndarray for sample 0"),
        (lambda: evaluate(FOUR, TensorDataset(X, X)), TypeError, "labels of 'TensorDataset' should be integers"),
        (lambda: evaluate(FOUR, TensorDataset(X)), TypeError, r"should give \(image, label\) for each sample"),
        (lambda: evaluate(FOUR, TensorDataset(255 * X, Y)), ValueError, r"should lie in \[0, 1\]: sample 0"),
        (lambda: evaluate(FOUR.state_dict(), SOURCE), TypeError, "got a OrderedDict: a state dict holds weights alone"),
        (lambda: evaluate("run", SOURCE), TypeError, "got the path 'run': give advfeat.models.load"),
        (lambda: evaluate(nn.Linear, SOURCE), TypeError, "got the class Linear: give an instance"),
        (lambda: evaluate(None, SOURCE), TypeError, "function that gives logits, got NoneType"),
        (lambda: label_agreement(3, SOURCE), TypeError, "function that gives logits, got int"),
        (
            lambda: evaluate(FOUR, SOURCE, attacks=0.5),
            TypeError,
            r"attacks should be a list .*attacks=\[0.5\], got 0.5",
        ),
        (lambda: evaluate(FOUR, SOURCE, attacks="pgd"), TypeError, "attacks should be a list of radii, .* got 'pgd'"),
        (lambda: evaluate(FOUR, SOURCE, attacks=["pgd"]), TypeError, "attacks should hold radii, .* got 'pgd'"),
        (lambda: evaluate(FOUR, SOURCE, attacks=[True]), TypeError, "attacks should hold radii, .* got True"),
        (lambda: evaluate(FOUR, SOURCE, attacks=[advfeat.PGD]), TypeError, "attacks should hold radii, .* got <class"),
        (lambda: evaluate(FOUR, SOURCE, attacks=advfeat.PGD(advfeat.L2(1), 1)), TypeError, "attacks should be a list"),
        (lambda: evaluate(FOUR, SOURCE, attacks=[(0.5, advfeat.PGD(advfeat.L2(1), 1))]), TypeError, "pairs of a name"),
        (
            lambda: evaluate(FOUR, SOURCE, batch_size=0),
            ValueError,
            "batch_size should be an integer, at least 1, got 0",
        ),
        (lambda: accuracy(FOUR, SOURCE, batch_size=2.5), ValueError, "batch_size should be .*, got 2.5"),
        (lambda: evaluate(FOUR, SOURCE, limit=-3), ValueError, "limit should be an integer, at least 1, got -3"),
        (lambda: evaluate(FOUR, SOURCE, limit=2.5), ValueError, "limit should be an integer, at least 1, got 2.5"),
        (lambda: evaluate(FOUR, _Listed(X, Y)), TypeError, "labels of .* should be an int64 tensor .N., got list"),
    ],
)
def test_first_mistakes_get_a_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_radii_may_be_numbers_of_numpy_and_torch():
    found = evaluate(FOUR, SOURCE, attacks=[np.float32(0.5), np.float64(0.25), torch.tensor(0.125), 1])
    assert [r.name for r in found.robustness] == ["l2 0.5", "l2 0.25", "l2 0.125", "l2 1"]
    assert [r.eps for r in evaluate(FOUR, SOURCE, attacks=np.array([0.1, 0.2])).robustness] == [0.1, 0.2]


def test_a_dataset_whose_labels_change_is_an_error():
    class Shuffled(_Pairs):
        def __getitem__(self, i):
            self.labels_ = self.labels_ + 1
            return self.images_[i], int(self.labels_[i]) % 4

    with pytest.raises(ValueError, match="labels of 'Shuffled' should not change"):
        evaluate(FOUR, Shuffled(X, Y))


def test_one_logit_that_calls_itself_one_class_is_two_classes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
    x = torch.rand(20, 3, 4, 4)
    y = (model(x)[:, 0] > 0).long()
    model.num_classes = 1
    for data in (TensorDataset(x, y), advfeat.datasets.base.ArraySource(x, y, ["no", "yes"])):
        found = evaluate(model, data, attacks=[("pgd", advfeat.PGD(advfeat.L2(1.0), steps=3))])
        assert found.clean.value == 1.0 and found.robustness[0].accuracy.value < 1.0
