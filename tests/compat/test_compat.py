"""Scripts written for torchattacks and MadryLab/robustness run on advfeat.compat with one import changed."""

import importlib
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import advfeat.compat
from advfeat import L2, Linf, compat, ops


def _network(seed=0):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 32), nn.ReLU(), nn.Linear(32, 10))
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.1
    return net


def _batch(n=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 8, 8, generator=generator), torch.randint(10, (n,), generator=generator)


# What a user wrote for torchattacks; `torchattacks` is the module it imports.
TORCHATTACKS_SCRIPT = """
attack = torchattacks.{name}(model, eps={eps}, alpha={alpha}, steps=7, random_start=False)
{mode}
adversarial = attack(images, labels)
"""

# What a user wrote for robustness.attack_steps.
ROBUSTNESS_SCRIPT = """
step = {name}(orig_input=images, eps={eps}, step_size={alpha})
adversarial = images.clone()
for _ in range(7):
    adversarial = adversarial.detach().requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(model(adversarial), labels)
    (grad,) = torch.autograd.grad(loss, [adversarial])
    with torch.no_grad():
        adversarial = step.project(step.step(adversarial, grad))
adversarial = step.to_image(adversarial).detach()
"""


def _theirs(module):
    """The peer where it is installed (the extra ``compare``)."""
    return pytest.importorskip(module, reason=f"{module} is not installed; pip install 'advfeat[compare]'")


def _run(script, **names):
    exec(compile(script, "script", "exec"), names)
    return names["adversarial"]


MODES = {
    "default": "",
    "by label": "attack.set_mode_targeted_by_label(quiet=True)",
    "by function": "attack.set_mode_targeted_by_function(lambda images, labels: (labels + 1) % 10, quiet=True)",
    "least likely": "attack.set_mode_targeted_least_likely(quiet=True)",
    "normalised": "attack.set_normalization_used([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])",
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "eps", "alpha"), [("PGD", 8 / 255, 2 / 255), ("PGDL2", 1.0, 0.2)])
def test_torchattacks_script_runs_with_either(name, eps, alpha, mode):
    torchattacks = _theirs("torchattacks")
    model, (images, labels) = _network(), _batch()
    if mode == "normalised":
        images = (images - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.25, 0.3])[:, None, None]
    script = TORCHATTACKS_SCRIPT.format(name=name, eps=eps, alpha=alpha, mode=MODES[mode])
    ours = _run(script, torchattacks=advfeat.compat, model=model, images=images, labels=labels)
    theirs = _run(script, torchattacks=torchattacks, model=model, images=images, labels=labels)
    assert (ours - images).abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)


@pytest.mark.parametrize(("name", "eps", "alpha"), [("LinfStep", 8 / 255, 2 / 255), ("L2Step", 1.0, 0.2)])
def test_robustness_script_runs_with_either(name, eps, alpha):
    _theirs("robustness")
    peer = importlib.import_module("robustness.attack_steps")
    model, (images, labels) = _network(), _batch()
    script = ROBUSTNESS_SCRIPT.format(name=name, eps=eps, alpha=alpha)
    both = [
        _run(script, torch=torch, model=model, images=images, labels=labels, **{name: getattr(module, name)})
        for module in (advfeat.compat, peer)
    ]
    assert (both[0] - images).abs().max() > 0.01
    torch.testing.assert_close(*both, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["PGD", "PGDL2"])
def test_script_without_the_peer(name):
    """The same script, on our names alone: what it returns is the ops' own loop."""
    eps, alpha = (8 / 255, 2 / 255) if name == "PGD" else (1.0, 0.2)
    model, (images, labels) = _network(), _batch()
    script = TORCHATTACKS_SCRIPT.format(name=name, eps=eps, alpha=alpha, mode="")
    ours = _run(script, torchattacks=advfeat.compat, model=model, images=images, labels=labels)
    step_ = ops.linf_step_ if name == "PGD" else ops.l2_step_
    x = images.clone()
    for _ in range(7):
        z = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), labels, reduction="sum"), z)
        step_(x, grad, images, alpha, eps)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: lambda x: net(x)])
def test_normalised_inputs_leave_no_trace(wrap):
    net, (images, labels) = nn.Sequential(nn.BatchNorm2d(3), _network()).train(), _batch()
    attack = advfeat.compat.PGD(wrap(net), steps=2)
    attack.set_normalization_used([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    attack(images, labels)
    assert net[0].num_batches_tracked == 0 and all(m.training for m in net.modules())


def test_random_starts_follow_the_global_seed():
    model, (images, labels) = _network(), _batch()
    attack = advfeat.compat.PGDL2(model)
    torch.manual_seed(3)
    first = attack(images, labels)
    second = attack(images, labels)
    torch.manual_seed(3)
    assert torch.equal(attack(images, labels), first)
    assert not torch.equal(first, second)


def test_random_targets_are_never_the_label():
    attack = advfeat.compat.PGD(_network())
    attack.set_mode_targeted_random(quiet=True)
    images, labels = _batch(n=500)
    targets = attack._targets(images, labels)
    assert not (targets == labels).any()
    assert len(targets.unique()) == 10


def test_perturbation_is_in_the_ball_and_random():
    images, _ = _batch()
    for name, norm in (("L2Step", 2), ("LinfStep", math.inf)):
        step = getattr(advfeat.compat, name)(images, 0.3, 0.1)
        moved = step.random_perturb(images)
        distance = torch.linalg.vector_norm((moved - images).flatten(1), ord=norm, dim=1)
        assert (distance <= 0.3 + 1e-6).all()
        assert (distance > 0).all()
        assert not torch.equal(moved, step.random_perturb(images))


def test_errors_name_the_argument():
    attack = advfeat.compat.PGD(_network())
    with pytest.raises(ValueError, match="labels"):
        attack(_batch()[0])
    with pytest.raises(ValueError, match="eval mode"):
        attack.set_model_training_mode(model_training=True)
    with pytest.raises(ValueError, match="kth_min"):
        attack.set_mode_targeted_least_likely(kth_min=0)


def small():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    return net, torch.rand(6, 3, 2, 2), torch.arange(6) % 4


def test_a_target_function_that_fills_its_labels_leaves_the_scripts_own():
    """As with torchattacks, which gives it a copy."""
    net, x, y = small()
    attack = compat.PGD(net, steps=2, random_start=False)
    attack.set_mode_targeted_by_function(lambda images, labels: labels.fill_(2), quiet=True)
    before = y.clone()
    got = attack(x, y)
    assert torch.equal(y, before)
    attack.set_mode_targeted_by_label(quiet=True)
    assert torch.equal(got, attack(x, torch.full_like(y, 2)))


def test_what_a_subclass_writes_is_called():
    net, x, y = small()

    class Flipped(compat.PGD):
        def get_logits(self, inputs, labels=None):
            return -self.model(inputs)

    class Mine(compat.PGD):
        def forward(self, images, labels):
            return images + 1

    settings = {"steps": 3, "random_start": False}
    flipped = Flipped(net, **settings)(x, y)
    assert torch.equal(flipped, compat.PGD(lambda z: -net(z), **settings)(x, y))
    assert not torch.equal(flipped, compat.PGD(net, **settings)(x, y))
    assert torch.equal(Mine(net, **settings)(x, y), x + 1)


@pytest.mark.compare
def test_fgsm_is_torchattacks():
    torchattacks = pytest.importorskip("torchattacks")
    net, x, y = small()
    for targeted in (False, True):
        ours, theirs = compat.FGSM(net, eps=0.05), torchattacks.FGSM(net, eps=0.05)
        for attack in (ours, theirs):
            if targeted:
                attack.set_mode_targeted_by_label(quiet=True)
        torch.testing.assert_close(ours(x, y), theirs(x, y), rtol=0, atol=1e-6)


@pytest.mark.compare
@pytest.mark.parametrize("decay", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("mode", MODES)
def test_mifgsm_is_torchattacks(mode, decay):
    torchattacks = _theirs("torchattacks")
    model, (images, labels) = _network().double(), _batch()  # in float32 a sign of a sum near zero may differ
    images = images.double()
    if mode == "normalised":
        images = (images - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.25, 0.3])[:, None, None]
    script = f"""
attack = torchattacks.MIFGSM(model, eps=8 / 255, alpha=1 / 255, steps=9, decay={decay})
{MODES[mode]}
adversarial = attack(images, labels)
"""
    ours = _run(script, torchattacks=advfeat.compat, model=model, images=images, labels=labels)
    theirs = _run(script, torchattacks=torchattacks, model=model, images=images, labels=labels)
    assert (ours - images).abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("decay", [1.0, 0.5, 0.0])
def test_mifgsm_is_its_algorithm(decay, targeted):
    """As torchattacks writes it, with the mean of the magnitudes for their sum; without the peer."""
    model, (images, labels) = _network().double(), _batch()
    images = images.double()
    attack = compat.MIFGSM(model, eps=8 / 255, alpha=1 / 255, steps=9, decay=decay)
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    x, momentum = images.clone(), torch.zeros_like(images)
    for _ in range(9):
        z = x.detach().requires_grad_()
        cost = nn.functional.cross_entropy(model(z), labels) * (-1 if targeted else 1)
        (grad,) = torch.autograd.grad(cost, z)
        momentum = decay * momentum + grad / grad.abs().mean(dim=(1, 2, 3), keepdim=True)
        x = (images + (x + momentum.sign() / 255 - images).clamp(-8 / 255, 8 / 255)).clamp(0, 1)
    torch.testing.assert_close(attack(images, labels), x, rtol=0, atol=1e-9)
    assert f"decay={decay}" in repr(attack) and "random_start" not in repr(attack)


def test_attacks_that_are_not_offered_name_ours():
    with pytest.raises(AttributeError, match=r"not AutoAttack: advfeat.AutoAttack\(threat\)"):
        compat.AutoAttack  # noqa: B018
    with pytest.raises(
        AttributeError, match="offers PGD, PGDL2, FGSM, MIFGSM and MultiAttack of torchattacks, and not Jitter"
    ):
        compat.Jitter  # noqa: B018
    with pytest.raises(ValueError, match="a target needs a targeted mode"):
        compat.PGD(small()[0]).get_target_label(*small()[1:])


def scaled_radius(shape):
    """eps and alpha [B, 1, 1, 1], and the same as [B]."""
    eps = torch.linspace(0.02, 0.2, shape[0])
    return eps.reshape(-1, 1, 1, 1), eps


@pytest.mark.parametrize(("kind", "ball"), [("PGD", Linf), ("PGDL2", L2)])
def test_a_radius_of_each_sample_in_torchattacks_shape(kind, ball):
    net, x, y = small()
    eps, rows = scaled_radius(x.shape)
    attack = getattr(compat, kind)(net, eps=eps, alpha=eps / 4, steps=6)
    moved = attack(x, y)
    assert (ball(1.0).distance(moved, x) <= rows + 1e-6).all() and not torch.equal(moved, x)
    if kind == "PGD":
        theirs = _theirs("torchattacks").PGD(net, eps=eps, alpha=eps / 4, steps=6, random_start=False)
        attack.random_start = False
        torch.testing.assert_close(attack(x, y), theirs(x, y), rtol=0, atol=1e-6)


def test_an_attack_returns_what_type_it_is_told():
    net, x, y = small()
    attack = compat.PGD(net, eps=8 / 255, steps=2, random_start=False)
    as_float = attack(x, y)
    attack.set_return_type("int")
    assert attack(x, y).dtype == torch.uint8
    torch.testing.assert_close(attack(x, y).float() / 255, as_float, rtol=0, atol=0.5001 / 255)
    attack.set_model(lambda z: net(z * 0.25 + 0.5))
    attack.set_normalization_used([0.5] * 3, [0.25] * 3)
    torch.testing.assert_close(attack((x - 0.5) / 0.25, y).float() / 255, as_float, rtol=0, atol=0.5001 / 255)
    with pytest.raises(ValueError, match="type should be one of float, int, got 'uint8'"):
        attack.set_return_type("uint8")


def loader(x, y):
    return DataLoader(TensorDataset(x, y), batch_size=4)


@pytest.mark.parametrize("kind", ["float", "int"])
@pytest.mark.parametrize("normalised", [False, True])
def test_what_is_saved_is_what_the_attack_gives(tmp_path, kind, normalised, capsys):
    net, x, y = small()
    attack = compat.PGD(net, eps=0.1, steps=3, random_start=False)
    wanted = attack(x, y)
    given, read = x, {}
    if normalised:
        read = {"normalize": {"mean": [0.5] * 3, "std": [0.25] * 3}}
        attack = compat.PGD(lambda z: net(z * 0.25 + 0.5), eps=0.1, steps=3, random_start=False)
        attack.set_normalization_used(*read["normalize"].values())
        given, wanted = (x - 0.5) / 0.25, (wanted - 0.5) / 0.25
    path = tmp_path / "adversarial.pt"
    robust, distance, seconds = attack.save(
        loader(given, y), path, return_verbose=True, save_predictions=True, save_clean_inputs=True, save_type=kind
    )
    assert "Save progress: 100.00 %" in capsys.readouterr().out and list(tmp_path.iterdir()) == [path]
    batches = list(attack.load(path, batch_size=4, load_predictions=True, load_clean_inputs=True, **read))
    moved, labels, predicted, clean = (torch.cat(parts) for parts in zip(*batches, strict=True))
    near = {"rtol": 0, "atol": (0.5001 / 255 if kind == "int" else 1e-6) * (4 if normalised else 1)}
    torch.testing.assert_close(moved, wanted, **near)
    torch.testing.assert_close(clean, given, **near)
    right = predicted == labels
    assert torch.equal(labels, y) and robust == 100 * right.double().mean() and seconds > 0
    pixels = (wanted - given) * (0.25 if normalised else 1)
    assert distance == pytest.approx(pixels[~right].flatten(1).norm(dim=1).mean().item(), rel=1e-5)


def test_torchattacks_reads_and_writes_the_same_file(tmp_path):
    theirs = _theirs("torchattacks")
    net, x, y = small()
    attacks = [module.PGD(net, eps=0.1, steps=3, random_start=False) for module in (compat, theirs)]
    for attack in attacks:
        attack.save(loader(x, y), tmp_path / type(attack).__module__, verbose=False, save_clean_inputs=True)
    for attack in attacks:
        for other in attacks:
            read = list(attack.load(tmp_path / type(other).__module__, load_clean_inputs=True))
            torch.testing.assert_close(read[0][0], attacks[0](x, y), rtol=0, atol=1e-6)
            assert torch.equal(read[0][1], y) and torch.equal(read[0][2], x)


def test_a_save_that_cannot_be_is_said_before_the_work(tmp_path):
    net, x, y = small()

    class Counting(compat.PGD):
        calls = 0

        def forward(self, images, labels):
            Counting.calls += 1
            return images

    attack = Counting(net)
    with pytest.raises(ValueError, match="a folder"):
        attack.save(loader(x, y), tmp_path)
    with pytest.raises(ValueError, match="type should be one of float, int"):
        attack.save(loader(x, y), tmp_path / "x", save_type="half")
    assert Counting.calls == 0
    with pytest.raises(ValueError, match="data_loader should have at least one batch"):
        attack.save([], tmp_path / "x")
    attack.save(loader(x, y), tmp_path / "x", verbose=False)
    with pytest.raises(ValueError, match="holds no preds .save with save_predictions=True"):
        attack.load(tmp_path / "x", load_predictions=True)
    torch.save([1], tmp_path / "other")
    with pytest.raises(ValueError, match="should be a file that save wrote"):
        attack.load(tmp_path / "other")


def test_a_closed_pipe_does_not_lose_what_is_saved(tmp_path, monkeypatch):
    net, x, y = small()

    def closed(*args, **kwargs):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    compat.PGD(net, steps=1).save(loader(x, y), tmp_path / "x")
    assert len(next(iter(compat.PGD.load(tmp_path / "x")))[1]) == len(y)


@pytest.mark.parametrize("normalised", [False, True])
def test_multi_attack_keeps_the_first_success(normalised, capsys):
    net, x, y = small()
    y = net(x).argmax(1)
    weak, strong = ({"eps": eps, "alpha": eps / 2, "steps": 4, "random_start": False} for eps in (0.05, 0.5))
    both = [compat.PGD(net, **weak), compat.PGD(net, **strong)]
    first, second = (attack(x, y) for attack in both)
    broken_first, broken_second = (net(moved).argmax(1) != y for moved in (first, second))
    wanted = torch.where(broken_second[:, None, None, None], second, x)
    wanted = torch.where(broken_first[:, None, None, None], first, wanted)
    assert 0 < broken_first.sum() < broken_second.sum()
    attack = compat.MultiAttack(both, verbose=True)
    if normalised:
        for one in both:
            one.set_model(lambda z: net(z * 0.25 + 0.5))
        attack.set_model(both[0].model)
        attack.set_normalization_used([0.5] * 3, [0.25] * 3)
        torch.testing.assert_close(attack((x - 0.5) / 0.25, y) * 0.25 + 0.5, wanted)
    else:
        torch.testing.assert_close(attack(x, y), wanted)
        robust, rates, *_ = attack.save(loader(x, y), verbose=False, return_verbose=True)
        broken = (broken_first, broken_first | broken_second)
        assert rates == pytest.approx([100 * b.double().mean().item() for b in broken])
        assert robust == pytest.approx(100 - rates[-1])
    assert "Attack success rate: " in capsys.readouterr().out


@pytest.mark.compare
def test_multi_attack_is_torchattacks():
    theirs = _theirs("torchattacks")
    net, x, y = small()
    made = []
    for module in (compat, theirs):
        weak, strong = ({"eps": eps, "alpha": eps / 2, "steps": 4, "random_start": False} for eps in (0.05, 0.5))
        made.append(module.MultiAttack([module.PGD(net, **weak), module.PGD(net, **strong)])(x, net(x).argmax(1)))
    torch.testing.assert_close(*made, rtol=0, atol=1e-6)


def test_mistakes_of_multi_attack_get_a_sentence():
    net, *_ = small()
    with pytest.raises(ValueError, match="attacks should be two or more, got 1"):
        compat.MultiAttack([compat.PGD(net)])
    with pytest.raises(ValueError, match="attacks should share one model"):
        compat.MultiAttack([compat.PGD(net), compat.PGD(small()[0])])
    with pytest.raises(ValueError, match="MultiAttack should be in the default mode"):
        compat.MultiAttack([compat.PGD(net), compat.PGD(net)]).set_mode_targeted_by_label(quiet=True)


def test_a_subclass_finds_the_model_in_eval_mode_with_gradients():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 4)).train()
    _, x, y = small()
    statistics = net[0].running_mean.clone()

    class Own(compat.PGD):
        def forward(self, images, labels):
            images = images.clone().requires_grad_()
            loss = nn.functional.cross_entropy(self.get_logits(images), labels)
            return images + self.alpha * torch.autograd.grad(loss, images)[0].sign()

    attack = Own(net)
    with torch.no_grad():
        first, second = attack(x, y), attack(x, y)
    assert torch.equal(first, second) and torch.equal(net[0].running_mean, statistics) and not first.requires_grad
    assert all(module.training for module in net.modules())


def test_a_target_function_that_changes_its_images_leaves_the_scripts_own():
    net, x, y = small()
    attack, before = compat.PGD(net, steps=1), x.clone()
    attack.set_mode_targeted_by_function(lambda images, labels: (images.zero_(), labels)[1], quiet=True)
    attack(x, y)
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(1,), ()])
def test_targets_of_a_model_with_one_logit(shape):
    _, x, _ = small()

    def model(z):
        return (z.flatten(1)[:, 0] - 0.5).reshape(-1, *shape)

    labels = (x.flatten(1)[:, 0] > 0.5).long()
    attack = compat.PGD(model, steps=1)
    for set_mode in (attack.set_mode_targeted_random, attack.set_mode_targeted_least_likely):
        set_mode(quiet=True)
        for given in (labels, None):
            assert torch.equal(attack.get_target_label(x, given), 1 - labels)
    attack.set_mode_targeted_least_likely(kth_min=2, quiet=True)
    with pytest.raises(ValueError, match="kth_min should be below the number of classes, 2, got 2"):
        attack.get_target_label(x, labels)


def test_saving_leaves_the_loaders_images_as_they_are(tmp_path):
    net, x, y = small()

    class InPlace(compat.PGD):
        def forward(self, images, labels):
            return images.mul_(0)

    before = x.clone()
    InPlace(net).save([(x, y)], tmp_path / "x", verbose=False, save_clean_inputs=True)
    moved, _, clean = next(iter(compat.PGD.load(tmp_path / "x", load_clean_inputs=True)))
    assert torch.equal(x, before) and torch.equal(clean, before) and not moved.any()
