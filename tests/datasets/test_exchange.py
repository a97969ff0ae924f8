"""Sets to and from other programs: lists of tensors, folders of images."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from support.constructed_set import build, manifest, rows
from support.tensor_source import striped
from torch.utils.data import DataLoader, Subset, TensorDataset

from advfeat import cli
from advfeat.datasets import base, exchange, official, sources
from advfeat.datasets.base import ArraySource
from advfeat.datasets.folder import FolderSource
from advfeat.datasets.store import ConstructedSet, SetWriter


def test_lists_of_the_paper_s_authors(tmp_path):
    build(tmp_path / "set")
    made = ConstructedSet.open(tmp_path / "set")
    exchange.export_lists(made, tmp_path / "lists")
    # As their users read them.
    images = torch.cat(torch.load(tmp_path / "lists" / "CIFAR_ims", map_location="cpu", weights_only=True))
    assert images.dtype == torch.float32 and torch.equal(images, made.images())
    back = exchange.import_lists(tmp_path / "lists", classes="abcd")
    assert torch.equal(back.images(), made.images()) and torch.equal(back.labels, made.labels)


def test_a_dataset_of_torch_is_exported(tmp_path):
    images, labels = torch.rand(7, 3, 4, 4), torch.arange(7) % 3
    whole = TensorDataset(images, labels)
    for name, data in [("whole", whole), ("part", Subset(whole, [6, 1]))]:
        rows = [6, 1] if name == "part" else range(7)
        exchange.export_lists(data, tmp_path / name)
        back = exchange.import_lists(tmp_path / name, classes="abc")
        assert torch.equal(back.images(), images[rows]) and torch.equal(back.labels, labels[rows])
        exchange.export_folder(DataLoader(data), tmp_path / f"{name} as images")
        found = FolderSource(tmp_path / f"{name} as images")
        order = sorted(range(len(rows)), key=lambda i: int(labels[rows[i]]))
        assert found.labels.tolist() == [int(labels[rows[i]]) for i in order]
        assert (found.images() - images[[rows[i] for i in order]]).abs().max() < 0.51 / 255


def test_their_lists_in_batches_of_any_size(tmp_path):
    images, labels = torch.rand(10, 3, 32, 32), torch.arange(10)
    torch.save(list(images.split(4)), tmp_path / "CIFAR_ims")
    torch.save(list(labels.split(3)), tmp_path / "CIFAR_lab")
    source = exchange.import_lists(tmp_path)
    assert source.classes[3] == "cat" and torch.equal(source.images(), images) and torch.equal(source.labels, labels)
    # As torch 1.1 saved them, before the zip format.
    torch.save(list(images.split(4)), tmp_path / "CIFAR_ims", _use_new_zipfile_serialization=False)
    assert torch.equal(exchange.import_lists(tmp_path).images(), images)


# --- the released sets, by their folder


def _released(folder: Path, n: int = 20, shape: tuple[int, ...] = (3, 32, 32)) -> tuple[torch.Tensor, torch.Tensor]:
    """A set in the form of the released ones: lists of batches of different sizes."""
    folder.mkdir(parents=True)
    images = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n) % 10
    torch.save(list(images.split(8)), folder / "CIFAR_ims")
    torch.save(list(labels.split(8)), folder / "CIFAR_lab")
    return images, labels


@pytest.mark.parametrize("name", ["d_robust_CIFAR", "d_non_robust_CIFAR", "drand_CIFAR", "ddet_CIFAR"])
def test_a_released_set_is_loaded_by_its_folder(tmp_path, name):
    folder = tmp_path / "release_datasets" / name
    images, labels = _released(folder)
    source = sources.load(folder)
    assert torch.equal(source.images(), images) and torch.equal(source.labels, labels)
    assert (source.classes, source.name, source.split) == (official.CIFAR10_CLASSES, str(folder), "train")
    part = sources.load(str(folder), limit=10)
    assert part.labels.sort().values.tolist() == list(range(10)) and part.split == "train"
    assert source.built_from == part.built_from == "cifar10"
    with pytest.raises(
        ValueError, match=f"split should be train for .*{name}, which was built from that of cifar10, got 'test'"
    ):
        sources.load(folder, "test")


def test_what_is_no_released_set_of_cifar10_is_named(tmp_path):
    _released(tmp_path / "small", shape=(1, 8, 8))
    with pytest.raises(ValueError, match="small should hold 3x32x32 images of CIFAR-10, got 1x8x8; .*import_lists"):
        sources.load(tmp_path / "small")
    assert exchange.import_lists(tmp_path / "small").built_from is None
    for missing, there in (("CIFAR_ims", "CIFAR_lab"), ("CIFAR_lab", "CIFAR_ims")):
        _released(tmp_path / missing)
        (tmp_path / missing / missing).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{missing} is missing\. .* holds {there}\."):
            sources.load(tmp_path / missing)
    build(tmp_path / "set")
    (tmp_path / "set" / "CIFAR_ims").write_bytes(b"")
    assert isinstance(sources.load(tmp_path / "set"), ConstructedSet)  # its manifest says what it is


@pytest.mark.parametrize("limit", ["", "--limit 10"])
def test_training_on_a_released_set_tests_on_cifar10(tmp_path, monkeypatch, capsys, limit):
    _released(tmp_path / "ddet_CIFAR")
    labels = b"".join(b"K" + bytes([i % 10]) for i in range(30))
    block = b"T" + struct.pack("<i", 30 * 3072) + bytes(range(256)) * (30 * 12)
    batch = b"\x80\x02}(U\x06labels](" + labels + b"eU\x04data" + block + b"u."
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(batch)
    md5 = hashlib.md5(batch).hexdigest()
    monkeypatch.setattr(official, "_CIFAR10_FILES", {"train": (), "test": (("test_batch", md5),)})
    command = f"train --out {tmp_path}/run --dataset {tmp_path}/ddet_CIFAR --root {tmp_path} --epochs 1 --width 4"
    cli.main([*command.split(), *limit.split()])
    assert "test accuracy on cifar10: " in capsys.readouterr().out
    data = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert data["test"]["name"] == "cifar10" and data["train"]["name"] == str(tmp_path / "ddet_CIFAR")


class _Evil:
    def __reduce__(self):
        return os.mkdir, (_Evil.mark,)

    mark = ""


def test_imported_lists_run_nothing(tmp_path):
    _Evil.mark = str(tmp_path / "was-run")
    torch.save([_Evil()], tmp_path / "CIFAR_ims")
    torch.save([torch.zeros(1, dtype=torch.int64)], tmp_path / "CIFAR_lab")
    with pytest.raises(ValueError, match="CIFAR_ims is damaged, or holds more than tensors"):
        exchange.import_lists(tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_wrong_lists_are_named(tmp_path):
    images, labels = tmp_path / "CIFAR_ims", tmp_path / "CIFAR_lab"
    with pytest.raises(FileNotFoundError, match=r"CIFAR_ims is missing\. .* is empty"):
        exchange.import_lists(tmp_path)
    good, good_labels = [torch.rand(4, 3, 32, 32)], [torch.arange(4)]
    for ims, lab, said in [
        ({"a": 1}, good_labels, "CIFAR_ims should hold a list of tensors, got dict"),
        ([], good_labels, "CIFAR_ims should hold a list of tensors"),
        ([torch.rand(4, 3, 8, 8), *good], good_labels, "CIFAR_ims should hold batches of one shape"),
        ([torch.zeros(4, 3, 8, 8, dtype=torch.uint8)], good_labels, "CIFAR_ims should hold float images"),
        (good, [torch.arange(3)], "CIFAR_lab should hold 4 integers"),
        (good, [torch.rand(4)], "CIFAR_lab should hold 4 integers"),
        (good, [torch.arange(4) + 8], r"0 .. 9 for 10 classes: sample 2 has label 10"),
        ([good[0] * 255], good_labels, r"lie in \[0, 1\]: sample 0"),
    ]:
        torch.save(ims, images)
        torch.save(lab, labels)
        with pytest.raises(ValueError, match=said):
            exchange.import_lists(tmp_path)
    torch.save(good, images)
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(ValueError, match="CIFAR_ims is damaged"):
        exchange.import_lists(tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_of_images_comes_back_rounded(tmp_path, channels):
    pytest.importorskip("PIL")
    x = torch.rand(9, channels, 6, 5, generator=torch.Generator().manual_seed(0))
    source = base.ArraySource(
        x, torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0]), ("zebra", "ape/monkey", "cat"), split="test"
    )
    exchange.export_folder(source, tmp_path)
    back = FolderSource(tmp_path, "test")
    assert back.classes == source.classes and back.image_shape == (channels, 6, 5)
    assert [back.file(i).parent.name for i in (0, 3, 6)] == ["0_zebra", "1_ape_monkey", "2_cat"]
    order = torch.argsort(source.labels, stable=True)
    assert torch.equal(back.labels, source.labels[order])
    assert torch.equal(back.images() * 255, (x[order] * 255).round())
    lines = (tmp_path / "test" / "metadata.csv").read_text().splitlines()
    assert lines[0] == "file_name,label" and lines[1] == "2_cat/00000.png,2" and len(lines) == 10
    with pytest.raises(ValueError, match="holds files already"):  # a smaller set would leave some of these
        exchange.export_folder(source, tmp_path)


def test_folder_of_a_constructed_set_tells_what_is_known(tmp_path):
    pytest.importorskip("PIL")
    writer = SetWriter(tmp_path / "set", manifest(image_shape=(1, 4, 4)), 4, 4)
    writer.write(0, rows(range(4), shape=(1, 4, 4)))
    writer.finish()
    exchange.export_folder(ConstructedSet.open(tmp_path / "set"), tmp_path / "images")
    lines = (tmp_path / "images" / "train" / "metadata.csv").read_text().splitlines()
    assert lines[0] == "file_name,label,original_labels,source_index,start_index,target_success"
    assert lines[2] == "c/00001.png,2,1,1,7,True"
    build(tmp_path / "two-channels")
    with pytest.raises(ValueError, match="an image file has 1 or 3 channels, .* has 2"):
        exchange.export_folder(ConstructedSet.open(tmp_path / "two-channels"), tmp_path / "images")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
def test_lists_with_any_byte_changed_or_cut_off_are_read_or_named(tmp_path, legacy):
    exchange.export_lists(striped(5), tmp_path)
    file = tmp_path / "CIFAR_lab"
    torch.save([striped(5).labels], file, _use_new_zipfile_serialization=not legacy)
    whole, drawn = file.read_bytes(), random.Random(0)
    for i in range(400):
        changed = bytearray(whole)
        if i % 4:
            changed[drawn.randrange(min(len(whole), 700))] = drawn.randrange(256)
        file.write_bytes(changed if i % 4 else whole[: drawn.randrange(len(whole))])
        try:
            exchange.import_lists(tmp_path)
        except ValueError as error:
            assert str(tmp_path) in str(error) or "labels" in str(error)


# --- whole or not at all


_EXPORT = """
import sys
from pathlib import Path
from support.tensor_source import striped
from advfeat.datasets import exchange
{before}
exchange.{what}(striped(int(sys.argv[2])), sys.argv[1])
"""


def _killed_at(call: int, what: str, folder: Path, n: int, of: str) -> bool:
    """Exports in a process that gets SIGKILL at the so many-th call of an ``os`` function; whether it got there."""
    before = (
        f"import os, signal\nreal, calls = os.{of}, []\n"
        f"def counted(*a, **k):\n    calls.append(a)\n"
        f"    if len(calls) == {call}: os.kill(os.getpid(), signal.SIGKILL)\n    return real(*a, **k)\n"
        f"os.{of} = counted"
    )
    code = _EXPORT.format(before=before, what=what)
    done = subprocess.run(
        [sys.executable, "-c", code, folder, str(n)], cwd=Path(__file__).parents[1], capture_output=True
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize(("of", "call"), [("fsync", 1), ("replace", 2)])
def test_a_killed_export_of_lists_never_leaves_images_beside_the_labels_of_another(tmp_path, of, call):
    exchange.export_lists(striped(10), tmp_path)
    old = exchange.import_lists(tmp_path)
    assert _killed_at(call, "export_lists", tmp_path, 11, of)
    if of == "fsync":
        assert exchange.import_lists(tmp_path).fingerprint == old.fingerprint
    else:
        with pytest.raises(FileNotFoundError, match="CIFAR_lab is missing"):
            exchange.import_lists(tmp_path)
    exchange.export_lists(striped(11), tmp_path)
    assert exchange.import_lists(tmp_path).labels.equal(striped(11).labels)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["CIFAR_ims", "CIFAR_lab"]  # what was left went


@pytest.mark.slow
@pytest.mark.parametrize(("of", "call"), [("fsync", 3), ("rename", 1)])
def test_a_killed_export_of_images_leaves_no_folder_that_looks_whole(tmp_path, of, call):
    assert _killed_at(call, "export_folder", tmp_path / "out", 11, of)
    assert not (tmp_path / "out" / "train").exists()
    with pytest.raises((FileNotFoundError, ValueError)):
        sources.load("folder", "train", tmp_path / "out")
    exchange.export_folder(striped(11), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["train"]
    assert len(sources.load("folder", "train", tmp_path / "out")) == 11
    with pytest.raises(ValueError, match="train holds files already"):
        exchange.export_folder(striped(10), tmp_path / "out")


def test_a_full_disk_leaves_no_half_of_an_export(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for export in (exchange.export_lists, exchange.export_folder):
            with pytest.raises(OSError, match="could not write .*No space left"):
                export(striped(11), tmp_path)
    assert not list(tmp_path.iterdir())


def test_exports_at_once_are_of_one_set(tmp_path):
    threads = [threading.Thread(target=exchange.export_lists, args=(striped(n), tmp_path)) for n in (10, 11, 13, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = exchange.import_lists(tmp_path)
    assert made.labels.equal(striped(len(made)).labels) and float(made.images([0]).max()) == pytest.approx(
        1 / len(made)
    )


def test_lists_that_are_replaced_while_they_are_read_are_not_mixed(tmp_path, monkeypatch):
    exchange.export_lists(striped(10), tmp_path)
    load = exchange._load_list

    def slow(file):
        found = load(file)
        if file.name.endswith("ims"):
            exchange.export_lists(striped(10), tmp_path)
        return found

    monkeypatch.setattr(exchange, "_load_list", slow)
    with pytest.raises(ValueError, match="was written to while it was read: read it again"):
        exchange.import_lists(tmp_path)


@pytest.mark.parametrize("export", [exchange.export_lists, exchange.export_folder])
def test_a_place_that_cannot_be_written_is_told_before_the_images_are_read(tmp_path, monkeypatch, export):
    (tmp_path / "file").touch()
    source = striped(10)
    monkeypatch.setattr(source, "images", lambda *_: pytest.fail("read"))
    with pytest.raises((OSError, ValueError), match="cannot be written|should be a folder"):
        export(source, tmp_path / "file")


def test_a_list_that_repeats_a_few_numbers_without_end_is_refused(tmp_path):
    torch.save([torch.zeros(1).expand(10**7, 3, 32, 32)], tmp_path / "CIFAR_ims")
    torch.save([torch.zeros(1, dtype=torch.int64).expand(10**7)], tmp_path / "CIFAR_lab")
    with pytest.raises(ValueError, match="CIFAR_ims is damaged: its tensors would be .* bytes, more than the file"):
        exchange.import_lists(tmp_path)


@pytest.mark.parametrize(
    "made", [lambda x: x.to_sparse(), lambda x: x.to("meta"), lambda x: torch.nested.nested_tensor([x])]
)
def test_a_list_of_other_than_plain_tensors_is_refused(tmp_path, made):
    torch.save([made(torch.rand(2, 3, 4, 4))], tmp_path / "CIFAR_ims")
    torch.save([torch.zeros(2, dtype=torch.int64)], tmp_path / "CIFAR_lab")
    with pytest.raises(ValueError, match="CIFAR_ims (should hold plain tensors|is damaged)"):
        exchange.import_lists(tmp_path)


def test_labels_are_integers(tmp_path):
    torch.save([torch.rand(2, 3, 4, 4)], tmp_path / "CIFAR_ims")
    for kind in (torch.complex64, torch.bool, torch.float32):
        torch.save([torch.zeros(2, dtype=kind)], tmp_path / "CIFAR_lab")
        with pytest.raises(ValueError, match="CIFAR_lab should hold 2 integers"):
            exchange.import_lists(tmp_path)


@pytest.mark.parametrize("split", ["../outside", "/outside", "..", "a/b"])
def test_an_export_stays_in_its_folder(tmp_path, split):
    source = ArraySource(torch.zeros(2, 1, 4, 4), [0, 1], ("a", "b"))
    source.split = split
    with pytest.raises(ValueError, match="the split of .* should be the name of a folder"):
        exchange.export_folder(source, tmp_path / "export")
    assert not list(tmp_path.iterdir())
