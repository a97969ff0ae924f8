"""The whole way on a GPU: training, building, evaluation, every experiment; the CPU says what should come out."""

import dataclasses

import pytest
import torch
from support.tiny_preset import make_lab, tiny_preset
from torch import nn

from advfeat import CW, L2, PGD, Converged, Ensemble
from advfeat.datasets import sources
from advfeat.datasets.building import build
from advfeat.evaluation import evaluate
from advfeat.experiments import catalogue
from advfeat.experiments.presets import preset
from advfeat.experiments.run import run_experiment
from advfeat.models import attack_copy, create
from advfeat.training import TrainConfig, paper_attack, train

DEVICE = "cuda"
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def digits():
    return sources.load("digits"), sources.load("digits", split="test")


@pytest.fixture(scope="module")
def net(digits):
    """A model that has learned something; trained on the CPU, so that both devices have the same."""
    config = TrainConfig(epochs=6, lr=0.1, batch_size=32, weight_decay=5e-3, width=8)
    return train(config, *digits, device="cpu").model.eval()


@pytest.mark.parametrize("changes", [{}, {"augment": "shift", "amp": "bf16"}, {"attack": paper_attack(0.5)}])
def test_training_learns_as_on_the_cpu(digits, tmp_path, changes):
    config = TrainConfig(epochs=4, lr=0.1, batch_size=32, width=8).replace(**changes)
    there = train(config, *digits, tmp_path / "there", device=DEVICE)
    here = train(config, *digits, device="cpu")
    assert there.history[-1]["test_accuracy"] == pytest.approx(here.history[-1]["test_accuracy"], abs=0.1)
    assert next(there.model.parameters()).device.type == DEVICE


def test_a_training_goes_on(digits, tmp_path):
    config = TrainConfig(epochs=2, lr=0.1, batch_size=32, width=8)
    train(config, *digits, tmp_path, device=DEVICE)
    more = train(config, *digits, tmp_path, device=DEVICE)
    assert [row["epoch"] for row in more.history] == [1, 2]


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_evaluation_finds_what_it_finds_on_the_cpu(digits, net, autocast):
    source = digits[1]
    attack = PGD(L2(0.5), steps=40, keep="best", stop="success", autocast=autocast)
    attacks = [("pgd", attack), ("both", Ensemble((attack, attack.replace(objective=CW()))))]
    here = evaluate(net, source, attacks=attacks, batch_size=100)
    there = evaluate(net.to(DEVICE), source, attacks=attacks, batch_size=100)
    net.cpu()
    assert abs(here.clean.count - there.clean.count) <= 2
    for a, b in zip(here.robustness, there.robustness, strict=True):
        assert abs(a.accuracy.count - b.accuracy.count) <= 8
        assert b.largest_distance <= 0.5 * (1 + 1e-5)
    assert there.robustness[1].accuracy.count <= there.robustness[0].accuracy.count


@pytest.mark.parametrize("stop", [None, Converged(10)])
@pytest.mark.parametrize("name", ["robust", "nonrobust", "rand", "det"])
def test_sets_are_those_of_the_cpu_and_builds_go_on(digits, net, tmp_path, name, stop):
    source = digits[0].subset(torch.arange(130))
    recipe = dataclasses.replace(preset("digits").recipes[name], steps=40)
    if stop is not None:
        if name in ("rand", "det"):
            pytest.skip("only D_R and D_NR have a stop rule")
        recipe = dataclasses.replace(recipe, stop=stop)
    common = {"batch_size": 20, "shard_size": 60, "seed": 1, "any_source": True}
    here = build(recipe, net.cpu(), source, tmp_path / "here", device="cpu", **common)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        there = build(recipe, net, source, tmp_path / "there", device=DEVICE, **common)
    for column in ("labels", "original_labels", "source_index", "start_index"):
        assert torch.equal(getattr(here, column), getattr(there, column)), column
    apart = (here.images() - there.images()).flatten(1).norm(dim=1)
    # Rounding may send a sample elsewhere, and does so with more of those that go towards a target.
    assert (apart < 0.05 * here.distance.mean()).float().mean() > (0.9 if name in ("robust", "nonrobust") else 0.7)
    assert (here.target_success == there.target_success).float().mean() > 0.95
    # A shard that is lost is made again, and is the same but for what is not deterministic in torch.
    whole = there.images()
    for file in tmp_path.glob("there/shard-00001*"):
        file.unlink()
    again = build(recipe, net, source, tmp_path / "there", device=DEVICE, **common)
    net.cpu()
    assert (again.images() - whole).flatten(1).norm(dim=1).median() < 1e-3


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "vgg16", "densenet121", "inception_v3"])
def test_batch_norm_is_folded_on_a_gpu_too(arch):
    """TensorFloat-32 must not make the folded copy look like another function."""
    torch.manual_seed(0)
    model = create(arch, 10, (3, 32, 32)).to(DEVICE).train()
    with torch.no_grad():
        for _ in range(3):  # statistics of its own
            model(torch.rand(32, 3, 32, 32, device=DEVICE))
    model.eval()
    twin = attack_copy(model, autocast=torch.bfloat16)
    folded = sum(isinstance(m, nn.BatchNorm2d) for m in twin.modules())
    # Of a DenseNet half come first in their layers, with no convolution before them.
    assert folded <= 0.6 * sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    x = torch.rand(8, 3, 32, 32, device=DEVICE)
    with torch.no_grad():
        a, b = model.double()(x.double()), twin.double()(x.double())
    assert (a - b).abs().max() <= 1e-3 * a.abs().max()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    found = make_lab(tmp_path_factory.mktemp("reproduction"))
    found.device = torch.device(DEVICE)
    return found


@pytest.mark.parametrize(
    "name", [n for n, found in catalogue.EXPERIMENTS.items() if not found.dataset and "ImageNet" not in found.title]
)
def test_every_experiment_runs(name, workspace):
    page = run_experiment(catalogue.experiment(name), workspace, tiny_preset())
    assert page.results["findings"] and page.results["device"] != "cpu"
