"""Saved models beyond plain float32: shared memory, unusual dtypes, changed layers, hostile descriptions."""

from __future__ import annotations

import hashlib
import json
import struct
import time

import pytest
import torch
from support.tensor_source import TensorSource
from torch import nn

from advfeat import models
from advfeat.training import TrainConfig, train


class _Views(nn.Module):
    """Two convolutions of one memory, the second one's kernels turned round; and buffers."""

    def __init__(self, buffer=None):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.b.weight = nn.Parameter(self.a.weight.detach().transpose(2, 3))
        self.head = nn.Linear(4, 3)
        self.register_buffer("images", torch.arange(36.0).view(1, 4, 3, 3))
        self.register_buffer("kernel", self.a.weight.detach()[:1])
        self.register_buffer("more", buffer)

    def forward(self, x):
        x = x.expand(-1, 4, -1, -1)
        return self.head((self.b(self.a(x).relu()) + self.images.mean()).mean((2, 3)))

    def tied(self):
        weight = self.a.weight
        return torch.equal(weight.transpose(2, 3), self.b.weight) and weight.data_ptr() == self.kernel.data_ptr()


def _views(buffer=None):
    return models.adapt(_Views(buffer), num_classes=3, input_shape=(1, 6, 6))


def _source():
    g = torch.Generator().manual_seed(0)
    return TensorSource(torch.rand(12, 1, 6, 6, generator=g), torch.arange(12) % 3, ("a", "b", "c"))


def test_training_and_loading_in_channels_last_keep_weights_tied_that_are_views(tmp_path):
    model = _views()
    config = TrainConfig(epochs=1, batch_size=4, augment="none", channels_last=True, lr=0.01)
    # The two views are stepped one after the other, each by its own gradient.
    trained = train(config, _source(), out=tmp_path, model=model).model
    assert trained is model and model.module.tied()
    back = models.load(tmp_path, _views())
    assert back.module.tied() and models.fingerprint(back) == models.fingerprint(model)
    assert back.module.images.is_contiguous() and not back.module.images.is_contiguous(
        memory_format=torch.channels_last
    )


def test_kernels_of_their_own_memory_are_laid_out_and_buffers_are_not(tmp_path):
    saved = models.create("small-convnet", 3, (1, 8, 8), width=2).to(memory_format=torch.channels_last)
    models.save(saved, tmp_path)
    model = models.create("small-convnet", 3, (1, 8, 8), width=2, seed=1)
    model.body.register_buffer("images", torch.rand(1, 4, 3, 3), persistent=False)
    models.load(tmp_path, model)
    assert model.body[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert model.body.images.is_contiguous()


def test_a_file_of_two_values_for_memory_that_the_model_shares_is_refused(tmp_path):
    saved = _views()
    saved.module.b.weight = nn.Parameter(saved.module.b.weight.detach() + 1)
    models.save(saved, tmp_path)
    model = _views()
    before = models.fingerprint(model)
    with pytest.raises(ValueError, match="module.kernel and module.b.weight share memory in the model, but differ"):
        models.load(tmp_path, model)
    assert models.fingerprint(model) == before


def _expanded(values):
    return torch.tensor(values).expand(5, len(values))


def test_buffers_whose_elements_repeat_are_loaded_in_place_and_from_a_checkpoint(tmp_path):
    models.save(_views(_expanded([1.0, 2.0])), tmp_path / "saved")
    model = models.load(tmp_path / "saved", _views(_expanded([0.0, 0.0])))
    assert torch.equal(model.module.more, _expanded([1.0, 2.0])) and model.module.more.stride(0) == 0
    models.save(_views(torch.rand(5, 2)), tmp_path / "other")
    with pytest.raises(ValueError, match="module.more repeats its elements in the model, but not in the file"):
        models.load(tmp_path / "other", model)
    config = TrainConfig(epochs=2, batch_size=4, augment="none", lr=0.01)

    def stopped(done, total):
        if done == 4:
            raise KeyboardInterrupt

    def run(**options):
        return train(config, _source(), out=tmp_path / "run", model=_views(_expanded([3.0])), **options)

    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        run(progress=stopped)
    torch.manual_seed(0)
    assert torch.equal(run().model.module.more, _expanded([3.0]))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.complex64])
def test_buffers_of_small_and_unusual_dtypes_come_back(tmp_path, dtype):
    models.save(_views(torch.arange(4.0).to(dtype)), tmp_path)
    back = models.load(tmp_path, _views(torch.zeros(4).to(dtype)))
    assert back.module.more.dtype == dtype and torch.equal(back.module.more.to(torch.complex64).real, torch.arange(4.0))


def test_a_conjugate_is_saved_as_its_values(tmp_path):
    model = _views(torch.tensor([1 + 2j]).conj())
    models.save(model, tmp_path)
    back = models.load(tmp_path, _views(torch.zeros(1, dtype=torch.complex64)))
    assert back.module.more.tolist() == [1 - 2j] and models.fingerprint(back) == models.fingerprint(model)


@pytest.mark.parametrize(
    "buffer, message",
    [
        (torch.ones(2, dtype=torch.complex128), "module.more should have a dtype that a file .* got torch.complex128"),
        (torch.ones(2).to(torch.float8_e8m0fnu), "module.more should have a dtype .* got torch.float8_e8m0fnu"),
        (torch.eye(2).to_sparse(), "should hold dense tensors with values, got torch.sparse_coo at module.more"),
        (torch.ones(2, device="meta"), "got a tensor on the device meta at module.more"),
    ],
)
def test_a_tensor_that_no_file_holds_is_named_and_nothing_is_written(tmp_path, buffer, message):
    with pytest.raises(TypeError, match=message):
        models.save(_views(buffer), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def _other_head(model):
    model.head = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


def _other_activation(model):
    model.body[2] = nn.LeakyReLU()  # the same weights, another function


def _other_forward(model):
    model.body[2].forward = torch.tanh


@pytest.mark.parametrize("change", [_other_head, _other_activation, _other_forward])
def test_a_network_that_was_changed_after_it_was_created_is_saved_as_one_of_the_user_s_own(tmp_path, change):
    def made(seed):
        model = models.create("small-convnet", 3, (1, 8, 8), width=2, seed=seed)
        change(model)
        return model.eval()

    model = made(0)
    with pytest.warns(RuntimeWarning, match="changed after create.'small-convnet'"):
        models.save(model, tmp_path)
    with pytest.raises(ValueError, match=r"a model of advfeat.models.create\('small-convnet', ...\) that was changed"):
        models.load(tmp_path)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(models.load(tmp_path, made(1))(x), model(x))
    assert models.describe(tmp_path).lines()[0].startswith("small-convnet, changed after it was created: ")


def _safetensors_of(dtype, folder):
    """A file that is whole, of one tensor of this dtype in the place of all others."""
    head = json.dumps({"head.bias": {"dtype": dtype, "shape": [8], "data_offsets": [0, 8]}}).encode()
    data = struct.pack("<Q", len(head)) + head + bytes(8)
    (folder / "model.safetensors").write_bytes(data)
    file = folder / "model.json"
    description = json.loads(file.read_text())
    description["weights"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    file.write_text(json.dumps(description))


@pytest.mark.parametrize(
    "dtype, message", [("F8_E8M0", "of dtype 'F8_E8M0', which cannot be read"), ("X9", "is not a")]
)
def test_weights_of_an_unknown_dtype_are_named(tmp_path, dtype, message):
    models.save(models.create("small-convnet", 3, (1, 8, 8), width=2), tmp_path)
    _safetensors_of(dtype, tmp_path)
    for read in (models.load, models.describe):
        with pytest.raises(ValueError, match=f"model.safetensors .*{message}"):
            read(tmp_path)


def test_a_description_of_a_huge_network_is_refused_before_it_takes_memory(tmp_path):
    models.save(models.create("small-convnet", 3, (1, 8, 8), width=2), tmp_path)
    file = tmp_path / "model.json"
    description = json.loads(file.read_text())
    description["arguments"]["width"] = 9999  # 30 GiB
    file.write_text(json.dumps(description))
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"model.safetensors: body.0.weight should be \(9999, 1, 3, 3\), got \(2, 1"):
        models.load(tmp_path)
    assert time.monotonic() - began < 5
