"""Peak memory of a call, exact to the byte.

On the CPU PyTorch's profiler records every allocation and every release that its allocator makes, with the moment and
the size, whichever operator asks (also those in C++, and what autograd saves): the peak is the largest running sum. A
process's resident size would not do; it counts pages, keeps what was freed, and mixes in everything else. What a
library allocates behind PyTorch's back (oneDNN's scratch pads) is not in it. On CUDA the caching allocator keeps the
peak itself.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the recorder reports each start and stop; read once, on import

import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402


def peak_bytes(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """The most bytes that ``call`` holds at once, beyond what was allocated before it."""
    if torch.device(device).type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()  # what earlier calls left in cycles is not to be released while this one is recorded
    with _no_collection(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        torch.empty(1)  # so that no allocations at all means that none are recorded
        result = call()  # held until the recording ends, as a caller would hold it
    del result
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    if not events:
        raise RuntimeError("the profiler of this PyTorch records no allocations: peak memory cannot be measured")
    running = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        running += event.nbytes()
        peak = max(peak, running)
    return peak


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
