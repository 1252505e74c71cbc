"""One of two processes that torchrun starts: `pair.py DATA FOLDER`.

In its first life it trains every case, of which the first process stores what came, then a whole run in FOLDER/whole, then
the same run in FOLDER/killed, in the middle of which the second process is killed. The second life goes on with that one.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from common.train.distributed import Ranks, join
from common.train.sharded import ShardedSteps
from common.train.state import Workspace
from common.train.torchrun import LargeOptions, train_large
from tests.common.train.large_toys import CE, LONGER, cases, member, quiet, train_steps

OPTIONS = LargeOptions(device="cpu", precision="float32", workers=0)


def train_cases(data: Path, folder: Path, processes: Ranks) -> None:
    found = {name: train_steps(case, data, processes, case.per_device[0]) for name, case in cases().items()}
    if processes.first:
        torch.save(found, folder / "cases.pt")


def train_whole(data: Path, folder: Path, save_seconds: float) -> None:
    train_large([member(CE, folder, LONGER)], data, Workspace(folder / "work", save_seconds), OPTIONS, quiet)


def let_die(life: int, rank: int, folder: Path) -> None:
    """Note every batch that is begun, and kill the second process of the first life before the fourth batch of epoch 1."""
    train_batch = ShardedSteps.train_batch

    def watched(steps, epoch, batch):
        if (life, rank, epoch, batch.span.start) == (0, 1, 1, 3 * LONGER.batch_size):
            time.sleep(1)  # rank 0 has its state of the batch before on the disk
            os.kill(os.getpid(), signal.SIGKILL)
        with open(folder / f"life-{life}-{rank}", "a") as file:
            file.write(f"{epoch} {batch.span.start}\n")
        return train_batch(steps, epoch, batch)

    ShardedSteps.train_batch = watched


def main(data: Path, folder: Path) -> None:
    processes, life = join(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if life == 0:
        train_cases(data, folder, processes)
        train_whole(data, folder / "whole", 1e9)
    let_die(life, processes.rank, folder)
    train_whole(data, folder / "killed", 0.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
