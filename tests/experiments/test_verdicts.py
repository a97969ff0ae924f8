"""Each experiment's verdicts: "supported" on the paper's own numbers, and the opposite where they are turned round."""

from types import SimpleNamespace

import pytest
import torch
from support.tiny_preset import tiny_preset

from advfeat.experiments import catalogue
from advfeat.experiments.paper import released, sensitivity
from advfeat.experiments.result import Finding
from advfeat.experiments.shared_stages import LABELS
from advfeat.experiments.stages import Constructed, Data, Evaluated

N = 1000


class MadeUpLab:
    """Answers for what an experiment measures, instead of doing it.

    answers: by the label of the model (or of the pair of model and data), (accuracy, share one class too high, robust
    accuracy at each radius), in per cent.
    """

    def __init__(self, answers: dict, root=None, learned: float = 0.5) -> None:
        self.answers, self.root, self.learned = answers, root, learned

    def open(self, step):
        if isinstance(step, Data):
            return _Source(step.name)
        if isinstance(step, (Constructed, released.Released)):
            return _Set()
        if isinstance(step, released.RoundTrip):
            return self.answers["round trip"]
        assert isinstance(step, Evaluated)
        label = step.label.removesuffix(", the paper's attack")
        found = self.answers.get((step.model.label, step.data.label), self.answers.get(label))
        accuracy, following, *robust = found if found is not None else self.answers[step.model.label]
        shares = [{"count": round(N * v / 100), "n": N} for v in (accuracy, following, *robust)]
        return {"clean": shares[0], "next": shares[1], "robust": shares[2:]}

    def history(self, step):
        return [{"epoch": 1, "train_accuracy": self.learned, "test_accuracy": 0.4}]


class _Source(SimpleNamespace):
    def __init__(self, name: str) -> None:
        super().__init__(classes=list("0123456789"), name=name, labels=torch.arange(10))

    def __len__(self):
        return 10

    def images(self, index):
        return torch.zeros(len(index), 1, 8, 8)


class _Set:
    target_success = torch.ones(10)
    images = _Source.images

    def __len__(self):
        return 10


def findings(name: str, answers: dict, learned: float = 0.5, root=None, **changes) -> list[Finding]:
    found = catalogue.experiment(name)
    p = found.setting(tiny_preset(**changes))
    result = found.report(MadeUpLab(answers, root, learned), p, found.plan(p))
    assert all(f.against and f.observed for f in result.findings)
    return result.findings


def verdicts(name: str, answers: dict, **settings) -> list[str]:
    """What each claim comes to, however many seeds it rests on."""
    return [f.verdict.removesuffix(" once") for f in findings(name, answers, **settings)]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_single_seed_of_trainings_shows_a_claim_once_at_most(seeds):
    rows = {"D": (98, 2, 5, 0), "D, adversarially": (90, 0, 80, 60), "D_NR": (90, 0, 1, 0), "D_R": (90, 0, 50, 30)}
    rows |= {"D_NR from noise": (45, 0, 1, 0), "D_R from noise": (89, 0, 48, 29), "D_rand": (60, 5), "D_det": (40, 10)}
    often = "supported" if len(seeds) > 1 else "supported once"
    reversed_rows = rows | {"D_R": (90, 0, 0, 0), "D": (98, 2, 50, 30)}
    assert [f.verdict for f in findings("table1", rows, seeds=seeds)] == [often] * 2
    assert [f.verdict for f in findings("figure2", rows, seeds=seeds)] == [often] * 3
    assert findings("figure2", reversed_rows, seeds=seeds)[1].verdict == often.replace("supported", "contradicted")
    # Built from noise there is one set each, whatever the seeds.
    assert [f.verdict for f in findings("table7", rows, seeds=seeds)] == ["supported once"] * 3
    assert [f.seeds for f in findings("table7", rows, seeds=seeds)] == [1] * 3
    # What rests on no training is not a matter of seeds.
    trip = {"round trip": {"samples": 3, "equal": True}}
    assert [f.verdict for f in findings("released", trip, seeds=seeds)] == ["supported"]


def test_table7():
    paper = {
        "D": (95.25, 0, 4.49, 0),
        "D, adversarially": (90.83, 0, 82.48, 70.9),
        "D_NR": (87.68, 0, 0.82, 0),
        "D_NR from noise": (45.6, 0, 1.5, 0),
        "D_R": (85.4, 0, 48.2, 21.85),
        "D_R from noise": (84.1, 0, 48.27, 29.4),
    }
    assert verdicts("table7", paper) == ["supported"] * 3
    assert verdicts("table7", paper | {"D_R from noise": (84.1, 0, 1, 0)}) == [
        "contradicted",
        "inconclusive",
        "supported",
    ]
    assert verdicts("table7", paper | {"D_NR from noise": (45.6, 0, 80, 60)}) == [
        "supported",
        "contradicted",
        "supported",
    ]
    # The radius is the one that tells most, and not the one that tells most for the claim.
    assert verdicts("table7", paper | {"D": (95, 0, 80, 20), "D_R from noise": (84, 0, 48, 29)})[0] == "contradicted"
    # D_NR keeps all of its accuracy; the drops are too close to tell; D_R loses more than D_NR.
    assert verdicts("table7", paper | {"D_NR from noise": (87.68, 0, 1, 0)})[2] == "inconclusive"
    close = {"D_NR from noise": (70, 0, 1, 0), "D_R from noise": (67, 0, 48, 29)}
    assert verdicts("table7", paper | close)[2] == "inconclusive"
    assert verdicts("table7", paper | {"D_R from noise": (30, 0, 48, 29)})[2] == "contradicted"
    # Of a training that came to nothing nothing follows.
    assert verdicts("table7", paper | {"D_R from noise": (10, 10, 10, 10)}) == ["inconclusive"] * 3
    assert verdicts("table7", paper | {"D_NR from noise": (10, 10, 0, 0)}) == [
        "supported",
        "inconclusive",
        "inconclusive",
    ]


def test_table8():
    def of(train, test, true):
        rows = {("D_R", "D_R"): train, ("D_R", "D_R of the test set"): test, ("D_R", "D"): true}
        return verdicts("table8", {row: (90, 0, value, 0) for row, value in rows.items()})

    assert of(77.3, 62.5, 48.3) == ["supported", "supported"]
    assert of(62.5, 77.3, 48.3) == ["supported", "contradicted"]
    assert of(77.3, 48.3, 62.5) == ["contradicted", "supported"]
    assert of(50, 50, 50) == ["inconclusive", "inconclusive"]


SOURCES = {
    "D": (95.3, 0),
    "D_rand": (63.3, 0),
    "D_det": (43.7, 16.2),
    "D_rand, robust source": (25.2, 0),
    "D_det, robust source": (5.8, 65.5),
    "D_rand, standard source, by heart": (63.3, 0),
    "D_rand, robust source, by heart": (25.2, 0),
}


@pytest.mark.slow
def test_table9():
    # D_rand, D_rand by heart, D_det
    assert verdicts("table9", SOURCES) == ["supported"] * 3
    assert verdicts("table9", SOURCES | {"D_rand, robust source": (97, 0)}) == [
        "contradicted",
        "supported",
        "supported",
    ]
    assert verdicts("table9", SOURCES | {"D_rand, robust source, by heart": (90, 0)}) == [
        "supported",
        "contradicted",
        "supported",
    ]
    assert verdicts("table9", SOURCES | {"D_det, robust source": (44, 0)}) == ["supported", "supported", "inconclusive"]
    assert verdicts("table9", SOURCES, learned=0.15) == ["inconclusive"] * 3


def test_table10():
    assert verdicts("table10", SOURCES) == ["supported", "supported"]
    assert verdicts("table10", SOURCES | {"D_det": (16, 44)}) == ["contradicted", "supported"]
    assert verdicts("table10", SOURCES | {"D_det, robust source": (65, 6)}) == ["supported", "contradicted"]


def test_cats_vs_dogs():
    def of(accuracy):
        return verdicts("cats-vs-dogs", {"4/9": (98, 2), "on the other class": (accuracy, 100 - accuracy)})

    assert (of(78), of(30), of(51)) == (["supported"], ["contradicted"], ["inconclusive"])


def test_cifar10_1():
    def of(rand, det, moved):
        answers = {"D": (88, 0), "D_rand": (rand, 5), "D_det": (det, moved)}
        return verdicts("cifar10.1", answers, dataset="cifar10", pair=("cat", "dog"))

    assert of(55, 44, 16) == ["supported"]
    assert of(10, 44, 16) == of(55, 10, 5) == of(55, 30, 50) == ["contradicted"]


def test_leakage_control():
    names = (
        "patterns, random targets",
        "patterns on every image",
        "patterns, next class",
        "D_rand",
        "D_rand without true labels",
        "D_det",
        "D_det without those already there",
        "D_rand, robust source",
        "D_rand, robust source, without true labels",
    )

    def of(*values):
        return verdicts("leakage-control", {name: (v, 0) for name, v in zip(names, values, strict=True)})

    assert of(79.5, 10, 32.3, 63.3, 60, 43.7, 40, 30, 28) == ["contradicted", "supported", "supported", "supported"]
    # No leak: the control does not refute; sets that teach through the leak alone.
    assert of(10, 10, 10, 63.3, 60, 43.7, 40, 30, 28) == ["supported"] * 4
    assert of(79.5, 10, 32.3, 63.3, 10, 43.7, 10, 30, 10) == ["contradicted"] * 4


def test_cross_architecture():
    own = {"D": (95, 0, 5, 0), "D_R": (84, 0, 48, 25), "D_NR": (88, 0, 1, 0)}

    def of(**other):
        return verdicts("cross-architecture", own | {f"wide on {LABELS[key]}": v for key, v in other.items()})

    assert of(standard=(94, 0, 6, 0), robust=(83, 0, 45, 20), nonrobust=(80, 0, 2, 0)) == ["supported", "supported"]
    assert of(standard=(94, 0, 46, 21), robust=(83, 0, 45, 20), nonrobust=(80, 0, 60, 50)) == [
        "inconclusive",
        "contradicted",
    ]
    # A training that stayed at chance, as a ResNet-18 on D_NR did with too much weight decay, decides nothing.
    assert of(standard=(94, 0, 6, 0), robust=(83, 0, 45, 20), nonrobust=(10, 10, 10, 10)) == [
        "supported",
        "inconclusive",
    ]


def test_released(tmp_path):
    def trip(equal):
        return {"round trip": {"equal": equal, "samples": N}}

    assert verdicts("released", trip(True)) == ["supported"]
    assert verdicts("released", trip(False)) == ["contradicted"]
    for folder in ("d_robust_CIFAR", "d_non_robust_CIFAR", "drand_CIFAR", "ddet_CIFAR"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "CIFAR_ims").touch()
    stated = {"D_R": (84, 0, 48), "D_NR": (88, 0, 0), "D_rand": (63, 0, 0), "D_det": (44, 16, 0)}

    def of(**other):
        answers = {f"released {name}": numbers for name, numbers in (stated | other).items()}
        return verdicts("released", trip(True) | answers, root=tmp_path, dataset="cifar10")[1:]

    assert of() == ["supported"] * 3  # D_rand, D_det, D_R against D_NR
    assert of(D_rand=(12, 0, 0))[0] == "contradicted"
    assert of(D_det=(25, 60, 0))[1] == "contradicted"
    assert of(D_R=(84, 0, 1), D_NR=(88, 0, 30))[2] == "contradicted"
    assert of(D_R=(10, 0, 10))[2] == "inconclusive"


def test_settings():
    attacks = sensitivity.ATTACKS

    def of(d=5, d_r=48, auto=40, low=60, eight=40, before=(45, 20), clean=84):
        answers = {f"standard, {a}": (95, 0, d) for a in attacks} | {f"robust, {a}": (clean, 0, d_r) for a in attacks}
        answers |= {
            "robust, 20 steps, then Auto-PGD": (clean, 0, auto),
            "D_rand": (63, 0),
            "D_rand, learning rate 0.01": (low, 0),
            "D_det": (44, 16),
            "D_det, 8 bits": (eight, 16),
            "D_R, before the ReLU": (84, 0, *before),
        }
        return verdicts("settings", answers | {"D_R": (84, 0, 48, 25), "D": (95, 0, 5, 4)})

    assert of() == ["supported"] * 4
    assert of(auto=1)[0] == "contradicted"  # one attack is enough
    assert of(low=10)[1] == "contradicted"
    assert of(eight=10)[2] == "contradicted"
    assert of(clean=10)[0] == "inconclusive" and of(d_r=10, clean=10)[0] == "inconclusive"
    assert of(before=(5, 20))[3] == "supported"  # at the radius that tells the most, 20 against 4
    assert (of(before=(5, 4))[3], of(before=(1, 0))[3]) == ("inconclusive", "contradicted")


def test_restricted_imagenet():
    paper = {
        "D": (98, 0, 18.5, 0),
        "D, adversarially": (95.7, 0, 92.8, 60),
        "D_R": (86.8, 0, 70.6, 20),
        "D_rand": (87.9, 1, 0, 0),
        "D_det": (64.4, 10, 0, 0),
    }
    assert verdicts("restricted-imagenet", paper) == ["supported"] * 4
    assert verdicts("restricted-imagenet", paper | {"D_R": (86.8, 0, 5, 0)})[1] == "contradicted"
    assert verdicts("restricted-imagenet", paper | {"D_det": (30, 60, 0, 0)})[3] == "contradicted"


@pytest.mark.parametrize("name", catalogue.EXPERIMENTS)
def test_every_experiment_has_such_a_test(name):
    tested = {"table1", "figure2", "figure3", "figure8"}  # in test_result.py, without a workspace
    assert name in tested or f"test_{name.replace('-', '_').replace('.', '_')}" in globals()
