"""Every experiment of the paper, run whole on a tiny preset; and its measurements against what is done by hand."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from support.tiny_preset import make_lab, tiny_preset

from advfeat import L2, PGD, cli
from advfeat.datasets.exchange import export_lists
from advfeat.datasets.sources import RESTRICTED_IMAGENET
from advfeat.experiments import catalogue, presets
from advfeat.experiments.discussion.leakage_control import Patterned, Without, patterns
from advfeat.experiments.measurements import StepSweep, Transferred, predictions
from advfeat.experiments.paper.released import find
from advfeat.experiments.presets import SETS
from advfeat.experiments.run import read_page, run_experiment
from advfeat.experiments.shared_stages import constructed, data, model
from advfeat.objectives import CW, Margin
from advfeat.report.markdown import write_markdown
from advfeat.report.page import VERDICTS, write_experiment


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """One folder for the whole file: models and sets are shared, as for a user."""
    return make_lab(tmp_path_factory.mktemp("reproduction"))


def learned():
    """A tiny preset whose standard model is right more often than by chance."""
    return tiny_preset(limit=None, standard=tiny_preset().standard.replace(epochs=3, width=8))


AT_ANY_PRESET = [
    name for name, found in catalogue.EXPERIMENTS.items() if not found.dataset and "ImageNet" not in found.title
]


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_ANY_PRESET)
def test_runs_whole(name, workspace):
    p = tiny_preset(seeds=(0, 1))
    page = run_experiment(catalogue.experiment(name), workspace, p)
    stored = json.loads((workspace.out / "results" / f"{name}.json").read_text())
    assert stored == json.loads(json.dumps(page.results)) == read_page(workspace.out, name).results
    assert stored["tables"] and stored["findings"] and stored["cost"] and stored["seconds"] > 0
    trainings = [step for step in catalogue.experiment(name).stages(p).values() if step.kind == "model"]
    assert [curve["trained on"] for curve in stored["curves"]] == [step.label for step in trainings]
    for curve, step in zip(stored["curves"], trainings, strict=True):
        assert len(curve["train_accuracy"]) == len(curve["test_accuracy"]) == step.config.epochs
    for finding in stored["findings"]:
        assert finding["against"] and finding["observed"] and finding["verdict"] in VERDICTS
    for picture in page.pictures:
        assert picture.png.startswith(b"\x89PNG")
    numbers = [c["ours"] for t in stored["tables"] for row in t["rows"] for c in row["cells"] if c["ours"]]
    assert numbers or name == "released"
    for number in numbers:
        assert number["low"] <= number["mean"] + 1e-9 and number["mean"] <= number["high"] + 1e-9
        assert 0 <= number["mean"] <= 100 or number.get("n") is None
    # Again: every step is found.
    files = {f: f.stat().st_mtime_ns for f in workspace.out.rglob("*.safetensors")}
    run_experiment(catalogue.experiment(name), workspace, p)
    assert {f: f.stat().st_mtime_ns for f in workspace.out.rglob("*.safetensors")} == files


@pytest.mark.slow
def test_the_plan_is_all_that_is_done(workspace):
    """What an experiment says that it needs is what it leaves behind, so that its cost can be known beforehand."""
    p = tiny_preset()
    for name in AT_ANY_PRESET:
        found = catalogue.experiment(name)
        run_experiment(found, workspace, p)
        for step in found.stages(p).values():
            assert not step.kept or workspace.is_done(step)


def test_a_page_says_how_many_seeds_its_numbers_are_of(workspace):
    p = tiny_preset(seeds=(0, 1))
    one, two = (run_experiment(catalogue.experiment(name), workspace, p) for name in ("figure8", "table8"))
    assert one.results["seeds"] == [0] and two.results["seeds"] == [0, 1]
    path = write_experiment(one, workspace.out / "figure8.html", "command")
    assert "1 seed." in path.read_text() and "range over seeds" not in path.read_text()
    path = write_experiment(two, workspace.out / "table8.html", "command")
    assert "2 seeds." in path.read_text() and "range over seeds, at least the 95" in path.read_text()


def test_markdown_has_every_number(workspace):
    pages = [
        run_experiment(catalogue.experiment(name), workspace, tiny_preset()).results for name in ("table7", "table10")
    ]
    text = write_markdown(pages, workspace.out / "results.md").read_text()
    for page in pages:
        for table in page["tables"]:
            for row in table["rows"]:
                line = next(line for line in text.splitlines() if line.startswith(f"| {row['name']} |"))
                assert line.count("|") == len(table["columns"]) + 1
                for cell in row["cells"]:
                    assert cell["ours"] is None or cell["ours"]["text"].removesuffix(" %") in text
                    assert cell["paper"] is None or f"paper {cell['paper']:g}" in text
        for finding in page["findings"]:
            assert finding["claim"] in text and finding["observed"] in text


@pytest.mark.parametrize("preset", presets.names())
def test_presets_make_plans(preset):
    """At every preset, and with another network, each experiment can say what it will do."""
    for p in (presets.preset(preset), presets.preset(preset).with_arch("resnet18")):
        kinds = set()
        for found in catalogue.EXPERIMENTS.values():
            kinds |= {step.kind for step in found.stages(p).values()}
        assert {"data", "model", "set", "evaluation", "transfer", "sweep"} <= kinds
        assert json.dumps(p.to_dict())


def test_another_network():
    p = presets.preset("cifar10").with_arch("resnet18")
    assert {c.arch for c in (p.standard, p.adversarial, *p.on.values())} == {"resnet18"}
    assert p.name == "cifar10-resnet18" and p.other == "ResNet-50"
    archs = [config.arch for config in p.others.values()]
    assert sorted(archs) == ["densenet121", "inception_v3", "resnet50", "vgg16"]  # each once in Figure 3
    assert presets.preset("cifar10").with_arch("resnet50").name == "cifar10"
    with pytest.raises(ValueError, match="arch should be one of small-convnet, resnet18, .* got 'resnet19'"):
        p.with_arch("resnet19")


def test_a_short_attack_is_the_beginning_of_a_long_one(workspace):
    """Figure 8's curve, read off one run, equals an evaluation for each number of steps."""
    p = learned()
    long = PGD(L2(0.6), steps=8, step_size=0.1, objective=CW(), keep="best", stop="success")
    attacks = (long, long.replace(step_size=0.3, objective=Margin()))
    step = StepSweep(model(p, "standard", 0), data(p, "test"), attacks, (1, 2, 4, 8), batch_size=7)
    found = workspace.open(step)
    net, source = workspace.open(step.model), workspace.open(step.data)
    x, y = source.images(), source.labels
    for i, k in enumerate(found["steps"]):
        standing = predictions(net, x) == y
        for attack, alone in zip(attacks, found["alone"], strict=True):
            result = attack.replace(steps=k, stop=None).run(net, x, y)
            left = (predictions(net, x) == y) & ~(result.success | (result.first_success >= 0))
            assert alone[i] == int(left.sum())
            standing &= left
        assert found["counts"][i] == int(standing.sum())
    assert found["counts"] == sorted(found["counts"], reverse=True)
    assert found["alone"][0] != found["alone"][1]
    assert found["counts"][0] > found["counts"][-1]  # else nothing would be seen here
    assert found["n"] == len(source) and found["correct"] == int((predictions(net, x) == y).sum())


@pytest.mark.parametrize("targeted", [False, True])
def test_transfer_counts(targeted, workspace):
    """By hand; and to the source itself the examples transfer exactly as they succeed."""
    p = learned()
    attack = PGD(L2(1.0), steps=5, step_size=0.3, targeted=targeted)
    source, other = model(p, "standard", 0), model(p, "standard", 1)
    found = workspace.open(Transferred(source, (source, other), data(p, "test"), attack, batch_size=16))
    assert found["targets"][0] == found["source"] and found["n"] == 40
    test = workspace.open(data(p, "test"))
    x, y = test.images(), test.labels
    x_adv = attack(workspace.open(source), x, (y + 1) % 10 if targeted else y)
    for entry, step in zip(found["targets"], (source, other), strict=True):
        net = workspace.open(step)
        right, said = predictions(net, x) == y, predictions(net, x_adv)
        assert entry == {
            "right": int(right.sum()),
            "fooled": int((right & (said != y)).sum()),
            "reached": int((right & (said == (y + 1) % 10)).sum()),
        }
    assert found["source"]["reached" if targeted else "fooled"] > 0


def test_patterns_have_the_radius_and_differ():
    made = patterns(10, (3, 32, 32), 1.5, seed=1)
    assert torch.allclose(made.flatten(1).norm(dim=1), torch.full((10,), 1.5))
    assert len(made.flatten(1).unique(dim=0)) == 10
    assert not torch.equal(made, patterns(10, (3, 32, 32), 1.5, seed=2))


@pytest.mark.parametrize("labels", ["rand", "det"])
def test_patterned_images(labels, workspace):
    d = data(tiny_preset())
    source = workspace.open(d)
    x, y = source.images(), source.labels
    every = workspace.open(Patterned(d, labels, 1.0, None, seed=3))
    assert torch.equal(every.labels, (y + 1) % 10) or labels == "rand"
    shown = (x + patterns(10, source.image_shape, 1.0, 3)[every.labels]).clamp(0, 1)
    assert torch.equal(every.images(), shown)
    spared = workspace.open(Patterned(d, "rand", 1.0, "target", seed=3))
    alone = spared.labels == y
    assert 0 < int(alone.sum()) < len(y)
    assert torch.equal(spared.images()[alone], x[alone])
    assert not (spared.images()[~alone] == x[~alone]).flatten(1).all(1).any()


def test_patterns_spare_what_a_model_takes_for_the_target(workspace):
    p = tiny_preset()
    d, early = data(p), model(p, "standard", 0)
    made, source = workspace.open(Patterned(d, "det", 1.0, early, seed=0)), workspace.open(d)
    alone = predictions(workspace.open(early), source.images()) == made.labels
    assert 0 < int(alone.sum()) < len(source)  # one epoch: it is often wrong
    assert not (made.images()[~alone] == source.images()[~alone]).flatten(1).all(1).any()
    assert torch.equal(made.images()[alone], source.images()[alone])


def test_without_the_samples_that_could_leak(workspace):
    p = tiny_preset()
    step = constructed(p, "rand", 0)
    made = workspace.open(step)
    kept = workspace.open(Without(step, "true label"))
    assert torch.equal(kept.labels, made.labels[made.labels != made.original_labels]) and len(kept) < len(made)
    det = constructed(p, "det", 0)
    kept = workspace.open(Without(det, "already there"))
    net, source = workspace.open(det.model), workspace.open(det.data)
    there = predictions(net, source.images()) == (source.labels + 1) % 10
    assert len(kept) == len(source) - int(there.sum()) < len(source)


def test_released_sets_are_found_and_trained_on(tmp_path, data_root, workspace):
    """Sets of our own in the authors' format and folders stand for theirs."""
    p = tiny_preset(dataset="cifar10", pair=("cat", "dog"))
    (tmp_path / "cifar-10-batches-py").symlink_to(data_root / "cifar-10-batches-py")
    own = make_lab(tmp_path / "out", root=tmp_path)
    page = run_experiment(catalogue.experiment("released"), own, p)
    assert [f["verdict"] for f in page.results["findings"]] == ["supported"] and "d_robust_CIFAR" in page.results[
        "notes"
    ][0]
    for key, name in zip(SETS, ("d_robust_CIFAR", "d_non_robust_CIFAR", "drand_CIFAR", "ddet_CIFAR"), strict=True):
        export_lists(own.open(constructed(p, key, 0)), tmp_path / "released" / name)
        assert find(tmp_path, key) == tmp_path / "released" / name
    page = run_experiment(catalogue.experiment("released"), own, p)
    assert not page.results["notes"] and len(page.results["findings"]) == 4
    assert len(page.results["curves"]) == 1 + len(SETS)
    assert {"model released D_R", "evaluation released D_R"} <= page.results["cost"].keys()
    assert all(cell["ours"] for row in page.results["tables"][0]["rows"] for cell in row["cells"])


def test_cifar10_1(tmp_path, data_root):
    p = tiny_preset(dataset="cifar10", pair=("cat", "dog"))
    (tmp_path / "cifar-10-batches-py").symlink_to(data_root / "cifar-10-batches-py")
    own = make_lab(tmp_path / "out", root=tmp_path)
    with pytest.raises(FileNotFoundError, match="cifar10.1"):
        run_experiment(catalogue.experiment("cifar10.1"), own, p)
    assert not list((tmp_path / "out").rglob("*.safetensors"))  # said before hours of work
    random = np.random.default_rng(0)
    np.save(tmp_path / "cifar10.1_v6_data.npy", random.integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8))
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.arange(2000, dtype=np.int32) % 10)
    page = run_experiment(catalogue.experiment("cifar10.1"), own, p)
    (table,) = page.results["tables"]
    assert table["rows"][1]["cells"][0]["ours"]["n"] == 2000 and table["rows"][1]["cells"][0]["paper"] == 55
    assert page.results["differences"]


@pytest.mark.slow
def test_restricted_imagenet(tmp_path):
    """On an ImageNet of a thousand classes of one image each."""
    from PIL import Image

    for split in ("train", "val"):
        for i in range(1000):
            folder = tmp_path / "imagenet" / split / f"n{i:08d}"
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (i % 256, i // 4, 128)).save(folder / "0.png")
    p = tiny_preset(limit=30, test_limit=20, dataset="cifar10")
    settings = catalogue.restricted_imagenet.setting(p)
    assert settings.recipes["det"].eps == 3.0 and settings.adversarial.attack.threat.eps == 3.0  # the paper's
    quick = {k: dataclasses.replace(r, steps=1) for k, r in settings.recipes.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue.restricted_imagenet, "RECIPES", {"restricted-imagenet": quick})
        patch.setitem(presets._PRESETS, "cifar10-cpu", lambda: p)
        # the folder holds no CIFAR-10, which the preset is about otherwise
        out = tmp_path / "out"
        cli.main(["reproduce", "restricted-imagenet", "--preset", "cifar10-cpu", *folders(root=tmp_path, out=out)])
    results = json.loads((out / "results" / "restricted-imagenet.json").read_text())
    assert [d["classes"] for d in results["data"]][0] == list(RESTRICTED_IMAGENET)
    (table,) = results["tables"]
    assert [row["name"] for row in table["rows"]] == ["D", "D, adversarially", "D_R", "D_rand", "D_det"]
    assert (out / "results" / "restricted-imagenet-figure12.png").is_file()


def folders(**options):
    return [word for name, path in options.items() for word in (f"--{name}", str(path))]


@pytest.mark.thorough
def test_the_gpu_preset_on_a_few_images(tmp_path, data_root):
    """Its networks, precision and recipes, with nothing left of its size; each experiment runs whole."""
    p = presets.preset("cifar10")

    def short(config):
        attack = config.attack and config.attack.replace(steps=1)
        return config.replace(epochs=1, batch_size=8, attack=attack)

    p = p.replace(
        limit=20,
        test_limit=10,
        standard=short(p.standard),
        adversarial=short(p.adversarial),
        on={key: short(config) for key, config in p.on.items()},
        recipes={key: dataclasses.replace(recipe, steps=2) for key, recipe in p.recipes.items()},
        others={name: short(config) for name, config in p.others.items()},
        attack_steps=2,
        noise_steps=2,
        sweep=(1, 2),
        sweep_limit=5,
        batch_size=10,
    )
    own = make_lab(tmp_path, root=data_root)
    for name in AT_ANY_PRESET:
        page = run_experiment(catalogue.experiment(name), own, p)
        assert page.results["tables"] and page.results["preset"]["standard"]["arch"] == "resnet50"
