"""Files of models: what is saved comes back to the bit, and damage is named."""

from __future__ import annotations

import errno
import hashlib
import json
import os

import pytest
import safetensors.torch
import torch
from support.small_model import Own, small
from torch import nn

from advfeat import models


def test_save_and_load_give_the_same_model(tmp_path):
    model = small(mean=[0.3], std=[0.7], seed=5).to(memory_format=torch.channels_last)
    model(torch.rand(8, 1, 8, 8))  # moves BatchNorm's statistics
    models.save(model, tmp_path / "run", extra={"note": "x", "eps": float("inf")})
    again = models.load(tmp_path / "run")
    x = torch.rand(5, 1, 8, 8)
    assert not again.training
    assert torch.equal(again(x), model.eval()(x))
    assert models.fingerprint(again) == models.fingerprint(model)
    assert again.body[3].weight.stride() == model.body[3].weight.stride()
    assert again.input_shape == (1, 8, 8) and again.num_classes == 4 and again.normalises
    assert models.load_extra(tmp_path / "run") == {"note": "x", "eps": "inf"}
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["model.json", "model.safetensors"]


def test_a_model_of_another_dtype_comes_back_in_it(tmp_path):
    model = small(seed=5).double()
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert again.head.weight.dtype == torch.float64
    assert models.fingerprint(again) == models.fingerprint(model)


def test_an_adapted_model_is_loaded_into_a_fresh_one(tmp_path):
    make = lambda: models.adapt(Own(False), num_classes=4, input_shape=(1, 8, 8))  # noqa: E731
    model = make()
    models.save(model, tmp_path)
    with pytest.raises(ValueError, match="model.json describes a module of the user's own"):
        models.load(tmp_path)
    assert models.fingerprint(models.load(tmp_path, make())) == models.fingerprint(model)


class _Tied(nn.Module):
    """Two layers of one weight, and a state beside the parameters."""

    def __init__(self, state=None):
        super().__init__()
        self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)
        self.b.weight = self.a.weight
        self.head = nn.Linear(12, 4)
        self.state = state

    def forward(self, x):
        return self.head(self.b(self.a(x.flatten(1))))

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def _tied(state=None):
    return models.adapt(_Tied(state), num_classes=4, input_shape=(3, 2, 2))


def test_loading_into_a_model_keeps_its_parameters_and_so_ties_and_optimizers(tmp_path):
    saved = _tied()
    models.save(saved, tmp_path)
    model = _tied()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    assert models.load(tmp_path, model) is model
    assert models.fingerprint(model) == models.fingerprint(saved)
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    assert model.module.a.weight is model.module.b.weight
    model(torch.rand(2, 3, 2, 2)).sum().backward()
    optimizer.step()
    assert models.fingerprint(model) != models.fingerprint(saved)


def test_loading_into_a_model_keeps_its_dtype_and_leaves_it_alone_where_the_file_does_not_fit(tmp_path):
    saved = _tied()
    models.save(saved, tmp_path)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        model = models.load(tmp_path, _tied().to(dtype))
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert torch.equal(model.module.head.weight, saved.module.head.weight.to(dtype))
    with torch.no_grad():
        saved.module.head.bias[0] = 1e9
    models.save(saved, tmp_path)
    model = _tied().half()
    before = models.fingerprint(model)
    with pytest.raises(ValueError, match="module.head.bias holds values beyond torch.float16"):
        models.load(tmp_path, model)
    saved.module.b.weight = nn.Parameter(saved.module.b.weight.detach() + 1)  # no longer tied
    models.save(saved, tmp_path)
    with pytest.raises(ValueError, match="module.a.weight and module.b.weight are one tensor in the model"):
        models.load(tmp_path, _tied())
    assert models.fingerprint(model) == before


@pytest.mark.parametrize(
    "state", [None, 3, {"scale": 1.5, "names": ["a", ("b", float("inf"))], "seen": torch.arange(5)}, torch.rand(2)]
)
def test_extra_state_of_json_values_and_tensors_is_saved_with_a_model(tmp_path, state):
    saved = _tied(state)
    models.save(saved, tmp_path)
    back = models.load(tmp_path, _tied("other"))
    assert models.fingerprint(back) == models.fingerprint(saved) != models.fingerprint(_with(back, "other"))
    back = models.load(tmp_path, _tied("other")).module.state
    if isinstance(state, dict):
        assert torch.equal(back.pop("seen"), state["seen"])
        assert back == {"scale": 1.5, "names": ["a", ("b", float("inf"))]}
    else:
        assert torch.equal(back, state) if isinstance(state, torch.Tensor) else back == state


def _with(model, state):
    model.module.state = state
    return model


def test_extra_state_that_would_have_to_be_pickled_is_refused_before_anything_is_written(tmp_path):
    for state, place in (
        ({"when": {1, 2}}, r"set at module._extra_state\['when'\]"),
        ({3: 4}, "dict"),
        (object(), "ob"),
    ):
        with pytest.raises(TypeError, match=f"get_extra_state.. of module 'module' should return JSON.*{place}"):
            models.save(_tied(state), tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(TypeError, match="the state dict should hold tensors, got dtype at a"):
        models.fingerprint({"a": torch.float32})


def _edit_json(path, edit):
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def _rewrite_weights(folder, edit):
    """Weights that are not the network's, with a correct checksum: only the comparison of keys and shapes can tell."""
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    edit(tensors)
    data = safetensors.torch.save(tensors)
    file.write_bytes(data)
    entry = {"file": file.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _edit_json(folder / "model.json", lambda d: d.update(weights=entry))


def _truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def _flip_a_bit(folder):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


DAMAGE = [
    (lambda f: (f / "model.json").unlink(), FileNotFoundError, "model.json does not exist.*interrupted"),
    (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "model.safetensors does not exist"),
    (lambda f: (f / "model.json").write_text("{"), ValueError, "model.json is not JSON"),
    (
        lambda f: _edit_json(f / "model.json", lambda d: d.update(format="x")),
        ValueError,
        "model.json should have format",
    ),
    (
        lambda f: _edit_json(f / "model.json", lambda d: d.update(arch="vgg")),
        ValueError,
        "model.json does not describe",
    ),
    (
        lambda f: _edit_json(f / "model.json", lambda d: d.pop("extra")),
        ValueError,
        "model.json is damaged: extra is missing",
    ),
    (
        lambda f: _edit_json(f / "model.json", lambda d: d["weights"].update(file="../model.safetensors")),
        ValueError,
        "model.json should name a file of its own folder",
    ),
    (_truncate, ValueError, "model.safetensors is truncated: [0-9]+ bytes, expected"),
    (_flip_a_bit, ValueError, "model.safetensors was altered: its sha256"),
    (
        lambda f: _edit_json(f / "model.json", lambda d: d["arguments"].update(num_classes=7)),
        ValueError,
        r"model.safetensors: head.weight should be \(7, 16\), got \(4, 16\); a model of 7 classes is expected",
    ),
    (lambda f: _rewrite_weights(f, lambda t: t.pop("head.bias")), ValueError, "model.safetensors.* lacks head.bias"),
    (
        lambda f: _rewrite_weights(f, lambda t: t.update(extra=torch.zeros(1))),
        ValueError,
        "model.safetensors.* has extra",
    ),
    (
        lambda f: _rewrite_weights(f, lambda t: t["head.bias"].fill_(float("nan"))),
        ValueError,
        "model.safetensors: head.bias holds values that are not finite",
    ),
    (
        lambda f: _rewrite_weights(f, lambda t: t.update(_extra_state=torch.arange(3, dtype=torch.uint8))),
        ValueError,
        "model.safetensors: _extra_state is damaged",
    ),
    (
        lambda f: _edit_json(f / "model.json", lambda d: d["arguments"].update(mean=[0.5])),
        ValueError,
        r"model.safetensors: mean is \[0.25\], the model has \[0.5\]",
    ),
]


@pytest.mark.parametrize("damage, error, message", DAMAGE)
def test_a_damaged_folder_is_named(tmp_path, damage, error, message):
    models.save(small(mean=[0.25]), tmp_path)
    models.load(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message) as raised:
        models.load(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_loading_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        models.load(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["model.safetensors", "model.json"])
def test_a_full_disk_leaves_the_old_model(tmp_path, monkeypatch, file):
    old = small(seed=1)
    models.save(old, tmp_path)
    sync, seen = os.fsync, []

    def full(handle):
        seen.append(handle)
        if len(seen) == ["model.safetensors", "model.json"].index(file) + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=f"could not write .*{file}: No space left on device") as raised:
        models.save(small(seed=2), tmp_path)
    assert raised.value.errno == errno.ENOSPC
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert models.fingerprint(models.load(tmp_path)) == models.fingerprint(old)


def test_a_save_that_was_killed_between_its_two_files_is_seen(tmp_path, monkeypatch):
    models.save(small(seed=1), tmp_path)
    replace = os.replace

    def killed(source, target):
        if str(target).endswith("model.json"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        models.save(small(seed=2), tmp_path)
    with pytest.raises(FileNotFoundError, match="model.json does not exist .its weights are there: saving was inter"):
        models.load(tmp_path)


def test_a_mask_of_infinities_comes_back_and_nan_does_not(tmp_path):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 3)
            self.register_buffer("mask", torch.tensor([0.0, 0.0, -torch.inf]))

        def forward(self, x):
            return self.layer(x.flatten(1)) + self.mask

    def made():
        return models.adapt(Masked(), num_classes=3, input_shape=(1, 8, 8))

    model = made()
    models.save(model, tmp_path / "m")
    back = models.load(tmp_path / "m", made())
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(back(x), model(x))
    for name in ("mask", "layer.bias"):
        broken = made()
        with torch.no_grad():
            dict(broken.module.state_dict())[name][0] = torch.nan if name == "mask" else torch.inf
        models.save(broken, tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} holds values that are not finite"):
            models.load(tmp_path / name, made())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_that_was_cast_comes_back_with_its_normalisation(tmp_path, dtype):
    model = models.create("small-convnet", 3, (1, 8, 8), width=2, mean=[0.3055889904], std=[0.376213])
    models.save(model.to(dtype), tmp_path)
    back = models.load(tmp_path)
    assert back.mean.dtype == dtype and models.fingerprint(back) == models.fingerprint(model)
    other = models.adapt(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), num_classes=3, input_shape=(1, 8, 8), mean=[0.31], std=[0.4]
    )
    models.save(other.to(dtype), tmp_path / "own")
    wrong = models.adapt(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), num_classes=3, input_shape=(1, 8, 8), mean=[0.33], std=[0.4]
    )
    with pytest.raises(ValueError, match="mean is"):
        models.load(tmp_path / "own", wrong)


def test_an_edited_normalisation_is_saved_and_loaded(tmp_path):
    """It was saved under the arguments of its creation, and the run could not be loaded."""
    model = models.create("small-convnet", 3, (1, 8, 8), width=4, mean=(0.2,), std=(0.3,)).eval()
    models.save(model, tmp_path / "before")
    model.mean.fill_(0.7)
    model.std.fill_(2.0)
    models.save(model, tmp_path / "after")
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(models.load(tmp_path / "after").eval()(x), model(x))
    assert not torch.equal(models.load(tmp_path / "before").eval()(x), model(x))
