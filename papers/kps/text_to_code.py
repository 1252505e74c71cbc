"""From the written KPS to the released one, a difference at a time."""

from collections.abc import Callable
from functools import partial

from common.methods.method import Method
from common.methods.path import path


def steps(written: Method, released: Method, flipped: Callable) -> list[Method]:
    """The path between the two rows. flipped: the loss with the released margins and the text's scales."""
    wide = partial(written.loss, m_max=released.loss.keywords["m_max"])
    return path(
        written,
        ("decay", {"protocol": released.protocol}),
        ("m_max", {"loss": wide}),
        ("margins", {"loss": partial(flipped, **wide.keywords)}),
        ("scales", {"loss": released.loss}),
    )
