"""Models whose answer for an image depends on the batch that it comes in, and models that change their input."""

import warnings

import pytest
import torch
from support.tensor_source import blobs
from torch import nn

from advfeat import APGD, L2, PGD
from advfeat.datasets.building import build
from advfeat.datasets.recipes import PerturbTowardsTarget
from advfeat.evaluation import evaluate, label_agreement


class OverTheBatch(nn.Module):
    """BatchNorm that keeps no statistics takes the batch's, in eval mode too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.fc = nn.BatchNorm2d(1, track_running_stats=False), nn.Linear(64, 3)

    def representation(self, x):
        return self.norm(x).flatten(1)

    def forward(self, x):
        return self.fc(self.representation(x))


class InPlace(nn.Module):
    """Normalises the images that it is given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(64, 3)

    def forward(self, x):
        return self.fc(x.sub_(0.5).div_(0.2).flatten(1))


DEPENDS = "depends on the other images of its batch"
DET = PerturbTowardsTarget("det", 0.5, 1, 0.1)


def test_answers_that_depend_on_the_batch_are_noticed(tmp_path):
    source = blobs(60)
    with pytest.warns(RuntimeWarning, match=f"{DEPENDS}.*so numbers depend on batch_size"):
        found = evaluate(OverTheBatch(), source)
    assert found.deterministic and found.depends_on_batch and found.to_dict()["depends_on_batch"] is True
    assert "depends on its batch" in found.note
    with pytest.warns(RuntimeWarning, match=DEPENDS):
        label_agreement(OverTheBatch(), source)
    with pytest.warns(RuntimeWarning, match=f"{DEPENDS}.*an image of the set depends on batch_size"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the model classifies")
            build(DET, OverTheBatch(), source, tmp_path / "set")


def test_rounding_in_batches_of_another_size_is_no_such_thing():
    source = blobs(60)
    plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 64), nn.Linear(64, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (plain, plain.half(), plain.bfloat16(), plain.double()):
            assert not evaluate(model, source).depends_on_batch
        assert not evaluate(OverTheBatch(), source, limit=1, batch_size=1).depends_on_batch


def test_a_model_of_one_batch_size_is_evaluated():
    class OfTwenty(InPlace):
        def forward(self, x):
            if len(x) != 20:
                raise RuntimeError("shape '[20, 64]' is invalid")
            return self.fc(x.flatten(1))

    assert not evaluate(OfTwenty(), blobs(60), batch_size=20).depends_on_batch


@pytest.mark.parametrize("attack", [PGD(L2(0.1), steps=2), PGD(L2(0.1), steps=0), APGD(L2(0.1), steps=2)])
def test_an_attack_refuses_a_model_that_changes_its_input(attack):
    """Its last look would leave the normalised image in the place of the adversarial one."""
    x, y = blobs(8).images(torch.arange(8)), blobs(8).labels
    before = x.clone()
    with pytest.raises(ValueError, match="the model should not change its input in place.*x.clone"):
        attack.run(InPlace(), x, y)
    assert torch.equal(x, before)
    attack(InPlace().half(), x, y)  # what it changes there is its own copy in its own dtype


def test_a_model_that_changes_its_input_is_not_random():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate(InPlace(), blobs(60))
    assert found.deterministic and not found.depends_on_batch
