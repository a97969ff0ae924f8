"""A context manager that leaves an attacked model exactly as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from advfeat.eval_mode import in_eval_mode
from advfeat.objectives import Objective


@contextmanager
def no_trace(model: Callable, device: torch.device, *objectives: Objective) -> Iterator[None]:
    """A context with gradients enabled and every submodule of ``model`` and the objectives in eval mode.

    Afterwards, also after an exception, the training flag of every submodule, the global random state (CPU and this
    device) and the grad and inference modes are restored. Parameters' ``.grad`` and ``requires_grad`` and BatchNorm
    statistics are never touched. The modules of a module are found through its own attributes and those of its classes,
    plain lists and dicts included; those of a function through what it is bound to, its closure, its defaults and the
    globals it uses. All other modules are found when this thread first calls them, except where code is compiled: a
    hook would force a recompilation for every attack.

    Several threads may attack one model: it is in eval mode until the last of them is done. The random state is
    restored only if this thread is the only one. It is shared by all threads, and numbers drawn by another thread in
    the meantime would be drawn again; only a model that draws random numbers itself changes the state at all.

    Args:
        model: the model, any callable.
        device: the device of the inputs.
        *objectives: objectives, which may refer to modules of their own.

    Yields:
        Nothing.
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


# Name prefixes of threads that never draw from torch's generators: the library's own, those of progress bars, notebooks
# and the compiler.
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
    """Whether no other Python thread is running that may draw random numbers."""
    here = threading.current_thread()
    return all(thread is here or thread.name.startswith(_HARMLESS) for thread in threading.enumerate())
