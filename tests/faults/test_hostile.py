"""Input that means harm, tried with harmless content: nothing leaves its folder, runs, grows or is shown as markup."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from common.campaign.merging import MOST_TEXT, read_tar
from common.data.large_sets import LARGE
from common.data.lists import read_list
from common.errors import UserError
from common.store import check_record, save_record, seal
from common.train.state import read_state
from tests.faults.trials import trained
from tests.faults.world import World, run, tree

MARKUP = "<script>alert(1)</script>[red]|`*"


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> World:
    world = World(tmp_path_factory.mktemp("hostile") / "world").make()
    trained(world)
    return world


def a_record(world: World) -> Path:
    return min(world.root.glob("papers/toy/results/*/*/*ce@*.json"))


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
                         ids=["symbolic link", "hard link", "character device", "block device", "pipe"])
def test_a_tar_writes_only_records_where_records_belong(kind, done, tmp_path):
    """Absolute paths, paths upwards, links and devices beside a good record: this one comes in, nothing else is written."""
    world, path = World(tmp_path / "world").make(), a_record(done)
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for name in (str(tmp_path / "outside" / path.name), f"../../{path.name}"):
            content = path.read_bytes()
            tar.addfile(member(name, size=len(content)), io.BytesIO(content))
        tar.addfile(member(f"papers/{'0' * 16}.predictions.npz", kind, link="/etc/passwd"))
        tar.addfile(member("resume/0123456789abcdef.pt", kind, link="/etc/passwd"))
        answers = (path.parent / json.loads(path.read_text())["predictions"]["file"]).read_bytes()
        name = json.loads(path.read_text())["predictions"]["file"]
        tar.addfile(member(f"/{name}", size=len(answers)), io.BytesIO(answers))
    before = tree(world)
    code, said = run(world, "merge", str(tmp_path / "in.tar"))
    assert code == 0, said
    new = {n for n in tree(world).keys() - before.keys() if not n.startswith(".work/")}
    assert new == {str(p.relative_to(done.root)) for p in (path, path.parent / name)}
    assert not (tmp_path / "outside").exists()


def test_a_member_that_claims_a_huge_size_is_not_read(tmp_path):
    with open(tmp_path / "huge.tar", "wb") as file:
        file.write(member("papers/x.json", size=MOST_TEXT + 1).tobuf() + bytes(1024))
    with pytest.raises(UserError, match=r"x.json is said to have 67,108,865 bytes.*nothing of it was read"):
        read_tar(tmp_path / "huge.tar", lambda name: True)


def test_a_sparse_member_that_unpacks_to_a_terabyte_is_not_read(tmp_path):
    info = member("papers/x.json")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "papers/x.json",
                        "GNU.sparse.realsize": str(2**40)}
    content = b"0\n".ljust(512, b"\0")
    info.size = len(content)
    with tarfile.open(tmp_path / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(content))
    with pytest.raises(UserError, match="1,099,511,627,776 bytes"):
        read_tar(tmp_path / "sparse.tar", lambda name: True)


class Runs:
    """What unpickles into a call."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_state_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path):
    torch.save({"epoch": Runs(tmp_path / "ran")}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="is damaged"):
        read_state(tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()


def test_markup_in_a_record_is_shown_as_text(done, tmp_path):
    world = done.copy(tmp_path / "world")
    path = a_record(world)
    record = json.loads(path.read_text())
    path.unlink()
    made = {**record["made"], "device": MARKUP, "torch": MARKUP, "commit": MARKUP}
    save_record(path.parent, seal({**record, "made": made}))
    code, said = run(world, "report", "--profile", "quick")
    assert code == 0, said
    shown = [p for p in world.root.rglob("*") if p.suffix in (".html", ".md", ".json") and "results" not in p.parts[-4:]]
    assert any(b"alert(1)" in p.read_bytes() for p in shown)
    for page in (p for p in shown if p.suffix != ".json"):
        assert "<script>alert(1)" not in page.read_text(), page
    assert run(world, "export", "--to", "out/w", "--profile", "quick", "--method", "ce")[0] == 0
    assert all("<script>" not in p.read_text().split("\n---\n", 1)[1] for p in world.root.glob("out/w/*/README.md"))


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "0" * 16 + ".predictions.npz/../x"])
def test_a_record_cannot_name_predictions_elsewhere(name, done):
    record = json.loads(a_record(done).read_text())
    with pytest.raises(UserError, match=r"its field predictions.file does not hold what it must"):
        check_record(seal({**record, "predictions": {**record["predictions"], "file": name}}), "here")


@pytest.mark.parametrize("name", ["per_class_accuracy", "confusion", "norms.classifier", "norms.feature", "curves.tested"])
def test_a_sealed_record_whose_lists_do_not_fit_each_other_is_refused(name, done):
    record = json.loads(a_record(done).read_text())
    *outer, last = name.split(".")
    fields = record[outer[0]] if outer else record
    fields[last] = fields[last][:-1]
    with pytest.raises(UserError, match=f"its field {name} is longer or shorter than it must be"):
        check_record(seal(record), "here")


@pytest.mark.parametrize("line", ["../outside.jpg 0", "train/../../outside.jpg 0", "/etc/outside.jpg 0", "..\\outside.jpg 0"])
def test_a_list_cannot_point_outside_of_its_folder(line, tmp_path):
    (tmp_path / "list.txt").write_text(f"train/a.jpg 0\n{line}\n")
    with pytest.raises(UserError, match="line 2 is outside of the folder of the images"):
        read_list(tmp_path / "list.txt", LARGE["miniature"].classes)


def test_a_folder_given_to_merge_is_read_through_no_pipe(done, tmp_path):
    """A folder may hold folders with the names of records."""
    world = World(tmp_path / "world").make()
    shutil.copytree(a_record(done).parent, tmp_path / "there")
    (tmp_path / "there" / "x-0123456789abcdef-0123456789abcdefe1.json").mkdir()
    assert run(world, "merge", str(tmp_path / "there"))[0] == 0
