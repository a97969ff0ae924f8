"""The whole pipeline on planted features: what a model uses, and what a set holds, is measured, not guessed.

Every image has a large, slow pattern that tells the class for 90 % of the samples, and a faint, fast one that always
does.
"""

from types import SimpleNamespace

import pytest
import torch

from advfeat import L2, PGD
from advfeat.datasets.building import build
from advfeat.datasets.planted import Planted, PlantedConfig
from advfeat.datasets.recipes import MatchRepresentation, PerturbTowardsTarget
from advfeat.evaluation import evaluate, label_agreement
from advfeat.training import TrainConfig, train

EPS = 0.36  # just beyond what exchanges one class's fast pattern for another's, sqrt(2) times its norm
RADII = (0.1, 0.2, 0.35, 0.5)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two models on D, the four sets, and a model on each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # 16x16 images are too small to share
    config = PlantedConfig(p_robust=0.9)
    source, test = Planted("train", n=1000, config=config), Planted("test", n=400, config=config)
    standard = TrainConfig(epochs=6, lr=0.05, batch_size=64, width=8, eval_every=0, checkpoint_every=0)
    attack = PGD(L2(1.0), steps=5, step_size=0.5)
    models = {
        "standard": train(standard, source).model,
        "adversarial": train(standard.replace(epochs=12, weight_decay=0.01, attack=attack, seed=1), source).model,
    }
    recipes = {
        "robust": MatchRepresentation("robust", steps=50, step_size=0.1),
        "nonrobust": MatchRepresentation("nonrobust", steps=50, step_size=0.1),
        "rand": PerturbTowardsTarget("rand", eps=EPS, steps=20, step_size=0.1),
        "det": PerturbTowardsTarget("det", eps=EPS, steps=20, step_size=0.1),
    }
    sets = {}
    for i, (key, recipe) in enumerate(recipes.items()):
        model = models["adversarial" if recipe.source_model == "robust" else "standard"]
        sets[key] = build(recipe, model, source, tmp_path_factory.mktemp(key) / "set")
        models[key] = train(standard.replace(seed=2 + i, epochs=4 if key == "robust" else 6), sets[key]).model
    attacks = [(str(eps), PGD(L2(eps), steps=20, keep="best")) for eps in RADII]
    scores = {}
    for key, model in models.items():
        found = evaluate(model, test, attacks=attacks, limit=200)
        scores[key] = SimpleNamespace(
            clean=found.clean.value,
            robust={r.eps: r.accuracy.value for r in found.robustness},
            next_class=label_agreement(model, test)["relabelled"].value,
        )
    yield SimpleNamespace(source=source, test=test, models=models, sets=sets, scores=scores, config=config)
    torch.set_num_threads(before)


def said(measured, labels):
    """How often the strongest pattern in an image is that of the label."""
    return float((measured.argmax(1) == labels).float().mean())


def test_the_standard_model_leans_on_the_faint_pattern(world):
    astray = world.test.slow_label != world.test.labels
    with torch.no_grad():
        prediction = world.models["standard"](world.test.images(astray)).argmax(1)
    assert (
        prediction == world.test.labels[astray]
    ).float().mean() > 0.9  # where the two disagree, it follows the faint
    scores = world.scores["standard"]
    assert scores.clean > 0.98 and scores.robust[0.35] < 0.05 and scores.robust[0.2] < 0.3


def test_the_adversarial_model_uses_the_slow_pattern_alone(world):
    scores = world.scores["adversarial"]
    assert abs(scores.clean - 0.9) < 0.05  # all that the slow pattern tells
    assert scores.robust[0.5] > 0.8


def test_d_det_exchanges_the_faint_pattern_and_leaves_the_large_one(world):
    made = world.sets["det"]
    slow, fast = world.source.measure(made.images())
    assert said(fast, made.labels) > 0.95 and said(fast, made.original_labels) < 0.05
    assert said(slow, world.source.slow_label) > 0.98
    assert made.target_success.float().mean() > 0.95 and made.distance.max() <= EPS + 1e-5


def test_models_of_d_det_and_d_rand_follow_the_faint_pattern_to_the_true_labels(world):
    for key in ("det", "rand"):
        assert world.scores[key].clean > 0.9, key
        assert world.scores[key].next_class < 0.1, key
        assert world.scores[key].robust[0.35] < 0.05, key


def test_d_rand_labels_tell_nothing_of_the_large_pattern(world):
    made = world.sets["rand"]
    slow, fast = world.source.measure(made.images())
    assert abs(said(slow, made.labels) - 0.25) < 0.06 and said(fast, made.labels) > 0.95


def test_d_r_has_lost_the_faint_pattern_and_its_model_is_robust(world):
    made = world.sets["robust"]
    slow, fast = world.source.measure(made.images())
    assert said(slow, world.source.slow_label) > 0.9  # what the robust model uses is that of the labelled image
    assert said(fast, world.source.labels[made.start_index]) > 0.5  # what it does not use is still that of the start
    astray = world.source.slow_label != world.source.labels
    assert said(fast[astray], world.source.labels[astray]) < 0.45  # chance is 0.25
    scores = world.scores["robust"]
    assert abs(scores.clean - 0.9) < 0.06
    assert scores.robust[0.35] > 0.75
    assert scores.robust[0.35] > world.scores["standard"].robust[0.35] + 0.5


def test_d_nr_keeps_the_faint_pattern_and_its_model_is_not_robust(world):
    made = world.sets["nonrobust"]
    slow, fast = world.source.measure(made.images())
    assert said(fast, made.labels) > 0.85
    assert said(slow, world.source.slow_label[made.start_index]) > 0.9
    scores = world.scores["nonrobust"]
    assert scores.clean > 0.95 and scores.robust[0.35] < 0.05
