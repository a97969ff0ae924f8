"""What a model's output says: which class is predicted, whether anything is, and by how much."""

from __future__ import annotations

import torch
from torch import Tensor


def class_logits(logits: Tensor) -> Tensor:
    """Logits [B, C], one a class, from a model's output [B, C].

    A single logit z, as of a binary model trained with the binary cross-entropy, stands for two classes with the logits
    (0, z): the same probabilities, class 1 where z > 0.
    """
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def predicted_classes(logits: Tensor) -> Tensor:
    """The predicted class of each sample, int64 [B], and -1 where there is no prediction.

    logits: [B, C], or [B, 1] for a binary model, whose class is the sign of its logit (0 or less is class 0).

    There is no prediction where a logit is NaN, where several are +inf, and where all are -inf. A logit of -inf says
    that its class is out, and one of +inf that it is certain. Among finite logits that are equal the first counts, as
    for argmax.
    """
    if logits.shape[1] == 1:
        z = logits[:, 0]
        return torch.where(z.isnan(), -1, (z > 0).to(torch.int64))
    highest, predicted = logits.max(dim=1)  # NaN where there is one
    certain = (logits == torch.inf).sum(dim=1)
    return torch.where(highest.isnan() | (highest == -torch.inf) | (certain > 1), -1, predicted)


def class_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """``z_y - max_{j != y} z_j`` of each sample, [B]: positive where the label is predicted; logits as above.

    Infinite where all other classes are out, minus infinity where the label's own class is; NaN without a prediction.
    """
    logits = class_logits(logits)
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
