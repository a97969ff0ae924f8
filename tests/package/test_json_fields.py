"""JSON files that were altered: a sentence that names file and key, never a traceback from inside."""

from __future__ import annotations

import json
import os

import pytest

from advfeat import json_files
from advfeat._json_fields import SHA256
from advfeat.json_files import read_json, write_json

FORM = {
    "name": str,
    "n": range(1, 2**53),
    "rate": float,
    "done": bool,
    "data": (None, {"sha256": SHA256}),
    "shards": [{"file": str, "rows": int}],
    "times": {str: float},
    "note?": str,
}
GOOD = {
    "name": "a",
    "n": 3,
    "rate": 1,
    "done": True,
    "data": None,
    "shards": [{"file": "f", "rows": 2}],
    "times": {"x": 0.5},
    "more": [[]],
}


def test_what_has_the_form_is_read_with_all_that_it_has_beside(tmp_path):
    for changes in ({}, {"data": {"sha256": "0" * 64}}, {"note": "x"}, {"shards": []}):
        write_json(tmp_path / "a.json", GOOD | changes)
        assert read_json(tmp_path / "a.json", FORM) == GOOD | changes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": 3}, "name should be a text, got 3"),
        ({"n": "3"}, 'n should be an integer from 1, got "3"'),
        ({"n": True}, "n should be an integer from 1, got true"),
        ({"n": 0}, "n should be an integer from 1, got 0"),
        ({"n": 2.0}, "n should be an integer from 1, got 2.0"),
        ({"rate": "x"}, 'rate should be a finite number, got "x"'),
        ({"rate": False}, "rate should be a finite number, got false"),
        ({"done": 1}, "done should be true or false, got 1"),
        ({"data": []}, r"data should be null or an object, got \[\]"),
        ({"data": {"sha256": "0" * 63}}, "data.sha256 should be 64 hexadecimal digits"),
        ({"shards": {}}, "shards should be a list, got {}"),
        ({"shards": [{"file": "f", "rows": 1}, None]}, r"shards\[1\] should be an object, got null"),
        ({"shards": [{"file": "f"}]}, r"shards\[0\].rows is missing"),
        ({"shards": [{"file": [], "rows": 1}]}, r"shards\[0\].file should be a text"),
        ({"times": {"x": 1, "y": None}}, "times.y should be a finite number, got null"),
        ({"note": None}, "note should be a text, got null"),
    ],
    ids=str,
)
def test_what_has_not_is_named(tmp_path, changes, said):
    path = tmp_path / "a.json"
    write_json(path, GOOD | changes)
    with pytest.raises(ValueError, match=rf"a\.json is damaged: {said}"):
        read_json(path, FORM)
    missing = GOOD.keys() & changes.keys() - {"note"}
    path.write_text(json.dumps({k: v for k, v in GOOD.items() if k not in missing}))
    for key in missing:
        with pytest.raises(ValueError, match=rf"a\.json is damaged: {key} is missing"):
            read_json(path, FORM)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b'{"name": "a', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "should hold a JSON object, got list"),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested"),
        (b'{"a":' + b"[" * 150 + b"]" * 150 + b"}", "nested more than 100 levels deep"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "nested"),
        (b'{"n": ' + b"9" * 5000 + b"}", "is not JSON|n should be"),
        (b'{"name": "a", "n": 1, "rate": 1e999}', "rate should be a finite number"),
        (b'{"name": "a", "n": 1, "rate": NaN}', "rate should be a finite number"),
    ],
    ids=lambda v: repr(v[:12]),
)
def test_what_is_no_json_is_named(tmp_path, content, said):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        read_json(path, FORM)
    assert str(path) in str(error.value) and len(str(error.value)) < 500


def test_a_huge_file_and_a_folder_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "_LARGEST", 1 << 20)
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(3 << 20)
    with pytest.raises(ValueError, match=r"a\.json is too large for a description: 3 MiB, at most 1"):
        read_json(tmp_path / "a.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder\.json is not a file"):
        read_json(tmp_path / "folder.json")


def test_a_path_that_is_not_utf8_comes_back(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    path = tmp_path / f"{name}.json"
    write_json(path, {"folder": name})
    assert read_json(path) == {"folder": name}
