"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input: the message is one clear sentence that names the thing and the way out.

    The command line prints it and ends with exit code 2; everything else is a defect and keeps its traceback.
    alone: of several processes this one alone has it, so that it must speak; else the first of them does.
    """

    alone = False
