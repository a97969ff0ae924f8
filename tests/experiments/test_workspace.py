"""The folder of experiments: what is damaged in it is done again, and several processes share it."""

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import threading
import time
import warnings

import pytest
import torch
from support.tiny_preset import make_lab, tiny_preset

from advfeat.experiments import stages as stages_module
from advfeat.experiments.base import Stage, all_stages
from advfeat.experiments.shared_stages import constructed, evaluated, model
from advfeat.experiments.stages import Data
from advfeat.experiments.workspace import Pause, Workspace


def test_other_data_under_the_same_name(tmp_path):
    p = tiny_preset()
    step = model(p, "standard", 0)
    make_lab(tmp_path).open(step)
    workspace = make_lab(tmp_path)
    workspace._sources[step.data.key] = (
        "digits",
        workspace.open(step.data).subset(range(50)).fingerprint,
    )  # what lies there now
    with pytest.raises(ValueError, match="was made from another digits than is there now: remove it, or take another"):
        workspace.open(step)


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.fixture(scope="module")
def evaluated_det(tmp_path_factory):
    """A folder with a finished evaluation of a model trained on D_det, its outcome, and the stages by their kind."""
    p = tiny_preset(limit=30)
    trained = model(p, "det", 0)
    steps = {"set": trained.data, "model": trained.data.model, "trained": trained, "evaluation": evaluated(p, trained)}
    folder = tmp_path_factory.mktemp("evaluated") / "det"
    return folder, make_lab(folder).open(steps["evaluation"]), steps


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("set", "shard-00000.safetensors"),
        ("set", "manifest.json"),
        ("model", "model.safetensors"),
        ("model", "model.json"),
        ("model", "checkpoint.json"),
        ("evaluation", "outcome.json"),
    ],
)
@pytest.mark.parametrize(
    "damage", [_flip, lambda f: f.unlink(), lambda f: f.write_bytes(b"")], ids="flip lose cut".split()
)
def test_what_is_damaged_is_done_again_and_said(tmp_path, evaluated_det, kind, name, damage):
    whole, outcome, steps = evaluated_det
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    folder = make_lab(tmp_path).folder(steps[kind])
    before = {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix == ".safetensors"}
    damage(folder / name)
    again = make_lab(tmp_path)
    with pytest.warns(UserWarning, match=rf"{folder}/{name}.*(is repeated|rebuilt)"):
        again.open(steps[kind])
    assert {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix == ".safetensors"} == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_lab(tmp_path).open(steps["evaluation"]) == outcome
        make_lab(tmp_path).open(steps["trained"])


@pytest.mark.parametrize("content", [b"", b"[]", b'{"done": "yes"}', b'{"seconds": "long"}', b"[" * 100_000])
def test_a_damaged_record_of_a_step_is_written_anew(tmp_path, content):
    step = model(tiny_preset(), "standard", 0)
    workspace = make_lab(tmp_path)
    weights = workspace.open(step).state_dict()
    record = workspace.folder(step) / "step.json"
    record.write_bytes(content)
    with pytest.warns(UserWarning, match="step.json.*treated as unfinished"):
        found = make_lab(tmp_path).open(step).state_dict()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert json.loads(record.read_text())["done"]


def test_what_was_made_from_another_model_than_is_there_now_is_named(tmp_path):
    p = tiny_preset()
    step = constructed(p, "det", 0)
    workspace = make_lab(tmp_path)
    workspace.open(step)
    record = workspace.folder(step.model) / "step.json"
    assert json.loads((workspace.folder(step) / "step.json").read_text())["from"][step.model.key]
    record.write_text(json.dumps({**json.loads(record.read_text()), "outcome": "0" * 64}))
    with pytest.raises(ValueError, match="was made from another .*D-.* than is there now: remove it"):
        make_lab(tmp_path).open(step)


def test_two_processes_in_one_folder(tmp_path):
    """Who comes to a step that another one is at waits, and finds it done."""
    step = model(tiny_preset(), "standard", 0)
    first, second = make_lab(tmp_path), make_lab(tmp_path)
    made = []
    with first._alone_at(step):
        waiting = threading.Thread(target=lambda: made.append(second.open(step)))
        waiting.start()
        waiting.join(1.0)
        assert not made and waiting.is_alive()
        first._make(step)
    waiting.join(60)
    record = json.loads((second.folder(step) / "step.json").read_text())
    assert len(made) == 1 and record["seconds"] == first.seconds(step)


def order_of(monkeypatch) -> list[str]:
    """The labels of the steps that are done from now on, as they come."""
    done, make = [], Workspace._make

    def noted(workspace, step):
        if not workspace.is_done(step):
            done.append(step.label)
        make(workspace, step)

    monkeypatch.setattr(Workspace, "_make", noted)
    return done


def test_what_another_process_is_at_comes_last(tmp_path, monkeypatch):
    """It is waited for only when there is nothing else to be done, here or in what comes later."""
    p = tiny_preset()
    first, second = make_lab(tmp_path), make_lab(tmp_path)
    at, free = model(p, "standard", 0), model(p, "adversarial", 0)
    steps = all_stages([model(p, "det", 0), free]).values()
    later = all_stages([model(p, "standard", 1)]).values()
    order = order_of(monkeypatch)
    with first._alone_at(at):
        working = threading.Thread(target=lambda: second.do(steps, later))
        working.start()
        until = time.monotonic() + 60
        while len(order) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        working.join(2)
        # Still waiting: what needs the model that the first is at is not begun.
        assert working.is_alive() and order == ["D, adversarially", "D"]
        assert second.is_done(free) and second.is_done(model(p, "standard", 1)) and not second.is_done(at)
        first._make(at)
    working.join(60)
    assert order[2:] == ["D", "D_det", "D_det"] and all(second.is_done(step) for step in steps if step.kept)


def shared_steps() -> list[Stage]:
    p = tiny_preset()
    return list(
        all_stages([evaluated(p, model(p, key, seed)) for key in ("det", "robust") for seed in (0, 1)]).values()
    )


def do_shared_steps(folder) -> None:
    torch.set_num_threads(1)
    workspace = make_lab(folder)
    make, made = workspace._make, []
    workspace._make = lambda step: (workspace.is_done(step) or made.append(step.key), make(step))
    workspace.do(shared_steps())
    (folder / f"made-{os.getpid()}.json").write_text(json.dumps(made))


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=do_shared_steps, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
        assert worker.exitcode == 0
    made = [json.loads(file.read_text()) for file in tmp_path.glob("made-*.json")]
    keys = [key for of_one in made for key in of_one]
    assert len(made) == 2 and all(made)
    assert sorted(keys) == sorted(step.key for step in shared_steps() if step.kept)  # each of them once


def do_shared_steps_until_killed(folder) -> None:
    torch.set_num_threads(1)
    make_lab(folder).do(shared_steps())


@pytest.mark.thorough
def test_killed_at_any_moment_two_processes_end_with_the_same_bytes(tmp_path):
    context, moments = multiprocessing.get_context("fork"), random.Random(3)

    def start(folder, count):
        workers = [context.Process(target=do_shared_steps_until_killed, args=(folder,)) for _ in range(count)]
        for worker in workers:
            worker.start()
        return workers

    def contents(folder):
        files = [f for f in folder.rglob("*") if f.suffix == ".safetensors" or f.name == "outcome.json"]
        return {f.relative_to(folder): f.read_bytes() for f in files}

    began = time.monotonic()
    start(tmp_path / "whole", 1)[0].join()
    whole = time.monotonic() - began
    for _ in range(20):
        workers = start(tmp_path / "killed", 2)
        time.sleep(moments.uniform(0, whole / 3))
        for worker in workers:
            worker.kill()
            worker.join()
    for worker in start(tmp_path / "killed", 2):
        worker.join()
        assert worker.exitcode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob(".*"))


def test_a_process_that_waits_has_an_end_too(tmp_path):
    step = model(tiny_preset(), "standard", 0)
    with make_lab(tmp_path)._alone_at(step):
        for ask in (lambda workspace: workspace.do([step]), lambda workspace: workspace.open(step)):
            began = time.monotonic()
            with pytest.raises(Pause):
                ask(make_lab(tmp_path, deadline=began + 0.5))
            assert time.monotonic() - began < 5


def test_what_becomes_free_is_taken_at_once(tmp_path):
    """Also while something else is still at another process."""
    p = tiny_preset()
    other, workspace = make_lab(tmp_path), make_lab(tmp_path)
    held, freed, after = model(p, "adversarial", 0), model(p, "standard", 0), model(p, "det", 0)
    with other._alone_at(held):
        with other._alone_at(freed):
            working = threading.Thread(target=lambda: workspace.do(all_stages([held, after]).values()))
            working.start()
            time.sleep(0.5)
            assert not workspace.is_done(after)
            other._make(freed)
        until = time.monotonic() + 60
        while not workspace.is_done(after) and time.monotonic() < until:
            time.sleep(0.05)
        assert workspace.is_done(after) and working.is_alive()
    working.join(60)
    assert workspace.is_done(held)


def test_what_fails_meanwhile_is_left_to_its_own_time(tmp_path):
    p = tiny_preset()
    first, second = make_lab(tmp_path), make_lab(tmp_path)
    at = model(p, "standard", 0)
    bad = dataclasses.replace(at, data=Data("cifar10"))  # nowhere to be found
    tried, make = [], second._make
    second._make = lambda step: (tried.append(step.key), make(step))
    with pytest.warns(UserWarning, match="training: D failed and is left for later: cifar10 is not part of advfeat"):
        for _ in range(2):  # once, not at every experiment
            with first._alone_at(at):
                working = threading.Thread(target=lambda: second.do([at], [bad]))
                working.start()
                working.join(1)
                assert working.is_alive()
            working.join(60)
            shutil.rmtree(second.folder(at))
    assert tried.count(bad.key) == 1
    with pytest.raises(stages_module.MissingData):
        second.do([bad])
