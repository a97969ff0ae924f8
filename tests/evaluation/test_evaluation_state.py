"""A killed evaluation resumes where it was, and finds what an undisturbed one finds."""

import multiprocessing
import random
import shutil
import signal

import pytest
import torch
from support import short_evaluation
from support.short_evaluation import Counter, N, attack, evaluated, killed, task

from advfeat import L2, PGD
from advfeat.evaluation import evaluate, resumable
from advfeat.evaluation.state import _differences, open_state


def same(a, b):
    """Two evaluations have the same flags, also per attack, and the same examples, bit for bit."""
    for name in a.robust:
        assert torch.equal(a.robust[name], b.robust[name])
        assert torch.equal(a.broken_by[name], b.broken_by[name])
        for part in ("images", "distance"):
            assert torch.equal(getattr(a.examples[name], part), getattr(b.examples[name], part))
    (r,), (s,) = a.robustness, b.robustness
    for name in ("accuracy", "found_alone", "margin", "largest_distance", "zero_gradient"):
        assert getattr(r, name) == getattr(s, name)
    rows, others = ([(row.name, row.attacked, row.broken) for row in one.breakdown] for one in (r, s))
    assert rows == others


@pytest.fixture(scope="module")
def undisturbed():
    return evaluated(7, None)


@pytest.fixture(scope="module")
def processes():
    """Processes that start in a moment, since their parent has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["advfeat.attacks", "advfeat.evaluation"])
    return context


def test_each_attack_has_something_to_do(undisturbed):
    rows = undisturbed.robustness[0].breakdown
    assert [row.name for row in rows] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert all(row.attacked >= 5 for row in rows) and sum(row.broken > 0 for row in rows) >= 2
    assert undisturbed.clean.count == N - 2


@pytest.mark.parametrize("batch_size", [1, 5, 50])
def test_with_a_state_it_finds_the_same(undisturbed, tmp_path, batch_size):
    same(evaluated(batch_size, tmp_path / "state"), undisturbed)
    calls = []
    again = evaluated(9, tmp_path / "state", progress=lambda *call: calls.append(call))
    same(again, undisturbed)
    assert calls[-1] == (2 * N, 2 * N)


def test_a_finished_one_attacks_nothing(undisturbed, tmp_path, monkeypatch):
    first = evaluated(7, tmp_path / "state")
    monkeypatch.setattr(resumable, "_run", lambda *_: pytest.fail("an attack was run"))
    again = evaluated(11, tmp_path / "state")
    same(again, first)
    assert again.robustness == first.robustness
    for row, before in zip(again.robustness[0].breakdown, first.robustness[0].breakdown, strict=True):
        assert row.seconds == pytest.approx(before.seconds) and row.seconds > 0


def resumes_after(kills, processes, state, undisturbed):
    """Kills the evaluation at these moments one after the other, each in another batch size, and finishes it."""
    for at, batch_size in kills:
        process = processes.Process(target=killed, args=(at, batch_size, str(state)))
        process.start()
        process.join(60)
        assert process.exitcode in (-signal.SIGKILL, 0)
        if process.exitcode == 0:  # it needed fewer passes than that
            break
    same(evaluated(random.choice((3, 6, 40)), state), undisturbed)


def moments(state, monkeypatch):
    """In which attack each moment of an evaluation lies, in batches of 7."""
    turns, run, counter = [], resumable._run, Counter()

    def watched(turn, *args):
        turns.append((counter.count, turn))
        return run(turn, *args)

    monkeypatch.setattr(resumable, "_SECONDS", 0.0)
    monkeypatch.setattr(resumable, "_run", watched)
    for owner, name in (
        (short_evaluation.RowByRow, "forward"),
        (short_evaluation.os, "replace"),
        (short_evaluation.os, "fsync"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back afterwards
    counter.watch()
    evaluated(7, state)
    return turns, counter


@pytest.mark.slow
def test_killed_in_each_attack_it_resumes(undisturbed, tmp_path, processes, monkeypatch):
    with monkeypatch.context() as patched:
        turns, counter = moments(tmp_path / "whole", patched)
    names = [name for name, _ in resumable.in_turn(attack())]
    bounds = [*turns, (counter.count, len(names))]
    spans = {}  # by name: the first and the last moment
    for (first, turn), (last, _) in zip(bounds, bounds[1:], strict=False):
        spans[names[turn]] = spans.get(names[turn], (first,))[0], last
    assert list(spans) == ["", "apgd-ce", "apgd-t", "fab-t", "square"]
    for name, (first, last) in spans.items():
        if name:
            state = tmp_path / name
            resumes_after([(random.randrange(first + 1, last), 7)], processes, state, undisturbed)
            assert (state / "evaluation.json").is_file()
    # In the middle of writes: before a file is synced, and before it is renamed.
    for what in ("fsync", "replace"):
        at = [i for i, kind in enumerate(counter.log, 1) if kind == what]
        resumes_after([(random.choice(at[3:]), 7)], processes, tmp_path / what, undisturbed)


@pytest.mark.thorough
def test_killed_twenty_times_it_resumes(undisturbed, tmp_path, processes):
    for round_ in range(20):
        kills = [(random.randrange(1, 500), random.choice((2, 7, 30))) for _ in range(random.randrange(1, 5))]
        resumes_after(kills, processes, tmp_path / str(round_), undisturbed)


def test_what_is_known_is_not_attacked_again(tmp_path, monkeypatch):
    """Stopped after so many batches; the next call attacks the rest alone."""
    monkeypatch.setattr(resumable, "_SECONDS", 1e9)  # an error writes, too
    seen = []
    run = PGD._over

    def recorded(self, model, batches):
        for (x, y, ids), result in run(self, model, batches):
            if len(seen) == 2:
                raise KeyboardInterrupt
            seen.append(ids.tolist())
            yield (x, y, ids), result

    monkeypatch.setattr(PGD, "_over", recorded)
    net, source = task()
    single = PGD(L2(0.2), steps=4, keep="best")
    with pytest.raises(KeyboardInterrupt):
        evaluate(net, source, attacks=[single], batch_size=6, state=tmp_path / "s")
    known = [i for ids in seen for i in ids]
    assert len(known) == 12
    seen[:] = [[]] * 3
    found = evaluate(net, source, attacks=[single], batch_size=10, state=tmp_path / "s", keep_examples=True)
    assert sorted(known + [i for ids in seen for i in ids]) == list(range(2, N))
    monkeypatch.undo()
    same(found, evaluate(net, source, attacks=[single], keep_examples=True))


def test_interrupted_again_and_again_it_resumes(undisturbed, tmp_path, monkeypatch):
    """An error at random passes, in batches of random sizes; what was finished before it is kept."""
    forward, left, finished = short_evaluation.RowByRow.forward, [0], 0

    def fails(self, x):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(short_evaluation.RowByRow, "forward", fails)
    for _ in range(12):
        left[0] = random.randrange(8, 150)
        try:
            same(evaluated(random.randrange(1, 30), tmp_path / "state"), undisturbed)
            finished += 1
        except KeyboardInterrupt:
            pass
    left[0] = 10**9
    same(evaluated(30, tmp_path / "state"), undisturbed)
    assert finished < 12


def test_another_evaluation_is_refused_with_what_differs(tmp_path):
    net, source = task()
    state, single = tmp_path / "state", PGD(L2(0.2), steps=2, keep="best")
    evaluate(net, source, attacks=[("a", single)], state=state)
    other = short_evaluation.RowByRow()
    other.first.data[0, 0] += 1
    twice, drawn = single.replace(steps=3), single.replace(seed=5, random_start=True)
    for arguments, message in (
        ((net, source, [("a", twice)]), r"attacks.a.settings.steps is 2 there and 3 here"),
        ((net, source, [("a", drawn)]), "random_start is false there and true here"),
        ((net, source, [("b", single)]), r"attacks.a is given \(2 entries\) there and not given here"),
        ((other, source, [("a", single)]), r'model_fingerprint is "[0-9a-f]{11}..." there and "[0-9a-f]{11}..." here'),
        ((net, source.subset(torch.arange(20)), [("a", single)]), "data_fingerprint is"),
    ):
        with pytest.raises(ValueError, match=f"state should be a folder of this evaluation.*another: .*{message}"):
            evaluate(*arguments[:2], attacks=arguments[2], state=state)
    evaluate(net, source, attacks=[("a", single)], state=state, batch_size=3)  # this one is not another


def test_a_folder_of_something_else_is_refused(tmp_path):
    net, source = task()
    (tmp_path / "thesis.tex").write_text("kept")
    with pytest.raises(ValueError, match=r"state should be a folder of this evaluation or .* thesis.tex"):
        evaluate(net, source, attacks=[0.1], state=tmp_path)
    with pytest.raises(ValueError, match="should be a folder, got a regular file"):
        evaluate(net, source, attacks=[0.1], state=tmp_path / "thesis.tex")
    with pytest.raises(ValueError, match="state should be None where the model has no fingerprint"):
        evaluate(lambda x: net(x), source, attacks=[0.1], state=tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_in_use_is_refused(tmp_path):
    net, source = task()
    with open_state(tmp_path / "state", {}), pytest.raises(ValueError, match="got .*state, in use by process"):
        evaluate(net, source, attacks=[0.1], state=tmp_path / "state")


def test_a_damaged_part_is_named_and_without_it_its_samples_are_attacked_again(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(resumable, "_SECONDS", 0.0)
    evaluated(7, tmp_path)
    parts = sorted(tmp_path.glob("part-*"))
    assert len(parts) > 12
    for victim in (parts[1], parts[-1]):
        victim.write_bytes(victim.read_bytes()[:-5])
        with pytest.raises(ValueError, match=f"{victim.name} is damaged .*remove it, and the evaluation repeats"):
            evaluated(7, tmp_path)
        victim.unlink()
        same(evaluated(5, tmp_path), undisturbed)
        shutil.copy(sorted(tmp_path.glob("part-*"))[0], victim)  # what it holds is known already
        same(evaluated(5, tmp_path), undisturbed)


def test_differences_are_named():
    assert _differences({"a": {"b": [1, 2]}, "c": 1}, {"a": {"b": [1, 3]}, "c": 1}) == ["a.b[1] is 2 there and 3 here"]
    assert _differences({"a": 1}, {}) == ["a is 1 there and not given here"]
    assert _differences({"a": [1]}, {"a": [1, 2]}) == ["a is a list (1 entries) there and a list (2 entries) here"]
    assert not _differences({"a": None}, {})
