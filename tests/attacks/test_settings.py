"""Serialised settings of attacks, objectives and recipes hold all that the result depends on."""

import dataclasses
import json
import math

import pytest
import torch

from advfeat import (
    APGD,
    CW,
    DLR,
    FAB,
    L1,
    L2,
    PGD,
    Auto,
    AutoAttack,
    Converged,
    CrossEntropy,
    Ensemble,
    Linf,
    Margin,
    Objective,
    Representation,
    Square,
    TargetedDLR,
)
from advfeat.attacks.auto import RankedAPGD
from advfeat.datasets.recipes import MatchRepresentation, PerturbTowardsTarget
from advfeat.settings import CHANGES_NO_RESULT, settings_of

OTHER = {
    "threat": Linf(0.1),
    "steps": 7,
    "step_size": 0.03,
    "objective": DLR(),
    "random_start": True,
    "restarts": 3,
    "targeted": True,
    "keep": "best",
    "stop": Converged(3),
    "seed": 5,
    "autocast": torch.bfloat16,
    "target_classes": 2,
    "target_order": "malt",
    "ranks": 2,
    "targets": 4,
    "alpha_max": 0.2,
    "eta": 1.5,
    "beta": 0.5,
    "minimise": True,
    "p_init": 0.5,
    "rescale_schedule": True,
    "bf16_queries": True,
    "version": "plus",
    "rank": 1,
    "name": "nonrobust",
    "start": "noise",
    "eps": 0.7,
    "norm": "linf",
    "schedule": "cosine",
    "momentum": 0.5,
    "momentum_form": "mi-fgsm",
    "large_radii": True,
}
THINGS = [
    PGD(L2(0.5), steps=5, random_start=True),
    PGD(L2(0.5), steps=5),
    APGD(L2(0.5)),
    APGD(L1(0.5), random_start=False),
    Auto(L2(0.5)),
    RankedAPGD(L2(0.5)),
    FAB(L2(0.5), targets=3),
    Square(L2(0.5)),
    AutoAttack(L2(0.5)),
    MatchRepresentation("robust", 5, 0.1),
    PerturbTowardsTarget("det", 0.5, 5, 0.1),
]


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: type(thing).__name__)
def test_each_setting_is_written_down(thing):
    seen = set()
    for f in dataclasses.fields(thing):
        if not f.init:
            continue
        if not f.metadata.get("changes_result", True):
            changed = dataclasses.replace(thing, **{f.name: not getattr(thing, f.name)})
            assert changed.to_dict() == thing.to_dict() and f.name in ("graph", "skip_cycles")
            continue
        other = OTHER[f.name]
        if f.name == "name" and thing.name == "det":
            other = "rand"
        if other == getattr(thing, f.name):
            other = not other
        try:
            changed = dataclasses.replace(thing, **{f.name: other})
        except ValueError:  # of two settings that do not go together
            continue
        seen.add(f.name)
        assert changed.to_dict() != thing.to_dict(), f.name
        json.dumps(changed.to_dict(), allow_nan=False)
    assert len(seen) >= 4


def test_the_form_of_the_momentum_is_written_down_where_there_is_momentum():
    attack = PGD(L2(0.5), steps=5, momentum=0.5)
    assert attack.replace(momentum_form=OTHER["momentum_form"]).to_dict() != attack.to_dict()


def test_a_field_that_a_subclass_adds_is_written_down():
    @dataclasses.dataclass(frozen=True, eq=False)
    class Mine(PGD):
        weight: float = 1.0
        verbose: bool = dataclasses.field(default=False, metadata=CHANGES_NO_RESULT)

    attack = Mine(L2(0.5), steps=3, weight=2.0)
    assert attack.to_dict()["weight"] == 2.0 and attack.to_dict()["attack"] == "Mine"
    assert "verbose" not in settings_of(attack) and "weight" in settings_of(attack)


def test_an_ensemble_writes_down_its_attacks():
    both = Ensemble((PGD(L2(0.5), steps=5), APGD(L2(0.5))))
    assert both.to_dict() != both.replace(attacks=both.attacks[::-1]).to_dict()
    assert both.to_dict()["attacks"] == [attack.to_dict() for attack in both.attacks]


class Weighted(Objective):
    def __init__(self, weight):
        self.weight = weight

    def value(self, model, x, target):
        return self.weight * CW().value(model, x, target)


@dataclasses.dataclass(frozen=True)
class WithFields(Objective):
    weight: float = 1.0
    form: str = "plain"


def test_objectives_that_differ_have_names_that_do():
    different = [
        CW(),
        DLR(),
        TargetedDLR(),
        CrossEntropy(),
        Margin(),
        Margin(1.0),
        Margin(2.0),
        Representation(),
        Representation(relative=True),
        Representation(lambda x: x),
        Representation(lambda x: x + 1),
        Weighted(1.0),
        Weighted(2.0),
        Weighted(torch.ones(3)),
        Weighted(torch.zeros(3)),
        WithFields(),
        WithFields(2.0),
        WithFields(form="other"),
    ]
    names = [objective.name for objective in different]
    assert len(set(names)) == len(names), names
    assert WithFields().name == "WithFields" and WithFields(2.0).name == "WithFields(weight=2.0)"
    assert CW().name == "CW" and Representation().name == "Representation"


def test_numbers_that_json_lacks_are_texts():
    assert PGD(L2(math.inf), steps=1, step_size=0.1).to_dict()["eps"] == "inf"
