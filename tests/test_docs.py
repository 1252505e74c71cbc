"""docs/adding.md: every command in it is run, in its order, in a checkout whose quick profile takes seconds."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.common.cli.test_main import make_small

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "adding.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
SAID = {  # what a command ends with and says, where that is not 0 and nothing
    "--protocol mm": (0, "balanced against ce: "),
    "--minutes 20": (3, "The minutes are over; the same command goes on from here."),
    "--confirm guests/my_loss/card-digits-lt-20.json": (2, "then repeat the command with --trust"),
    "--trust": (0, "The card is confirmed."),
    "new my_paper": (0, "are made. It trains and reports as it is"),
    "reproduce": (0, "my-paper"),
    "plan": (0, "18 runs of profile paper are to be trained"),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, cifar10) -> Path:
    """With CIFAR-10, and the file that the text begins with."""
    copy = make_small(tmp_path_factory.mktemp("docs") / "repo")
    (copy / "data" / "cifar10.npz").symlink_to(cifar10 / "cifar10.npz")
    (python,) = (block for kind, block in BLOCKS if kind == "python")
    (copy / python.partition("\n")[0].removeprefix("# ")).write_text(python)
    return copy


def test_every_command_does_what_the_text_says(checkout):
    assert len(COMMANDS) == 8
    for line in COMMANDS:
        code, words = next((SAID[part] for part in reversed(SAID) if part in line), (0, ""))
        given = shlex.split(line.replace("--minutes 20", "--minutes 1e-6"))
        assert given[0] == ".venv/bin/python"
        done = subprocess.run([sys.executable, *given[1:]], cwd=checkout, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=200)
        assert done.returncode == code, line + done.stdout + done.stderr
        assert words in " ".join((done.stdout + done.stderr).split()), line + done.stdout + done.stderr


def test_the_make_targets_and_the_files_in_the_text_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)", TEXT))
    assert {"try", "report"} <= named <= targets
    for path in re.findall(r"`((?:common|papers)/[\w/]+\.py)`", TEXT):
        assert (ROOT / path).exists(), path


def test_the_file_is_as_short_as_promised():
    (python,) = (block for kind, block in BLOCKS if kind == "python")
    assert len(python.splitlines()) <= 30
