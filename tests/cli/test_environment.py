"""Environment variables that are read: what they hold is named where it cannot be used."""

import pytest
from support.tensor_source import blobs

from advfeat._checks import from_environment
from advfeat.cli.options import torch_device
from advfeat.training import TrainConfig, train


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "0x1"])
def test_a_rank_that_is_no_number_is_named(monkeypatch, tmp_path, text):
    message = rf"environment variable \w+ should be an integer, at least 0, got '{text}'"
    monkeypatch.setenv("LOCAL_RANK", text)
    with pytest.raises(ValueError, match=message):
        torch_device(None)
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(ValueError, match=message):
        train(TrainConfig(epochs=1), blobs(30), out=tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch):
    monkeypatch.setenv("RANK", "")
    assert from_environment("RANK", 0) == 0
    monkeypatch.delenv("RANK")
    assert from_environment("RANK", 3) == 3
    monkeypatch.setenv("RANK", " 2 ")
    assert from_environment("RANK", 0) == 2
