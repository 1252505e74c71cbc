"""`new`: a paper's folder from the template, whole or not at all; and what an author's mistakes are answered with."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.cli.authors import new_paper
from common.errors import UserError, meant

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def papers(tmp_path) -> Path:
    """A folder of papers with the catalog alone, and one for their tests."""
    (tmp_path / "papers").mkdir()
    (tmp_path / "tests" / "papers").mkdir(parents=True)
    shutil.copy(ROOT / "papers" / "catalog.py", tmp_path / "papers")
    return tmp_path / "papers"


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_the_folder_its_tests_and_the_catalog_are_made(papers):
    before = (papers / "catalog.py").read_text()
    new_paper(papers, "my_paper", "A Loss & More", "A. Author")
    assert files(papers.parent) == {
        "papers/catalog.py", "tests/papers/test_my_paper.py", "papers/my_paper/__init__.py", "papers/my_paper/replicate.py",
        "papers/my_paper/params.yaml", "papers/my_paper/published.csv", "papers/my_paper/claims.yaml",
        "papers/my_paper/README.md", "papers/my_paper/results/paper/README.md"}
    after = (papers / "catalog.py").read_text()
    assert after.replace(', "my_paper"', "") == before
    assert after.count('"my_paper"') == 1
    assert 'title="A Loss & More"' in (papers / "my_paper" / "replicate.py").read_text()
    new_paper(papers, "other", "B", "B")
    assert '"my_paper", "other")' in (papers / "catalog.py").read_text()


@pytest.mark.parametrize(("name", "title", "said"), [
    ("My-Paper", "T", "not the name of a folder"), ("class", "T", "not the name of a folder"), ("../up", "T", "not the name"),
    ("mm", "T", "is in .*catalog.py already"), ("catalog", "T", "catalog.py exists"), ("ok", "", "--title ''"),
    ("ok", 'a "quote"', "without quotes"), ("ok", "two\nlines", "on one line"), ("ok", "$name", "dollars"),
])
def test_what_cannot_be_made_leaves_nothing(papers, name, title, said):
    before = files(papers.parent)
    with pytest.raises(UserError, match=said):
        new_paper(papers, name, title, "A. Author")
    assert files(papers.parent) == before


def test_a_failure_half_way_leaves_nothing(papers, monkeypatch):
    before, text = files(papers.parent), (papers / "catalog.py").read_text()
    from common.cli import authors

    write = authors.write_atomically

    def full(path: Path, content: bytes) -> None:
        if path.name == "catalog.py":
            raise UserError("no space is left")
        write(path, content)

    monkeypatch.setattr(authors, "write_atomically", full)
    with pytest.raises(UserError, match="no space is left"):
        new_paper(papers, "my_paper", "T", "A")
    assert files(papers.parent) == before
    assert (papers / "catalog.py").read_text() == text
    assert sorted(path.name for path in papers.iterdir()) == ["catalog.py"]


PROGRAM = """
import importlib, json, sys
from pathlib import Path
from common.errors import UserError
from common.plan import plan
from common.report.author import mistakes

def said(file, old, new):
    path = Path("papers/my_paper") / file
    text = path.read_text()
    path.write_text(text.replace(old, new, 1))
    sys.modules.pop("papers.my_paper.replicate", None)
    importlib.invalidate_caches()
    try:
        paper = importlib.import_module("papers.my_paper.replicate").PAPER
        plan(paper, "quick")
        return "\\n".join(mistakes(paper))
    except UserError as error:
        return str(error)
    finally:
        path.write_text(text)

print(json.dumps([said(*change) for change in json.loads(sys.argv[1])]))
"""
OWN, QUICK = '"my-paper", "written"', "  momentum: 0.9\n      weight_decay: 0.0002\n      warmup_epochs: 2"
MISTAKES = [  # file, what stands there, what is written instead, and parts of what is said; LINE is its line
    ("params.yaml", "tau: 1.0", "tua: 1.0", ["params.yaml, line LINE: unknown key 'tua' (did you mean 'tau'?)"]),
    ("params.yaml", "batch_size: 32", "batch_size: 0", ["quick: protocols: written: batch_size 0: it lies between 1"]),
    ("params.yaml", QUICK, QUICK.replace("0.9", "9"), ["momentum 9: it lies between 0 and 1"]),
    ("params.yaml", "lt, ratio: 20", "It, ratio: 20", ["line LINE: quick", "'It' is not one of"]),
    ("params.yaml", "dataset: digits", "dataset: digit", ["line LINE: column digit-lt-20", "(did you mean 'digits'?)"]),
    ("params.yaml", "resnet8", "resnet_8", ["line LINE: ", "'resnet_8' for digits (did you mean 'resnet8'?)"]),
    ("params.yaml", "digits-lt-20: cifar10-lt-100", "digits-lt-20: cifar10-tl-100", ["(did you mean 'cifar10-lt-100'?)"]),
    ("replicate.py", OWN, OWN.replace("written", "writen"), ["Unknown reading 'writen' of row my-paper@writen", "py, line LINE",
                                                             "(did you mean 'written'?)"]),
    ("replicate.py", OWN, OWN.replace("written", "released"), ["reading 'released' of row my-paper@released", "line LINE"]),
    ("replicate.py", 'own=("my-paper"', 'own=("my-papper"', ["line LINE: own 'my-papper'", "(did you mean 'my-paper'?)"]),
    ("published.csv", ",ldam-drw,", ",ldam-dwr,", ["line LINE: method 'ldam-dwr' is not known (did you mean 'ldam-drw'?)"]),
    ("published.csv", "top1_accuracy", "top1_acuracy", ["line LINE: metric", "(did you mean 'top1_accuracy'?)"]),
    ("published.csv", "percent,10.00", "percent,110.00", ["line LINE: value 110.00 is not a percentage"]),
    ("published.csv", "percent,10.00", "percent,ten", ["line LINE: value 'ten' is not a number"]),
    ("published.csv", ",cifar10,", ",cifar01,", ["line LINE: column 'cifar01-lt-100' is not known", "'cifar10-lt-100'?)"]),
    ("claims.yaml", "method: my-paper", "method: my-papre", ["line 4: claim", "no 'my-papre'", "(did you mean 'my-paper'?)"]),
    ("claims.yaml", "columns: [cifar10-lt-100]", "columns: [cifar10-tl-100]", ["line 4: ", "(did you mean 'cifar10-lt-100'?)"]),
    ("claims.yaml", "kind: better", "kind: beter", ["line LINE", "(did you mean 'better'?)"]),
]


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    """A checkout with the code alone and a new paper."""
    copy = tmp_path_factory.mktemp("authors")
    shutil.copytree(ROOT / "common", copy / "common", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "papers").mkdir()
    (copy / "tests" / "papers").mkdir(parents=True)
    for name in ("__init__.py", "catalog.py"):
        shutil.copy(ROOT / "papers" / name, copy / "papers")
    new_paper(copy / "papers", "my_paper", "T", "A")
    return copy


@pytest.fixture(scope="module")
def answers(example) -> list[str]:
    """What is said of each of the mistakes, and in the end of none."""
    changes = [*(mistake[:3] for mistake in MISTAKES), ("params.yaml", "tau", "tau")]
    done = subprocess.run([sys.executable, "-B", "-c", PROGRAM, json.dumps(changes)], cwd=example, capture_output=True, text=True,
                          timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=lambda i: f"{MISTAKES[i][0]}: {MISTAKES[i][2]}")
def test_a_mistake_is_one_sentence_with_what_was_meant(example, answers, number):
    file, old, _, parts = MISTAKES[number]
    before, found, _ = (example / "papers" / "my_paper" / file).read_text().partition(old)
    assert found
    for part in parts:
        assert part.replace("LINE", str(before.count("\n") + 1)) in answers[number]
    assert file in answers[number] or file == "replicate.py"
    assert "\n" not in answers[number]


def test_the_template_has_no_mistakes(answers):
    assert answers[-1] == ""


def test_no_paper_looks_misspelt():
    from common.report.author import mistakes
    from papers.catalog import PAPERS

    assert [sentence for paper in PAPERS for sentence in mistakes(paper)] == []


@pytest.mark.parametrize(("word", "known", "said"), [
    ("kpps", ["kps", "mm"], " (did you mean 'kps'?)"), ("tua", ["tau", "a"], " (did you mean 'tau'?)"),
    ("mm", ["mm"], ""), ("xyz", ["abc"], ""), ("a", [], ""), (3, [3, 30], "")])
def test_only_what_is_like_a_known_name_is_meant(word, known, said):
    assert meant(word, known) == said
