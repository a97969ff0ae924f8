"""Locks on folders: one holder at a time, between threads, processes, containers and machines."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from advfeat import _locks
from advfeat._locks import Lock, LostLock, Owner, hold


@pytest.fixture
def quick(monkeypatch):
    """Signs of life every 20 ms, and a fifth of a second of silence is enough."""
    monkeypatch.setattr(_locks, "_BEAT", 0.02)
    monkeypatch.setattr(_locks, "_PATIENCE", 0.2)
    monkeypatch.setattr(_locks, "_POLL", 0.01)


def _claim(folder, owner, name="work"):
    folder.mkdir(exist_ok=True)
    path = folder / f".{name}.{owner}.lock"
    path.write_text('{"host": "nodeA", "pid": 7, "since": "noon"}')
    return path


def _elsewhere(pid=7):
    return Owner("eeeeeeee", pid, 1, "00000000")


def _dead():
    """An owner of this place whose process has ended."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return Owner(_locks.place(), child, 1, "00000001")


def test_one_holds_it_and_the_next_one_gets_it(tmp_path):
    folder = tmp_path / "run"
    first, second, other = Lock(folder), Lock(folder), Lock(folder, "other")
    assert first.acquire() and not second.acquire() and other.acquire()
    assert f"process {os.getpid()} on" in second.holder() and second.is_surely_held()
    first.release()
    other.release()
    assert second.holder() is None and second.acquire()
    second.release()


def test_a_folder_made_for_the_lock_alone_goes_with_it(tmp_path):
    with hold(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not list(tmp_path.iterdir())


def test_the_folder_stays_if_something_was_written(tmp_path):
    with hold(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "model").touch()
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["model"]


def test_threads_take_turns(tmp_path, quick):
    inside, seen = [], []

    def work():
        with hold(tmp_path):
            inside.append(1)
            seen.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 6 and not list(tmp_path.iterdir())


_WORK = """
import importlib.util, os, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("locks", sys.argv[3])  # alone: it needs no torch
_locks = sys.modules["locks"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_locks)
_locks._POLL, place = 0.02, sys.argv[2]
_locks._BEAT, _locks._PATIENCE = 0.1, 5.0
if place:
    _locks.place = lambda: place
folder = Path(sys.argv[1])
for _ in range(5):
    with _locks.hold(folder):
        with open(folder / "log", "a") as log:
            log.write(f"in {os.getpid()}\\n"); log.flush()
            time.sleep(0.005)
            log.write(f"out {os.getpid()}\\n")
print("done")
"""


def test_containers_take_turns(tmp_path):
    """Process namespaces of their own, as containers have: in each the process has the same number."""
    apart = ["unshare", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make process namespaces")
    command = [
        *apart,
        sys.executable,
        "-c",
        _WORK + "print(os.getpid(), _locks.place())",
        tmp_path,
        "",
        _locks.__file__,
    ]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert [lines[0] for lines in said] == ["done", "done"]
    (first, here), (second, there) = (lines[1].split() for lines in said)
    assert first == second and len({here, there, _locks.place()}) == 3
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["in", "out"] * 10


@pytest.mark.parametrize("places", [[""] * 4, ["aaaaaaaa", "aaaaaaaa", "bbbbbbbb", "cccccccc"]], ids=["here", "apart"])
def test_processes_take_turns(tmp_path, places):
    """Also those that cannot see each other, as in two containers with numbers of their own."""
    command = [sys.executable, "-c", _WORK, tmp_path]
    processes = [
        subprocess.Popen([*command, place, _locks.__file__], stdout=subprocess.PIPE, text=True) for place in places
    ]
    assert all(p.communicate(timeout=60)[0] == "done\n" and p.returncode == 0 for p in processes)
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2 * 5 * len(places)
    for came, left in zip(lines[::2], lines[1::2], strict=True):
        assert came.startswith("in ") and left == came.replace("in", "out")
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def test_a_killed_holder_lets_go_at_once(tmp_path):
    code = (
        "import sys, time; from advfeat._locks import Lock; "
        "Lock(sys.argv[1]).acquire(); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    lock = Lock(tmp_path)
    os.kill(process.pid, signal.SIGSTOP)  # stopped is not gone, however long it takes
    assert not lock.acquire() and f"process {process.pid}" in lock.holder()
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet waited for
    assert lock.acquire()
    lock.release()
    process.wait()
    process.stdout.close()


def test_a_number_that_was_given_to_another_process_does_not_count(tmp_path):
    mine = Owner.new()
    _claim(tmp_path, Owner(mine.place, mine.pid, mine.started + 1, "00000000"))
    _claim(tmp_path, _dead())
    with hold(tmp_path):
        assert len(list(tmp_path.iterdir())) == 1


def test_a_holder_elsewhere_is_waited_for_while_it_shows_life(tmp_path, quick):
    claim, lock = _claim(tmp_path, _elsewhere()), Lock(tmp_path)
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        os.utime(claim)
        assert not lock.acquire()
        time.sleep(0.01)
    assert lock.is_surely_held() and lock.holder() == "process 7 on nodeA, since noon"
    began = time.monotonic()
    while not lock.acquire():  # now it is silent
        time.sleep(0.005)
    assert 0.15 < time.monotonic() - began < 5 and not claim.exists()
    lock.release()


def test_silence_is_what_was_looked_at_not_what_clocks_say(tmp_path, quick):
    """A clock that jumps, or a machine that slept with the holder, is no reason to take its place."""
    claim, lock = _claim(tmp_path, _elsewhere()), Lock(tmp_path)
    os.utime(claim, (0, 0))  # written in 1970, as its machine has it
    assert not lock.acquire()
    time.sleep(0.5)  # asleep: nothing was looked at meanwhile
    assert not lock.acquire() and claim.exists()


def test_without_times_of_start_silence_counts_here_too(tmp_path, quick):
    mine = Owner.new()
    _claim(tmp_path, Owner(mine.place, mine.pid, 0, "00000000"))
    with hold(tmp_path):
        pass


def test_who_was_taken_for_dead_does_not_write(tmp_path, quick, monkeypatch):
    lock = Lock(tmp_path)
    assert lock.acquire()
    lock.check()
    monkeypatch.setattr(_locks, "_send_heartbeats", lambda *_: None)
    (mine,) = tmp_path.iterdir()
    mine.unlink()  # as another one does after minutes of silence
    with hold(tmp_path):
        with pytest.raises(LostLock, match=r"is now in use by process \d+ on .*: nothing more was written"):
            lock.check()
    with pytest.raises(LostLock, match="or its lock file was removed"):
        lock.check()
    lock.release()


def test_signs_of_life_are_shown(tmp_path, quick):
    with hold(tmp_path):
        (mine,) = tmp_path.iterdir()
        os.utime(mine, (0, 0))
        time.sleep(0.2)
        assert mine.stat().st_mtime > 1e9


def test_who_waits_hears_once_who_works_there(tmp_path, quick):
    lock, said = Lock(tmp_path), []
    assert lock.acquire()
    threading.Timer(0.2, lock.release).start()
    with hold(tmp_path, waiting=said.append):
        pass
    assert len(said) == 1 and f"process {os.getpid()} on" in said[0]

    def refuse(holder):
        raise BlockingIOError(holder)

    with hold(tmp_path), pytest.raises(BlockingIOError), hold(tmp_path, waiting=refuse):
        pass
    # Of another machine it is not said before it has shown life: it may be long dead.
    _claim(tmp_path, _elsewhere())
    with hold(tmp_path, waiting=refuse):
        pass


def test_a_forked_child_does_not_give_back_what_its_parent_holds(tmp_path):
    with hold(tmp_path) as lock:
        child = os.fork()
        if child == 0:
            lock.release()
            os._exit(0)
        os.waitpid(child, 0)
        lock.check()


@pytest.mark.parametrize("at", ["making the folder", "looking for others"])
def test_who_is_interrupted_while_taking_it_has_not_got_it(tmp_path, monkeypatch, at):
    """Or the next call of the same process, in a notebook, would wait for itself."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if at == "making the folder":
            patch.setattr(Lock, "_make_folder", interrupted)
        else:
            others = Lock._others
            patch.setattr(Lock, "_others", lambda lock, but="": interrupted() if but else others(lock))
        with pytest.raises(KeyboardInterrupt), hold(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_a_full_disk_still_has_room_for_a_lock(tmp_path, monkeypatch):
    """A record that does not fit is no reason: the name says whose it is."""
    monkeypatch.setattr(_locks.json, "dumps", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with hold(tmp_path):
        other = Lock(tmp_path)
        assert not other.acquire() and other.holder() == f"process {os.getpid()}"


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        Lock(Path(tmp_path / "file")).acquire()
