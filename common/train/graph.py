"""One training step as one CUDA graph: what a GPU would spend on launching kernels is paid once."""

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
    graph's own input. The last, smaller batch of an epoch is captured uncompiled: one step in a hundred is not worth
    a compilation.
    """
    saved = [(t, t.clone()) for t in (*pack.state().values(), *pack.counters(), pack.loss_sum)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            pack.step(drawn, compiled)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    pack.optimiser.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph, pool=pack.memory):
        pack.step(drawn, compiled)
    with torch.no_grad():
        for tensor, before in saved:
            tensor.copy_(before)

    def replay(other: Drawn) -> None:
        drawn.copy_(other)
        graph.replay()

    return replay
