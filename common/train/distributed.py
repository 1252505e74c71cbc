"""The processes of one run: torchrun's, or this one alone. Every collective call of the large path is here.

All processes do the same in the same order; what one alone does (reading a state, writing) it hands to the others.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import UserError

T = TypeVar("T")
CONNECT_TIMEOUT = timedelta(seconds=2)
COLLECTIVE_TIMEOUT = timedelta(hours=2)  # for what rank 0 does alone, as reading all training images once


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are. rank 0 is the one that writes."""

    rank: int = 0
    world: int = 1
    local: int = 0  # number of this process on its machine

    @property
    def first(self) -> bool:
        return self.rank == 0


def join() -> Ranks:
    """The processes that torchrun started (over nccl for CUDA and gloo for CPUs), or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local < torch.cuda.device_count():  # a process too many is told so when it chooses its device
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, store=rendezvous_store(), rank=rank, world_size=world, timeout=COLLECTIVE_TIMEOUT)
    return Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


def rendezvous_store() -> dist.Store:
    """A store in which the processes find each other. torchrun's own outlives them: after a restart, a quick one would read
    there the addresses of the dead. So rank 0 opens one that lives as long as itself, and the others try until they reach it."""
    store, rank, _ = next(dist.rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store
    host, key = os.environ["MASTER_ADDR"], "port of rank 0"
    if rank == 0:
        own = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=COLLECTIVE_TIMEOUT)
        store.set(key, str(own.port))
        return own
    while True:
        with suppress(RuntimeError):  # that port was a dead one's
            client = dist.TCPStore(host, int(store.get(key)), is_master=False, timeout=CONNECT_TIMEOUT)
            client.set_timeout(COLLECTIVE_TIMEOUT)
            return client
        time.sleep(CONNECT_TIMEOUT.total_seconds() / 10)


def leave() -> None:
    """End the group. All processes must get here, since over nccl this waits for the others; one that fails must not call it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def on_all_ranks(processes: Ranks, work: Callable[[], T]) -> T:
    """`work()` on every process. Where it is a UserError anywhere, all end: one raises it, the others leave quietly."""
    result, refusal = None, None
    try:
        result = work()
    except UserError as error:
        refusal = error
    refusals = [refusal and str(refusal)]
    if processes.world > 1:
        refusals = [None] * processes.world
        dist.all_gather_object(refusals, refusal and str(refusal))
    speaker = next((rank for rank, text in enumerate(refusals) if text), None)
    if speaker is None:
        return result
    leave()
    if speaker == processes.rank:
        refusal.alone = True
        raise refusal
    raise SystemExit(2)


def broadcast_from_rank0(processes: Ranks, work: Callable[[], T]) -> T:
    """`work()` on rank 0 alone; its result, pickled, on all. A UserError there ends all."""
    result = on_all_ranks(processes, lambda: work() if processes.first else None)
    if processes.world == 1:
        return result
    held: list[Any] = [result]
    dist.broadcast_object_list(held, device=torch.device("cpu"))
    return held[0]


def broadcast_tensors(processes: Ranks, tensors: Sequence[Tensor]) -> None:
    """Every process gets rank 0's values, in place."""
    for tensor in tensors if processes.world > 1 else ():
        whole = tensor if tensor.is_contiguous() else tensor.contiguous()
        dist.broadcast(whole, 0)
        if whole is not tensor:
            tensor.copy_(whole)


def add_up(processes: Ranks, tensors: Sequence[Tensor]) -> None:
    """The sum over all processes, in place, on each."""
    for tensor in tensors if processes.world > 1 else ():
        dist.all_reduce(tensor)


def shares(size: int, world: int) -> list[int]:
    """Images of a global batch that each process has, as `common.data.shares.spans` deals them."""
    return [size * (rank + 1) // world - size * rank // world for rank in range(world)]


def gather(processes: Ranks, mine: Tensor, size: int) -> Tensor:
    """The shares of all processes one after another along the first axis, `size` in all; without a gradient to the others."""
    if processes.world == 1:
        return mine
    each = shares(size, processes.world)
    padded = mine.new_zeros(max(each), *mine.shape[1:])
    padded[:len(mine)] = mine.detach()
    parts = [torch.empty_like(padded) for _ in each]
    dist.all_gather(parts, padded)
    parts[processes.rank] = mine
    return torch.cat([part[:n] for part, n in zip(parts, each, strict=True)])


def sum_gradients(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A hook for DDP: gradients add up. (DDP by itself takes their mean, but the loss is already divided by the whole batch.)"""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])
