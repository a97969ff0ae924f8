"""The examples that an evaluation returns are those that its flags speak of."""

import pytest
import torch
from support.short_evaluation import N, attack, task
from support.tanh_network import tanh_network
from support.tensor_source import TensorSource

from advfeat import CW, L2, PGD, AutoAttack, CrossEntropy, Ensemble, Linf
from advfeat.evaluation import evaluate, under_attack


def told(found, net, source, name, threat):
    """Checks flags, distances and predictions of one attack's examples."""
    examples, images = found.examples[name], source.images(found.index)
    with torch.no_grad():
        right = net(examples.images).argmax(1) == found.labels
    assert torch.equal(right, found.robust[name])
    torch.testing.assert_close(examples.distance, threat.distance(examples.images, images).float())
    assert examples.distance.max() <= threat.eps * (1 + 1e-5)
    assert torch.equal(examples.images[~found.correct], images[~found.correct])
    assert examples.images.min() >= 0 and examples.images.max() <= 1


@pytest.mark.parametrize("state", [False, True])
def test_they_are_misclassified_where_the_flags_say_so(tmp_path, state):
    net, source = task()
    more = {"state": tmp_path / "state"} if state else {}
    found = evaluate(net, source, attacks=[("a", attack())], batch_size=5, keep_examples=True, **more)
    assert 0 < found.robust["a"].sum() < N - 5
    told(found, net, source, "a", Linf(0.06))
    assert not evaluate(net, source, attacks=[("a", attack())]).examples


def test_what_a_smaller_radius_broke_has_its_example():
    net, source = task()
    weak, strong = PGD(L2(0.6), steps=1, step_size=1e-4, keep="best"), PGD(L2(0.3), steps=20, keep="best")
    middle = PGD(L2(0.5), steps=1, step_size=1e-4, keep="best")
    found = evaluate(net, source, attacks=[("w", weak), ("m", middle), ("s", strong)], keep_examples=True)
    assert found.robustness[0].carried > 0
    told(found, net, source, "w", L2(0.6))
    broken = found.correct & ~found.robust["s"]
    assert torch.equal(found.examples["w"].images[broken], found.examples["s"].images[broken])


def test_where_the_copy_was_wrong_they_are_those_of_the_model_itself(monkeypatch):
    net, source = task()
    real = under_attack.attack_copy

    def shifted(model, **settings):
        return lambda x: real(model, **settings)(x) + 0.5 * torch.eye(5)[0]

    monkeypatch.setattr(under_attack, "attack_copy", shifted)
    found = evaluate(net, source, attacks=[("a", attack())], keep_examples=True)
    told(found, net, source, "a", Linf(0.06))


def test_a_model_in_float64_and_nothing_to_attack():
    net, x, y = tanh_network(20, wrong=20)
    source = TensorSource(x[:, :, :, None].float(), y, tuple("abcde"), "tanh")
    both = Ensemble((PGD(L2(0.3), steps=2, objective=CrossEntropy()), PGD(L2(0.3), steps=2, objective=CW())))
    found = evaluate(net, source, attacks=[("a", both), ("b", AutoAttack(L2(0.2)))], keep_examples=True)
    assert torch.equal(found.examples["b"].images, source.images())
    assert [row.attacked for row in found.robustness[0].breakdown] == [0, 0]
    y = (net(x).argmax(1)).clone()
    source = TensorSource(x[:, :, :, None].float(), y, tuple("abcde"), "tanh")
    found = evaluate(net, source, attacks=[("a", both)], keep_examples=True)
    assert found.examples["a"].images.dtype == torch.float64 and not found.robust["a"].all()
