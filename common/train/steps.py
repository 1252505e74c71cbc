"""What the training loop asks of a way to take steps; there are two, `ResidentSteps` and `ShardedSteps`."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from common.train.distributed import Ranks
from common.train.pack import Pack
from common.train.tally import Tally


class Steps(Protocol):
    """How the runs of a pack come to their images, and on how many processes they train.

    path: "eager", or "native" where the C++ passes are taken; threads: of this process. Bits depend on both. pausable: whether a
    state can be saved between two batches of an epoch.
    """

    pack: Pack
    processes: Ranks
    path: str
    threads: int
    pausable: bool

    def get_ready(self, resumed: bool = False) -> None:
        """What comes between the weights, which are there, and the first batch. resumed: whether they are those of a state."""

    def go_eager(self) -> None:
        """Leave the C++ passes to go on with torch's own operations."""

    def begin_epoch(self, epoch: int, first: int = 0) -> None:
        """Set what an epoch sets and draw its batches; the one numbered `first` comes first."""

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """The epoch's batches from the one numbered `first`; `begin_epoch` comes before."""

    def train_batch(self, epoch: int, batch: Any) -> int:
        """One optimisation step of all runs; returns the images of the batch."""

    def evaluate(self, stride: int = 1) -> list[Tally]:
        """One tally a group over every `stride`-th image of the test set, the same on every process."""

    def plain_features(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features [runs, batch, width] and labels [batch] of all training images as they are, batch by batch."""

    def stored_features(self, run: int) -> dict[str, Any]:
        """What the record of a run keeps of its features for a figure, where there is room for it; else nothing."""

    def about(self, images: int, seconds: float) -> dict[str, Any]:
        """What made the records, beside `surroundings`. images: trained on; seconds: of all devices."""
