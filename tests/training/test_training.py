"""Training: the loop, errors, and real digits."""

from __future__ import annotations

import json
import math

import pytest
import torch
from support.tensor_source import TensorSource, blobs
from torch import nn

import advfeat
from advfeat import models
from advfeat.attacks.pgd import InLockstep
from advfeat.datasets import sources
from advfeat.evaluation import evaluate
from advfeat.random import derive_seed, generator
from advfeat.training import TrainConfig, fast_attack, loop, paper_attack, paper_cifar10, train
from advfeat.training.augment import Augmentation
from advfeat.training.batches import channel_statistics
from advfeat.training.schedules import SCHEDULES, learning_rate

QUICK = TrainConfig(width=4, epochs=3, batch_size=16, lr=0.05)


def test_the_update_is_sgd_with_momentum_and_decay():
    """One epoch against the same written out, with the augmentation, the order and the attack of the run."""
    source, attack = blobs(40), advfeat.PGD(advfeat.L2(0.5), steps=3, step_size=0.2, random_start=True)
    config = QUICK.replace(
        epochs=1, augment="shift", attack=attack, schedule="cosine", channels_last=False, label_smoothing=0.1
    )
    result = train(config, source)
    mean, std = channel_statistics(source)
    model = models.create("small-convnet", 3, (1, 8, 8), width=4, mean=mean, std=std, seed=0)
    momentum = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    attack = attack.replace(seed=derive_seed(0, "attack", 0, 0))  # a seed of None is 0 in a training
    augment, loss_sum, right = Augmentation("shift", 8, 40, 0), 0.0, 0
    order = torch.randperm(40, generator=generator(0, "order", 0))
    for step, ids in enumerate(torch.tensor_split(order, 3)):
        y = source.labels[ids]
        model.eval()
        x = attack(model, augment(source.images(ids), 0, ids), y, sample_ids=ids)
        model.train()
        logits = model(x)
        loss = nn.functional.cross_entropy(logits, y, label_smoothing=0.1)
        loss_sum, right = loss_sum + loss.item() * len(y), right + (logits.argmax(1) == y).sum().item()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for (name, p), g in zip(model.named_parameters(), grads, strict=True):
                g = g + 5e-4 * p
                momentum[name].mul_(0.9).add_(g)
                p -= learning_rate("cosine", 0.05, step, 3, 1) * (g + 0.9 * momentum[name])  # Nesterov
    for name, tensor in result.model.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-4, atol=1e-5)
    row = result.history[0]
    assert row["train_loss"] == pytest.approx(loss_sum / 40, rel=1e-4)
    assert row["train_accuracy"] == right / 40
    assert row["lr"] == learning_rate("cosine", 0.05, 2, 3, 1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_the_steps_of_a_fast_attack_reach_the_surface_of_the_ball(norm, steps):
    attack = fast_attack(0.3, norm, steps)
    assert float(attack.step_length) * steps == pytest.approx(2.5 * 0.3)
    assert paper_attack(0.3, norm).step_length == pytest.approx(0.3 / 5)


def test_training_twice_gives_the_same_bits_whatever_the_global_state():
    fingerprints, states = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.rand(seed)
        before = torch.get_rng_state()
        attack = paper_attack(0.3).replace(random_start=True)
        result = train(QUICK.replace(attack=attack, augment="shift"), blobs(), blobs(seed=1))
        fingerprints.append(models.fingerprint(result.model))
        states.append(torch.equal(torch.get_rng_state(), before))
    assert fingerprints[0] == fingerprints[1]
    assert all(states), "training moved the global random state"
    other = train(QUICK.replace(attack=attack, augment="shift", seed=1), blobs())
    assert models.fingerprint(other.model) != fingerprints[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_learns(schedule):
    result = train(QUICK.replace(epochs=6, schedule=schedule, milestones=(4,)), blobs(120), blobs(60, seed=1))
    assert result.history[-1]["test_accuracy"] > 0.9
    assert not result.model.training


def test_bf16_trains_float32_weights():
    config = QUICK.replace(epochs=6, amp="bf16", attack=paper_attack(0.2))
    result = train(config, blobs(120), blobs(60, seed=1))
    assert result.history[-1]["test_accuracy"] > 0.9
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
    exact = train(config.replace(amp="none"), blobs(120))
    assert models.fingerprint(exact.model) != models.fingerprint(result.model)


def test_a_random_start_differs_between_epochs(monkeypatch):
    seeds = []
    monkeypatch.setattr(
        loop, "InLockstep", lambda attack, *args, **kw: seeds.append(attack.seed) or InLockstep(attack, *args, **kw)
    )
    train(QUICK.replace(epochs=2, attack=paper_attack(0.3).replace(random_start=True)), blobs(16))
    assert len(seeds) == len(set(seeds)) == 2


def test_an_own_model_is_trained_in_train_mode_and_its_dropout_is_reproducible():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.ReLU())
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.body(x))

    results = []
    for seed in (5, 6):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = models.adapt(Net(), num_classes=3, input_shape=(1, 8, 8)).eval()
        modes = []
        model.module.register_forward_pre_hook(lambda module, _, modes=modes: modes.append(module.training))
        torch.manual_seed(seed)
        results.append(train(QUICK.replace(attack=paper_attack()), blobs(32), blobs(8), model=model).model)
        assert results[-1] is model and not model.training
        step = [False] * 7 + [True]  # the attack, then the update
        test = [False] * 5  # the predictions, two passes that should agree, and two of another number of images
        assert modes == (2 * step + test) * 3  # 3 epochs of 2 steps and a test
    assert models.fingerprint(results[0]) == models.fingerprint(results[1])


def test_progress_counts_steps():
    calls = []
    train(QUICK, blobs(60), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 12) for i in range(13)]
    rich = pytest.importorskip("rich.progress")
    with rich.Progress(disable=True) as progress:
        train(QUICK, blobs(60), progress=progress)
        assert progress.tasks[0].completed == progress.tasks[0].total == 12
        assert "epoch 3/3" in progress.tasks[0].description
    with pytest.raises(TypeError, match="progress should be a function"):
        train(QUICK, blobs(60), progress=3)


def test_the_library_prints_nothing(capfd):
    train(QUICK, blobs(60), blobs(60))
    assert capfd.readouterr() == ("", "")


# --- errors


@pytest.mark.parametrize("value, said", [(float("nan"), "NaN"), (1.5, "values from .* to 1.5"), (-0.1, "from -0.1")])
def test_bad_images_are_found_before_anything_is_written(tmp_path, value, said):
    source = blobs(60)
    source._images[17, 0, 3, 3] = value
    with pytest.raises(ValueError, match=f"sample 17 holds .*{said}"):
        train(QUICK, source, out=tmp_path / "run")
    with pytest.raises(ValueError, match=f"sample 17 holds .*{said}"):
        train(QUICK, blobs(60), source, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_names_epoch_and_step(tmp_path):
    model = models.adapt(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), num_classes=3, input_shape=(1, 8, 8), mean=[0.5], std=[0.1]
    )
    config = QUICK.replace(lr=1e18, momentum=0.0, nesterov=False, schedule="constant")
    with pytest.raises(FloatingPointError, match=r"not finite in epoch 1, step [2-4]: (nan|inf).*lower learning rate"):
        train(config, blobs(60), out=tmp_path, model=model)
    assert not (tmp_path / "model.json").exists() and not (tmp_path / "checkpoint.json").exists()


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_found_before_training(tmp_path, label):
    wrong = blobs(60)
    wrong.labels = wrong.labels.clone()
    wrong.labels[[11, 20]] = label
    message = f"labels of 'blobs' should be in 0 .. 2 .* sample 11 has label {label} .2 of 60"
    for data in ((wrong, None), (blobs(60), wrong)):
        with pytest.raises(ValueError, match=message):
            train(QUICK, *data, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_and_model_have_to_fit(tmp_path):
    with pytest.raises(
        ValueError, match="same classes: none only in the former, 'd' only in the latter .3 and 4 classes"
    ):
        train(QUICK, blobs(60), blobs(60, classes=4))
    with pytest.raises(ValueError, match=r"one shape, got \(1, 8, 8\) and \(1, 9, 8\)"):
        train(QUICK, blobs(60), blobs(60, shape=(1, 9, 8)))
    with pytest.raises(ValueError, match="the model has 4 classes, data set 'blobs' has 3"):
        train(QUICK, blobs(60), model=models.create("small-convnet", 4, (1, 8, 8)))
    with pytest.raises(ValueError, match=r"images of shape \(3, 8, 8\), data set 'blobs' has \(1, 8, 8\)"):
        train(QUICK, blobs(60), model=models.create("small-convnet", 3, (3, 8, 8)))
    empty = TensorSource(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64), ("a", "b"), "empty")
    with pytest.raises(ValueError, match="data set 'empty' has no samples"):
        train(QUICK, empty)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"epochs": 0}, "epochs should be an integer, at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size should be an integer"),
        ({"lr": -1.0}, r"lr should be in \[0, inf\), got -1.0"),
        ({"lr": math.nan}, "lr should be in"),
        ({"momentum": 1.0}, r"momentum should be in \[0, 1\), got 1.0"),
        ({"schedule": "exp"}, "schedule should be one of constant, cosine, step, cyclic, got 'exp'"),
        ({"augment": "flip"}, "augment should be one of"),
        ({"amp": "fp8"}, "amp should be one of none, bf16, got 'fp8'"),
        ({"momentum": 0.0}, "nesterov needs momentum"),
        ({"attack": paper_attack().replace(targeted=True)}, "attack should not be targeted"),
    ],
)
def test_config_says_what_is_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)
    with pytest.raises(TypeError, match="attack should be an advfeat.PGD or None, got float"):
        TrainConfig(attack=0.5)


def test_the_papers_settings():
    attack = paper_attack()
    assert attack.to_dict() | {"norm": "l2", "eps": 0.5, "steps": 7, "step_size": 0.1} == attack.to_dict()
    assert not attack.random_start and not attack.targeted
    assert paper_attack(3.0).step_size == pytest.approx(0.6)
    config = paper_cifar10(attack=attack)
    assert (config.arch, config.batch_size, config.lr, config.weight_decay) == ("resnet50", 128, 0.1, 5e-4)
    rates = [
        learning_rate("step", 0.1, e, 1, 150, milestones=config.milestones, gamma=config.gamma) for e in range(150)
    ]
    assert [rates[i] for i in (0, 49, 50, 99, 100, 149)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    json.dumps(config.to_dict(), allow_nan=False)


# --- on real digits


@pytest.mark.slow
def test_digits_reach_97_percent_and_adversarial_training_makes_them_robust():
    data = sources.load("digits", split="train"), sources.load("digits", split="test")
    config = TrainConfig(width=16, epochs=12, eval_every=0)
    standard = train(config, *data)
    assert standard.history[-1]["test_accuracy"] >= 0.97
    robust = train(config.replace(attack=paper_attack(1.0), epochs=6), *data)
    attacks = [advfeat.PGD(advfeat.L2(eps), steps=20, step_size=2.5 * eps / 20, keep="best") for eps in (0.5, 1.0)]
    at = {name: evaluate(r.model, data[1], attacks=attacks).robustness for name, r in
          (("standard", standard), ("robust", robust))}  # fmt: skip
    assert robust.history[-1]["test_accuracy"] > 0.9
    assert at["robust"][0].accuracy.value > at["standard"][0].accuracy.value + 0.15
    assert at["robust"][1].accuracy.value > at["standard"][1].accuracy.value + 0.2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_is_trained_in_the_precision_it_is_in(dtype):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).to(dtype)
    trained = train(QUICK.replace(attack=paper_attack(0.1)), blobs(60), blobs(30, seed=1), model=model)
    assert {p.dtype for p in trained.model.parameters()} == {dtype} and trained.history[-1]["test_accuracy"] > 0.4


def test_a_model_with_one_logit_learns_two_classes(tmp_path):
    def binary(**shape):
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1), torch.nn.Flatten(**shape))
        return models.adapt(module, num_classes=2, input_shape=(1, 8, 8))

    source = blobs(80, classes=2)
    config = QUICK.replace(attack=paper_attack(0.1))
    for name, model in (("column", binary()), ("flat", binary(start_dim=0))):
        assert train(config, source, source, tmp_path / name, model=model).history[-1]["test_accuracy"] > 0.9


def test_a_dataset_of_torch_is_trained_on_as_it_is(tmp_path):
    source, test = blobs(60), blobs(30, seed=1)
    given = [torch.utils.data.TensorDataset(s.images(), s.labels) for s in (source, test)]
    wanted = train(QUICK, source, test)
    found = train(QUICK, *given, tmp_path)
    assert models.fingerprint(found.model) == models.fingerprint(wanted.model)
    assert found.history[-1]["test_accuracy"] == wanted.history[-1]["test_accuracy"]
    assert found.model.classes == ("0", "1", "2")
    assert train(QUICK, *given, tmp_path).history == found.history  # resumed by its fingerprint


def test_what_cannot_be_trained_is_said_before_the_training(tmp_path):
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    for model, error, message in (
        (module, TypeError, "create or adapt if it is to be saved in out, got Sequential"),
        (module.state_dict(), TypeError, "a state dict holds weights alone"),
        (lambda x: module(x), TypeError, "model should be a torch.nn.Module, got function"),
        (models.create("small-convnet", 3, (1, 8, 8), width=2).to("meta"), ValueError, "the meta device"),
    ):
        with pytest.raises(error, match=message):
            train(QUICK, blobs(30), out=tmp_path / "run", model=model)
    with pytest.raises(ValueError, match="should give 3 logits, one per class, got 7"):
        train(QUICK, blobs(30), model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7)))
    assert not (tmp_path / "run").exists()


def test_a_mean_of_zero_is_not_the_data_sets():
    source = blobs(40)
    result = train(QUICK.replace(epochs=1, mean=(0.0,)), source)
    assert result.config.mean == (0.0,) and result.config.std == channel_statistics(source)[1]


def test_one_class_is_named():
    with pytest.raises(ValueError, match="data set 'arrays' should have two classes or more to tell apart, got 'only'"):
        train(QUICK, advfeat.datasets.base.ArraySource(torch.rand(4, 1, 8, 8), [0] * 4, ["only"]))
