"""The rows, columns and parameters of the feature-balanced loss against its printed tables and its text."""

import math
import re

import pytest

from common.plan import plan
from common.report.claims import evaluate, load_claims
from common.report.published import published
from common.report.results import Results
from common.report.waterfall import TEXT_TO_CODE
from papers.fbl.replicate import HERE, PAPER, PARAMS

COLUMNS = {c.name: c for c in PAPER.columns["paper"] if c.name not in PAPER.large and not c.is_drawn}
READINGS = ("written", "released")
HERE_TABLES = ("4.2", "4.4", "4.5", "4.6", "4.7a")


def rows(column: str, profile: str = "paper") -> dict:
    columns = {c.name: c for c in PAPER.columns[profile]}
    found = PAPER.rows(profile, columns[column])
    assert len({m.label for m in found}) == len(found)
    return {m.label: m for m in found}


def test_every_printed_number_on_cifar_has_a_method_that_trains_it_in_both_readings():
    frame = published(PAPER)
    on_cifar = frame[frame["dataset"].isin(["cifar10", "cifar100"])]
    assert sorted(set(on_cifar["table"])) == sorted(HERE_TABLES)
    assert [sum(on_cifar["table"] == t) for t in HERE_TABLES] == [18, 5, 40, 32, 7]
    for name, method in zip(on_cifar["column"], on_cifar["method"], strict=True):
        found = rows(name)
        assert all(f"{method}@{reading}" in found for reading in READINGS), (name, method)
    needs_more = frame[~frame["dataset"].isin(["cifar10", "cifar100"])]
    assert set(needs_more["table"]) == {"4.3", "4.7b"}
    assert {t.number for t in PAPER.tables} == set(frame["table"])


def test_nothing_is_trained_that_no_table_prints():
    frame = published(PAPER)
    for name in COLUMNS:
        printed = set(frame[frame["column"] == name]["method"])
        assert {m.name for m in rows(name).values()} == printed


def test_the_protocols_are_table_4_1s_and_the_codes():
    written, released = (PAPER.protocols["paper"][r] for r in READINGS)
    assert (written.epochs, written.batch_size, written.weight_decay, written.trains) == (200, 128, 0.0002, "all")
    for protocol in (written, released):
        rates = [protocol.learning_rate(e) for e in (0, 4, 159, 160, 180)]
        assert rates == pytest.approx([0.02, 0.1, 0.1, 0.001, 0.00001])
    assert {k for k in vars(written) if getattr(written, k) != getattr(released, k)} == {"batch_size"}
    assert released.batch_size == 64


def test_columns_are_called_what_they_are():
    for profile in (PARAMS.paper, PARAMS.quick):
        assert all(name == column.name for name, column in profile.columns.items())
    assert set(PARAMS.stand_ins) == set(PARAMS.quick.columns)
    assert set(PARAMS.stand_ins.values()) <= set(PARAMS.paper.columns)


@pytest.mark.parametrize("column", [*COLUMNS, *PAPER.large])
def test_the_stimulus_of_the_smallest_class_is_the_codes_on_every_column_and_in_both_readings(column):
    """alpha lambda_max of the text, n_max over n_min by hand, against the constant of the code."""
    code = 60.0 if column in COLUMNS else 150.0
    ratio = {"imagenet-lt-resnet50": 1280 / 5, "inaturalist2018-resnet50": 1000 / 2, "places-lt-resnet152": 4980 / 5}.get(column)
    found = rows(column)
    assert found["fbl@released"].loss.keywords["strength"] == code
    assert found["fbl@written"].loss.keywords["strength"] * math.log(ratio or COLUMNS[column].ratio) == pytest.approx(code)


def test_one_alpha_for_all_ratios_is_a_variant_at_ratio_50():
    """Its smallest class then has 51.0, where the plain row has 60."""
    plain, constant = (rows("cifar10-lt-50")[f"fbl{variant}@written"].describe() for variant in ("", "[strength=constant]"))
    assert {key for key in plain if plain[key] != constant[key]} == {"loss"}
    assert constant["loss"] == plain["loss"] | {"strength": pytest.approx(60 / math.log(100))}
    assert constant["loss"]["strength"] * math.log(50) == pytest.approx(51.0, abs=0.05)
    assert constant["loss"]["strength"] == rows("cifar10-lt-100")["fbl@written"].loss.keywords["strength"]
    assert [name for name in COLUMNS if "fbl[strength=constant]@written" in rows(name)] == ["cifar10-lt-50"]


@pytest.mark.parametrize(("column", "strength", "ends"), [  # 150 / ln 256, 150 / ln 500, 150 / ln 996
    ("imagenet-lt-resnet50", 27.0506, (200, 190)), ("inaturalist2018-resnet50", 24.1367, (180, 190)),
    ("places-lt-resnet152", 21.7273, (90, 190))])
def test_the_strength_on_a_large_set_is_the_codes_in_both_readings(column, strength, ends):
    found = rows(column)
    for reading, function, wanted, end in zip(READINGS, ("fbl", "fbl_as_released"), (strength, 150), ends, strict=True):
        said = found[f"fbl@{reading}"].describe()
        assert said["loss"] == {"function": function, "strength": pytest.approx(wanted, abs=1e-4),
                                "curriculum": {"function": "fbl_parabolic_increase", "T": float(end)}}
        assert (said["head"]["kind"], said["mixup"]) == ("linear", 0)
        second = found[f"disalign@{reading}"].protocol
        assert (second.epochs, second.batch_size, second.weight_decay, second.learning_rate(0)) == (10, 256, 0.0005, 0.1)
        if column != "places-lt-resnet152":
            first = PAPER.large[column][reading].decay_epochs[0]
            assert found[f"ldam-drw@{reading}"].describe()["weights"]["start"] == first
            assert found[f"la@{reading}"].loss.keywords == {"tau": 1.0}


CURVES = {  # row of Table 4.4: curriculum, its T in the two readings
    "fbl-linear-decrease": ("fbl_linear_decrease", 200.0, 200.0),
    "fbl-linear-increase": ("fbl_linear_increase", 200.0, 200.0),
    "fbl-sine-increase": ("fbl_sine_increase", 200.0, 200.0),
    "fbl-cosine-increase": ("fbl_cosine_increase", 200.0, 200.0),
    "fbl": ("fbl_parabolic_increase", 200.0, 190.0),
}


def test_the_rows_of_table_4_4_are_what_the_readme_says():
    found = rows("cifar10-lt-100")
    for name, (curve, *ends) in CURVES.items():
        for reading, strength, end in zip(READINGS, (60 / math.log(100), 60.0), ends, strict=True):
            method = found[f"{name}@{reading}"]
            said = method.describe()
            assert said["loss"] == {
                "function": "fbl" if reading == "written" else "fbl_as_released", "strength": pytest.approx(strength),
                "curriculum": {"function": curve, "T": end}}, method.label
            assert said["head"] == {**said["head"], "kind": "linear", "bias": None, "project": 0, "rescale": ""}
            assert (said["sampler"], said["weights"]) == ({"function": "shuffled"}, {"function": "uniform_weights"})
            assert (method.protocol, method.mixup, method.streams.samplers, method.scale) == (None, 0, (), 1)


def test_the_baselines_are_under_the_setting_of_their_reading():
    for reading in READINGS:
        found = rows("cifar10-lt-100")
        assert found[f"ce@{reading}"].describe()["loss"] == {"function": "softmax_cross_entropy"}
        ldam = found[f"ldam-drw@{reading}"].describe()
        assert ldam["loss"] == {"function": "ldam", "s": 30.0, "largest": 0.5}
        assert (ldam["weights"]["start"], ldam["weights"]["then"]["beta"]) == (160, 0.9999)
        assert found[f"la@{reading}"].loss.keywords == {"tau": 1.0}
        post_hoc = found[f"la[mode=posthoc]@{reading}"]
        assert post_hoc.adjust is not None
        assert post_hoc.protocol.epochs == 0
        (ce,) = plan(PAPER, "paper", columns=("cifar10-lt-100",), methods=(f"ce@{reading}",), seeds=1)
        (tested,) = plan(PAPER, "paper", columns=("cifar10-lt-100",), methods=(post_hoc.label,), seeds=1)
        assert tested.start.spec.key == ce.spec.key
        assert found[f"bbn@{reading}"].net.kind == "bilateral"
        assert found[f"hybrid-sc@{reading}"].head.project > 0
    batches = {p.spec.method["loss"]["function"]: p.spec.protocol.batch_size
               for p in plan(PAPER, "paper", columns=("cifar10-lt-100",), methods=("fbl@written", "fbl@released"), seeds=1)}
    assert batches == {"fbl": 128, "fbl_as_released": 64}


def test_the_plan_has_each_run_once():
    """Columns: 11, 5, 7 and 4 rows in each of two readings; logit adjustment has two of them, and at ratio 50 of CIFAR-10 the
    text's FBL another strength. At ratio 100 of CIFAR-10 two steps lie between text and code."""
    for profile, sizes in (("paper", {"cifar10-lt-100": 24, "cifar10-lt-50": 11, "cifar100-lt-100": 14, "cifar100-lt-50": 8}),
                           ("quick", {"digits-lt-20": 22, "digits-lt-10": 11})):
        for name, size in sizes.items():
            keys = [p.spec.key for p in plan(PAPER, profile, columns=(name,))]
            assert len(keys) == len(set(keys)) == size * PAPER.seeds[profile], name


def test_quick_curricula_end_with_the_quick_schedule():
    found = rows("digits-lt-20", "quick")
    ends = [found[f"fbl@{r}"].describe()["loss"]["curriculum"]["T"] for r in READINGS]
    assert ends == [20.0, 18.0]


def test_what_the_printed_numbers_say_of_the_claims():
    """Contrastive learning, which the text calls more competitive, is behind FBL on CIFAR-10-LT at ratio 100; the largest class
    loses accuracy in every column."""
    outcomes = evaluate(Results(PAPER, {}, "paper"))
    printed = {o.claim.id: o.printed for o in outcomes}
    assert len(printed) == len(load_claims(PAPER)) == 19
    assert {name: said for name, said in printed.items() if said != "holds"} == {
        "tail-classes-gain": "not printed", "head-classes-kept": "not printed", "head-classes-kept-better-than-la": "not printed",
        "increase-keeps-the-tail": "not printed", "contrastive-ahead-of-fbl": "fails (1 of 3 columns)",
        "largest-class-kept": "fails (4 of 4 columns)"}
    assert all(o.verdict.startswith("not run") for o in outcomes if not o.follows)
    assert {o.claim.id: o.follows for o in outcomes if o.follows} == {
        "fbl-beats-la": "fbl-best-on-cifar", "fbl-beats-cross-entropy": "fbl-best-on-cifar"}
    large = {o.claim.id for o in outcomes if "large-sets" in o.claim.id or "disalign" in o.claim.id}
    assert len(large) == 3
    readings = {name: {o.reading for o in outcomes if o.claim.id == name} for name in printed.keys() - large}
    assert all(found == set(READINGS) for found in readings.values())


def test_what_the_head_claim_says_of_table_4_5_is_printed_there():
    frame = published(PAPER)
    means = next(c.means for c in load_claims(PAPER) if c.id == "head-classes-kept")
    for ratio, verb in (("100", "falls"), ("50", "rises")):
        part = frame[(frame["table"] == "4.5") & (frame["imbalance_ratio"] == ratio)]
        part = part[part["group"].isin([f"class-{i}" for i in range(5)])]
        ce, fbl = (part[part["method"] == name]["number"].mean() for name in ("ce", "fbl"))
        assert f"{verb} from {ce:.2f} to {fbl:.2f} at ratio {ratio}" in " ".join(means.split())


def test_the_figures_show_the_classes_of_the_paper_in_both_readings():
    drawn = {f.number: f.draw.keywords for f in PAPER.figures if f != TEXT_TO_CODE}
    assert set(drawn) == {"4.2", "4.3", "4.2-written", "4.3-written"}
    for number, (dataset, classes) in (("4.2", ("cifar10", (0, 1, 8, 9))), ("4.3", ("cifar100", (9, 19, 79, 89)))):
        assert drawn[number] == {"dataset": dataset, "classes": classes, "reading": "released"}
        assert drawn[f"{number}-written"] == {"dataset": dataset, "classes": classes, "reading": "written"}
        assert {f"{dataset}-lt-100", f"{dataset}-lt-50"} <= set(COLUMNS)


def test_the_readme_has_one_generated_block_and_names_every_row():
    text = (HERE / "README.md").read_text()
    assert [len(re.findall(rf"<!-- {w} generated: results -->", text)) for w in ("begin", "end")] == [1, 1]
    for name in {m.name for c in (*COLUMNS, *PAPER.large) for m in rows(c).values()}:
        assert f"`{name}`" in text, name
