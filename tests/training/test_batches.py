"""Inputs of a training: augmentation, seeds, schedules, batches."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tensor_source import TensorSource, blobs
from torch import nn

from advfeat._checks import check_labels
from advfeat.random import derive_seed, generator
from advfeat.training.augment import Augmentation, check_label_safe, flip, translate
from advfeat.training.batches import Batches, channel_statistics
from advfeat.training.schedules import SCHEDULES, learning_rate


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
    images, p = torch.zeros(6, 2, side, side), augment.pixels[0]
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
    assert shift.pixels == crop.pixels == (2, 2)
    assert [Augmentation("shift", side, 1, 0).pixels[0] for side in (4, 8, 28, 32)] == [1, 1, 3, 4]
    assert shift.moves(0)[:, 2].sum() == 0
    assert 200 < crop.moves(0)[:, 2].sum() < 300
    assert set(crop.moves(0)[:, 0].tolist()) == {-2, -1, 0, 1, 2}
    assert not torch.equal(crop.moves(0), crop.moves(1).clone())
    assert torch.equal(flip(images, torch.ones(500, dtype=torch.bool))[:, :, :, 0], images[:, :, :, -1])
    with pytest.raises(ValueError, match="augment should be one of none, shift, crop-flip, got 'mixup'"):
        Augmentation("mixup", 8, 1, 0)


@given(height=st.integers(1, 64), width=st.integers(1, 64), seed=st.integers(0, 9))
def test_wide_and_tall_images_are_moved_by_an_eighth_of_each_side(height, width, seed):
    augment = Augmentation("crop-flip", (height, width), 200, seed)
    down, right, _ = augment.moves(0).T
    for moves, side, most in zip((down, right), (height, width), augment.pixels, strict=True):
        assert most == (0 if side == 1 else max(1, side // 8)) and int(moves.abs().max()) == most
        assert set(moves.tolist()) == set(range(-most, most + 1))
    ones = torch.ones(200, 1, height, width)
    kept = augment(ones, 0, torch.arange(200)).sum((1, 2, 3))
    assert torch.equal(kept, ((height - down.abs()) * (width - right.abs())).float())  # none is ever blank
    # The size that was given does not have to be that of the images.
    other = Augmentation("crop-flip", (width, height), 200, seed)
    assert torch.equal(other(ones, 0, torch.arange(200)), augment(ones, 0, torch.arange(200)))


@pytest.mark.parametrize("name", ["shift", "crop-flip"])
@pytest.mark.parametrize("side", [4, 8, 28, 32])
def test_square_images_keep_the_draws_of_the_first_release(name, side):
    """Models are cached and compared by what they were trained on."""
    pixels, random = max(1, side // 8), generator(7, "augment", 3)
    expected = torch.randint(-pixels, pixels + 1, (50, 3), generator=random)
    expected[:, 2] = torch.randint(0, 2, (50,), generator=random) if name == "crop-flip" else 0
    for size in (side, (side, side)):
        assert torch.equal(Augmentation(name, size, 50, 7).moves(3), expected)
    assert torch.equal(Augmentation(name, side, 50, 7, pixels=pixels).moves(3), expected)


@pytest.mark.parametrize("pixels", [-1, 8, 100])
def test_moves_that_could_leave_nothing_are_refused(pixels):
    with pytest.raises(ValueError, match=r"pixels should be in 0 .. 7 for \(8, 128\) images, got"):
        Augmentation("shift", (8, 128), 1, 0, pixels)


def test_flips_are_refused_for_digits():
    check_label_safe("crop-flip", "cifar10", ("airplane", "automobile"), allow_flip=False)
    check_label_safe("shift", "digits", ("0", "1"), allow_flip=False)
    check_label_safe("crop-flip", "digits", ("0", "1"), allow_flip=True)
    for classes in (tuple("0123456789"), ("0 - zero", "1 - one")):
        with pytest.raises(ValueError, match='augment="crop-flip" mirrors digits.*allow_flip'):
            check_label_safe("crop-flip", "digits", classes, allow_flip=False)
    check_label_safe(
        "crop-flip", "clothes", ("0_T-shirt_top", "1_Trouser"), allow_flip=False
    )  # as folders are numbered


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


@pytest.mark.parametrize("memory_limit", [0, 1 << 30])
def test_a_source_that_gives_other_images_than_it_says_is_named(memory_limit):
    class Wrong(TensorSource):
        def images(self, indices=None):
            return self.change(super().images(indices))

    good = blobs(20)
    for change, error, said in [
        (
            lambda x: x.permute(0, 2, 3, 1),
            ValueError,
            r"'mine' should have shape \[\d+, 1, 8, 8\], got \[\d+, 8, 8, 1\]",
        ),
        (lambda x: x[:1], ValueError, r"should have shape \[\d+, 1, 8, 8\], got \[1, 1, 8, 8\]"),
        (lambda x: x.double(), TypeError, "images of 'mine' should be a float32 tensor, got torch.float64"),
        (lambda x: (x * 255).byte(), TypeError, "got torch.uint8"),
        (lambda x: x.numpy(), TypeError, "got ndarray"),
    ]:
        source = Wrong(good.images(), good.labels, good.classes, "mine")
        source.change = change
        with pytest.raises(error, match=said):
            next(_batches(source, memory_limit, augment="none").epoch(0))
        with pytest.raises(error, match=said):
            next(source.batches(4))


@pytest.mark.parametrize("labels", [[0, 1, 2, 0], np.zeros(4, np.int64), torch.zeros(4), torch.zeros(4, 1).long()])
def test_labels_that_are_no_tensor_of_integers_are_named(labels):
    with pytest.raises(TypeError, match=r"labels of 'mine' should be an int64 tensor \[N\], got (list|ndarray|torch)"):
        check_labels(labels, 3, "mine")


def test_a_default_device_or_dtype_changes_no_batch():
    expected = [tuple(t.clone() for t in batch) for batch in _batches(blobs(20), 0).epoch(0)]
    source = blobs(20)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = list(_batches(source, 0).epoch(0))
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(expected, found, strict=True):
        assert all(torch.equal(p, q) and p.dtype == q.dtype for p, q in zip(a, b, strict=True))


def test_channel_statistics_are_those_of_the_images():
    source = TensorSource(_random(30, 3, 8, 8), torch.zeros(30, dtype=torch.int64), ("a", "b"))
    source._images[:, 2] = 0.25  # a channel that never varies
    mean, std = channel_statistics(source)
    expected = source._images.double()
    assert mean == pytest.approx(expected.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert std[:2] == pytest.approx(expected.std((0, 2, 3), correction=0).tolist()[:2], abs=1e-6)
    assert std[2] == 1.0
