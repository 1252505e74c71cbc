"""One training step as one CUDA graph: what a GPU would spend on launching kernels is paid once."""

import gc
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from common.data.feed import Drawn

if TYPE_CHECKING:
    from common.train.pack import Pack

WARM_UP = 4  # steps before capture: lazy initialisation, cuDNN's choices and compilation must lie behind it


def capture(pack: "Pack", drawn: Drawn, compiled: bool) -> Callable[[Drawn], None]:
    """Capture `pack.step` for batches of drawn's shape. Returns a function that trains on other draws of that shape.

    The warm-up trains for real, so weights, statistics, momenta and the loss sum are put back. `drawn` becomes the
    graph's own input. Where the capture fails, the stream is again the one that it was.
    """
    here = torch.cuda.current_stream()
    saved = [(t, t.clone()) for t in (*pack.state().values(), *pack.counters(), pack.loss_sum)]
    side = torch.cuda.Stream()
    side.wait_stream(here)
    with torch.cuda.stream(side), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*constructed with capturable=True")  # the warm-up is no capture
        for _ in range(WARM_UP):
            pack.step(drawn, compiled)
    here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    pack.optimiser.zero_grad(set_to_none=True)
    gc.collect()  # what only a cycle holds must not be freed while the capture runs
    try:
        with torch.cuda.graph(graph, pool=pack.memory):
            pack.step(drawn, compiled)
    finally:
        torch.cuda.set_stream(here)  # the end of a failed capture raises before it does this
    with torch.no_grad():
        for tensor, before in saved:
            tensor.copy_(before)

    def replay(other: Drawn) -> None:
        drawn.copy_(other)
        graph.replay()

    return replay
