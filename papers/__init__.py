"""The papers. A params.yaml is read as its paper is imported, before any command could catch what is wrong with it: that too is
said in one sentence, with exit code 2."""

import sys
from types import TracebackType

from common.errors import UserError, complain


def _say_bad_input(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The interpreter's last word on an exception that nobody caught."""
    if not isinstance(error, UserError):
        sys.__excepthook__(kind, error, trace)
        return
    complain(error)
    sys.exit(2)


sys.excepthook = _say_bad_input
