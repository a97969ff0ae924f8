"""Files written whole or not at all, and places that are looked at before the work."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time

import pytest

from advfeat import _locks, files
from advfeat.files import (
    append_line,
    check_writable_file,
    check_writable_folder,
    sweep,
    temporary_name,
    write_bytes,
    write_together,
)
from advfeat.json_files import append_json_line, write_json_lines


def _names(folder):
    return sorted(p.name for p in folder.iterdir())


# --- what is written over


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "real.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    for content in (b"new", b"newer"):
        write_bytes(link, content)
        assert link.is_symlink() and target.read_bytes() == content
    target.unlink()
    write_together([(tmp_path / "weights", b"w"), (link, b"again")])
    assert link.is_symlink() and target.read_bytes() == b"again"
    assert _names(tmp_path) == ["elsewhere", "link.json", "weights"] and _names(tmp_path / "elsewhere") == ["real.json"]


def test_a_link_of_a_run_s_own_name_is_replaced_and_its_target_stays(tmp_path):
    other, run = tmp_path / "other", tmp_path / "run"
    for folder in (other, run):
        folder.mkdir()
    names = ("weights", "about.json", "rows.jsonl", "gone")
    for name in names:
        if name != "gone":
            (other / name).write_text("another run's")
            (other / name).chmod(0o444)  # as sets are kept
        (run / name).symlink_to(other / name)
    with pytest.raises(OSError, match="could not write .*rows.jsonl: it is a link to .*other/rows.jsonl"):
        append_line(run / "rows.jsonl", "{}")
    write_together([(run / "weights", b"w"), (run / "about.json", b"{}")], follow=False)
    write_bytes(run / "gone", b"g", follow=False)
    write_json_lines(run / "rows.jsonl", [{}])
    append_line(run / "rows.jsonl", "{}")
    assert [(run / name).read_text() for name in names] == ["w", "{}", "{}\n{}\n", "g"]
    assert not any((run / name).is_symlink() for name in names)
    assert _names(other) == sorted(names[:3])
    assert all((other / name).read_text() == "another run's" for name in names[:3])


@pytest.mark.parametrize("through_a_link", [False, True])
def test_devices_pipes_and_folders_are_never_replaced(tmp_path, through_a_link):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for path, kind in ((tmp_path / "fifo", "FIFO"), (tmp_path / "folder", "folder"), (os.devnull, "device")):
        if through_a_link:
            link = tmp_path / f"to-{kind}"
            link.symlink_to(path)
            path = link
        before = os.stat(path)
        for call in (lambda p: write_bytes(p, b"x"), check_writable_file):
            with pytest.raises(ValueError, match=f"should be a file, got a {kind}"):
                call(path)
        assert os.stat(path).st_ino == before.st_ino and stat.S_IFMT(os.stat(path).st_mode) == stat.S_IFMT(
            before.st_mode
        )
    assert not list(tmp_path.glob(".*"))


def test_permissions_are_the_users_own(tmp_path):
    path = tmp_path / "results.json"
    before = os.umask(0o027)
    try:
        write_bytes(path, b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    write_bytes(path, b"2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_write_protected_file_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text("kept")
    path.chmod(0o400)
    monkeypatch.setattr(os, "access", lambda *_: False)  # as it is for anyone but root
    for call in (lambda: write_bytes(path, b"x"), lambda: check_writable_file(path)):
        with pytest.raises(PermissionError, match="results.json.*: the file is write-protected"):
            call()
    assert path.read_text() == "kept" and _names(tmp_path) == ["results.json"]


def test_a_line_that_does_not_fit_leaves_no_half(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    append_json_line(path, {"epoch": 1})
    before, real = path.read_bytes(), open

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(data[: len(data) // 2])  # what the disk still takes

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda *a, **k: Full(real(*a, **k)))
        with pytest.raises(OSError, match=r"could not write .*metrics\.jsonl: No space left"):
            append_json_line(path, {"epoch": 2})
    assert path.read_bytes() == before


def test_files_of_two_writers_are_not_mixed(tmp_path, monkeypatch):
    """Weights of one beside the description of the other would be a model that neither wrote."""
    replace = os.replace

    def slow(source, target):
        replace(source, target)
        time.sleep(0.01)

    monkeypatch.setattr(os, "replace", slow)

    def write(content):
        for _ in range(3):
            write_together([(tmp_path / name, content) for name in ("weights", "picture", "description")])

    threads = [threading.Thread(target=write, args=(bytes([65 + i]),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert _names(tmp_path) == ["description", "picture", "weights"]


# --- names


def test_names_are_as_long_as_the_file_system_lets_them_be(tmp_path, monkeypatch):
    monkeypatch.setattr(_locks.Owner, "is_gone", lambda _: True)
    for name in ("n" * 255, "é" * 127, os.fsdecode(b"\xff" * 255)):
        write_bytes(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"
        beside = temporary_name(tmp_path / name)
        beside.touch()
        sweep(tmp_path, {name})
        assert not beside.exists()
    with pytest.raises(OSError, match="name too long"):
        write_bytes(tmp_path / ("n" * 256), b"x")


def test_two_writes_never_share_a_temporary(tmp_path, monkeypatch):
    """Not in one process, and not in two containers where both are process 7."""
    path = tmp_path / "shard"
    assert temporary_name(path) != temporary_name(path)
    monkeypatch.setattr(os, "getpid", lambda: 7)
    names = set()
    for where in ("aaaaaaaa", "bbbbbbbb"):
        monkeypatch.setattr(_locks, "place", lambda where=where: where)
        names.add(temporary_name(path).name.rsplit("-", 1)[0])
    assert len(names) == 2


# --- what killed processes leave


def test_temporaries_of_the_dead_go_and_those_of_the_living_stay(tmp_path, monkeypatch):
    def left(name, owner, age=0.0):
        path = tmp_path / f".{name}.{owner}.tmp"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
        return path

    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    here, now = _locks.place(), _locks.Owner.new()
    dead = left("a", f"{here}-{child}-1-00000000")
    again = left("a", f"{here}-{os.getpid()}-{now.started - 1}-00000000")  # the number was given to this process
    living = left("a", now, age=2 * files._DAY)
    elsewhere = left("a", "eeeeeeee-7-1-00000000", age=3600)
    long_ago = left("a", "eeeeeeee-7-1-00000001", age=2 * files._DAY)
    older_version, other = left("config.json", "123", age=2 * files._DAY), left("b", f"{here}-{child}-1-00000000")
    strangers = [left("a", "2024"), tmp_path / ".a.tmp", tmp_path / "a.7.tmp", tmp_path / ".a.seven.tmp"]
    for path in strangers:
        path.touch()
        os.utime(path, (0, 0))
    write_bytes(tmp_path / "a", b"whole")
    write_bytes(tmp_path / "config.json", b"{}")
    assert not any(path.exists() for path in (dead, again, long_ago, older_version))
    assert all(path.exists() for path in (living, elsewhere, other, *strangers))
    sweep(tmp_path)
    assert not other.exists() and all(path.exists() for path in (living, elsewhere, *strangers))


# --- places


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    for path in (tmp_path / "a.json", tmp_path / "new" / "deep" / "a.json"):
        assert check_writable_file(path) == path
    for path in (tmp_path, tmp_path / "new" / "deep"):
        assert check_writable_folder(path) == path
    (tmp_path / "dangling").symlink_to(tmp_path / "to-be.json")
    check_writable_file(tmp_path / "dangling")
    (tmp_path / "link").symlink_to(tmp_path)
    check_writable_folder(tmp_path / "link")
    assert _names(tmp_path) == ["dangling", "link"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "fifo")
    for path, said in (
        (tmp_path / "file" / "a.json", "file/a.json cannot be written: Not a directory"),
        (tmp_path / "file" / "new" / "a.json", "a.json cannot be written: Not a directory"),
        (tmp_path / "loop", "loop cannot be written: Too many levels"),
        (tmp_path / ("n" * 300), "cannot be written: File name too long"),
        (tmp_path / "new" / ("n" * 300) / "a", "cannot be written: File name too long"),
        ("/proc/nothing/a.json", "/proc/nothing/a.json cannot be written"),
        ("", "should be a file, got a folder"),
        (tmp_path / "a\0b", "zero byte"),
    ):
        with pytest.raises((OSError, ValueError), match=said):
            check_writable_file(path)
    for path, said in (
        (tmp_path / "file", "file should be a folder, got a regular file"),
        (tmp_path / "fifo", "fifo should be a folder, got a FIFO"),
        (os.devnull, "should be a folder, got a device"),
        (tmp_path / "nowhere", "nowhere should be a folder, got a link to .*gone, which does not exist"),
        (tmp_path / "file" / "under", "under cannot be written: Not a directory"),
        ("/proc/nothing", "/proc/nothing cannot be written"),
    ):
        with pytest.raises((OSError, ValueError), match=said):
            check_writable_folder(path)
    assert _names(tmp_path) == ["fifo", "file", "loop", "nowhere"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_disk_is_told_before_the_work(tmp_path, monkeypatch, number):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refused)
    for check in (check_writable_file, check_writable_folder):
        with pytest.raises(OSError, match=f"out cannot be written: {os.strerror(number)}") as error:
            check(tmp_path / "out")
        assert error.value.errno == number


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "out"
    with pytest.raises(KeyError), files.new_folder(path) as beside:
        (beside / "half").touch()
        raise KeyError
    assert _names(tmp_path / "deep") == []
    path.mkdir()  # an empty one is no obstacle
    with files.new_folder(path) as beside:
        (beside / "whole").touch()
        assert not list(path.iterdir())
    assert _names(tmp_path / "deep") == ["out"] and _names(path) == ["whole"]
    with pytest.raises(FileExistsError, match="out holds files already"), files.new_folder(path) as beside:
        (beside / "other").touch()
    assert _names(tmp_path / "deep") == ["out"] and _names(path) == ["whole"]
