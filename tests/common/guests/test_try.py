"""`try` end to end on the digits, in a few epochs: boards, cards, what is trained again and what is not."""

import json
import shutil
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from common.cli.main import most_side_by_side
from common.errors import UserError
from common.guests.card import digest_of_card, find_cards, read_card
from common.guests.run import try_loss
from common.guests.trial import Ground
from common.guests.view import guest_views
from common.methods.digest import forget
from common.plan import plan
from common.report.page.page import build_page
from common.report.results import results_of
from common.store import files_by_key, load_records
from common.train.device import Device
from common.train.packing import unlimited
from common.train.state import Workspace
from common.train.work import LocalDevice, train
from papers.catalog import PAPERS

MM = next(paper for paper in PAPERS if paper.name == "mm")
SHORT = replace(MM.protocols["quick"]["written"], epochs=3, warmup_epochs=1, decay_epochs=(1, 2))
PAPER = replace(MM, protocols={**MM.protocols, "quick": {"written": SHORT, "released": SHORT}})
LOSS = """import pathlib
from functools import partial
from common.methods.losses import cross_entropy
from common.methods.method import Method

pathlib.Path(__file__).with_name("executed").touch()


def mine(outputs, labels, context, *, tau):
    return cross_entropy(outputs.logits + tau * context.counts.log(), labels)


METHODS = [Method("mine", "written", partial(mine, tau=1.0))]
"""


@pytest.fixture(scope="module")
def digits(cifar10) -> Path:
    """data/, in which the digits are."""
    return cifar10 if (cifar10 / "digits.npz").exists() else pytest.skip("the digits are not prepared here")


def run(folder: Path, *, loss: str | None = LOSS, data: Path, **options) -> tuple[int, str]:
    """The command, with a file of this content; its exit code and what it printed."""
    forget()  # a file that was changed is read anew, as in another process
    said = StringIO()
    if loss is not None:
        (folder / "my_loss.py").write_text(loss)
    given = {"loss": folder / "my_loss.py", "column": None, "protocol": [], "seeds": 2, "confirm": None, "trust": False,
             "minutes": None, "device": "cpu", "precision": None, "compile": None, "graph": True, "pack": None, "processes": 1,
             "save_every": None, **options}
    ground = Ground(folder / "papers", folder / "guests", data, folder / "work")
    chosen = Namespace(**given)
    console = Console(file=said, width=100, highlight=False)
    code = try_loss([PAPER], chosen, ground, partial(most_side_by_side, chosen), console)
    return code, said.getvalue()


@pytest.fixture(scope="module")
def tried(tmp_path_factory, digits) -> tuple[Path, str]:
    """A folder in which the loss was tried, and what that printed."""
    folder = tmp_path_factory.mktemp("tried")
    code, said = run(folder, data=digits)
    assert code == 0
    return folder, said


def card_of(folder: Path) -> Path:
    return folder / "guests" / "my_loss" / "card-digits-lt-20.json"


def test_a_board_has_the_guest_beside_three_references(tried):
    folder, said = tried
    card, _ = read_card(card_of(folder))
    board = card.boards[0]
    assert len(card.boards) == 1
    assert board.names == ("mm@written",)
    assert {(row.label, row.kind, row.n) for row in board.rows} == {
        ("mine", "guest", 2), ("ce", "reference", 2), ("ldam-drw", "reference", 2), ("la", "reference", 2)}
    assert [row.mean for row in board.rows] == sorted((row.mean for row in board.rows), reverse=True)
    versus = {one.other: one for one in board.versus}
    assert set(versus) == {"ce", "ldam-drw", "la"}
    rows = {row.label: row for row in board.rows}
    for other, one in versus.items():
        assert one.difference == pytest.approx(rows["mine"].mean - rows[other].mean, abs=1e-3)  # records have four decimals
        assert one.difference == pytest.approx(100 * (one.wins - one.losses) / (one.seeds * one.images))
        assert one.low <= one.difference <= one.high
    assert "Training 8 runs on cpu" in said
    assert "mine against ce:" in said
    assert "my_loss.py is executed as your code" in said


def test_nothing_of_a_guest_is_among_the_papers(tried):
    folder, _ = tried
    assert not (folder / "papers").exists()
    assert len(files_by_key(folder / "guests" / "my_loss")) == 8
    assert (Path(__file__).parents[3] / ".gitignore").read_text().splitlines().count("/guests/") == 1


def test_a_second_call_trains_nothing_and_an_edited_loss_only_itself(tried, digits, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(tried[0], folder)
    assert "nothing to train" in run(folder, data=digits)[1]
    assert read_card(card_of(folder)) == read_card(card_of(tried[0]))
    said = run(folder, loss=LOSS.replace("tau * context", "context"), data=digits)[1]
    assert "Training 2 runs on cpu in float32; 6 are here already" in said
    said = run(folder, loss=LOSS.replace("tau=1.0", "tau=1.5"), data=digits)[1]
    assert "Training 2 runs" in said


def test_what_papers_and_other_guests_have_trained_is_not_trained_again(tried, digits, tmp_path):
    shutil.copytree(tried[0] / "guests" / "my_loss" / "runs", tmp_path / "papers" / "mm")
    mine = [path for path in (tmp_path / "papers").glob("mm/results/*/*/*mine*.json")]
    assert len(mine) == 2  # a paper's folder never counts for a guest's own rows
    said = run(tmp_path, data=digits)[1]
    assert "Training 2 runs on cpu in float32; 6 are here already" in said
    shutil.rmtree(tmp_path / "papers")
    shutil.move(tmp_path / "guests" / "my_loss", tmp_path / "guests" / "other")
    shutil.copytree(tried[0] / "guests" / "my_loss", tmp_path / "guests" / "other", dirs_exist_ok=True)
    assert "6 are here already" in run(tmp_path, data=digits)[1]


def test_what_the_papers_have_trained_under_the_protocol_is_on_the_board_too(tried, digits, tmp_path):
    shutil.copytree(tried[0] / "guests", tmp_path / "guests")
    folder = tmp_path / "papers" / "mm" / "results" / "quick" / "digits-lt-20"
    planned = plan(PAPER, "quick", columns=("digits-lt-20",), methods=("mm@written", "ce"))
    rows = [replace(item, folder=folder) for item in planned]
    assert train(rows, root=tmp_path / "papers", work=Workspace(tmp_path / "work", None), limit=unlimited,
                 engine=LocalDevice(Device("cpu", "float32", False), digits),
                 observer=lambda pack: nullcontext(lambda progress: None))
    said = run(tmp_path, data=digits)[1]
    assert "nothing to train" in said
    board = read_card(card_of(tmp_path))[0].boards[0]
    assert {(row.label, row.kind, row.papers) for row in board.rows} == {
        ("mine", "guest", ()), ("ce", "reference", ()), ("ldam-drw", "reference", ()), ("la", "reference", ()),
        ("mm@written", "paper", ("mm",))}
    assert {one.other for one in board.versus} == {"ce", "ldam-drw", "la", "mm@written (mm)"}
    assert "mine against mm" not in said


def test_it_pauses_and_goes_on_to_the_same_answers(tried, digits, tmp_path):
    codes, states = [], set()
    while 0 not in codes and len(codes) < 40:
        code, said = run(tmp_path, data=digits, minutes=0.003)
        codes.append(code)
        assert ("the same command goes on from here" in said) == (code == 3)
        states |= {path.name for path in (tmp_path / "work" / "guests" / "my_loss" / "resume").glob("*.pt")}
    assert codes[-1] == 0
    assert len(codes) > 1
    assert len(states) == 1
    whole, parts = (load_records(folder / "guests" / "my_loss") for folder in (tried[0], tmp_path))
    assert {k: r["predictions"]["digest"] for k, r in whole.items()} == {k: r["predictions"]["digest"] for k, r in parts.items()}


def test_a_bad_loss_is_not_trained(digits, tmp_path):
    bad = LOSS.replace("labels)\n\n\nMETHODS", "labels).mean()\n\n\nMETHODS")
    assert bad != LOSS
    with pytest.raises(UserError, match=r"row mine@written is not trained: .* one value for each sample"):
        run(tmp_path, loss=bad, data=digits)
    assert not (tmp_path / "work").exists()


def test_a_function_with_the_name_of_another_is_refused(digits, tmp_path):
    with pytest.raises(UserError, match="rename one of them"):
        run(tmp_path, loss=LOSS.replace("mine(", "mm(").replace("partial(mine", "partial(mm"), data=digits)


def test_a_card_is_confirmed_on_another_machine_and_runs_nothing_before_it_is_trusted(tried, digits, tmp_path):
    card = shutil.copy(card_of(tried[0]), tmp_path / "card.json")
    with pytest.raises(UserError, match=r"with all your rights: read .*my_loss\.py, then repeat the command with --trust"):
        run(tmp_path, loss=None, data=digits, confirm=Path(card))
    home = next((tmp_path / "guests").glob("my_loss-confirms-*"))
    assert [path.name for path in home.iterdir()] == ["my_loss.py"]  # nothing was executed
    code, said = run(tmp_path, loss=None, data=digits, confirm=Path(card), trust=True)
    assert (home / "executed").exists()
    assert code == 0
    assert said.count("identical") == 4 + 1  # four rows, and what the word means
    assert "The card is confirmed." in said


def changed(card: Path, target: Path, change) -> Path:
    """The card with a change, and a digest that fits it again."""
    content = json.loads(card.read_text())
    change(content)
    content["digest"] = digest_of_card(content)
    target.write_text(json.dumps(content))
    return target


def test_a_card_that_says_more_than_its_runs_is_not_confirmed(tried, digits, tmp_path):
    def better(content: dict) -> None:
        for row in (row for row in content["boards"][0]["rows"] if row["kind"] == "guest"):
            row["mean"] = 90.05
            for one, accuracy in zip(row["runs"], (90.0, 90.1), strict=True):
                one["accuracy"], one["answers"] = accuracy, "0" * 64

    shutil.copytree(tried[0], tmp_path / "here")
    card = changed(card_of(tried[0]), tmp_path / "card.json", better)
    code, said = run(tmp_path / "here", loss=None, data=digits, confirm=card, trust=True)
    assert code == 1
    assert "3 of 4 rows are confirmed" in said


@pytest.mark.parametrize(("change", "said"), [
    (lambda c: c["source"].update(text=c["source"]["text"] + "\n"), "its source is not what it says"),
    (lambda c: c["source"].update(name="../../up.py"), "its source is not what it says"),
    (lambda c: c.update(name="../up"), "its source is not what it says"),
    (lambda c: c.update(seeds=10**9), "1 to 100 are read"),
    (lambda c: c["boards"][0]["rows"][0].update(mean="<b>"), "expected float"),
    (lambda c: c.update(schema=0), "schema 1 is read here"),
    (lambda c: c.update(engine=0), "made by engine 0"),
    (lambda c: c["boards"][0]["protocol"].update(rate=0.2), "that this code would compute otherwise (8 of 8"),
])
def test_a_card_that_was_tampered_with_is_refused(tried, digits, tmp_path, change, said):
    card = changed(card_of(tried[0]), tmp_path / "card.json", change)
    with pytest.raises(UserError) as refused:
        run(tmp_path, loss=None, data=digits, confirm=card, trust=True)
    assert said in str(refused.value)


def test_a_damaged_card_is_refused(tried, tmp_path):
    text = card_of(tried[0]).read_text()
    for content, said in ((text.replace('"seeds": 2', '"seeds": 3'), "does not match its digest"), (text[:-9], "is not a card"),
                          ("[1]", "is not a card")):
        (tmp_path / "card.json").write_text(content)
        with pytest.raises(UserError, match=said):
            read_card(tmp_path / "card.json")


def test_the_page_shows_cards_in_a_section_of_their_own(tried, tmp_path):
    guests = tmp_path / "guests"
    (guests / "broken").mkdir(parents=True)
    (guests / "broken" / "card-x.json").write_text("{}")
    changed(card_of(tried[0]), guests / "sent.json", lambda c: c.update(remarks=["<script>alert(1)</script>"]))
    assert [path.name for path, _ in find_cards(guests)] == ["sent.json"]
    build_page(results_of([PAPER], {}, "paper"), tmp_path, {"mm": ()}, tmp_path / "index.html", guests=guest_views(guests))
    page = (tmp_path / "index.html").read_text()
    section = page.partition('<section id="guests">')[2].partition("</section>")[0]
    assert "mine against ldam-drw" in section
    assert "context.counts.log()" in section
    assert "<script>" not in section
    assert page.count("my_loss") == section.count("my_loss") > 0
    build_page(results_of([PAPER], {}, "paper"), tmp_path, {"mm": ()}, tmp_path / "index.html")
    assert 'id="guests"' not in (tmp_path / "index.html").read_text()
