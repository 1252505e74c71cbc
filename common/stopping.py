"""A process that is asked to end (SIGTERM of a scheduler, Ctrl-C) saves its state first. No torch.

While `listening`, the first signal is only noted: training looks with `is_asked` after every epoch (on large sets after every
batch), saves and ends. What has not ended GRACE seconds later is interrupted where it is, and goes on from its last state.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from common.errors import UserError, complain, remedy

GRACE = 10.0  # seconds: Slurm kills 30 after its SIGTERM, Kubernetes too, a spot instance of a cloud 30 to 120
ONE_REQUEST = 1.0  # seconds in which signals are one request: torchrun passes on a Ctrl-C that its workers had already
_asked: list[tuple[int, float]] = []  # number and time of the signal that this process got


def is_asked() -> bool:
    """Whether this process has been asked to end."""
    return bool(_asked)


def signal_code() -> int:
    """What a shell expects of a process that a signal ended: 143 after SIGTERM, 130 after Ctrl-C."""
    return 128 + (_asked[0][0] if _asked else signal.SIGINT)


def to_its_end(command: Callable[[], int], patient: bool, quiet: bool = False) -> int:
    """The exit code of a command of the command line, however it ends: its own, 2 after a UserError or where the system refuses
    a file (a sentence is printed on either), or that of the signal which ended it. patient: as `listening` has it."""
    with listening(patient):
        try:
            code = command()
        except UserError as error:
            complain(error)
            code = 2
        except KeyboardInterrupt:
            code = signal_code()
        except OSError as error:
            if not (is_asked() or remedy(error)):
                raise
            complain(UserError(f"{error.filename or 'A file'} could not be used ({error.strerror}); {remedy(error)}."))
            code = 2
        except Exception:
            if not is_asked():  # else another process of torchrun has ended first
                raise
        if not is_asked():
            return code
    if not quiet:
        print("\nInterrupted; the same command goes on from the last saved state.", file=sys.stderr)
    return signal_code()


@contextmanager
def listening(patient: bool = True) -> Iterator[None]:
    """Signals end what is inside as above; without patience at once, by a KeyboardInterrupt, so that nothing half-written stays.

    Children that are forked inside die of them as ever."""
    owner, _asked[:] = os.getpid(), []

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if _asked and time.monotonic() - _asked[0][1] < ONE_REQUEST and number != signal.SIGALRM:
            return
        again = bool(_asked)
        _asked.append((number, time.monotonic()))
        if again or not patient:
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, GRACE)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
