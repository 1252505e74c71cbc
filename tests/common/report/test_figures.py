"""Figures: stable colours, the same bytes twice, data beside the drawing, and honest labels."""

import base64
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy
import pandas
import pytest

from common.errors import UserError
from common.paper import Figure, Paper
from common.report import embedding as embedding_module
from common.report.figures import (
    PALETTE,
    Drawing,
    Panel,
    class_counts_figure,
    colours,
    curves,
    embedding,
    feature_norms,
    per_class_error,
    save,
    save_figures,
)
from common.report.results import Results
from common.spec import Column
from tests.records import toy_paper, toy_records

ERRORS = {"ce": (30.0, 31.0), "own@written": (20.0, 21.0, 22.0), "own@released": (24.0,)}


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return toy_paper(tmp_path / "toy")


def draw(paper: Paper, profile: str = "paper", column: str = "cifar10-step-100", **more: object) -> Drawing:
    drawn = per_class_error(Results(paper, toy_records(paper, ERRORS, profile), profile), column, ("ce", "own"), **more)
    assert isinstance(drawn, Drawing)
    return drawn


def test_a_method_has_one_colour_everywhere() -> None:
    assert colours(["ce"])["ce"] == colours(["ldam", "ce", "focal"])["ce"] == colours(["ce", "ce"])["ce"]
    names = [f"method {i}" for i in range(len(PALETTE))]
    assert len(set(colours(names).values())) == len(PALETTE)
    assert colours(names) == colours(reversed(names))


def test_data_holds_mean_spread_and_group_of_every_bar(paper: Paper) -> None:
    data = draw(paper).data
    assert len(data) == 3 * 10  # ce, and own in two readings
    row = data[(data["method"] == "own") & (data["reading"] == "written") & (data["class"] == "C7")].iloc[0]
    assert (row["error_percent"], row["sd"], row["seeds"], row["group"], row["training_images"]) == (21.0, 1.0, 3, "minority", 1)
    assert set(data[data["class"] == "C4"]["group"]) == {"majority"}


def test_labels_name_units_seeds_groups_and_the_quick_profile(paper: Paper) -> None:
    figure = draw(paper).figure
    [axes] = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Class", "Top-1 error (%), mean ± sd")
    assert {t.get_text() for t in axes.texts} == {"majority classes", "minority classes"}
    legend = [t.get_text() for t in figure.subfigs[0].legends[0].get_texts()]
    assert legend == ["ce, written (2 seeds)", "own, written (3 seeds)", "own, released (1 seed)"]
    assert len(axes.containers) == 3 + 2  # bars, and whiskers where there is a spread
    quick = draw(paper, "quick", "digits-lt-20", class_names=tuple("0123456789")).figure.axes[0]
    assert quick.get_title(loc="left") == "digits-lt-20 (quick, in place of cifar10-lt-100)"
    assert [t.get_text() for t in quick.get_xticklabels()] == list("0123456789")


def test_labels_choose_readings_and_a_published_name_finds_its_stand_in(paper: Paper) -> None:
    records = toy_records(paper, ERRORS)
    data = per_class_error(Results(paper, records, "paper"), "cifar10-lt-100", ("own@released", "ce@written")).data
    assert list(dict.fromkeys(data["label"])) == ["own@released", "ce@written"]
    assert all(key in records for keys in data["keys"] for key in keys.split(";"))
    quick = per_class_error(Results(paper, toy_records(paper, ERRORS, "quick"), "quick"), "cifar10-lt-100", ("ce",))
    assert quick.figure.axes[0].get_title(loc="left") == "digits-lt-20 (quick, in place of cifar10-lt-100)"
    assert per_class_error(Results(paper, records, "paper"), "cifar10-lt-100", ("ce@released",)) == (
        "no run of ce@released on cifar10-lt-100 (profile paper) yet")
    assert per_class_error(Results(paper, records, "quick"), "cifar10-step-100", ("ce",)) == (
        "no quick column stands in for cifar10-step-100")


def test_groups_are_means_over_classes_in_the_order_of_their_images(paper: Paper) -> None:
    records = toy_records(paper, {"ce": (30.0, 32.0)}, columns=("cifar10-lt-100",))
    for record in records.values():
        record["counts"] = record["counts"][::-1]  # the last class is the largest
        record["per_class_accuracy"] = [float(i + record["spec"]["seed"]) for i in range(10)]
    data = per_class_error(Results(paper, records, "paper"), "cifar10-lt-100", ("ce",), groups=5).data
    assert list(data["classes"]) == ["9;8", "7;6", "5;4", "3;2", "0;1"]  # the two smallest are equal
    assert list(data["error_percent"]) == [91.0, 93.0, 95.0, 97.0, 99.0]
    assert list(data["group"]) == ["majority"] * 3 + ["minority"] * 2  # 79.5, 28, 9.5, 3 and 1 images a class
    assert list(data["class"]) == ["G1", "G2", "G3", "G4", "G5"]
    tenths = per_class_error(Results(paper, records, "paper"), "cifar10-lt-100", ("ce",), groups=10)
    assert list(tenths.data["class"])[-1] == "Tail3"


def test_many_methods_are_lines_with_different_markers(paper: Paper) -> None:
    names = ("ce", "rival", "own", "own[beta=1.0;delta=2.0]@written", "own[beta=1.1;delta=2.0]@released")
    drawn = per_class_error(Results(paper, toy_records(paper, dict.fromkeys(("ce", "rival", "own"), (20.0, 21.0))), "paper"),
                            "cifar10-lt-100", names)
    axes = drawn.figure.axes[0]
    assert len(axes.containers) == 6
    assert not axes.patches[:-1]  # the shade of the minority classes only
    looks = {(bars.lines[0].get_marker(), bars.lines[0].get_linestyle()) for bars in axes.containers}
    assert len(looks) >= 4


def footnote(drawn: Drawing) -> str:
    return " ".join(drawn.figure.subfigs[1].texts[0].get_text().split())


def test_a_figure_names_its_records(paper: Paper) -> None:
    drawn = draw(paper)
    assert footnote(drawn).startswith(f"6 records ({drawn.data['keys'][0].split(';')[0]} and 5 more; keys in the CSV beside)")
    assert "made on test device" in footnote(drawn)


# ---------------------------------------------------------------- feature norms


def norm_records(paper: Paper, profile: str = "paper", columns: tuple[str, ...] = ()) -> dict:
    """Norm of class k after epoch e of seed s: 1 + e + k / 10 + s; ten more for own."""
    records = toy_records(paper, {"ce": (30.0, 31.0), "own@written": (20.0, 21.0)}, profile, columns)
    for record in records.values():
        more = record["spec"]["seed"] + (10 if "own" in record["label"] else 0)
        record["norms"] = {"classifier": [1.0] * 10, "feature_epochs": [1, 3],
                           "feature": [[1 + e + k / 10 + more for k in range(10)] for e in (1, 3)]}
    return records


def test_feature_norms_over_epochs_and_at_the_end(paper: Paper) -> None:
    both = ("cifar10-lt-100", "cifar10-step-100")
    drawn = feature_norms(Results(paper, norm_records(paper), "paper"), both, ("ce@written", "own@written"), (0, 9))
    data = drawn.data
    assert len(data) == 2 * 2 * 2 * 10  # columns, methods, epochs, classes
    chosen = (data["column"] == both[1]) & (data["label"] == "own@written") & (data["epoch"] == 4) & (data["class"] == 9)
    row = data[chosen].iloc[0]
    assert (row["norm"], row["seeds"], row["last"]) == (pytest.approx(15.4), 2, True)
    assert row["sd"] == pytest.approx(0.5 ** 0.5)
    assert len(drawn.figure.axes) == 4
    left, right = drawn.figure.axes[:2]
    assert [line.get_label() for line in left.lines] == ["class 0", "class 9"] * 2
    assert list(left.lines[1].get_xdata()) == [2, 4]  # epochs counted from 1
    assert list(left.lines[1].get_ydata()) == pytest.approx([3.4, 5.4])
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in left.lines}) == 4
    assert list(right.lines[0].get_ydata()) == pytest.approx([4.5 + k / 10 for k in range(10)])
    legend = [t.get_text() for t in drawn.figure.subfigs[0].legends[0].get_texts()]
    assert legend == ["class 0", "class 9", "ce, written (2 seeds)", "own, written (2 seeds)"]
    assert footnote(drawn).startswith("Left: solid ce@written, dashed own@written. 8 records")


def test_feature_norms_draw_the_columns_that_are_there(paper: Paper) -> None:
    records, both = norm_records(paper, columns=("cifar10-lt-100",)), ("cifar10-lt-100", "cifar10-step-100")
    drawn = feature_norms(Results(paper, records, "paper"), both, ("ce@written",), (0, 50))
    assert len(drawn.figure.axes) == 2
    assert "Not here: no run of ce@written on cifar10-step-100 (profile paper) yet." in footnote(drawn)
    quick = feature_norms(Results(paper, norm_records(paper, "quick"), "quick"), "cifar10-lt-100", ("ce@written",), (0,))
    assert quick.figure.axes[0].get_title(loc="left") == "digits-lt-20 (quick, in place of cifar10-lt-100)"
    assert feature_norms(Results(paper, {}, "paper"), both, ("ce",), (0,)) == (
        "no run of ce on cifar10-lt-100 (profile paper) yet; no run of ce on cifar10-step-100 (profile paper) yet")


# ---------------------------------------------------------------- embeddings


def kept(points: numpy.ndarray, labels: list[int]) -> dict:
    return {"labels": labels, "values": base64.b64encode(points.astype("<f2").tobytes()).decode()}


def feature_records(paper: Paper, images: int = 30) -> dict:
    """Seed 0 of ce keeps three well separated classes of 8 features, for the test set."""
    records, rng = toy_records(paper, {"ce": (30.0, 31.0)}, columns=("cifar10-lt-100",)), numpy.random.default_rng(0)
    labels = [k for k in range(3) for _ in range(images)]
    points = 20 * numpy.eye(8)[labels] + rng.normal(0, 0.5, (len(labels), 8))
    for record in records.values():
        if record["spec"]["seed"] == 0:
            record["features"] = {"test": kept(points, labels)}
    return records


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_embeddings_keep_classes_apart_and_are_the_same_every_time(paper: Paper, method: str) -> None:
    panels = [("CE", "cifar10-lt-100", "ce@written", "test"), ("again", "cifar10-lt-100", "ce@written", "test")]
    records = feature_records(paper)
    drawn = embedding(Results(paper, records, "paper"), panels, method)
    data = drawn.data
    assert list(data.columns) == ["panel", "class", "x", "y", "seed", "key"]
    assert len(data) == 2 * 90
    assert set(data["seed"]) == {0}
    one, other = (data[data["panel"] == title] for title in ("CE", "again"))
    assert list(one["x"]) == list(other["x"])
    for k in range(3):
        mine = one[one["class"] == k]
        centre = mine[["x", "y"]].mean()
        own = ((mine[["x", "y"]] - centre) ** 2).sum(axis=1).max()
        others = ((one[one["class"] != k][["x", "y"]] - centre) ** 2).sum(axis=1).min()
        assert own < others
    assert "1 seed. 1 record" in footnote(drawn)
    legend = [t.get_text() for t in drawn.figure.subfigs[0].legends[0].get_texts()]
    assert legend == ["class 0 (100)", "class 1 (59)", "class 2 (35)"]


def test_pca_is_that_of_the_covariance(paper: Paper) -> None:
    points = numpy.random.default_rng(1).normal(size=(50, 5)) * (5, 1, 0.3, 0.2, 0.1)
    found = embedding_module.project(points, "pca")
    values, vectors = numpy.linalg.eigh(numpy.cov(points.T))
    expected = (points - points.mean(0)) @ vectors[:, ::-1][:, :2]
    assert numpy.abs(found) == pytest.approx(numpy.abs(expected))
    assert found.var(axis=0, ddof=1) == pytest.approx(values[::-1][:2])


def test_features_are_little_endian_halves(paper: Paper) -> None:
    record = {"label": "x", "key": "k", "features": {"train": {"labels": [1, 0], "values": base64.b64encode(
        bytes([0x00, 0x3C, 0x00, 0xC0, 0x00, 0x38, 0x00, 0x00])).decode()}}}
    points, labels = embedding_module.read_features(record, "train")
    assert points.tolist() == [[1.0, -2.0], [0.5, 0.0]]
    assert labels.tolist() == [1, 0]
    record["features"]["train"]["labels"] = [1, 0, 2]
    with pytest.raises(UserError, match="do not fit 3 labels"):
        embedding_module.read_features(record, "train")


def test_t_sne_takes_a_bounded_number_of_images_and_pca_all(paper: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_module, "MOST_IMAGES", 10)
    panel = [("CE", "cifar10-lt-100", "ce@written", "test")]
    assert len(embedding(Results(paper, feature_records(paper), "paper"), panel).data) == 30
    assert len(embedding(Results(paper, feature_records(paper), "paper"), panel, "pca").data) == 90


def test_what_an_embedding_lacks_is_said(paper: Paper) -> None:
    def said(records: dict, split: str = "test") -> object:
        return embedding(Results(paper, records, "paper"), [("CE", "cifar10-lt-100", "ce@written", split)])

    assert said({}) == "no run of ce@written on cifar10-lt-100 (profile paper) yet"
    assert said(toy_records(paper, {"ce": (30.0,)})) == "no run of ce@written on cifar10-lt-100 has kept its features"
    assert said(feature_records(paper), "train") == "the record of cifar10-lt-100 ce@written has no features of the train set"
    broken = feature_records(paper)
    for record in broken.values():
        record["features"] = {"test": kept(numpy.full((6, 2), numpy.nan), [0, 0, 1, 1, 2, 2])}
    assert said(broken) == "some features are not finite"


# ---------------------------------------------------------------- no records


def test_curves_look_alike_in_all_panels(paper: Paper) -> None:
    lines = (("a", [0, 1, 2], [0, 1, 4]), ("b", (0.0, 2.0), (1.0, 1.0)))
    panels = (Panel("one", "x", "y", lines), Panel("two", "x", "y", lines[1:]), *[Panel("more", "x", "z", lines)] * 2)
    drawn = curves("squares", panels)
    assert list(drawn.data.columns) == ["panel", "line", "x", "y"]
    assert drawn.data.values.tolist()[:5] == [["one", "a", 0, 0], ["one", "a", 1, 1], ["one", "a", 2, 4], ["one", "b", 0, 1],
                                              ["one", "b", 2, 1]]
    one, two, *_ = drawn.figure.axes
    [b], [also_b] = one.lines[1:], two.lines
    assert (b.get_color(), b.get_marker(), b.get_linestyle()) == (also_b.get_color(), also_b.get_marker(), also_b.get_linestyle())
    assert one.lines[0].get_marker() != b.get_marker()
    assert one.lines[0].get_color() != b.get_color()
    assert [t.get_text() for t in drawn.figure.subfigs[0].legends[0].get_texts()] == ["a", "b"]
    assert [axes.get_ylabel() for axes in drawn.figure.axes[:3]] == ["y", "", "z"]  # said once where it stays the same


def test_class_counts_are_those_of_the_sampling_rule() -> None:
    columns = [Column("cifar10", "lt", 100, "resnet32"), Column("cifar10", "step", 10, "resnet32"),
               Column("cifar100", "none", 1, "resnet32"), Column("cifar10", "counts", 1, "resnet32", counts=(500, 200, 50))]
    drawn = class_counts_figure(columns)
    found = {key: list(part["y"]) for key, part in drawn.data.groupby(["panel", "line"])}
    assert found["cifar10", "long-tailed, ratio 100"] == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert found["cifar10", "step, ratio 10"] == [5000] * 5 + [500] * 5
    assert found["cifar10", "as listed"] == [500, 200, 50]
    assert found["cifar100", "all images"] == [500] * 100
    assert {axes.get_yscale() for axes in drawn.figure.axes} == {"log"}


def test_missing_runs_are_said_and_unknown_columns_refused(paper: Paper) -> None:
    assert per_class_error(Results(paper, {}, "paper"), "cifar10-step-100", ("ce", "own")) == (
        "no run of ce or own on cifar10-step-100 (profile paper) yet")
    with pytest.raises(UserError, match="no column 'mnist'"):
        per_class_error(Results(paper, {}, "paper"), "mnist", ("ce",))


def test_saved_files_are_the_same_every_time(paper: Paper, tmp_path: Path) -> None:
    first = save(*draw(paper), tmp_path / "a", "figure-3")
    second = save(*draw(paper), tmp_path / "b", "figure-3")
    assert [f.name for f in first] == ["figure-3.svg", "figure-3.png", "figure-3.csv"]
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]
    assert b"<dc:date>" not in first[0].read_bytes()
    assert len(pandas.read_csv(first[2])) == 30


def test_save_figures_writes_what_can_be_drawn(paper: Paper, tmp_path: Path) -> None:
    drawn, records = draw(paper), toy_records(paper, ERRORS)
    figures = (Figure("3", "errors", lambda results: drawn), Figure("4", "none", lambda results: "no runs yet"))
    lines = save_figures(Results(dataclasses.replace(paper, figures=figures), records, "paper"), tmp_path)
    assert lines == [f"Figure 3: figure-3.svg, figure-3.png, figure-3.csv in {tmp_path}", "Figure 4: no runs yet"]


def test_report_loads_neither_torch_nor_matplotlib() -> None:
    code = ("import sys, common.report.claims, common.report.figures, common.report.readme, common.report.tables; "
            "print([m for m in ('torch', 'matplotlib', 'scipy', 'pandas', 'common.train') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert done.stdout.strip() == "[]"
