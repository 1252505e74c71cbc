"""The one exception that a user is meant to read, and how it is said."""

import os


class UserError(Exception):
    """Bad input: the message is one clear sentence that names the thing and the way out.

    The command line prints it and ends with exit code 2; everything else is a defect and keeps its traceback.
    alone: of several processes this one alone has it, so that it must speak; else the first of them does.
    """

    alone = False


def complain(error: UserError) -> None:
    """Print the sentence on standard error, in the process that has to speak (RANK is torchrun's)."""
    from rich.console import Console
    from rich.markup import escape

    if os.environ.get("RANK", "0") == "0" or error.alone:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}")
