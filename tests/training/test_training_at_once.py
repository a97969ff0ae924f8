"""Several trainings in one folder, and processes that are killed: what is left is always one whole run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.tensor_source import blobs

from advfeat import _locks, cli, models
from advfeat.training import TrainConfig, train
from advfeat.training.checkpoint import RunFolder

QUICK = TrainConfig(width=4, epochs=3, batch_size=16, lr=0.05)
HERE = Path(__file__).parents[2]


def _script(code, *arguments, **environment):
    command = [sys.executable, "-W", "default", "-c", code, *map(str, arguments)]
    here = Path(__file__).parent
    found = [str(here), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # this module and its helpers
    return subprocess.Popen(
        command,
        cwd=HERE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(found)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


_TRAIN = """
import sys, torch
torch.set_num_threads(1)
from test_training_at_once import QUICK, blobs, models, train
print("ready", flush=True)
sys.stdin.readline() if "wait" in sys.argv else None
result = train(QUICK.replace(epochs=6), blobs(300), blobs(30, seed=1), sys.argv[1])
print(models.fingerprint(result.model), len(result.history))
"""


@pytest.mark.slow
def test_trainings_of_one_folder_make_one_run(tmp_path):
    """As ``torchrun --nproc-per-node 3`` starts them."""
    processes = [_script(_TRAIN, tmp_path / "run", RANK=str(i), WORLD_SIZE="3") for i in range(3)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert len({out for out, _ in said}) == 1 and said[0][0].endswith(" 6\n")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "checkpoint.json",
        "config.json",
        "metrics.jsonl",
        "model.json",
        "model.safetensors",
    ]


def test_who_comes_second_hears_who_works_there_and_gets_the_model(tmp_path):
    first = []

    def second(done, _):
        if done == 5:
            # With --restart it does not wait to throw away what is being made.
            with pytest.raises(OSError, match=rf"is in use for training by process {os.getpid()} on .*, since 20"):
                train(QUICK, blobs(60), out=tmp_path, resume=False)
            with pytest.raises(ValueError, match="holds another run"):
                train(QUICK.replace(lr=0.1), blobs(60), out=tmp_path)
            first.append(done)

    train(QUICK, blobs(60), out=tmp_path, progress=second)
    assert first


def test_the_command_replaces_a_run_when_it_is_told_to(tmp_path, capsys):
    arguments = ["train", "--out", str(tmp_path), "--limit", "60", "--width", "2", "--epochs", "1"]
    cli.main(arguments)
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--lr", "0.01"])
    assert "--restart" in capsys.readouterr().err
    cli.main([*arguments, "--lr", "0.01", "--restart"])
    assert json.loads((tmp_path / "config.json").read_text())["config"]["lr"] == 0.01


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    train(QUICK, blobs(60), out="run", progress=lambda done, _: done == 3 and os.chdir(tmp_path / "elsewhere"))
    assert (tmp_path / "run" / "model.json").exists() and not list((tmp_path / "elsewhere").iterdir())


def test_a_restart_under_torchrun_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"resume=False \(--restart\) needs a single process, got 4 of torchrun's"):
        train(QUICK, blobs(60), out=tmp_path, resume=False)


@pytest.mark.parametrize("how", ["removed", "taken over"])
def test_a_folder_that_goes_away_under_a_training_stops_it(tmp_path, how):
    folder = tmp_path / "run"

    def disturb(done, _):
        if done == 6:
            for file in folder.iterdir():
                if how == "removed" or file.suffix == ".lock":
                    file.unlink()
            if how == "removed":
                folder.rmdir()

    with pytest.raises(OSError, match="run or its lock file was removed: nothing more was written"):
        train(QUICK, blobs(60), out=folder, progress=disturb)
    assert folder.exists() == (how != "removed")
    train(QUICK, blobs(60), out=folder)


def test_what_a_run_that_was_killed_at_its_end_left_goes(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(QUICK, blobs(60), out=tmp_path)
    left = tmp_path / f".metrics.jsonl.{_locks.place()}-{2**22 - 1}-1-00000000.tmp"
    left.touch()
    assert list(tmp_path.glob("checkpoint-*"))
    read = train(QUICK, blobs(60), out=tmp_path)
    assert not list(tmp_path.glob("checkpoint-*")) and not left.exists() and len(read.history) == 3


def test_a_run_without_its_model_is_repeated(tmp_path):
    expected = train(QUICK, blobs(60), out=tmp_path)
    (tmp_path / "model.json").unlink()
    with pytest.warns(UserWarning, match=r"its model\.json is gone; the training is repeated"):
        again = train(QUICK, blobs(60), out=tmp_path)
    assert models.fingerprint(again.model) == models.fingerprint(expected.model)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_without_its_checkpoint_a_finished_run_still_has_its_metrics(tmp_path):
    expected = train(QUICK, blobs(60), out=tmp_path)
    (tmp_path / "checkpoint.json").unlink()
    assert train(QUICK, blobs(60), out=tmp_path).history == expected.history


_KILLS = """
import os, random, signal, sys, time, warnings
import torch
torch.set_num_threads(1)
from test_training_at_once import QUICK, blobs, train
folder, undisturbed, at_once, moments = *sys.argv[1:3], int(sys.argv[3]), random.Random(7)
enough = int(sys.argv[4])
config, data = QUICK.replace(epochs=8), blobs(60)


def start(folder, resume=True):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            warnings.simplefilter("ignore")
            train(config, data, out=folder, resume=resume)
            code = 0
        finally:
            os._exit(code)
    return child


began = time.monotonic()
os.waitpid(start(undisturbed), 0)
whole = time.monotonic() - began
kills, finished = 0, 0
while kills < enough or not finished:
    # Now and then a finished run is started anew, which is a way into the same state again.
    children = [start(folder, resume=not (finished and i == 0)) for i in range(at_once)]
    finished = 0
    if kills < enough:
        time.sleep(moments.uniform(0, 0.8 * whole))
        for child in children:
            os.kill(child, signal.SIGKILL)
    for child in children:
        status = os.waitpid(child, 0)[1]
        kills += os.WIFSIGNALED(status)
        assert os.WIFSIGNALED(status) or status == 0 or at_once > 1, "a training failed"
        finished += status == 0
print(kills)
"""


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2])
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path, at_once, request):
    kills = 60 if request.config.getoption("--thorough") else 10
    done = _script(_KILLS, tmp_path / "run", tmp_path / "undisturbed", at_once, kills)
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    assert int(out) >= kills

    def contents(folder):
        return {p.name: p.read_bytes() for p in folder.iterdir()}

    ours, expected = contents(tmp_path / "run"), contents(tmp_path / "undisturbed")
    assert ours.keys() == expected.keys()
    assert ours["model.safetensors"] == expected["model.safetensors"]

    def rows(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]

    assert rows(tmp_path / "run") == rows(tmp_path / "undisturbed")


@pytest.mark.slow
def test_sigterm_ends_a_command_in_order(tmp_path):
    """As of a scheduler: the lock is given back, nothing half-written stays, and the same command goes on."""
    code = "import sys; from advfeat.cli import main; main(sys.argv[1:])"
    arguments = ["train", "--out", tmp_path / "run", "--limit", "300", "--width", "4", "--epochs", "500"]
    process = _script(code, *arguments)
    while not (tmp_path / "run" / "checkpoint.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and "interrupted" in said
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.slow
def test_a_training_that_another_process_leaves_goes_on(tmp_path):
    """It waited; the other one was killed; it takes over from its checkpoint."""
    code = _TRAIN.replace("epochs=6", "epochs=400").replace("blobs(300)", "blobs(60)")
    first = _script(code, tmp_path / "run")
    assert first.stdout.readline() == "ready\n"
    while not (tmp_path / "run" / "checkpoint.json").exists():
        assert first.poll() is None
    second = _script(code, tmp_path / "run")
    assert second.stdout.readline() == "ready\n"
    said = second.stderr.readline()
    assert f"is in use for training by process {first.pid} on " in said and "waiting for its model" in said
    first.kill()
    first.communicate()
    epoch = json.loads((tmp_path / "run" / "checkpoint.json").read_text())["epoch"]
    while json.loads((tmp_path / "run" / "checkpoint.json").read_text())["epoch"] <= epoch:
        assert second.poll() is None
    second.kill()
    second.communicate()
