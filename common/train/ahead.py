"""An epoch's draws, made one epoch ahead in a thread of their own while a GPU works, and left where it copies from quickly."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from common.data.feed import EpochDraws


class Ahead:
    """What `draw` gives for an epoch, a function of the epoch alone, in page-locked memory with floating values in `dtype`.

    There are two buffers, used by turns: while the device may still copy from one, the thread fills the other. The thread
    itself never calls CUDA, which a capture in progress would forbid.
    """

    def __init__(self, draw: Callable[[int], EpochDraws], dtype: torch.dtype):
        self._draw, self._dtype = draw, dtype
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="draws")
        self._buffers: list[EpochDraws] = []
        self._begun: dict[int, Future[EpochDraws]] = {}

    def begin(self, epoch: int) -> None:
        """Draw the epoch in the thread."""
        self._begun = {epoch: self._thread.submit(lambda: self._fill(self._draw(epoch)))}

    def take(self, epoch: int) -> EpochDraws:
        """The epoch's draws. They hold until the second next `begin` or `take`, by when the device must have copied them."""
        begun, self._begun = self._begun, {}
        draws = {number: future.result() for number, future in begun.items()}
        if epoch in draws:
            return draws[epoch]
        drawn = self._draw(epoch)
        self._buffers = self._buffers or [drawn.map(self._page_locked) for _ in range(2)]
        return self._fill(drawn)

    def _fill(self, drawn: EpochDraws) -> EpochDraws:
        buffer = self._buffers.pop(0)
        buffer.copy_(drawn)
        self._buffers.append(buffer)
        return buffer

    def _page_locked(self, like: Tensor) -> Tensor:
        dtype = self._dtype if like.is_floating_point() else like.dtype
        return torch.empty(like.shape, dtype=dtype, pin_memory=True)

    def close(self) -> None:
        """Wait for the thread and end it."""
        self._thread.shutdown(cancel_futures=True)
