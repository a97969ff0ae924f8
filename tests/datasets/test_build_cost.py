"""The cost of a build, in samples through the model."""

import pytest
import torch
from torch import nn

from advfeat.datasets import sources
from advfeat.datasets.construction import Construction
from advfeat.datasets.recipes import MatchRepresentation, PerturbTowardsTarget

N, STEPS = 20, 5


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.passes = nn.Linear(64, 12), nn.Linear(12, 10), 0

    def representation(self, x):
        self.passes += len(x)
        return self.body(x.flatten(1)).relu()

    def forward(self, x):
        return self.head(self.representation(x))


@pytest.mark.parametrize(
    ("recipe", "dtype", "looks"),
    [
        (PerturbTowardsTarget("det", eps=1.5, steps=STEPS, step_size=0.5), "float32", 1),
        # The image is another one once it is rounded, and so are its objective and prediction.
        (PerturbTowardsTarget("det", eps=1.5, steps=STEPS, step_size=0.5), "uint8", 2),
        # The representation to match, that of the result, and the prediction, which the objective does not ask for.
        (MatchRepresentation("robust", steps=STEPS, step_size=0.3), "float32", 3),
    ],
)
def test_an_image_is_looked_at_once_for_each_thing_that_is_recorded(recipe, dtype, looks):
    model, digits = Counting().eval(), sources.load("digits", limit=N)
    work = Construction(recipe, recipe.attack(), model, digits, 0, 8, dtype, torch.device("cpu"))
    samples = {name: torch.cat(parts) for name, parts in _joined(work).items()}
    assert model.passes == N * (STEPS + looks)
    images = samples["images"].float() / (255 if dtype == "uint8" else 1)
    with torch.no_grad():
        assert torch.equal(samples["target_success"], model(images).argmax(1) == samples["label"])


def _joined(work: Construction) -> dict[str, list[torch.Tensor]]:
    batches = list(work.samples(torch.arange(N).split(8)))
    return {name: [batch[name] for batch in batches] for name in batches[0]}
