"""A step of an attack, done again and again: on CUDA as one graph, where the model allows it.

A step launches hundreds of small kernels, whose launches cost more than the kernels themselves for CIFAR-sized batches.
Captured once into a CUDA graph, all of them are one launch.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable

import torch

# Steps done eagerly before the capture: libraries choose their algorithms and allocate their workspaces in them.
_WARM_UP = 2
# Fewer steps than this do not pay for a capture, which costs the host about as much as two steps, and memory of its
# own: where the next batches will use the graph again, and for a single batch.
_WORTH_A_CAPTURE, _WORTH_IT_ONCE = 8, 32

# Of the device's memory.
_LITTLE = 0.25

_said: set[str] = set()
_side_streams: dict[torch.device, torch.cuda.Stream] = {}


class ReplayedStep:
    """``step(body, times)`` does ``body`` that often.

    graph: whether a CUDA graph may be used; a capture that fails is no error, ``why_eager`` then says what the reason
    was. again: whether more steps will follow than those of one batch. body: always the same; works in place on tensors
    that it keeps, whatever the step, so that a replay finds them where the capture left them; nothing else of it may
    depend on the step. It is not kept here: bound to an owner of this step it would be a cycle, and hold the owner's
    images until Python's collector runs.
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
    """Why there can be no graph here."""
    if device.type != "cuda":
        return f"no CUDA graphs on {device.type}"
    if torch.cuda.is_current_stream_capturing():
        return "the caller is capturing a graph himself"
    return None


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Always the same: memory that is cached belongs to its stream."""
    if device not in _side_streams:
        _side_streams[device] = torch.cuda.Stream(device)
    return _side_streams[device]


def _aside(body: Callable[[], None], device: torch.device) -> None:
    """``body`` on a stream of its own, as a capture wants its warm-up."""
    aside, here = _side_stream(device), torch.cuda.current_stream(device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        body()
    here.wait_stream(aside)


def _captured(body: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What replays ``body``, which is not run here."""
    # A graph's own memory is free once the graph is gone, but not to the next graph's: it is handed back here, before
    # the device is full and libraries fail in their own ways.
    free, total = torch.cuda.mem_get_info(device)
    if free < total * _LITTLE:
        torch.cuda.empty_cache()
    try:
        return _capture(body, device)
    except torch.OutOfMemoryError:
        pass
    # Nothing can be given back while capturing, nor while the error holds its frames; what earlier graphs and the eager
    # steps left behind can be now.
    torch.cuda.empty_cache()
    return _capture(body, device)


def _capture(body: Callable[[], None], device: torch.device) -> Callable[[], None]:
    # Not torch.cuda.graph(): it also waits for the device, empties the cache and collects garbage, for every batch.
    graph, stream, memory = torch.cuda.CUDAGraph(), _side_stream(device), torch.cuda.graph_pool_handle()
    stream.wait_stream(torch.cuda.current_stream(device))
    collecting = gc.isenabled()
    gc.disable()  # what is collected may call what a capture forbids
    try:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            # thread_local: a thread that reads data ahead and pins memory does not end the capture.
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
    """Ends a capture that failed, so that the stream and the allocator are as before."""
    with contextlib.suppress(RuntimeError):
        graph.capture_end()  # fails as well
    if torch.__version__ < (2, 13):  # there it left the random generator in the capture, and with it every later number
        with contextlib.suppress(RuntimeError, AttributeError):
            generator = torch.cuda.default_generators[device.index]
            generator.graphsafe_set_state(generator.clone_state())
    if torch.__version__ < (2, 14):  # there capture_end left the allocator in the capture, see pytorch/CUDAGraph.cpp
        with contextlib.suppress(RuntimeError, AttributeError):
            torch.cuda.memory._cuda_endAllocateToPool(device.index, memory)
            torch.cuda.memory._cuda_releasePool(device.index, memory)
