"""The robustness curve: equal to a count by hand, to known distances, to evaluate at single radii, and to its file."""

import json
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.digits_network import digits_network
from support.halfspace import halfspace_data
from support.linear_net import Then, linear_net
from support.tensor_source import TensorSource
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advfeat import APGD, FAB, FMN, L2, PGD, Linf, RadiusSearch, Threat
from advfeat.datasets import load
from advfeat.evaluation import RobustnessCurve, curve_attack, evaluate, pgd_attack, robustness_curve
from advfeat.intervals import wilson

NORMS = ["l2", "linf", "l1"]
LARGEST = {"l2": 8.0, "linf": 1.0, "l1": 64.0}


@pytest.fixture(scope="module")
def net():
    return digits_network(adversarial=False)


@pytest.fixture(scope="module")
def digits():
    return load("digits", "test", limit=60)


@pytest.fixture(scope="module")
def curve(net, digits):
    return robustness_curve(net, digits, FMN(L2(8.0), steps=20))


def made(distances, **changes):
    """A curve of these distances."""
    n = len(distances)
    fields = dict.fromkeys(("moved", "unconfirmed", "zero_gradient", "nonfinite_gradient"), 0)
    fields |= {
        "data": "made",
        "norm": "l2",
        "eps": 3.0,
        "radii": (0.25, 0.5),
        "attack": {"attack": "FMN"},
        "note": None,
    }
    fields |= {"attacked": n, "forward_passes": 7, "backward_passes": 5}
    fields |= {"model_fingerprint": None, "data_fingerprint": None}
    fields |= {"index": torch.arange(n), "labels": torch.zeros(n).long(), "prediction": torch.arange(n) - 1}
    return RobustnessCurve(**fields | {"distances": torch.tensor(distances, dtype=torch.float64)} | changes)


@given(
    distances=st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.7, 1e-300, math.inf]) | st.floats(0, 3), min_size=1),
    radius=st.sampled_from([0.0, 0.1, 0.25, 5.0, math.inf]) | st.floats(0, 3),
)
def test_the_curve_at_any_radius_is_the_count_by_hand(distances, radius):
    curve = made(distances)
    share = curve.at(radius)
    by_hand = sum(1 for d in distances if d == math.inf or d > radius)
    assert (share.count, share.n) == (by_hand, len(distances)) and share.interval == wilson(by_hand, len(distances))
    radii, robust = curve.steps()
    assert radii[0] == 0 and (radii.diff() > 0).all() and (robust.diff() <= 0).all()
    assert robust[radii <= radius][-1] == by_hand if radius < math.inf else robust[-1] == curve.never_broken.count
    assert curve.clean.count == sum(d > 0 for d in distances)
    written = curve.to_dict()
    points = written["curve"]
    assert points["robust_accuracy"] == [curve.at(r).value for r in points["radius"]]
    assert points["robust_accuracy"] == sorted(points["robust_accuracy"], reverse=True)
    assert [(points["low"][0], points["high"][0])] == [curve.clean.interval]
    assert written["robustness"][1]["robust_accuracy"] == curve.at(0.5).to_dict()
    json.dumps(written, allow_nan=False)


@pytest.mark.parametrize(
    ("distances", "median"), [([3, 1, 2], 2), ([0, 1, 2, 4], 1.5), ([1, math.inf, math.inf], math.inf)]
)
def test_the_median_counts_unbroken_samples_as_infinite(distances, median):
    assert made(distances).median == median


def test_distances_to_a_known_boundary_are_found():
    model, source, distance, right = halfspace_data()
    found = robustness_curve(model, source, radii=[0.1, 0.02])
    assert torch.equal(found.distances > 0, right) and found.clean.count == int(right.sum()) == found.attacked
    found_of, known = found.distances[right], distance.double()[right]
    assert (found_of >= known * (1 - 1e-4)).all() and (found_of <= known * 1.02 + 1e-3).all()
    assert found.radii == (0.02, 0.1) and found.unconfirmed == 0
    for radius in (0.0, 0.02, 0.1, 9.0):
        assert abs(found.at(radius).count - int((known > radius).sum())) <= 4


@pytest.mark.parametrize("norm", NORMS)
def test_the_curve_of_a_search_agrees_with_evaluate_of_the_same_attack(net, digits, norm):
    """What breaks at a radius has an example there; the search says so unless the example is within its tolerance."""
    attack = pgd_attack(LARGEST[norm], norm, steps=15)
    found = robustness_curve(net, digits, RadiusSearch(attack, rounds=12))
    assert found.never_broken.count <= 1 and found.norm == norm  # PGD finds no radius for one image in L1
    radii = [float(found.distances[found.distances > 0].quantile(q)) for q in (0.25, 0.5, 0.75)]
    single = evaluate(net, digits, attacks=[(str(r), attack.replace(threat=Threat.of(norm, r))) for r in radii])
    assert torch.equal(found.index, single.index) and torch.equal(found.prediction, single.prediction)
    assert found.clean == single.clean
    for radius in radii:
        on_curve, alone = found.distances > radius, single.robust[str(radius)]
        clear = (found.distances - radius).abs() > 0.02 * radius
        assert ((on_curve != alone) & clear).sum() <= 3
        assert found.at(radius).count == int(on_curve.sum())


@pytest.mark.parametrize("norm", NORMS)
def test_the_usual_attack_breaks_what_a_search_breaks_and_more(net, digits, norm):
    found = robustness_curve(net, digits, norm=norm, limit=20)
    weak = robustness_curve(net, digits, RadiusSearch(pgd_attack(LARGEST[norm], norm, steps=5)), limit=20)
    assert found.distances.mean() < weak.distances.mean()
    assert found.attack["attack"] == "RadiusSearch" and found.attack["first"]["norm"] == norm
    assert found.eps == curve_attack(norm, dim=64).threat.eps == pytest.approx(LARGEST[norm])
    assert len(found.distances) == 20 and found.never_broken.count == 0


def test_every_distance_is_that_of_an_example_which_the_model_misclassifies(net, digits):
    """By a model that remembers the images it got wrong: the nearest of them to each image is as near as it is said."""
    wrong, x = [], digits.images()

    class Remembers(nn.Module):
        def forward(self, z):
            logits = net(z)
            wrong.append(z.detach()[torch.isfinite(z).flatten(1).all(1)])
            return logits

    found = robustness_curve(Remembers(), digits, FMN(L2(8.0), steps=10))
    seen = torch.cat(wrong).double()
    with torch.no_grad():
        classes = torch.cat([net(part.float()).argmax(1) for part in seen.split(500)])
    for i in range(0, len(x), 7):
        away = (seen - x[i].double()).flatten(1).norm(dim=1)[classes != digits.labels[i]]
        assert (away - found.distances[i]).abs().min() <= 1e-9


def test_data_sets_of_torch_and_limits_are_taken_as_evaluate_takes_them(net, digits, curve):
    data = TensorDataset(digits.images(), digits.labels)
    loader = DataLoader(data, batch_size=16, shuffle=True)
    found = robustness_curve(net, loader, FMN(L2(8.0), steps=20), same_classes=True)
    torch.testing.assert_close(found.distances, curve.distances, rtol=1e-2, atol=0)
    some = robustness_curve(net, data, FMN(L2(8.0), steps=20), limit=7, same_classes=True)
    assert torch.equal(some.index, evaluate(net, data, limit=7, same_classes=True).index)
    torch.testing.assert_close(some.distances, curve.distances[some.index], rtol=1e-2, atol=0)
    assert curve.model_fingerprint == evaluate(net, digits).model_fingerprint is not None
    assert curve.data_fingerprint == digits.fingerprint and curve.radii == L2.usual_radii


def test_progress_counts_every_sample(net, digits):
    told = []
    robustness_curve(net, digits, FMN(L2(8.0), steps=2), batch_size=25, progress=lambda *at: told.append(at))
    assert told[0] == (0, 60) and told[-1] == (60, 60) and [d for d, _ in told] == sorted(d for d, _ in told)


def test_examples_of_low_precision_are_confirmed_by_the_model(net, digits, curve):
    low = robustness_curve(net, digits, FMN(L2(8.0), steps=20, autocast=torch.bfloat16))
    assert low.unconfirmed == 0 and low.never_broken.count == 0 and low.moved > 0
    assert (low.distances > 0).equal(curve.distances > 0)
    broken = curve.distances > 0
    assert (low.distances[broken] / curve.distances[broken]).median() == pytest.approx(1, abs=0.05)


def test_a_claim_that_the_model_does_not_confirm_counts_as_not_broken():
    """bfloat16 sees no difference between the classes; there is none that an attack of the model itself could widen."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0], [1.001]]).expand(2, 16))
    source = TensorSource(torch.full((3, 1, 4, 4), 0.5), torch.ones(3, dtype=torch.int64), ("a", "b"))
    attack = FMN(Linf(0.4), steps=5, autocast=torch.bfloat16)
    assert attack.run(net, source.images(), source.labels).success.all()
    with pytest.warns(RuntimeWarning, match="zero or non-finite gradients"):
        found = robustness_curve(net, source, attack)
    assert found.never_broken.count == 3 and found.unconfirmed == 0  # the second attack, of the model, claims nothing
    assert found.to_dict()["median_smallest_distance"] == "inf"


def test_gradients_that_are_zero_are_said_to_show_nothing(digits):
    dead = Then(linear_net(64), lambda x, z: z.detach() + 0 * z)
    with pytest.warns(RuntimeWarning, match="samples met zero or non-finite gradients.* is not shown"):
        found = robustness_curve(dead, digits, FMN(L2(8.0), steps=3), same_classes=True)
    assert found.zero_gradient == found.attacked == found.never_broken.count
    assert found.to_dict()["warning"] == found.unattacked


def test_random_models_are_confirmed_by_one_look(net, digits):
    class Noisy(nn.Module):
        def forward(self, x):
            return net(x + 0.02 * torch.randn_like(x))

    with pytest.warns(RuntimeWarning, match="random in eval mode"):
        found = robustness_curve(Noisy(), digits, FMN(L2(8.0), steps=20))
    assert found.moved == 0 and "random in eval mode" in found.to_dict()["note"]
    assert found.unconfirmed == found.never_broken.count


def test_a_radius_of_zero_is_clean_accuracy(net, digits):
    found = robustness_curve(net, digits, RadiusSearch(PGD(L2(0.0), steps=3), rounds=2))
    assert found.clean == found.never_broken == evaluate(net, digits).clean and found.median == math.inf


def test_a_saved_curve_is_loaded_bit_for_bit(curve, tmp_path):
    for n, given_ in enumerate((curve, made([0.0, 0.3, math.inf], eps=math.inf, note="random"), made([0.0]))):
        path = given_.save(tmp_path / f"{n}.json")
        back = RobustnessCurve.load(path)
        assert back.to_dict(samples=True) == given_.to_dict(samples=True)
        for name in ("distances", "index", "labels", "prediction"):
            was, now = getattr(given_, name), getattr(back, name)
            assert torch.equal(was, now) and was.dtype == now.dtype
    assert "upper bounds" in json.loads(path.read_text())["meaning"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("samples"), "samples is missing"),
        (lambda s: s.update(norm="l3"), "norm should be a text like"),
        (lambda s: s.update(samples=[]), "at least one sample"),
        (lambda s: s["samples"][1].update(smallest_distance=-0.5), "smallest_distance should be at least 0, got -0.5"),
        (lambda s: s["samples"][1].update(smallest_distance="far"), r"samples\[1\].smallest_distance should be"),
        (lambda s: s["samples"][1].update(label=True), r"samples\[1\].label should be an integer"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, message):
    saved = made([0.0, 0.3]).to_dict(samples=True)
    change(saved)
    (tmp_path / "curve.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=message):
        RobustnessCurve.load(tmp_path / "curve.json")


@pytest.mark.parametrize("distances", [[0.0, 0.3, 0.31, 2.0], [0.0, 0.0], [math.inf, 0.2, math.inf], [math.inf]])
def test_any_curve_can_be_drawn(distances, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = made(distances).draw(tmp_path / "curve.png", "$digits_ \N{HIRAGANA LETTER A}")
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > picture.height > 300


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda n, d: robustness_curve(n, d, norm="l3"), ValueError, "norm should be .l2., .linf. or .l1., got 'l3'"),
        (lambda n, d: robustness_curve(n, d, 0.5), TypeError, "attack should be an attack, such as .* got float"),
        (lambda n, d: robustness_curve(n, d, FMN), TypeError, "attack should be an attack"),
        (lambda n, d: robustness_curve(n, d, FMN(L2(1.0), targeted=True)), ValueError, "attack should not be targeted"),
        (lambda n, d: robustness_curve(n, d, FMN(L2(torch.ones(60)))), ValueError, "one radius for all samples"),
        (lambda n, d: robustness_curve(n, d, APGD(L2(math.inf))), ValueError, "finite eps"),
        (lambda n, d: robustness_curve(n, d, radii=[0.5, -0.25]), ValueError, "radii should be finite and at least 0"),
        (lambda n, d: robustness_curve(n, d, radii=[math.nan]), ValueError, "radii should be finite and at least 0"),
        (lambda n, d: robustness_curve(n, d, radii=0.5), TypeError, "radii should be a list of numbers, got 0.5"),
        (lambda n, d: robustness_curve(n, d, radii=["8/255"]), TypeError, "radii should be a number, got '8/255'"),
        (lambda n, d: robustness_curve(n, d.images()), TypeError, "source should be a data set"),
        (lambda n, d: robustness_curve(n, d, draws=0), ValueError, "draws should be an integer, at least 1, got 0"),
        (lambda n, d: curve_attack("l2", dim=0), ValueError, "dim should be an integer, at least 1, got 0"),
        (lambda n, d: made([0.5]).at(-1), ValueError, "radius should be at least 0, got -1"),
        (lambda n, d: made([0.5]).at(math.nan), ValueError, "radius should be at least 0, got nan"),
        (lambda n, d: made([0.5]).at("1"), TypeError, "radius should be a number, got '1'"),
        (lambda n, d: made([0.5]).draw("curve.pdf"), ValueError, "path should end in .png, got curve.pdf"),
    ],
)
def test_mistakes_are_named_before_any_work(digits, call, error, message):
    def never(x):
        pytest.fail("the work had begun")

    with pytest.raises(error, match=message):
        call(never, digits)


def test_an_attack_within_a_radius_is_searched_with(net, digits):
    found = robustness_curve(net, digits, APGD(L2(3.0), steps=5))
    assert found.attack["attack"] == "RadiusSearch" and found.attack["of"]["attack"] == "APGD" and found.eps == 3.0
    assert robustness_curve(net, digits, FAB(L2(3.0), steps=3, minimise=True)).attack["attack"] == "FAB"
    assert robustness_curve(net, digits, FAB(L2(3.0), steps=3)).attack["attack"] == "RadiusSearch"
