"""From the written GCL to the released one, a difference at a time: the cloud of both stages, the first stage, the second."""

from dataclasses import replace
from functools import partial

from common.methods.method import Method, Start
from common.methods.path import path


def steps(written: Method, released: Method) -> list[Method]:
    """The path between the two rows; each difference takes its value from the released one."""
    first, first_released = written.first_stage, released.first_stage
    cloud, s = first_released.loss.keywords["cloud"], released.loss.keywords["s"]
    clouded = replace(first, loss=partial(first.loss, cloud=cloud))
    batch = replace(first.protocol, batch_size=first_released.protocol.batch_size)
    return path(
        written,
        ("cloud", {"loss": partial(written.loss, cloud=cloud), "start": Start(clouded)}),
        ("first-batch", {"start": Start(replace(clouded, protocol=batch))}),
        ("first-decay", {"start": Start(first_released)}),
        ("second-mixup", {"mixup": released.mixup}),
        ("second-schedule", {"protocol": released.protocol}),
        ("classifier", {"head": released.head}),
        ("second-scale", {"loss": partial(written.loss, cloud=cloud, s=s)}),
        ("second-margin", {"loss": partial(released.loss, gamma=0.0)}),
        ("second-focal", {"loss": released.loss}),
        ("sampler", {"sampler": released.sampler}),
    )
