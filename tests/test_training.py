"""Training: augmentation, schedules, batches, the loop, resuming, errors."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensor_source import TensorSource, blobs
from torch import nn

import advfeat
from advfeat import models
from advfeat.augment import Augmentation, check_label_safe, flip, translate
from advfeat.batches import Batches, channel_statistics
from advfeat.datasets import sources
from advfeat.evaluation import evaluate
from advfeat.schedules import SCHEDULES, learning_rate
from advfeat.seeds import derive_seed, generator
from advfeat.training import TrainConfig, paper_attack, paper_cifar10, train

QUICK = TrainConfig(width=4, epochs=3, batch_size=16, lr=0.05)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- augmentation


@given(
    n=st.integers(1, 5), channels=st.integers(1, 3), height=st.integers(3, 9), width=st.integers(3, 9),
    pixels=st.integers(0, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_translate_moves_each_image_by_its_own_amount(n, channels, height, width, pixels, seed):
    images = _random(n, channels, height, width, seed=seed)
    moves = torch.randint(-pixels, pixels + 1, (n, 2), generator=torch.Generator().manual_seed(seed))
    out = translate(images, moves[:, 0], moves[:, 1], pixels)
    for i in range(n):
        down, right = moves[i].tolist()
        for r in range(height):
            for c in range(width):
                inside = 0 <= r - down < height and 0 <= c - right < width
                expected = images[i, :, r - down, c - right] if inside else torch.zeros(channels)
                assert torch.equal(out[i, :, r, c], expected)


@given(side=st.integers(8, 20), seed=st.integers(0, 99), name=st.sampled_from(["shift", "crop-flip"]))
def test_augmentation_keeps_the_pixels_of_images_with_an_empty_border(side, seed, name):
    augment = Augmentation(name, side, samples=6, seed=seed)
    images, p = torch.zeros(6, 2, side, side), augment.pixels
    images[:, :, p : side - p, p : side - p] = 0.1 + 0.9 * _random(6, 2, side - 2 * p, side - 2 * p, seed=seed)
    out = augment(images, 0, torch.arange(6))
    assert torch.equal(out.flatten(2).sort(dim=2).values, images.flatten(2).sort(dim=2).values)
    assert not torch.equal(out, images)


@given(seed=st.integers(0, 99), epoch=st.integers(0, 5), order=st.permutations(range(7)), cut=st.integers(1, 6))
def test_augmentation_depends_on_the_sample_and_not_on_its_batch(seed, epoch, order, cut):
    images, ids = _random(7, 1, 8, 8), torch.tensor(order)
    whole = Augmentation("crop-flip", 8, 7, seed)(images, epoch, torch.arange(7))
    augment = Augmentation("crop-flip", 8, 7, seed)
    parts = [augment(images[part], epoch, part) for part in (ids[:cut], ids[cut:])]
    assert torch.equal(torch.cat(parts), whole[ids])


def test_augmentation_by_name():
    images, ids = _random(500, 1, 16, 16), torch.arange(500)
    assert Augmentation("none", 16, 500, 0)(images, 0, ids) is images
    shift, crop = Augmentation("shift", 16, 500, 0), Augmentation("crop-flip", 16, 500, 0)
    assert shift.pixels == crop.pixels == 2
    assert [Augmentation("shift", side, 1, 0).pixels for side in (4, 8, 28, 32)] == [1, 1, 3, 4]
    assert shift.moves(0)[:, 2].sum() == 0
    assert 200 < crop.moves(0)[:, 2].sum() < 300
    assert set(crop.moves(0)[:, 0].tolist()) == {-2, -1, 0, 1, 2}
    assert not torch.equal(crop.moves(0), crop.moves(1).clone())
    assert torch.equal(flip(images, torch.ones(500, dtype=torch.bool))[:, :, :, 0], images[:, :, :, -1])
    with pytest.raises(ValueError, match="augment should be one of none, shift, crop-flip, got 'mixup'"):
        Augmentation("mixup", 8, 1, 0)


def test_flips_are_refused_for_digits():
    check_label_safe("crop-flip", "cifar10", ("airplane", "automobile"), allow_flip=False)
    check_label_safe("shift", "digits", ("0", "1"), allow_flip=False)
    check_label_safe("crop-flip", "digits", ("0", "1"), allow_flip=True)
    for classes in (tuple("0123456789"), ("0 - zero", "1 - one")):
        with pytest.raises(ValueError, match='augment="crop-flip" mirrors digits.*allow_flip'):
            check_label_safe("crop-flip", "digits", classes, allow_flip=False)


# --- seeds


def test_seeds_are_the_same_everywhere_and_tell_their_purposes_apart():
    assert derive_seed(0, "order", 1) == 8444176558443591710
    parts = [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1), (0, "a1"), ("0", "a", 1)]
    assert len({derive_seed(*p) for p in parts}) == len(parts)
    state = torch.get_rng_state()
    torch.randperm(10, generator=generator(0, "x"))
    assert torch.equal(torch.get_rng_state(), state)


# --- schedules


@pytest.mark.parametrize("steps, epochs", [(7, 6), (1, 5), (10, 30)])
def test_schedules_are_those_of_torch(steps, epochs):
    total = steps * epochs

    def rates(make, per_epoch=False, momentum=0.0):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3, momentum=momentum)
        scheduler, out = make(optimizer), []
        for step in range(total):
            out.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if not per_epoch or (step + 1) % steps == 0:
                scheduler.step()
        return out

    def ours(schedule, **settings):
        return [learning_rate(schedule, 0.3, s, steps, epochs, **settings) for s in range(total)]

    S = torch.optim.lr_scheduler
    assert ours("cosine") == pytest.approx(rates(lambda o: S.CosineAnnealingLR(o, total)), rel=1e-9)
    milestones = [2, 4]
    expected = rates(lambda o: S.MultiStepLR(o, milestones, 0.2), per_epoch=True)
    assert ours("step", milestones=milestones, gamma=0.2) == pytest.approx(expected, rel=1e-9)
    assert ours("constant") == [0.3] * total
    up, down = 0.4 * (total + 1), 0.6 * (total + 1)
    triangle = rates(lambda o: S.CyclicLR(o, 0.0, 0.3, up, down, cycle_momentum=False))  # torch's has one more step
    assert ours("cyclic", peak=0.4)[:-1] == pytest.approx(triangle[1:], rel=1e-6)
    assert min(ours("cyclic")) > 0


@given(st.sampled_from(SCHEDULES), st.integers(1, 9), st.integers(1, 9))
def test_rates_are_positive_and_at_most_the_base(schedule, steps, epochs):
    rates = [learning_rate(schedule, 0.5, s, steps, epochs, milestones=(2,)) for s in range(steps * epochs)]
    assert all(0 < rate <= 0.5 for rate in rates)


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="schedule should be one of constant, cosine, step, cyclic, got 'linear'"):
        learning_rate("linear", 1, 0, 1, 1)


# --- batches


def _batches(source, memory_limit, batch_size=16, augment="shift", seed=3):
    augmentation = Augmentation(augment, 8, len(source), seed)
    return Batches(source, batch_size, seed, augmentation, torch.device("cpu"), memory_limit=memory_limit)


def test_batches_are_the_same_in_memory_and_read_ahead():
    source = blobs(53)
    resident, read = _batches(source, 1 << 30), _batches(source, 0)
    assert resident.resident is not None and read.resident is None
    for epoch in range(2):
        seen = []
        for a, b in zip(resident.epoch(epoch), read.epoch(epoch), strict=True):
            assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
            assert torch.equal(a[1], source.labels[a[2]])
            seen.append(a[2])
        assert sorted(torch.cat(seen).tolist()) == list(range(53))
        assert {len(s) for s in seen} == {13, 14}  # 4 batches of 16 at most, none of them small
    orders = [torch.cat([ids for *_, ids in resident.epoch(e)]).tolist() for e in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_the_reading_thread_hands_over_errors_and_ends():
    source = blobs(200)
    source._images[150] = float("nan")
    with pytest.raises(ValueError, match="images of 'blobs' should lie in .* sample 150 holds NaN or infinity"):
        list(_batches(source, 0, augment="none").epoch(0))
    source._images[150] = 0.5
    batches = _batches(source, 0, batch_size=2).epoch(0)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name == "advfeat-read-ahead"]


@pytest.mark.parametrize("value, said", [(float("nan"), "NaN"), (1.5, "values from .* to 1.5"), (-0.1, "from -0.1")])
def test_bad_images_are_found_before_anything_is_written(tmp_path, value, said):
    source = blobs(60)
    source._images[17, 0, 3, 3] = value
    with pytest.raises(ValueError, match=f"sample 17 holds .*{said}"):
        train(QUICK, source, out=tmp_path / "run")
    with pytest.raises(ValueError, match=f"sample 17 holds .*{said}"):
        train(QUICK, blobs(60), source, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_channel_statistics_are_those_of_the_images():
    source = TensorSource(_random(30, 3, 8, 8), torch.zeros(30, dtype=torch.int64), ("a", "b"))
    source._images[:, 2] = 0.25  # a channel that never varies
    mean, std = channel_statistics(source)
    expected = source._images.double()
    assert mean == pytest.approx(expected.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert std[:2] == pytest.approx(expected.std((0, 2, 3), correction=0).tolist()[:2], abs=1e-6)
    assert std[2] == 1.0


# --- the loop


def test_the_update_is_sgd_with_momentum_and_decay():
    """One epoch against the same written out, with the augmentation, the order and the attack of the run."""
    source, attack = blobs(40), advfeat.PGD(advfeat.L2(0.5), steps=3, step_size=0.2)
    config = QUICK.replace(
        epochs=1, augment="shift", attack=attack, schedule="cosine", channels_last=False, label_smoothing=0.1
    )
    result = train(config, source)
    mean, std = channel_statistics(source)
    model = models.create("small-convnet", 3, (1, 8, 8), width=4, mean=mean, std=std, seed=0)
    momentum = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
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
    run = advfeat.PGD.__call__
    monkeypatch.setattr(
        advfeat.PGD, "__call__", lambda self, *args, **kw: seeds.append(self.seed) or run(self, *args, **kw)
    )
    train(QUICK.replace(epochs=2, attack=paper_attack(0.3).replace(random_start=True)), blobs(16))
    assert len(seeds) == len(set(seeds)) == 2


def test_frozen_batchnorm_of_an_own_model_is_trained_in_its_mode_and_dropout_is_reproducible():
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
            model = models.adapt(Net(), num_classes=3, input_shape=(1, 8, 8))
        torch.manual_seed(seed)
        results.append(train(QUICK, blobs(), model=model).model)
        assert results[-1] is model
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


# --- the run folder


def _files(folder):
    return sorted(p.name for p in folder.iterdir())


def test_the_run_folder_says_what_was_done(tmp_path):
    config = QUICK.replace(eval_every=2, eval_attack=paper_attack(0.5), eval_limit=20)
    result = train(config, blobs(60), blobs(30, seed=1), tmp_path / "run")
    folder = tmp_path / "run"
    assert _files(folder) == ["checkpoint.json", "config.json", "metrics.jsonl", "model.json", "model.safetensors"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert [r["epoch"] for r in rows] == [1, 2, 3]
    assert [r["test_accuracy"] is None for r in rows] == [True, False, False]
    assert all(r["robust_accuracy"] is None or 0 <= r["robust_accuracy"] <= 1 for r in rows)
    assert rows[-1]["robust_accuracy"] is not None
    written = json.loads((folder / "config.json").read_text())
    assert written["config"]["mean"] == list(channel_statistics(blobs(60))[0])
    assert written["config"]["eval_attack"]["steps"] == 7 and written["config"]["eval_attack"]["eps"] == 0.5
    assert written["data"]["train"]["fingerprint"] == blobs(60).fingerprint
    assert written["versions"]["torch"] == torch.__version__
    assert written["git"] is None or len(written["git"]["commit"]) == 40
    loaded = models.load(folder)
    x = blobs(10).images()
    assert torch.equal(loaded(x), result.model(x))
    assert models.load_extra(folder)["metrics"] == result.history[-1]


class _Killed(Exception):
    pass


def _stop_after(steps):
    def progress(done, total):
        if done == steps:
            raise _Killed

    return progress


@pytest.mark.parametrize("step", [0, 2, 4, 5, 9, 11])  # of 12, 4 an epoch; 4 is the last of the first epoch
@pytest.mark.parametrize("every", [1, 2, 0])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, step, every):
    config = QUICK.replace(attack=paper_attack(0.3), augment="shift", checkpoint_every=every)
    expected = train(config, blobs(60), blobs(30, seed=1), tmp_path / "undisturbed")
    folder = tmp_path / "run"
    with pytest.raises(_Killed):
        train(config, blobs(60), blobs(30, seed=1), folder, progress=_stop_after(step))
    assert not (folder / "model.json").exists()
    steps = []
    result = train(config, blobs(60), blobs(30, seed=1), folder, progress=lambda done, _: steps.append(done))
    finished_epochs = max(0, step - 1) // 4  # the step that raises is the last of its epoch before the epoch is noted
    assert steps[0] == 4 * (finished_epochs // every * every if every else 0)
    assert models.fingerprint(result.model) == models.fingerprint(expected.model)
    drop = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]  # noqa: E731
    assert drop(result.history) == drop(expected.history)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    assert _files(folder) == _files(tmp_path / "undisturbed")


def test_a_killed_process_is_resumed(tmp_path):
    """SIGKILL in the middle of an epoch, at whatever moment it comes."""
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "import torch; torch.set_num_threads(1)\n"
        "from test_training import QUICK, blobs, train\n"
        "def progress(done, total):\n"
        "    print(done, flush=True)\n"
        f"train(QUICK.replace(epochs=400), blobs(60), out={str(tmp_path / 'run')!r}, progress=progress)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 23:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = QUICK.replace(epochs=400)
        state = json.loads((tmp_path / "run" / "checkpoint.json").read_text())
        assert 4 <= state["epoch"] < 400
        done = state["epoch"]
        with pytest.raises(_Killed):  # as far as two epochs further, both ways
            train(config, blobs(60), out=tmp_path / "run", progress=_stop_after(4 * (done + 2) + 1))
        with pytest.raises(_Killed):
            train(config, blobs(60), out=tmp_path / "other", progress=_stop_after(4 * (done + 2) + 1))
    finally:
        torch.set_num_threads(threads)
    name = f"checkpoint-{done + 2:05d}.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_finished_run_is_read_and_another_one_refused(tmp_path):
    first = train(QUICK, blobs(60), out=tmp_path)
    calls = []
    again = train(QUICK, blobs(60), out=tmp_path, progress=lambda *a: calls.append(a))
    assert not calls
    assert again.history == first.history and models.fingerprint(again.model) == models.fingerprint(first.model)
    with pytest.raises(ValueError, match=r"holds another run \(lr was 0.05 and is now 0.1\).*resume=False"):
        train(QUICK.replace(lr=0.1), blobs(60), out=tmp_path)
    with pytest.raises(ValueError, match="data.train.fingerprint was"):
        train(QUICK, blobs(60, seed=1), out=tmp_path)
    with pytest.raises(ValueError, match="attack was None and is now"):
        train(QUICK.replace(attack=paper_attack()), blobs(60), out=tmp_path)
    train(QUICK.replace(checkpoint_every=2), blobs(60), out=tmp_path)  # makes no difference to the result
    replaced = train(QUICK.replace(lr=0.1), blobs(60), out=tmp_path, resume=False)
    assert models.fingerprint(models.load(tmp_path)) == models.fingerprint(replaced.model)
    assert models.fingerprint(replaced.model) != models.fingerprint(first.model)


def test_an_own_model_resumes_and_loads(tmp_path):
    def make():
        inner = models.create("small-convnet", 3, (1, 8, 8), width=3, seed=9)
        return models.adapt(inner, num_classes=3, input_shape=(1, 8, 8))

    expected = train(QUICK, blobs(60), out=tmp_path / "a", model=make())
    with pytest.raises(_Killed):
        train(QUICK, blobs(60), out=tmp_path / "b", model=make(), progress=_stop_after(6))
    resumed = train(QUICK, blobs(60), out=tmp_path / "b", model=make())
    assert models.fingerprint(resumed.model) == models.fingerprint(expected.model)
    read = train(QUICK, blobs(60), out=tmp_path / "b", model=make())
    assert models.fingerprint(read.model) == models.fingerprint(expected.model)


@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
def test_a_damaged_checkpoint_is_named(tmp_path, how):
    with pytest.raises(_Killed):
        train(QUICK, blobs(60), out=tmp_path, progress=_stop_after(6))
    (file,) = tmp_path.glob("checkpoint-*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(bytes(data[:-1] if how == "truncated" else data))
    message = {"truncated": "is truncated", "altered": "was altered", "missing": "does not exist"}[how]
    with pytest.raises((ValueError, FileNotFoundError), match=f"{file.name} {message}"):
        train(QUICK, blobs(60), out=tmp_path)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(_Killed):
        train(QUICK, blobs(60), out=tmp_path, progress=_stop_after(6))
    before = _files(tmp_path)
    sync = os.fsync

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="could not write .*: No space left on device"):
            train(QUICK, blobs(60), out=tmp_path)
    assert os.fsync is sync and _files(tmp_path) == before
    resumed = train(QUICK, blobs(60), out=tmp_path)
    assert models.fingerprint(resumed.model) == models.fingerprint(train(QUICK, blobs(60)).model)


# --- errors


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
    with pytest.raises(ValueError, match="same classes, got 3 in 'blobs' and 4"):
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


def test_digits_reach_97_percent_and_adversarial_training_makes_them_robust():
    data = sources.load("digits", split="train"), sources.load("digits", split="test")
    config = TrainConfig(width=16, epochs=12, eval_every=0)
    standard = train(config, *data)
    assert standard.history[-1]["test_accuracy"] >= 0.97
    robust = train(config.replace(attack=paper_attack(1.0), epochs=6), *data)
    at = {name: evaluate(r.model, data[1], attacks=[0.5, 1.0]).robustness for name, r in
          (("standard", standard), ("robust", robust))}  # fmt: skip
    assert robust.history[-1]["test_accuracy"] > 0.9
    assert at["robust"][0].accuracy.value > at["standard"][0].accuracy.value + 0.15
    assert at["robust"][1].accuracy.value > at["standard"][1].accuracy.value + 0.2
