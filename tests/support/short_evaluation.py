"""A short evaluation by AutoAttack whose numbers do not depend on the batch, and the same killed at a given moment."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advfeat import L2, AutoAttack, Linf
from advfeat.evaluation import evaluate
from support.tensor_source import TensorSource

N = 24


class RowByRow(nn.Module):
    """A small network of sums over one sample at a time: a matrix product may round otherwise in another batch."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(10, 16, generator=g))
        self.last = nn.Parameter(torch.randn(5, 10, generator=g))

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x.flatten(1)[:, None] * self.first).sum(2).tanh()
        return (hidden[:, None] * self.last).sum(2)


def task() -> tuple[nn.Module, TensorSource]:
    """The network, and images of which two are misclassified."""
    net = RowByRow().eval()
    x = torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    y = net(x).argmax(1)
    y[:2] = (y[:2] + 1) % 5
    return net, TensorSource(x, y, tuple("abcde"), "short")


def attack(norm: str = "linf", steps: int = 6) -> AutoAttack:
    """AutoAttack with few steps, of which each attack finds something or has samples left."""
    made = AutoAttack(Linf(0.06) if norm == "linf" else L2(0.2))
    parts = tuple(
        (name, tuple(dataclasses.replace(one, steps=3 * steps if name == "square" else steps) for one in some))
        for name, some in made.parts
    )
    made.__dict__["parts"] = parts  # cached
    return made


def evaluated(batch_size: int, state: Path | None, **more: Any):
    """The evaluation."""
    net, source = task()
    more = {"keep_examples": True, **more}
    return evaluate(net, source, attacks=[("auto", attack())], batch_size=batch_size, state=state, **more)


class Counter:
    """Counts the passes through a network and what is done to files, and kills the process at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.count, self.log = at, 0, []

    def __call__(self, what: str) -> None:
        self.count += 1
        self.log.append(what)
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Counts from now on, in this process."""
        forward, replace, sync = RowByRow.forward, os.replace, os.fsync

        def counted(function: Any, what: str) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                self(what)
                return function(*args, **options)

            return call

        RowByRow.forward = counted(forward, "pass")  # type: ignore[method-assign]
        os.replace, os.fsync = counted(replace, "replace"), counted(sync, "fsync")


def killed(at: int, batch_size: int, state: str) -> None:
    """The evaluation in a process of its own, which is killed at one of the moments that :class:`Counter` counts.

    Every outcome is written at once, so that there are many moments between and in writes.
    """
    from advfeat.evaluation import resumable

    torch.set_num_threads(1)
    resumable._SECONDS = 0.0
    Counter(at).watch()
    evaluated(batch_size, Path(state))
