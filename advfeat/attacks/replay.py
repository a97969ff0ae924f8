"""Repeated execution of an attack's step: on CUDA as one graph, where the model allows it.

A step launches hundreds of small kernels, whose launches cost more than the kernels themselves for CIFAR-sized batches.
Once captured into a CUDA graph, they are a single launch.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable

import torch

# Eager steps before the capture, in which libraries choose their algorithms and allocate their workspaces.
_WARM_UP = 2
# The smallest number of steps that pays for a capture, which costs the host about two steps, and extra memory: if later
# batches will reuse the graph, and for a single batch.
_WORTH_A_CAPTURE, _WORTH_IT_ONCE = 8, 32

# The fraction of device memory below which free memory counts as low.
_LITTLE = 0.25

_said: set[str] = set()
_side_streams: dict[torch.device, torch.cuda.Stream] = {}


class ReplayedStep:
    """``step(body, times)`` runs ``body`` that many times.

    ``body`` must be the same at every call. It works in place on tensors that it keeps, at every step, so that a replay
    finds them where the capture left them; nothing else in it may depend on the step. It is not stored here: bound to
    an owner of this step it would form a reference cycle, and hold the owner's images until Python's garbage collector
    runs.

    Args:
        device: the device of the tensors.
        graph: whether a CUDA graph may be used. A capture that fails is not an error; ``why_eager`` then holds the
            reason.
        again: whether more steps will follow than those of one batch.
    """

    def __init__(self, device: torch.device, graph: bool, again: bool = False) -> None:
        self._device, self._worth = device, _WORTH_A_CAPTURE if again else _WORTH_IT_ONCE
        self._replay: Callable[[], None] | None = None
        self._eager_steps = 0
        self._why_not = _why_not(device) if graph else "graph=False"

    @property
    def why_eager(self) -> str | None:
        """Why no graph is replayed; None where one is."""
        return None if self._replay is not None else self._why_not or "too few steps for a capture to pay"

    def __call__(self, body: Callable[[], None], times: int) -> None:
        """Runs the body, eagerly or as a graph.

        Args:
            body: the step.
            times: how many times to run it.
        """
        while times > 0:
            if self._replay is not None:
                self._replay()
            elif self._why_not is not None:
                body()
            elif self._eager_steps < _WARM_UP:
                _aside(body, self._device)
                self._eager_steps += 1
            elif self._eager_steps + times < self._worth:
                body()
                self._eager_steps += 1
            else:
                self._capture(body)
                continue
            times -= 1

    def _capture(self, body: Callable[[], None]) -> None:
        try:
            self._replay = _captured(body, self._device)
        except Exception as error:  # a model can fail in any way; what was captured has not run
            reason = str(error).strip().splitlines()
            self._why_not = f"{type(error).__name__}: {reason[0] if reason else 'no message'}"
            if self._why_not not in _said:
                _said.add(self._why_not)
                warnings.warn(
                    "the model cannot be captured into a CUDA graph, so every step launches its kernels one by one "
                    f"({self._why_not}); usual causes are .item(), a copy to the CPU, or sizes that depend on values",
                    RuntimeWarning,
                    stacklevel=2,
                )


def _why_not(device: torch.device) -> str | None:
    """Why no graph can be used here."""
    if device.type != "cuda":
        return f"no CUDA graphs on {device.type}"
    if torch.cuda.is_current_stream_capturing():
        return "the caller is already capturing a graph"
    return None


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream per device: cached memory belongs to its stream."""
    if device not in _side_streams:
        _side_streams[device] = torch.cuda.Stream(device)
    return _side_streams[device]


def _aside(body: Callable[[], None], device: torch.device) -> None:
    """Runs ``body`` on a side stream, as the warm-up for a capture requires."""
    aside, here = _side_stream(device), torch.cuda.current_stream(device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        body()
    here.wait_stream(aside)


def _captured(body: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A function that replays ``body``, which is not run here."""
    # A graph's memory is free once the graph is gone, but the next graph cannot use it: it is released here, before the
    # device is full and libraries fail in their own ways.
    free, total = torch.cuda.mem_get_info(device)
    if free < total * _LITTLE:
        torch.cuda.empty_cache()
    try:
        return _capture(body, device)
    except torch.OutOfMemoryError:
        pass
    # Nothing can be released while capturing, nor while the error holds its frames; what earlier graphs and the eager
    # steps left behind can be released now.
    torch.cuda.empty_cache()
    return _capture(body, device)


def _capture(body: Callable[[], None], device: torch.device) -> Callable[[], None]:
    # Not torch.cuda.graph(): it also synchronises, empties the cache and collects garbage, for every batch.
    graph, stream, memory = torch.cuda.CUDAGraph(), _side_stream(device), torch.cuda.graph_pool_handle()
    stream.wait_stream(torch.cuda.current_stream(device))
    collecting = gc.isenabled()
    gc.disable()  # finalizers may call what a capture forbids
    try:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            # thread_local: a prefetching thread that pins memory does not invalidate the capture.
            graph.capture_begin(pool=memory, capture_error_mode="thread_local")
            try:
                body()
            except BaseException:
                _abandon(graph, memory, device)
                raise
            graph.capture_end()
    finally:
        if collecting:
            gc.enable()
    return graph.replay


def _abandon(graph: torch.cuda.CUDAGraph, memory: tuple[int, int], device: torch.device) -> None:
    """Ends a failed capture, so that the stream and the allocator are as before."""
    with contextlib.suppress(RuntimeError):
        graph.capture_end()  # fails as well
    # The ignores: torch's own types do not say that its version compares with a tuple.
    # There it left the random generator in capture mode, for all later numbers.
    if torch.__version__ < (2, 13):  # type: ignore[operator]
        with contextlib.suppress(RuntimeError, AttributeError):
            generator = torch.cuda.default_generators[device.index]
            generator.graphsafe_set_state(generator.clone_state())
    # There capture_end left the allocator in the capture, see pytorch/CUDAGraph.cpp.
    if torch.__version__ < (2, 14):  # type: ignore[operator]
        with contextlib.suppress(RuntimeError, AttributeError):
            torch.cuda.memory._cuda_endAllocateToPool(device.index, memory)
            torch.cuda.memory._cuda_releasePool(device.index, memory)
