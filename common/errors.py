"""The one exception that a user is meant to read, and how it is said."""

import errno
import os
from collections.abc import Callable


class UserError(Exception):
    """Bad input: the message is one clear sentence that names the thing and the way out.

    The command line prints it and ends with exit code 2; everything else is a defect and keeps its traceback.
    alone: of several processes this one alone has it, so that it must speak; else the first of them does.
    """

    alone = False


REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make its folder writable"),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY),
                    "move away what is in its place, a folder where a file belongs or a file where a folder does"),
    errno.ENAMETOOLONG: "choose a shorter name", errno.EIO: "look after the disk",
}


def remedy(error: OSError) -> str:
    """What helps where the system refuses to read or write a file; "" where that would be a defect of the program."""
    return REMEDIES.get(error.errno or 0, "")


def exit_code(command: Callable[[], int | None]) -> int:
    """What the command of a script returns, 0 for nothing; 2 after a UserError, which is said."""
    try:
        return command() or 0
    except UserError as error:
        complain(error)
        return 2


def complain(error: UserError) -> None:
    """Print the sentence on standard error, in the process that has to speak (RANK is torchrun's)."""
    from rich.console import Console
    from rich.markup import escape

    if os.environ.get("RANK", "0") == "0" or error.alone:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}")
