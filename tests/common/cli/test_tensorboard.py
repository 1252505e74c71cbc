"""`--tensorboard`: what the log has, as TensorBoard's own reader finds it."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from common.cli.tensorboard import TensorBoard, with_tensorboard
from common.errors import UserError
from common.train.device import Device
from common.train.loop import train_pack
from common.train.state import Workspace
from tests.common.train.toys import METHODS, planned

CPU = Device("cpu", "float32", False)


def scalars(folder: Path, tag: str) -> list[tuple[int, float, float]]:
    """Step, value and time of a run."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return [(one.step, one.value, one.wall_time) for one in found.Scalars(tag)]


def test_a_run_is_shown_epoch_by_epoch_as_its_record_says(digits, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    runs = [planned(method, tmp_path / "papers") for method in METHODS[:2]]
    board = TensorBoard(tmp_path / "board", tmp_path / ".work" / "log.jsonl", runs)
    seen = []
    with with_tensorboard(lambda pack: nullcontext(lambda epoch: seen.append(epoch.epoch)), board)(runs) as observe:
        assert train_pack(runs, digits, CPU, Workspace(tmp_path / ".work", None), observe)
    assert seen == [1, 2, 3]  # whoever watched before still does
    assert {path.name.rpartition("-")[0] for path in (tmp_path / "board" / "digits-lt-20").iterdir()} == {
        "ce@written-s0", "ldam-drw@written-s0"}
    for item in runs:
        [path] = item.folder.glob(f"*{item.spec.key}*.json")
        curves = json.loads(path.read_text())["curves"]
        [folder] = (tmp_path / "board" / "digits-lt-20").glob(f"*-{item.spec.key[:8]}")
        for tag, wanted in (("loss/train", curves["train_loss"]), ("accuracy/test", curves["test_accuracy"])):
            assert [step for step, *_ in scalars(folder, tag)] == [1, 2, 3]
            assert [value for _, value, _ in scalars(folder, tag)] == pytest.approx(wanted, rel=1e-6)


def line(epoch: int, **runs: list) -> str:
    return json.dumps({"time": 1000.5 + epoch, "column": "digits-lt-20", "epoch": epoch, "loss_and_accuracy": runs}) + "\n"


def test_the_log_is_followed_and_epochs_trained_again_take_the_place_of_the_old(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    item, log = planned(METHODS[0], tmp_path / "papers"), tmp_path / "log.jsonl"
    key, target = item.spec.key, tmp_path / "board"
    log.write_text(line(1, **{key: [2.0, 10.0], "f" * 16: [1.0, 1.0]}) + '{"result": "a line of another kind"}\n')
    TensorBoard(target, log, [item]).update()
    [folder] = target.glob("*/*")  # of the other run in the pack, which was not selected, nothing
    assert scalars(folder, "accuracy/test") == [(1, 10.0, 1001.5)]

    board = TensorBoard(target, log, [item])  # another process
    board.update()
    with open(log, "a") as file:
        file.write(line(2, **{key: [1.5, 20.0]}) + line(3, **{key: [None, 30.0]}) + line(4, **{key: [1.0, 40.0]})[:20])
    board.update()
    assert [(step, value) for step, value, _ in scalars(folder, "accuracy/test")] == [(1, 10.0), (2, 20.0), (3, 30.0)]
    assert [step for step, *_ in scalars(folder, "loss/train")] == [1, 2]  # a loss that left the finite range is not drawn
    with open(log, "a") as file:
        file.write(line(4, **{key: [1.0, 40.0]})[20:] + line(3, **{key: [1.1, 31.0]}))  # went on from the state after 2
    board.update()
    assert [(step, value) for step, value, _ in scalars(folder, "accuracy/test")] == [(1, 10.0), (2, 20.0), (3, 31.0)]


def test_no_log_is_no_event(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    TensorBoard(tmp_path / "board", tmp_path / "log.jsonl", [planned(METHODS[0], tmp_path / "papers")]).update()
    assert not (tmp_path / "board").exists()


def test_without_tensorboard_one_sentence_says_how_to_get_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"needs TensorBoard, .*pip install '\.\[tensorboard\]'"):
        TensorBoard(tmp_path, tmp_path / "log.jsonl", [])


def test_no_torch_is_needed_to_read_the_options() -> None:
    code = "import sys; import common.cli.tensorboard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[3]).returncode == 0
