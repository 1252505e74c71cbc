"""One training step as one CUDA graph: what a GPU would spend on launching kernels is paid once."""

import gc
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WARM_UP = 4  # steps before capture: lazy initialisation, cuDNN's choices and compilation must lie behind it


def capture(step: Callable[[], None], tensors: Sequence[Tensor], optimiser: torch.optim.Optimizer, pool: Any
            ) -> Callable[[], None]:
    """Capture `step`, which reads and writes memory that stays. Returns a function that takes the step once more.

    The warm-up trains for real, so `tensors` (weights, statistics, moments, sums) are put back. optimiser: the one of the step,
    whose gradients are to lie in the graph's memory. pool: the memory, which graphs may share whose replays never overlap.
    Where the capture fails, the stream is again the one that it was.
    """
    here = torch.cuda.current_stream()
    saved = [(t, t.clone()) for t in tensors]
    side = torch.cuda.Stream()
    side.wait_stream(here)
    with torch.cuda.stream(side), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*constructed with capturable=True")  # the warm-up is no capture
        for _ in range(WARM_UP):
            step()
    here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    optimiser.zero_grad(set_to_none=True)
    gc.collect()  # what only a cycle holds must not be freed while the capture runs
    try:
        with torch.cuda.graph(graph, pool=pool):
            step()
    finally:
        torch.cuda.set_stream(here)  # the end of a failed capture raises before it does this
    with torch.no_grad():
        for tensor, before in saved:
            tensor.copy_(before)
    return graph.replay
