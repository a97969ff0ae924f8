"""``over``: each batch of a data set comes back with its result, with whatever the caller put beside it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tanh_network import tanh_network
from torch.utils.data import DataLoader, TensorDataset

from advfeat import APGD, CW, L2, PGD, Auto, Converged, Ensemble, Linf

F64 = torch.float64
THREAT = L2(0.3)
ATTACKS = {
    "in step": PGD(THREAT, steps=4),
    "random": PGD(THREAT, steps=2, random_start=True, restarts=2),
    "full batch": PGD(THREAT, steps=9, stop="success"),
    "converged": PGD(THREAT, steps=9, stop=Converged(2)),
    "apgd": APGD(THREAT, steps=5),
    "auto": Auto(THREAT, steps=5, target_classes=2),
    "ensemble": Ensemble((PGD(THREAT, steps=2, stop="success"), PGD(THREAT, steps=9, objective=CW()))),
    "nested": Ensemble((PGD(THREAT, steps=2), Auto(THREAT, steps=5, target_classes=1))),
}


@given(st.sampled_from(sorted(ATTACKS)), st.lists(st.integers(0, 9), max_size=12), st.sampled_from([None, "ids"]))
def test_each_batch_comes_back_as_it_was_with_its_own_result(name, sizes, kind):
    net, x, y = tanh_network(sum(sizes))
    attack = ATTACKS[name]
    ids = torch.arange(len(x)) * 3
    batches = [
        (a, b, None if kind is None else c, {"payload": k}, k)
        for k, (a, b, c) in enumerate(zip(x.split(sizes), y.split(sizes), ids.split(sizes), strict=True))
    ]
    torch.manual_seed(0)
    pairs = list(attack.over(net, iter(batches)))
    assert len(pairs) == len(batches) and all(got is given for (got, _), given in zip(pairs, batches, strict=True))
    torch.manual_seed(0)
    alone = (batch[:3] if kind else batch[:2] for batch in batches)
    for (_, result), (_, without_payload) in zip(pairs, attack.over(net, alone), strict=True):
        assert torch.equal(result.x_adv, without_payload.x_adv)
        assert torch.equal(result.success, without_payload.success)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_a_loader_of_torch(name):
    net, x, y = tanh_network(10)
    for batch, result in ATTACKS[name].over(net, DataLoader(TensorDataset(x, y), batch_size=4)):
        assert type(batch) is list and len(result.x_adv) == len(batch[0])


def test_a_sample_of_a_nested_ensemble_starts_anew_at_every_call_too():
    net, x, y = tanh_network(6)
    attack = PGD(Linf(0.1), steps=0, random_start=True)
    nested = Ensemble((Ensemble((attack,)), attack.replace(objective=CW())))
    assert not torch.equal(nested(net, x, y), nested(net, x, y))
    assert torch.equal(nested.replace(seed=3)(net, x, y), nested.replace(seed=3)(net, x, y))


def test_autos_own_look_at_the_samples_is_counted():
    net, x, y = tanh_network(40)
    seen = []

    def model(v):
        seen.append(len(v))
        return net(v)

    for eps, classes in ((0.02, 3), (0.3, 4), (0.3, 0)):
        attack = Auto(L2(eps), steps=6, target_classes=classes)
        seen.clear()
        assert attack.run(model, x, y).samples_forwarded == sum(seen)
        seen.clear()
        results = [result for _, result in attack.over(model, zip(x.split(8), y.split(8), strict=True))]
        assert sum(result.samples_forwarded for result in results) == sum(seen)
    assert attack.run(net, x, y).samples_forwarded < Auto(L2(0.3), steps=6).run(net, x, y).samples_forwarded


def test_what_auto_leaves_of_several_batches_shares_its_passes():
    net, x, y = tanh_network(64)
    seen = []

    def model(v):
        seen.append(len(v))
        return net(v)

    attack = Auto(L2(0.2), steps=10, target_classes=3)
    whole = attack.run(net, x, y)
    assert 0 < whole.success.sum() < 64
    found = torch.cat([r.x_adv for _, r in attack.over(model, zip(x.split(8), y.split(8), strict=True))])
    torch.testing.assert_close(found[whole.success], whole.x_adv[whole.success], rtol=0, atol=1e-9)
    together, samples = len(seen), sum(seen)
    seen.clear()
    for a, b in zip(x.split(8), y.split(8), strict=True):
        attack.run(model, a, b)
    assert together < 0.8 * len(seen)
    assert samples <= sum(seen), "the other classes are ranked once per sample"


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_auto_on_few_classes_is_apgd_on_the_margin(classes):
    g = torch.Generator().manual_seed(0)
    x, w = torch.rand(12, 4, generator=g, dtype=F64), torch.randn(4, classes, generator=g, dtype=F64)
    y = (x @ w > 0)[:, 0].long() if classes == 1 else (x @ w).argmax(1)
    found, margin = (attack.run(lambda v: v @ w, x, y) for attack in (Auto(THREAT, steps=8), APGD(THREAT, steps=8)))
    assert torch.equal(found.success, margin.success) and torch.equal(found.x_adv, margin.x_adv)


def test_a_data_set_in_the_place_of_its_batches_is_named():
    net, x, y = tanh_network(4)
    with pytest.raises(TypeError, match="batches should hold target as a tensor .* got the number .*DataLoader"):
        next(ATTACKS["in step"].over(net, [(image, int(label)) for image, label in zip(x, y, strict=True)]))
