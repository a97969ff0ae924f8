"""A limit on the samples of a torch dataset is one on what is read of it."""

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from advfeat.datasets.torch_dataset import as_source
from advfeat.evaluation import evaluate, label_agreement


class Counted(Dataset):
    """Notes which samples are asked for."""

    classes = ("a", "b", "c")

    def __init__(self, n=90):
        g = torch.Generator().manual_seed(0)
        self.pictures, self.kinds = torch.rand(n, 1, 4, 4, generator=g), torch.arange(n) % 3
        self.asked = set()

    def __len__(self):
        return len(self.kinds)

    def __getitem__(self, i):
        self.asked.add(i)
        return self.pictures[i], int(self.kinds[i])


def test_only_the_samples_that_count_are_read():
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), Counted()
    found = evaluate(model, data, limit=10, attacks=[0.1])
    assert found.clean.n == 10 and found.index.tolist() == [9 * i for i in range(10)]
    assert data.asked <= {0, *found.index.tolist()}
    whole = evaluate(model, data)
    for name in ("labels", "prediction", "margins"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name)[found.index])
    assert found.data == whole.data == "Counted" and found.data_fingerprint != whole.data_fingerprint
    assert len(data.asked) == 90
    data.asked.clear()
    label_agreement(model, data, limit=10)
    assert len(data.asked) == 10
    assert evaluate(model, data, limit=1000).clean.n == 90
    # A subset of the user's own keeps its name, by which finished trainings on it are found.
    assert as_source(Subset(data, [0, 1, 2])).name == "Subset"
