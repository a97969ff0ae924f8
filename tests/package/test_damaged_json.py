"""Every value of the JSON files that are read, changed to every kind of value: a sentence that names the file, or
nothing that matters; never a traceback from inside."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from support.constructed_set import SHARD, N, build, manifest

from advfeat import models
from advfeat.datasets.store import ConstructedSet, SetWriter
from advfeat.experiments.run import read_page
from advfeat.training.checkpoint import RunFolder

WRONG = [None, True, -1, 1.5, 10**30, "x", [], {}, ["x"], {"a": {}}]


def _places(value, place=()):
    yield place
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*place, key))


def _changes(value):
    """The value with one of its parts, at any depth, changed or left out."""
    for place in _places(value):
        for wrong in WRONG:
            if not place:
                yield place, wrong
                continue
            changed = copy.deepcopy(value)
            inside = changed
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = wrong
            yield place, changed
        if place and isinstance(place[-1], str):
            changed = copy.deepcopy(value)
            inside = changed
            for key in place[:-1]:
                inside = inside[key]
            del inside[place[-1]]
            yield place, changed


def _every_change(path, read):
    whole = json.loads(path.read_text())
    refused = 0
    for place, changed in _changes(whole):
        path.write_text(json.dumps(changed))
        try:
            read()
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            assert str(path.parent) in str(error), (place, error)
        except Exception as error:
            raise AssertionError(f"{path.name}: {place} was changed") from error
    path.write_text(json.dumps(whole))
    read()
    assert refused > 20


def test_manifest(tmp_path):
    build(tmp_path, n=8)
    _every_change(tmp_path / "manifest.json", lambda: ConstructedSet.open(tmp_path, verify=False).images([7]))


@pytest.mark.filterwarnings("ignore:.*rewritten")
def test_manifest_of_a_set_to_be_gone_on_with(tmp_path):
    whole = build(tmp_path, n=8).out / "manifest.json"
    text = whole.read_text()

    def go_on():
        try:
            SetWriter(tmp_path, manifest(), 8, SHARD).missing_shards()
        finally:
            whole.write_text(text)

    for _, changed in _changes(json.loads(text)):
        whole.write_text(json.dumps(changed))
        try:
            go_on()
        except (ValueError, FileNotFoundError) as error:
            assert str(tmp_path) in str(error)


@pytest.mark.filterwarnings("ignore:.*will be rebuilt")
def test_record_of_a_shard(tmp_path):
    build(tmp_path)
    path = tmp_path / "shard-00001.json"
    for place, changed in _changes(json.loads(path.read_text())):
        path.write_text(json.dumps(changed))
        missing = SetWriter(tmp_path, manifest(), N, SHARD).missing_shards()
        assert [shard for shard, _ in missing] == [1], place


def test_model(tmp_path):
    models.save(models.create("small-convnet", 3, (1, 4, 4), width=2, mean=(0.5,), std=(0.5,)), tmp_path)
    _every_change(tmp_path / "model.json", lambda: models.load(tmp_path))


@pytest.mark.filterwarnings("ignore:.*the training is repeated")
def test_checkpoint_and_config(tmp_path):
    model = models.create("small-convnet", 3, (1, 4, 4), width=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    description = {"config": {"lr": 0.1, "attack": {"eps": 0.5}}, "data": {"train": {"samples": 3}, "test": None}}
    row = dict.fromkeys(("lr", "train_loss", "train_accuracy", "seconds"), 0.5)
    row |= {"epoch": 1, "test_accuracy": 0.5, "robust_accuracy": None}
    folder = RunFolder(tmp_path)
    folder.begin(description, resume=True)
    folder.save(model, optimizer, [row])
    _every_change(tmp_path / "checkpoint.json", lambda: folder.restore(model, optimizer))
    _every_change(tmp_path / "config.json", lambda: folder.check(description))


def test_page_of_an_experiment(tmp_path):
    path = tmp_path / "results" / "main.json"
    path.parent.mkdir()
    (tmp_path / "results" / "main-curve.png").write_bytes(b"png")
    results = {
        "format": "advfeat-experiment-1",
        "name": "main",
        "title": "t",
        "source": "s",
        "paper": "p",
        "preset": {"name": "digits", "differs": "d"},
        "tables": [{"title": "t", "columns": ["a"], "rows": [{"name": "r", "cells": []}], "caption": ""}],
        "findings": [{"claim": "c", "verdict": "supported", "observed": "s", "against": "a"}],
        "differences": [],
        "why_different": [],
        "notes": ["n"],
        "seeds": [0],
        "curves": [],
        "cost": {"step": 1.0},
        "seconds": 1.0,
        "date": "2026-01-01",
        "versions": {},
        "platform": "p",
        "device": "cpu",
        "threads": 1,
        "pictures": [{"name": "curve", "title": "a", "caption": "b"}],
    }
    path.write_text(json.dumps(results))
    assert read_page(tmp_path, "main").pictures[0].png == b"png"
    for _, changed in _changes(results):
        path.write_text(json.dumps(changed))
        page = read_page(tmp_path, "main")  # what cannot be read was not done
        assert page is None or page.pictures is not None
