"""A model attacked, and left exactly as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from advfeat.eval_mode import in_eval_mode
from advfeat.objectives import Objective


@contextmanager
def no_trace(model: Callable, device: torch.device, *objectives: Objective) -> Iterator[None]:
    """Inside: gradients are on, and every submodule that ``model`` or an objective is or refers to is in eval mode.

    Afterwards, also after an exception: the training flag of every submodule, the global random state (CPU and this
    device) and the grad and inference modes are as before. Parameters' ``.grad`` and ``requires_grad`` and BatchNorm's
    statistics are never touched in between. A module's modules are found in the attributes of it and of its classes, in
    plain lists and dicts too; a function's through what it is bound to, its closure, its defaults and the global names
    it uses, and all others when this thread first calls them. Where code is compiled only the former are: a hook would
    have it compiled anew for every attack.

    Several threads may attack one model: it is in eval mode until the last of them is done. The random state is put
    back only where this thread is the only one. It belongs to all threads, and numbers that another one has drawn
    meanwhile would come a second time; only a model that draws random numbers itself changes it at all.
    """
    on_cuda = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
    alone = _is_only_thread()
    cpu_state = torch.get_rng_state() if alone else None
    cuda_state = torch.cuda.get_rng_state(device) if alone and on_cuda else None
    try:
        with in_eval_mode(model, *objectives):
            yield
    finally:
        if cpu_state is not None and _is_only_thread():
            torch.set_rng_state(cpu_state)
            if cuda_state is not None:
                torch.cuda.set_rng_state(cuda_state, device)


# Threads that draw no random numbers of torch's, by their first letters: the library's own, progress bars', notebooks',
# the compiler's.
_HARMLESS = (
    "advfeat",
    "tqdm_",
    "IPythonHistory",
    "IOPub",
    "Heartbeat",
    "Control",
    "QueueFeeder",
    "Inductor",
    "subproc_",
)


def _is_only_thread() -> bool:
    """Whether no other thread of Python's is there that may draw random numbers."""
    here = threading.current_thread()
    return all(thread is here or thread.name.startswith(_HARMLESS) for thread in threading.enumerate())
