"""Which runs train side by side: the packs of a set of runs, and how many a device's memory holds. No torch."""

from collections.abc import Callable, Sequence
from typing import Any

from common.cost import step_work
from common.data.sets import SETS
from common.models.sizes import outputs, weights
from common.plan import Run
from common.spec import canonical_json

LARGEST = 32  # runs of a pack on a GPU: twice as many are hardly faster a run, and one size finds its kernels on disk again
SIZES = (32, 16, 8, 4, 2, 1)
FULL = 0.85  # of the memory may be filled
ITEM = {"bfloat16": 2, "float32": 4, "float64": 8}  # bytes of an activation
MOST_ON_CPU = 64
CPU_STEP = 2e10  # multiplications of a step beyond which a CPU gains nothing from more runs side by side
UNLIMITED = 10**9  # runs: no pack is too large

Limit = Callable[[Run], int]  # most runs of a pack that a run is part of


def unlimited(item: Run) -> int:
    """The `Limit` that is none."""
    return UNLIMITED


def cpu_limit(item: Run) -> int:
    """Runs side by side on a CPU: many where a step is mostly overhead, few where it is mostly arithmetic."""
    return max(1, min(MOST_ON_CPU, int(CPU_STEP / step_work(item.spec.column, item.spec.protocol))))


def network_of(item: Run) -> tuple[Any, ...]:
    """What decides how much memory a run takes, beside the device."""
    column, method = item.spec.column, item.method
    return column.dataset, column.backbone, item.spec.protocol.batch_size, method.shape


def run_bytes(item: Run, precision: str) -> int:
    """Bytes that one run takes on a device, nearly: for each output of a layer what the backward pass needs (the output, its
    normalised and rectified image, and a third for what is alive at once), eight numbers in float32 for each weight."""
    column, streams = item.spec.column, item.method.streams.number
    facts = SETS[column.dataset]
    images = item.spec.protocol.batch_size * streams * (2 if item.method.meta.rate else 1)
    activations = outputs(column.backbone, facts.side, facts.channels) * images * ITEM[precision] * 8 // 3
    return activations + 32 * weights(column.backbone, facts.channels)


def memory_limit(item: Run, precision: str, memory: float) -> int:
    """The largest size of SIZES of which a device of so many bytes holds a pack; 1 where even that is not sure."""
    return next((runs for runs in SIZES if runs * run_bytes(item, precision) <= FULL * memory), 1)


def form_packs(runs: Sequence[Run], limit: Limit) -> list[list[Run]]:
    """Packs of one column, protocol and shape each, none larger than its runs' limits: in the order of the runs, full ones
    first; those that others start from before these."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for item in runs:
        key = len(item.chain), item.spec.column, item.spec.protocol, item.method.shape, limit(item)
        groups.setdefault(key, []).append(item)
    return [same[i:i + key[-1]] for key, same in sorted(groups.items(), key=lambda pair: pair[0][0])
            for i in range(0, len(same), key[-1])]


def together(pack: Sequence[Run]) -> list[Run]:
    """The runs of a pack as it trains them: equal methods side by side."""
    return sorted(pack, key=lambda m: (canonical_json(m.spec.method), m.spec.seed))
