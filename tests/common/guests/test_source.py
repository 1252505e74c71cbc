"""Files with losses that are not quite right: one sentence each, with the line and what was probably meant."""

from pathlib import Path

import pytest

from common.errors import UserError
from common.guests.source import load_guest
from common.guests.trial import entries, find_column, settings
from papers.catalog import PAPERS

HEAD = ("from functools import partial\nfrom common.methods.losses import cross_entropy\n"
        "from common.methods.method import Method\n")
LOSS = "def mine(outputs, labels, context, *, tau=1.0):\n    return cross_entropy(outputs.logits + tau, labels)\n"
GOOD = HEAD + LOSS + 'METHODS = [Method("mine", "written", mine)]\n'
PROFILE, COLUMN = find_column(PAPERS, None)
SETTING = settings(PAPERS, PROFILE, COLUMN, ["kps@written"])[0]


def load(folder: Path, text: str, name: str = "my_loss.py"):
    (folder / name).write_text(text)
    guest = load_guest(folder / name)
    return entries(guest, folder / "guests", PROFILE, COLUMN, SETTING.protocol, 1)


def test_a_good_file_has_its_row_beside_three_references(tmp_path):
    found = load(tmp_path, GOOD)
    assert [(entry.method.name, entry.is_guest) for entry in found] == [
        ("mine", True), ("ce", False), ("ldam-drw", False), ("la", False)]


def test_rows_may_depend_on_the_protocol(tmp_path):
    text = (GOOD.partition("METHODS")[0] + "from common.methods.sampling import class_balanced, deferred, shuffled\n"
            "def methods(protocol):\n"
            "    late = partial(deferred, before=shuffled, then=class_balanced, start=protocol.first_decay)\n"
            '    return [Method("mine", "written", mine, sampler=late)]\n')
    assert load(tmp_path, text)[0].runs[0].spec.method["sampler"]["start"] == SETTING.protocol.first_decay


@pytest.mark.parametrize(("old", "new", "said"), [
    ("METHODS", "METHODES", "names no rows (did you mean 'METHODES'?)"),
    ("return cross", "return return cross", "line 5: not valid Python"),
    ("cross_entropy\n", "cross_entropi\n", "line 2, in the file: ImportError"),
    ("cross_entropy\n", "cross_entropi\n", "(did you mean 'cross_entropy'?)"),
    ("import Method", "import Methode", "(did you mean 'Method'?)"),
    ("written", "writen", "reading 'writen' (did you mean 'written'?)"),
    ("written\", mine", "written\", mien", "line 6, in the file: NameError"),
    ("written\", mine", "written\", mien", "(did you mean 'mine'?)"),
    ("mine)]", "mine, wieghts=mine)]", "(did you mean 'weights'?)"),
    ("mine)]", "partial(mine, tua=2))]", "has no parameter 'tua'"),
    ("tau=1.0", "tau", "needs a value for 'tau': partial(mine, tau=...)"),
    ("outputs, labels, context, *", "outputs, labels, *", "line 4: mine takes outputs, labels, tau"),
    ("mine)]", "lambda *a: 0)]", "write a function with a name"),
    ("[Method(\"mine\", \"written\", mine)]", "[mine]", "a list with function"),
    ("[Method(\"mine\", \"written\", mine)]", "[]", "its rows are a list of Method"),
    ("mine)]", "mine)] * 2", "two rows are called mine@written"),
    ("\"mine\"", "\"la\"", "row 'la' is called as the reference beside it"),
    ("from functools", "import helper\nfrom functools", "line 1: it imports helper from beside it"),
    ("from functools", "from .helper import x\nfrom functools", "keep all that the loss computes in this one file"),
])
def test_a_mistake_is_one_sentence_with_what_was_meant(tmp_path, old, new, said):
    (tmp_path / "helper.py").write_text("")
    assert old in GOOD
    with pytest.raises(UserError) as refused:
        load(tmp_path, GOOD.replace(old, new))
    assert said in str(refused.value)
    assert str(tmp_path / "my_loss.py") in str(refused.value)


def test_a_protocol_of_its_own_has_nothing_beside_it(tmp_path):
    text = GOOD.replace("METHODS = [Method(\"mine\", \"written\", mine)]", (
        "from dataclasses import replace\ndef methods(protocol):\n"
        '    return [Method("mine", "written", mine, protocol=replace(protocol, batch_size=7))]\n'))
    with pytest.raises(UserError, match="under a protocol of its own"):
        load(tmp_path, text)


@pytest.mark.parametrize("name", ["my loss.py", "my_loss.txt", "-x.py"])
def test_a_file_has_a_plain_name(tmp_path, name):
    with pytest.raises(UserError, match="not the name of a file with a loss"):
        load(tmp_path, GOOD, name)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.py does not exist"):
        load_guest(tmp_path / "nowhere.py")
    with pytest.raises(UserError, match="did you mean 'digits-lt-20'"):
        find_column(PAPERS, "digit-lt-20")
    with pytest.raises(UserError, match="did you mean 'kps@written'"):
        settings(PAPERS, PROFILE, COLUMN, ["kps@writen"])
    with pytest.raises(UserError, match="under torchrun"):
        find_column(PAPERS, "imagenet-lt-resnet50")


def test_every_small_column_has_a_setting_and_every_setting_its_references(tmp_path):
    """Wherever a paper trains cross-entropy, LDAM-DRW or LDAM and logit adjustment can be planned too."""
    (tmp_path / "my_loss.py").write_text(GOOD)
    guest, seen = load_guest(tmp_path / "my_loss.py"), 0
    for profile in ("paper", "quick"):
        for name in {c.name for paper in PAPERS for c in paper.columns[profile] if c.name not in paper.large}:
            column = find_column(PAPERS, name)[1]
            for setting in settings(PAPERS, profile, column):
                assert len(entries(guest, tmp_path, profile, column, setting.protocol, 1)) == 4
                seen += 1
    assert seen > 40
