"""The commands as a user runs them, on a few digits with a tiny model; and how they fail."""

import json
import subprocess
import sys
import typing

import pytest
import safetensors.torch
import torch
from support.commands import fails_in_a_line
from support.commands import run as commands_run

from advfeat import cli, datasets, models
from advfeat.cli import commands
from advfeat.datasets import sources
from advfeat.datasets.recipes import PRESETS, PerturbTowardsTarget
from advfeat.datasets.store import ConstructedSet
from advfeat.experiments import presets
from advfeat.training import TrainConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a standard model, made by the command."""
    folder = tmp_path_factory.mktemp("cli")
    cli.main(
        f"train --out {folder}/std --dataset digits --limit 300 --epochs 3 --width 4 --train-batch-size 30".split()
    )
    return folder


def run(folder, command, capsys):
    capsys.readouterr()
    commands_run(*(part.format(folder=folder) for part in command.split()))
    return capsys.readouterr().out


def fails(folder, command, capsys):
    return fails_in_a_line(capsys, *(part.format(folder=folder) for part in command.split()))


def test_train_writes_a_run(folder):
    assert {"model.safetensors", "model.json", "config.json", "metrics.jsonl"} <= {
        p.name for p in (folder / "std").iterdir()
    }
    metrics = [json.loads(line) for line in (folder / "std" / "metrics.jsonl").read_text().splitlines()]
    assert [m["epoch"] for m in metrics] == [1, 2, 3]


def test_training_has_the_defaults_of_its_config(folder):
    asked, usual = commands.Train(folder), TrainConfig()
    for field in ("arch", "width", "epochs", "lr", "weight_decay", "augment", "seed", "amp"):
        assert getattr(asked, field) == getattr(usual, field), field
    assert asked.train_batch_size == usual.batch_size


def test_adversarial_training(folder, capsys):
    out = run(
        folder,
        "train --out {folder}/at --limit 60 --epochs 1 --width 4 --weight-decay 1e-3 "
        "--adversarial l2 --eps 0.5 --attack-steps 2",
        capsys,
    )
    assert "test accuracy on digits" in out
    config = json.loads((folder / "at" / "config.json").read_text())["config"]
    attack = config["attack"]
    assert config["weight_decay"] == 1e-3
    # Two steps of the paper's size would stay well inside the ball; these are of 2.5 eps / steps.
    assert (attack["norm"], attack["eps"], attack["steps"], attack["step_size"]) == ("l2", 0.5, 2, 0.625)


def test_a_size_is_that_of_the_test_images_too(folder, capsys):
    train = "train --epochs 1 --width 4 --dataset {dataset} --limit 40 --out {{folder}}/{out} {more}"
    run(folder, train.format(dataset="planted", out="sized", more="--size 24"), capsys)
    build = (
        "build det --model {folder}/sized --dataset planted --size 24 --limit 40 --preset digits --out {folder}/small"
    )
    run(folder, build, capsys)
    out = run(folder, train.format(dataset=folder / "small", out="on-sized", more=""), capsys)
    assert "test accuracy on planted" in out


def test_brackets_in_a_path(folder, capsys):
    out = run(folder, "train --limit 40 --epochs 1 --width 4 --out {folder}/r[/x]", capsys)
    assert "r[/x]" in out.replace("\n", "")


def test_build_train_on_the_set_and_evaluate(folder, capsys):
    build = "build det --model {folder}/std --limit 100 --out {folder}/det --steps 5 --step-size 0.5 --shard-size 40"
    out = run(folder, build, capsys)
    assert "100 images" in out
    made = ConstructedSet.open(folder / "det")
    assert made.manifest["recipe"] == PerturbTowardsTarget("det", eps=1.5, steps=5, step_size=0.5).to_dict()
    before = (folder / "det" / "manifest.json").read_bytes()
    run(folder, build, capsys)  # again: nothing to do
    assert (folder / "det" / "manifest.json").read_bytes() == before
    for name, limit in (("on-det", ""), ("on-part", "--limit 50")):
        out = run(
            folder, f"train --out {{folder}}/{name} --dataset {{folder}}/det {limit} --epochs 1 --width 4", capsys
        )
        assert "test accuracy on digits" in out  # the set knows what it was built from
    out = run(
        folder,
        "evaluate --model {folder}/on-det --limit 50 --eps 0 0.5 --steps 3 --out {folder}/evaluation.json",
        capsys,
    )
    results = json.loads((folder / "evaluation.json").read_text())
    assert results["n"] == 50 and [r["eps"] for r in results["robustness"]] == [0, 0.5]
    clean = results["clean_accuracy"]["value"]
    assert results["robustness"][0]["robust_accuracy"]["value"] == clean
    assert f"{100 * clean:.1f} %" in out
    assert results["model_fingerprint"] == models.fingerprint(models.load(folder / "on-det"))
    assert results["data_fingerprint"] == sources.load("digits", "test", limit=50).fingerprint
    samples = [json.loads(line) for line in (folder / results["samples"]).read_text().splitlines()]
    assert len(samples) == 50 and sum(s["label"] == s["prediction"] for s in samples) == round(50 * clean)
    assert "complete" not in run(folder, "info {folder}/det", capsys)
    assert "small-convnet" in run(folder, "info {folder}/on-det", capsys)


def test_evaluate_by_other_attacks(folder, capsys):
    out = run(folder, "evaluate --model {folder}/std --limit 40 --eps 0.5 --attack auto --steps 5", capsys)
    assert "Auto, 5 steps" in out and "Margin, TargetedDLR" in " ".join(out.split())
    out = run(folder, "evaluate --model {folder}/std --limit 40 --norm l1 --eps 2 --attack square --steps 5", capsys)
    assert "Square, 5 queries" in out and "gradient passes" not in out
    message = fails(folder, "evaluate --model {folder}/std --limit 40 --attack apgd --step-size 0.1", capsys)
    assert "--step-size has no meaning for --attack apgd" in message


def test_evaluate_prints_a_verdict_and_keeps_it(folder, capsys):
    weak = "evaluate --model {folder}/std --limit 12 --eps 0.5 --attack pgd --steps 1 --step-size 0.001"
    out = run(folder, f"{weak} --out {{folder}}/verdict.json", capsys)
    assert "verdict: 1 note" in out and "  note: single-attack (l2 0.5): " in out
    assert "not looked for masked gradients: --diagnose does" in out
    out = run(folder, f"{weak} --diagnose --transfer {{folder}}/std --out {{folder}}/diagnosed.json", capsys)
    assert "  fault: not-converged (l2 0.5): 200 steps" in out and "--diagnose" not in out
    results = [json.loads((folder / f"{name}.json").read_text()) for name in ("verdict", "diagnosed")]
    verdicts = [found.pop("verdict") for found in results]
    assert [v["faults"] > 0 for v in verdicts] == [False, True]
    assert {"black-box", "transfer"} & set(verdicts[0]["checks"]) == set() and "transfer" in verdicts[1]["checks"]
    for found in results:
        for row in found["robustness"][0]["breakdown"]:
            assert row.pop("seconds") > 0
    assert results[0]["robustness"] == results[1]["robustness"]
    message = fails(folder, f"{weak} --transfer {{folder}}/std/model.json", capsys)
    assert "--transfer should be a run folder of advfeat train" in message


def test_attack_saves_examples_in_the_ball(folder, capsys):
    out = run(folder, "attack --model {folder}/std --limit 40 --eps 1.0 --steps 5 --out {folder}/attack", capsys)
    saved = safetensors.torch.load_file(folder / "attack" / "adversarial.safetensors")
    assert saved["images"].shape == (40, 1, 8, 8) and saved["distance"].max() <= 1.0 + 1e-5
    summary = json.loads((folder / "attack" / "attack.json").read_text())
    assert summary["success"] == pytest.approx(float(saved["success"].float().mean()))
    assert f"{100 * summary['success']:.1f} %" in out
    assert summary["model_fingerprint"] == models.fingerprint(models.load(folder / "std"))
    assert summary["data_fingerprint"] == sources.load("digits", "test", limit=40).fingerprint and summary["n"] == 40
    assert (folder / "attack" / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_features_are_measured_and_drawn(folder, capsys):
    command = "features --model {folder}/std --limit 60 --eps 0.5 --steps 4 --show 3 --out {folder}/features"
    out = run(folder, command, capsys)
    assert "16 features on 60 samples" in out
    saved = json.loads((folder / "features" / "features.json").read_text())
    assert saved["attack"]["eps"] == 0.5 and len(saved["features"]) == 16
    assert all(row["gamma"] <= row["rho"] + 1e-6 for row in saved["features"])
    assert saved["model_fingerprint"] == models.fingerprint(models.load(folder / "std")) and saved["n"] == 60
    assert saved["data_fingerprint"] == sources.load("digits", "test", limit=60).fingerprint
    assert (folder / "features" / "features.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_that_is_right_of_nothing_is_evaluated(folder, capsys):
    model = models.load(folder / "std")
    with torch.no_grad():
        model.head.bias[3] = 1e4  # a class that the first ten test digits are not
        model.head.weight[3] = 0
    models.save(model, folder / "constant")
    run(folder, "evaluate --model {folder}/constant --limit 1 --eps 0.1 --steps 1 --out {folder}/none.json", capsys)
    results = json.loads((folder / "none.json").read_text())
    assert results["clean_accuracy"]["count"] == 0 and results["robustness"][0]["mean_margin"] is None


def test_a_folder_with_a_module_of_ones_own_is_described_and_no_command_builds_it(folder, capsys):
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    names = tuple(f"digit {i}" for i in range(10))
    models.save(models.adapt(own, num_classes=10, input_shape=(1, 8, 8), classes=names), folder / "own")
    out = " ".join(run(folder, "info {folder}/own", capsys).split())
    for part in ("Sequential", "650 parameters (float32), 10 classes, images 1 x 8 x 8", "digit 3", "models.load("):
        assert part in out
    for command in ("evaluate", "attack", "features", "build det"):
        message = fails(folder, command + " --model {folder}/own --out {folder}/nothing", capsys)
        assert "module of the user's own" in message and "advfeat.models.load" in message and "adapt(" in message
    assert not (folder / "nothing").exists()


@pytest.mark.slow
def test_theory_writes_figures(folder, capsys):
    run(folder, "theory --samples 2000 --out {folder}/theory", capsys)
    assert list((folder / "theory").glob("*.png"))
    assert "positive definite" in fails(folder, "theory --covariance 1,-1 --out {folder}/y", capsys)


def test_info_says_what_was_built(folder, capsys):
    out = run(folder, "info", capsys)
    assert "simd_level" in out and torch.__version__ in out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --out {folder}/x --dataset nothing", "--test-dataset should be one of digits, planted, cifar10, "),
        ("train --out {folder}/x --dataset cifar10 --root {folder}", "cifar-10-batches-py"),
        ("train --out {folder}/x --adversarial l2", "--eps should be given"),
        ("train --out {folder}/x --eps 0.5", "--eps needs --adversarial"),
        ("train --out {folder}/std --dataset digits --limit 300 --epochs 4 --width 4", "another run"),
        ("build det --model {folder}/none --out {folder}/x", "none"),
        ("build det --model {folder}/std --out {folder}/x --start noise", "--start has no meaning"),
        ("build robust --model {folder}/std --out {folder}/x --eps 1", "--eps has no meaning"),
        ("build det --model {folder}/std --out {folder}/x --converge", "--converge has no meaning"),
        (
            "build nonrobust --model {folder}/std --out {folder}/x --converge --fast",
            "--converge needs steps of constant",
        ),
        ("build det --model {folder}/std --dataset planted --preset digits --out {folder}/x", "model"),
        (
            "evaluate --model {folder}/std --dataset {folder}/nothing-there",
            "--dataset should be one of digits, planted, cifar10, ",
        ),
        ("info {folder}", "neither a run folder"),
    ],
)
def test_errors_are_one_line_and_name_the_argument(folder, capsys, command, message):
    assert message in fails(folder, command, capsys)
    assert not (folder / "x").exists()


def test_a_broken_model_file_is_named(folder, tmp_path, capsys):
    for name in ("model.safetensors", "model.json"):
        (tmp_path / name).write_bytes((folder / "std" / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "std" / "model.safetensors").read_bytes()[:-10])
    message = fails(folder, f"evaluate --model {tmp_path} --limit 10", capsys)
    assert "model.safetensors" in message and "truncated" in message


def test_help_needs_no_torch():
    """Showing the help imports nothing heavy."""
    script = "import sys; import advfeat.cli as c\nc.main(['--help'])\nc.main(['build', '--help'])\n"
    script += "assert not {'torch', 'numpy', 'matplotlib', 'rich.console'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for command in ("train", "build", "evaluate", "attack", "demo", "reproduce", "theory", "info"):
        assert command in done.stdout


@pytest.mark.slow
def test_demo_writes_a_report_and_does_nothing_twice(tiny, tmp_path, capsys):
    cli.main(["demo", "--out", str(tmp_path / "report")])
    out = capsys.readouterr().out
    page = (tmp_path / "report" / "index.html").read_text()
    results = json.loads((tmp_path / "report" / "results" / "main.json").read_text())
    models, sets = results["tables"]
    assert [row["name"] for row in models["rows"]] == ["D", "D, adversarially", "D_R", "D_NR", "D_rand", "D_det"]
    for row in models["rows"]:
        numbers = [cell["ours"] for cell in row["cells"]]
        assert all(number["text"].removesuffix(" %") in page for number in numbers)
        # Robust accuracy is at most clean accuracy, and falls with the radius; the paper's attack leaves no less.
        accuracy, *strong_and_papers, _ = (number["mean"] for number in numbers)
        strong, papers = strong_and_papers[:2], strong_and_papers[2:]
        assert accuracy >= strong[0] >= strong[1] and accuracy >= papers[0] >= papers[1]
        assert strong[0] <= papers[0] and strong[1] <= papers[1]
    assert len(sets["rows"]) == 4 and len(results["findings"]) == 5
    assert page.count("data:image/png;base64,") == 5  # the curves and four grids
    assert "<script" not in page and "http" not in page.split("</style>")[1]  # stands alone
    assert str(tmp_path / "report" / "index.html") in out.replace("\n", "")
    models = {p: p.stat().st_mtime_ns for p in (tmp_path / "report").rglob("*.safetensors")}
    cli.main(["demo", "--out", str(tmp_path / "report")])
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "report").rglob("*.safetensors")} == models


def choices_of(command, option):
    hint = typing.get_type_hints(command)[option]
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    return [choice for part in parts for choice in (typing.get_args(part) or [part])]


def test_presets_of_commands_are_those_of_the_library():
    """The command line repeats their names, so that its help needs no torch."""
    assert choices_of(commands.Build, "preset") == [*PRESETS]
    assert choices_of(commands.Reproduce, "preset") == [*presets.names()]
    assert {*choices_of(commands.Demo, "preset")} < {*presets.names()}


@pytest.mark.parametrize("named", ["", " --preset digits", " --preset digits-fast"])
def test_a_fast_build_takes_the_fast_version_of_the_preset(folder, tmp_path, capsys, named):
    out = tmp_path / "made"
    run(folder, f"build det --model {{folder}}/std --limit 12 --fast --steps 2 --out {out}{named}", capsys)
    assert datasets.open(out).manifest["recipe"] == PRESETS["digits-fast"]["det"].to_dict() | {"steps": 2}


def test_a_build_takes_schedules_momentum_and_polyaks_step(folder, tmp_path, capsys):
    options = "--limit 12 --steps 2 --step-size polyak --schedule cosine --momentum 0.5 --any-source"
    run(folder, f"build robust --model {{folder}}/std {options} --out {tmp_path}/made", capsys)
    recipe = datasets.open(tmp_path / "made").manifest["recipe"]
    assert (recipe["step_size"], recipe["schedule"], recipe["momentum"]) == ("polyak", "cosine", 0.5)
    message = fails(folder, f"build det --model {{folder}}/std {options} --out {tmp_path}/other", capsys)
    assert "--step-size should be a number for Margin, whose optimum is not known, got" in message
    message = fails(folder, f"build det --model {{folder}}/std --momentum 1 --out {tmp_path}/other", capsys)
    assert "momentum should be at least 0 and below 1, got 1" in message
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("dataset", "own"), [("digits", True), ("planted", False), ("a set", False)])
def test_build_takes_the_recipe_that_python_takes_and_no_other_in_silence(folder, tmp_path, capsys, dataset, own):
    if dataset == "a set":
        dataset = tmp_path / "set"
        run(folder, f"build det --model {{folder}}/std --limit 12 --steps 1 --out {dataset}", capsys)
    model, source = models.load(folder / "std"), datasets.load(dataset, limit=12)
    model = model if source.image_shape == model.input_shape else models.create("small-convnet", 4, source.image_shape)
    models.save(model, tmp_path / "model", extra={"classes": list(source.classes)})
    command = f"build det --model {tmp_path}/model --dataset {dataset} --limit 12 --out {tmp_path}/made"
    if own:
        run(folder, command, capsys)
        made = datasets.build("det", models.load(tmp_path / "model"), source, tmp_path / "python")
        assert datasets.open(tmp_path / "made").manifest == made.manifest
        return
    with pytest.raises(ValueError, match="has no preset of its own"):
        datasets.build("det", model, source, tmp_path / "python")
    message = fails(folder, command, capsys)
    assert "--preset should be one of cifar10, restricted-imagenet, digits, cifar10-cpu, cifar10-fast, " in message
    assert f"{str(dataset)!r} has no preset of its own, got none" in message and not (tmp_path / "made").exists()
    run(folder, command + " --preset digits --steps 1", capsys)
    assert datasets.open(tmp_path / "made").manifest["recipe"] == PRESETS["digits"]["det"].to_dict() | {"steps": 1}
