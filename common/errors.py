"""The one exception that a user is meant to read, and how it is printed."""

import difflib
import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path


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
    """What the command of a script returns (0 for None), or 2 after a UserError, whose sentence is printed."""
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


def meant(word: object, known: Iterable[object]) -> str:
    """What goes after a name that nobody knows: the known one that it looks like, or nothing.

    >>> meant("cifar10-tl-100", ["cifar10-lt-100", "mnist"])
    " (did you mean 'cifar10-lt-100'?)"
    """
    names = list(dict.fromkeys(map(str, known)))
    close = [name for name in names if sorted(name) == sorted(str(word))] or difflib.get_close_matches(str(word), names, 1, 0.72)
    return f" (did you mean {close[0]!r}?)" if close and str(word) not in names else ""


def line_of(path: Path, *words: str) -> str:
    """The file, with its first line that holds all of the words, if one does."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    numbers = (number for number, line in enumerate(text.splitlines(), 1) if all(word in line for word in words))
    number = next(numbers, None)
    return f"{path}, line {number}" if number else str(path)


def unknown(what: str, word: str, known: Iterable[str], more: str = "", place: str = "") -> UserError:
    """The error for a name that is none of the known ones. more: what comes after the name; place: what comes first."""
    names = list(known)
    return UserError(f"{place}Unknown {what} {word!r}{more}{meant(word, names)}; known: {', '.join(names)}.")
