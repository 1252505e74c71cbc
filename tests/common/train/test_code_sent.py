"""What a machine of a cluster is sent of a checkout: the code, whatever else lies beside it."""

from pathlib import Path

import pytest

from common.train.cluster import copy_code

CODE = {"common/loop.py", "papers/new/replicate.py", "papers/new/params.yaml", "papers/new/published.csv", "pyproject.toml"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in CODE:
        write(tmp_path / "checkout" / name)
    return tmp_path / "checkout"


def write(path: Path, size: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)


@pytest.mark.parametrize("beside", [
    ["cifar-10-python.tar.gz", "weights.safetensors", "papers/new/model.pt"],
    ["data/cifar10.npz", "data/tiny-imagenet-200/train/n01/images/n01_0.JPEG", "data/lists/order.json"],
    ["papers/new/results/paper/a.json", "papers/new/checkpoints/a.safetensors", "report/index.json", ".git/x.py", ".work/y.json"],
    ["env/pyvenv.cfg", "env/lib/python3/site-packages/torch/__init__.py", "common/__pycache__/loop.pyc", "common/._loop.py"],
])
def test_only_the_code_is_sent(beside: list[str], checkout: Path, tmp_path: Path):
    for name in beside:
        write(checkout / name)
    write(checkout / "train2018.json", 2**20 + 1)
    copy_code(checkout, tmp_path / "sent")
    assert {str(p.relative_to(tmp_path / "sent")) for p in (tmp_path / "sent").rglob("*") if p.is_file()} == CODE


def test_this_checkout_is_small_and_whole(tmp_path: Path):
    root = Path(__file__).resolve().parents[3]
    copy_code(root, tmp_path)
    sent = {p.relative_to(tmp_path): p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()}
    assert sum(sent.values()) < 8 * 2**20
    for package in ("common", "papers"):
        assert {p.relative_to(root) for p in (root / package).rglob("*.py")} <= set(sent)
    assert {p.relative_to(root) for p in root.glob("papers/*/*.yaml")} <= set(sent)
