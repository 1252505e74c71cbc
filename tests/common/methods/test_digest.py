"""The digest of a method: it changes with what the method computes, and with nothing else."""

import ast
import random
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from common.data.sets import SETS
from common.errors import UserError
from common.methods import digest
from common.methods.digest import HEADS, head_digest, method_digest, part_tree
from common.methods.losses import focal, ldam, softmax_cross_entropy
from common.methods.method import COSINE, Head, Method, Start
from common.methods.sampling import effective_number_weights, progressive, square_root
from common.models.sizes import BACKBONES, Residual
from common.spec import Column, describe_function
from papers.catalog import PAPERS
from tests.mutations import FILES, change, changes, neutral_changes

COLUMN = Column("cifar10", "lt", 100, "resnet32")
ROOT = Path(__file__).resolve().parents[3]


def parts() -> dict[str, object]:
    """Every function that a method of any paper is made of, by name, as it is bound; and the samplers that wait for one."""
    found = {"square root": square_root, "progressive": partial(progressive, epochs=8)}
    for paper in PAPERS:
        for profile, columns in paper.columns.items():
            for column in columns:
                for method in paper.rows(profile, column):
                    for one in method.functions.values():
                        found.setdefault(str(describe_function(one)), one)
    return found


PARTS = parts()


def digests() -> list:
    """Of all parts and heads, with nothing remembered."""
    digest.forget()
    heads = [head_digest(Head(kind if kind != "balanced" else "linear", groups="drop" if kind == "balanced" else ""))
             for kind in HEADS]
    return [part_tree(one) for one in PARTS.values()] + heads


@pytest.fixture
def rewritten(monkeypatch):
    """A function that puts another text in the place of a file's, for the digests."""
    texts: dict[Path, str] = {}
    true = digest.read_text
    monkeypatch.setattr(digest, "read_text", lambda path: texts.get(path) or true(path))
    yield texts
    digest.forget()


def test_every_file_that_is_to_be_changed_has_places_for_it():
    for path in (path for paths in FILES.values() for path in paths):
        assert changes([path]), path


def test_single_changes_of_losses_helpers_samplers_and_heads_change_a_digest(rewritten):
    before = digests()
    for path, number in random.Random(3).sample(changes(FILES["digest"]), 20):
        rewritten.clear()
        rewritten[path] = change(path, number)
        assert digests() != before, f"change {number} of {path.relative_to(ROOT)} is not seen"


def test_changes_that_alter_nothing_change_no_digest(rewritten):
    before = digests()
    for name, texts in neutral_changes(seed=0):
        rewritten.clear()
        rewritten.update(texts)
        assert digests() == before, name


def test_normalisation_padding_flip_and_backbone_are_in_the_digest(monkeypatch):
    method = Method("ce", "written", softmax_cross_entropy)
    seen = {method_digest(method, COLUMN)}
    facts = SETS["cifar10"]
    for changed in ({"mean": (0.0, 0.0, 0.0)}, {"std": (1.0, 1.0, 1.0)}, {"pad": 0}, {"flip": False}):
        monkeypatch.setitem(SETS, "cifar10", replace(facts, **changed))
        seen.add(method_digest(method, COLUMN))
    monkeypatch.setitem(SETS, "cifar10", facts)
    monkeypatch.setitem(BACKBONES, "resnet32", Residual(1, 16))
    seen.add(method_digest(method, COLUMN))
    assert len(seen) == 6


def test_a_default_and_the_same_value_spelled_out_are_one_thing():
    weights = [effective_number_weights, partial(effective_number_weights, beta=0.9999)]
    assert part_tree(weights[0]) == part_tree(weights[1])
    scaled = [partial(ldam, s=30, largest=0.5), partial(ldam, s=30.0, largest=0.5)]
    assert part_tree(scaled[0]) == part_tree(scaled[1])
    assert part_tree(scaled[0]) != part_tree(partial(ldam, s=30.0, largest=0.4))


def test_the_first_stage_counts():
    first = Method("ce", "written", softmax_cross_entropy)
    other = Method("focal", "written", partial(focal, gamma=1.0))
    second = [Method("crt", "written", softmax_cross_entropy, start=Start(start)) for start in (first, other)]
    assert method_digest(second[0], COLUMN) != method_digest(second[1], COLUMN)


def test_every_kind_of_head_is_the_class_that_is_built():
    pytest.importorskip("torch")
    from common.train.groups import Group, make_head

    for kind, place in HEADS.items():
        head = Head("linear", groups="drop") if kind == "balanced" else Head(kind)
        built = make_head(Group(0, 1, Method("m", "written", softmax_cross_entropy, head), 2, ()), 4, 1, 5)
        assert f"{type(built).__module__}.{type(built).__name__}" == f"common.models.{place}"


def test_heads_differ():
    assert len({head_digest(h) for h in (Head("linear"), COSINE, Head("gaussian"), Head("linear", groups="drop"))}) == 4


NESTED = lambda outputs, labels, context: 0.0  # noqa: E731


def make_loss():
    def inner(outputs, labels, context):
        return softmax_cross_entropy(outputs, labels, context)

    return inner


@pytest.mark.parametrize("loss", [NESTED, make_loss(), partial(make_loss()), "".join, Head, re.compile("a").match])
def test_what_no_record_can_name_is_refused_in_one_sentence(loss):
    with pytest.raises(UserError, match="cannot be a part of a method"):
        Method("mine", "written", loss).describe()


def test_a_keyword_that_the_function_does_not_have_is_refused():
    with pytest.raises(UserError, match="has no parameter 'gama'; it has: outputs, labels, context, gamma"):
        describe_function(partial(focal, gama=1.0))


def test_values_by_their_places_are_refused():
    with pytest.raises(UserError, match="by their places"):
        describe_function(partial(focal, 1.0))


def test_a_digest_does_not_depend_on_what_was_digested_before():
    """Heads and their projection reach each other, so each may be where that circle is entered."""
    methods = [Method("a", "written", softmax_cross_entropy, head) for head in (Head("linear"), COSINE, Head("causal"))]
    alone = []
    for method in methods:
        digest.forget()
        alone.append(method_digest(method, COLUMN))
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        digest.forget()
        found = {i: method_digest(methods[i], COLUMN) for i in order}
        assert [found[i] for i in range(3)] == alone


def test_a_definition_that_reaches_itself_ends():
    for path in sorted((ROOT / "common" / "models").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                assert len(digest.definition_digest(path, node.name)) == 16
