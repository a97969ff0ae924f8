"""Wrong arguments of scripts for torchattacks and robustness: the error names them."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from advfeat import compat

X, Y = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
NET = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
BATCHES = [(X, Y)]


def _attack(targets=None):
    attack = compat.PGD(NET, steps=1)
    if targets is not None:
        attack.set_mode_targeted_by_function(targets, quiet=True)
    return attack


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: compat.PGD(None), TypeError, "model should be a module or a function that gives logits, got NoneType"),
        (lambda: compat.PGD(nn.Linear), TypeError, "model should be a model, got the class Linear"),
        (lambda: compat.PGDL2("m.pt"), TypeError, "model should be a module, got the path 'm.pt'"),
        (lambda: compat.MIFGSM(NET, decay=1.5)(X, Y), ValueError, "decay should be at least 0 and at most 1, got 1.5"),
        (lambda: compat.MIFGSM(NET, decay="1")(X, Y), TypeError, "decay should be a number, got '1'"),
        (lambda: _attack()(X.numpy(), Y), TypeError, "inputs should be a torch tensor, .* got ndarray"),
        (lambda: _attack()(X, Y.tolist()), TypeError, "labels should be a torch tensor, .* got list"),
        (lambda: _attack().set_normalization_used(0.5, 0.5), TypeError, "mean should be a list of numbers, got 0.5"),
        (lambda: _attack().set_normalization_used([0.5] * 3, [0.5]), ValueError, "one value per channel, got 3 and 1"),
        # Images were infinite in silence.
        (lambda: _attack().set_normalization_used([0.5], [0.0]), ValueError, "std should be above 0 in every channel"),
        (lambda: _attack().set_return_type("uint8"), ValueError, "type should be one of float, int, got 'uint8'"),
        (lambda: _attack().set_mode_targeted_least_likely("1"), ValueError, "kth_min should be an integer, at least 1"),
        (lambda: _attack(lambda x, y: [1, 2, 0, 1])(X, Y), TypeError, "targets should be a torch tensor, .* got list"),
        (lambda: _attack(lambda x, y: y)(X), ValueError, "labels should be given where they are the targets"),
        (lambda: compat.MultiAttack(_attack()), TypeError, "attacks should be a list of attacks, got PGD"),
        (lambda: compat.MultiAttack([1, 2]), TypeError, "attacks should be attacks with a model, got int"),
        (lambda: _attack().save(TensorDataset(X, Y)), TypeError, "data_loader should be a DataLoader .* TensorDataset"),
        (lambda: _attack().save(iter(BATCHES)), TypeError, "data_loader should be a DataLoader or a list"),
        (lambda: _attack().save([X]), TypeError, r"data_loader should give \(inputs, labels\), got a Tensor"),
        (lambda: _attack().save(BATCHES, 3), TypeError, "save_path should be a path, got 3"),
        (lambda: _attack().save(BATCHES, save_type="uint8"), ValueError, "save_type should be one of float, int, got"),
        (lambda: compat.PGD.load(5), TypeError, "load_path should be a path, got 5"),
        (lambda: compat.PGD.load("x", batch_size="2"), ValueError, "batch_size should be an integer, at least 1"),
        (lambda: compat.PGD.load("x", normalize=[0.5, 0.5]), TypeError, "normalize should be a dict with mean and std"),
        (lambda: compat.PGD.load("x", normalize={"mean": [0.5]}), TypeError, "normalize should be a dict with mean"),
        (lambda: compat.L2Step(X.numpy(), 0.1, 0.1), TypeError, "orig_input should be a torch tensor"),
        (lambda: compat.L2Step(X, "0.1", 0.1), TypeError, "eps should be a number or a tensor, got the text '0.1'"),
        (lambda: compat.LinfStep(X, 0.1, "0.1"), TypeError, "step_size should be a number or a tensor, got the text"),
        (lambda: compat.LinfStep(X, 0.1, 0.1).random_perturb(X.numpy()), TypeError, "x should be a torch tensor"),
    ],
)
def test_first_mistakes_of_scripts(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_files_that_save_did_not_write(tmp_path):
    junk, saved = tmp_path / "junk", tmp_path / "saved.pt"
    junk.write_bytes(b"hello")
    with pytest.raises(ValueError, match="junk should be a file that save wrote"):
        compat.PGD.load(junk)
    _attack().save(BATCHES, saved, verbose=False)
    with pytest.raises(ValueError, match="normalize should have one value for each of 3 channels, got 2"):
        compat.PGD.load(saved, normalize={"mean": [0.5] * 2, "std": [0.5] * 2})
    images = next(iter(compat.PGD.load(saved, normalize={"mean": [0.5], "std": [0.5]})))[0]
    assert images.shape == X.shape and images.min() < 0
