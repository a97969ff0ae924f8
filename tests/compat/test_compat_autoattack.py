"""The drop-in for ``autoattack``: interface, versions, log and state, and RobustBench's way of calling it."""

import importlib
import json
import re
import sys

import pytest
import torch
from support.digits_network import digits_network
from torch import nn

from advfeat.attacks import APGD, FAB, Square
from advfeat.compat import autoattack
from advfeat.compat.autoattack import AutoAttack, EvaluationState
from advfeat.datasets import load


@pytest.fixture(scope="module")
def digits():
    test = load("digits", "test")
    return test.images()[:50].contiguous(), test.labels[:50]


@pytest.fixture(scope="module")
def net():
    return digits_network(adversarial=True)


def short(net, **settings):
    """An evaluation of few steps."""
    attack = AutoAttack(net, eps=0.12, seed=0, device="cpu", **settings)
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = 8
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = 2
    attack.square.n_queries = 20
    return attack


def test_settings_are_the_published_ones(net):
    attack = AutoAttack(net, device="cpu", verbose=False)
    assert attack.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert (attack.apgd.n_restarts, attack.apgd.n_iter, attack.apgd.eot_iter) == (1, 100, 1)
    assert (attack.apgd_targeted.n_target_classes, attack.apgd_targeted.n_restarts) == (9, 1)
    assert (attack.fab.n_restarts, attack.fab.n_iter, attack.fab.alpha_max) == (1, 100, 0.1)
    assert (attack.square.n_queries, attack.square.p_init, attack.square.rescale_schedule) == (5000, 0.8, False)
    l1 = AutoAttack(net, norm="L1", device="cpu", verbose=False)
    assert (l1.apgd.n_restarts, l1.apgd.use_largereps, l1.apgd_targeted.n_target_classes) == (5, True, 5)
    plus = AutoAttack(net, version="plus", device="cpu", verbose=False)
    assert plus.attacks_to_run == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert (plus.apgd.n_restarts, plus.fab.n_restarts) == (5, 5)
    rand = AutoAttack(net, version="rand", device="cpu", verbose=False)
    assert (rand.attacks_to_run, rand.apgd.eot_iter) == (["apgd-ce", "apgd-dlr"], 20)
    custom = AutoAttack(net, version="custom", attacks_to_run=["square"], device="cpu", verbose=False)
    assert (custom.attacks_to_run, custom.apgd.n_restarts, custom.fab.n_restarts) == (["square"], 5, 5)


def test_attributes_set_after_construction_are_read_at_run_time(net):
    attack = short(net, verbose=False)
    attack.norm, attack.epsilon = "L2", 0.5
    (first,), targeted, (fab,), (square,) = (attack._attacks(name, 10) for name in attack.attacks_to_run)
    assert isinstance(first, APGD) and (first.steps, first.threat.norm, first.threat.eps) == (8, "l2", 0.5)
    assert [a.rank for a in targeted] == [0, 1] and {a.steps for a in targeted} == {8}
    assert isinstance(fab, FAB) and (fab.steps, fab.targets) == (8, 2)
    assert isinstance(square, Square) and square.steps == 20
    assert len(attack._attacks("apgd-t", 2)) == 1  # of so many classes


def test_a_standard_evaluation_and_its_log(net, digits, capsys, tmp_path):
    x, y = digits
    state = torch.get_rng_state()
    attack = short(net, log_path=tmp_path / "log.txt")
    x_adv, y_adv = attack.run_standard_evaluation(x, y, bs=20, return_labels=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(net(x_adv).argmax(1), y_adv) and (x_adv - x).abs().max() <= 0.12 * (1 + 1e-5)
    robust, clean = y_adv == y, net(x).argmax(1) == y
    assert torch.equal(x_adv[robust | ~clean], x[robust | ~clean]) and (clean & ~robust).any()
    out = capsys.readouterr().out
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert out.splitlines() == lines
    assert lines[0] == "setting parameters for standard version"
    assert lines[1] == "using standard version including apgd-ce, apgd-t, fab-t, square."
    assert lines[2] == f"initial accuracy: {clean.double().mean():.2%}"
    assert re.fullmatch(r"apgd-ce - 1/3 - \d+ out of 20 successfully perturbed", lines[3])
    assert re.fullmatch(r"robust accuracy after APGD-CE: [\d.]+% \(total time [\d.]+ s\)", lines[6])
    assert re.fullmatch(r"max Linf perturbation: 0\.12000, nan in tensor: 0, max: 1\.00000, min: 0\.00000", lines[-2])
    assert lines[-1] == f"robust accuracy: {robust.double().mean():.2%}"


def test_the_batch_size_does_not_matter_and_each_attack_alone(net, digits, capsys):
    x, y = digits
    attack = short(net, verbose=False)
    whole = attack.run_standard_evaluation(x, y)
    parts = attack.run_standard_evaluation(x, y, bs=7)
    assert ((net(whole).argmax(1) == y) == (net(parts).argmax(1) == y)).double().mean() > 0.95
    attack.verbose = True
    alone = attack.run_standard_evaluation_individual(x, y, bs=50)
    assert list(alone) == attack.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"] and attack.verbose
    assert re.search(r"robust accuracy by APGD-CE \t [\d.]+% \t \(time attack: [\d.]+ s\)", capsys.readouterr().out)
    broken = torch.stack([net(x_adv).argmax(1) != y for x_adv in alone.values()]).any(0)
    assert (broken == (net(whole).argmax(1) != y)).double().mean() > 0.95
    assert attack.clean_accuracy(x, y) == float((net(x).argmax(1) == y).double().mean())
    assert "clean accuracy: " in capsys.readouterr().out


def test_a_stopped_evaluation_resumes_with_its_examples(net, digits, tmp_path):
    x, y = digits
    path, calls = tmp_path / "state.json", [0]
    undisturbed = short(net, verbose=False).run_standard_evaluation(x, y)
    attack = short(net, verbose=False)
    attacked = attack._attacked

    def interrupted(name, *arguments):
        if name == "fab-t":
            raise KeyboardInterrupt
        calls[0] += 1
        return attacked(name, *arguments)

    attack._attacked = interrupted
    with pytest.raises(KeyboardInterrupt):
        attack.run_standard_evaluation(x, y, state_path=path)
    state = EvaluationState.from_disk(path)
    assert state.run_attacks == {"apgd-ce", "apgd-t"} and state.x_adv is not None and calls[0] == 2
    assert set(json.loads(path.read_text())) == {
        "_attacks_to_run",
        "path",
        "_run_attacks",
        "_robust_flags",
        "_last_saved",
        "_SAVE_TIMEOUT",
        "_clean_accuracy",
    }
    ran = []
    again = short(net, verbose=False)
    attacked_again = again._attacked
    again._attacked = lambda name, *arguments: ran.append(name) or attacked_again(name, *arguments)
    resumed = again.run_standard_evaluation(x, y, state_path=path)
    assert ran == ["fab-t", "square"] and torch.equal(resumed, undisturbed)
    final = EvaluationState.from_disk(path)
    assert final.robust_accuracy == float((net(resumed).argmax(1) == y).double().mean())
    other = AutoAttack(net, version="custom", attacks_to_run=["square"], device="cpu", verbose=False)
    with pytest.raises(ValueError, match="state_path should be of an evaluation with square"):
        other.run_standard_evaluation(x, y, state_path=path)


def test_it_takes_the_place_of_the_package(net, digits, monkeypatch, tmp_path):
    """As RobustBench's benchmark() imports and calls it."""
    monkeypatch.setitem(sys.modules, "autoattack", autoattack)
    monkeypatch.delitem(sys.modules, "autoattack.state", raising=False)
    package, state = importlib.import_module("autoattack"), importlib.import_module("autoattack.state")
    x, y = digits
    adversary = package.AutoAttack(
        net,
        norm="Linf",
        eps=0.12,
        version="custom",
        device=torch.device("cpu"),
        attacks_to_run=["apgd-ce"],
        log_path=None,
    )
    adversary.apgd.n_iter = 5
    x_adv = adversary.run_standard_evaluation(x, y, bs=25, state_path=tmp_path / "s.json")
    assert (
        state.EvaluationState.from_disk(tmp_path / "s.json").robust_flags.float().mean()
        == (net(x_adv).argmax(1) == y).float().mean()
    )
    monkeypatch.delitem(sys.modules, "autoattack.state", raising=False)


def test_models_for_which_the_version_is_wrong_are_told(digits, capsys):
    x, y = digits
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for model, words in (
        (nn.Sequential(linear, nn.Softmax(dim=1)), "probability distribution"),
        (lambda z: linear(z) + torch.randn(len(z), 10), "randomized defense"),
        (lambda z: linear(z)[:, :2], "not possible to use the DLR loss"),
        (lambda z: linear(z)[:, :4], "more target classes"),
    ):
        attack = short(model)
        attack.apgd_targeted.n_target_classes = 9
        with pytest.warns(UserWarning, match=words):
            attack.run_standard_evaluation(x, y % 2)
        assert "Warning: " in capsys.readouterr().out


def test_mistakes(net, digits):
    with pytest.raises(AssertionError, match="norm should be one of Linf, L2, L1"):
        AutoAttack(net, norm="l2")
    with pytest.raises(ValueError, match="attacks_to_run should be empty with version='standard'"):
        AutoAttack(net, attacks_to_run=["square"])
    with pytest.raises(ValueError, match="is_tf_model should be False"):
        AutoAttack(net, is_tf_model=True)
    with pytest.raises(ValueError, match="got 'pgd'"):
        AutoAttack(net, version="custom", attacks_to_run=["pgd"], device="cpu").run_standard_evaluation(*digits)
    with pytest.raises(ValueError, match="version should be one of standard, plus, rand"):
        AutoAttack(net, verbose=False, device="cpu").set_version("fast")
