"""Strict YAML, run keys, schedules."""

import dataclasses
import pickle
from functools import partial

import pytest

from common.errors import UserError
from common.methods.method import run_spec
from common.methods.one_stage import ce_row, ldam_drw_row
from common.spec import Column, LargeColumns, LargeProtocol, Protocol, RunSpec, build, describe_function, load_yaml, spec_key

PROTOCOL = Protocol(200, 128, 0.1, 0.9, 0.0002, 5, (160, 180), 0.01, False)
GOOD = """
epochs: 200
batch_size: 128
rate: 0.1
momentum: 0.9
weight_decay: 0.0002
warmup_epochs: 5
decay_epochs: [160, 180]
decay_factor: 0.01
drop_last: false
"""


def write(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return path


def test_a_good_file_is_the_dataclass(tmp_path):
    assert load_yaml(write(tmp_path, GOOD), Protocol) == PROTOCOL


@pytest.mark.parametrize(("old", "new", "said"), [
    ("rate: 0.1", "rate: 0.1\nraet: 0.1", "unknown key 'raet'"),
    ("rate: 0.1\n", "", "key 'rate' is missing"),
    ("epochs: 200", "epochs: 200.5", "expected int, found float"),
    ("epochs: 200", "epochs: '200'", "expected int, found str"),
    ("drop_last: false", "drop_last: 0", "expected bool, found int"),
    ("epochs: 200", "epochs: true", "expected int, found bool"),
    ("[160, 180]", "160", "decay_epochs"),
    ("[160, 180]", "[160, x]", r"decay_epochs\[1\]"),
    ("weight_decay: 0.0002", "weight_decay: '2e-4'", "a number stands without quotes"),
    ("epochs: 200", "epochs: 200\nepochs: 100", "not valid YAML"),
    ("epochs: 200", "epochs: [200", "not valid YAML"),
])
def test_a_wrong_file_is_one_sentence_that_names_the_place(tmp_path, old, new, said):
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(UserError, match=said) as error:
        load_yaml(path, Protocol)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("written", ["5e-05", "5E-05", "5e-5", "5.0e-5", "+5e-05", ".5e-4", "50e-06", "0.00005", "5.e-5"])
def test_a_small_number_is_read_however_dvc_writes_it(tmp_path, written):
    """DVC 3.67 writes 5e-05 where a user typed 0.00005; to PyYAML alone that is text."""
    assert load_yaml(write(tmp_path, GOOD.replace("0.0002", written)), Protocol).weight_decay == 5e-5


@pytest.mark.parametrize("written", ["'5e-05'", '"5e-05"', "5e-05x", "5e", "e-05", "5 e-05", "5e-0.5", "!!str 5e-05", "1_0e-5"])
def test_text_is_no_number_though_it_looks_like_one(tmp_path, written):
    with pytest.raises(UserError, match=r"params\.yaml, line 6: weight_decay: expected float, found str"):
        load_yaml(write(tmp_path, GOOD.replace("0.0002", written)), Protocol)


@pytest.mark.parametrize("written", [".nan", ".inf", "-.inf", "1e400"])
def test_a_number_that_is_not_finite_is_refused(tmp_path, written):
    with pytest.raises(UserError, match=r"line 6: weight_decay: (nan|-?inf) is not a finite number"):
        load_yaml(write(tmp_path, GOOD.replace("0.0002", written)), Protocol)


@dataclasses.dataclass(frozen=True)
class Nested:
    protocols: dict[str, Protocol]
    columns: tuple[Column, ...]


INSET = GOOD.strip().replace("\n", "\n    ")
NESTED = f"""protocols:
  written:
    {INSET}
  released: &other
    {INSET.replace("rate: 0.1", "rate: 0.2")}
  again: *other
columns:
  - {{dataset: cifar10, imbalance: lt, ratio: 100, backbone: resnet32}}
  - {{dataset: cifar10, imbalance: lt,
     ratio: 10, backbone: resnet32}}
"""


def test_a_key_that_its_reader_misses_is_named(tmp_path):
    path = write(tmp_path, NESTED)
    protocols = pickle.loads(pickle.dumps(load_yaml(path, Nested).protocols))
    assert set(protocols) == {"written", "released", "again"}
    assert "w" not in protocols
    assert protocols.get("w") is None
    with pytest.raises(UserError) as error:
        (protocols | {"more": PROTOCOL})["w"]
    assert str(error.value) == f"{path}, line 1: protocols: key 'w' is missing."


@pytest.mark.parametrize(("old", "new", "line", "keys"), [
    ("rate: 0.1", "rate: fast", 5, ": protocols: written: rate: expected float"),
    ("rate: 0.2", "rate: fast", 15, ": protocols: released: rate: expected float"),
    ("epochs: 200", "epochs: 20", 2, ": protocols: written: decay_epochs [160, 180]: epoch 160 is never reached"),
    ("[160, 180]", "[160,\n x]", 10, ": protocols: written: decay_epochs[1]: expected int, found str 'x'"),
    ("    rate: 0.2", "    rate: 0.2\n    raet: 1", 16, ": protocols: released: unknown key 'raet'"),
    ("ratio: 10,", "ratio: ten,", 26, ": columns[1]: ratio: expected int"),
    ("lt,\n", "long,\n", 25, ": columns[1]: imbalance: 'long' is not one of"),
    ("ratio: 100, ", "", 24, ": columns[0]: key 'ratio' is missing"),
    ("rate: 0.2", "rate: 0.2\n    rate: 0.3", 16, ": not valid YAML: key 'rate' stands twice"),
    ("[160, 180]", "[160, 180", 10, ": not valid YAML"),
    ("ratio: 10,", "ratio: 0,", 25, ": columns[1]: ratio 0: the largest class"),
    ("columns:", "colunms:", 23, ": unknown key 'colunms'"),
])
def test_the_line_is_that_of_what_is_wrong(tmp_path, old, new, line, keys):
    assert load_yaml(write(tmp_path, NESTED), Nested).protocols["released"].rate == 0.2
    path = write(tmp_path, NESTED.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        load_yaml(path, Nested)
    assert str(error.value).startswith(f"{path}, line {line}{keys}")
    assert "\n" not in str(error.value)


def test_an_integer_is_taken_for_a_float(tmp_path):
    assert load_yaml(write(tmp_path, GOOD.replace("rate: 0.1", "rate: 1")), Protocol).rate == 1.0


def test_missing_file_and_wrong_literal(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_yaml(tmp_path / "no.yaml", Protocol)
    with pytest.raises(UserError, match="'lt'"):
        build({"dataset": "cifar10", "imbalance": "long", "ratio": 100, "backbone": "resnet32"}, Column, "column")


def test_rates_are_those_of_the_ldam_family():
    rates = [PROTOCOL.learning_rate(e) for e in (0, 3, 4, 159, 160, 179, 180, 199)]
    assert rates == pytest.approx([0.02, 0.08, 0.1, 0.1, 1e-3, 1e-3, 1e-5, 1e-5])


def test_at_epoch_n_means_that_n_epochs_are_trained_before():
    """The rule of every `written` setting: with decays at 2 and 3, two epochs have the whole rate."""
    p = Protocol(4, 32, 1.0, 0.9, 0.0, 0, (2, 3), 0.1, False)
    assert [p.learning_rate(e) for e in range(4)] == pytest.approx([1, 1, 0.1, 0.01])
    assert p.first_decay == 2


def test_bbns_warm_up_starts_from_a_third():
    warm = dataclasses.replace(PROTOCOL, rate=1.0, warmup_start=1 / 3)
    assert [round(warm.learning_rate(e), 3) for e in range(6)] == [0.467, 0.6, 0.733, 0.867, 1, 1]


@pytest.mark.parametrize(("changes", "said"), [
    ({"epochs": 20}, r"decay_epochs \[160, 180\]: epoch 160 is never reached in a run of 20"),
    ({"epochs": 180}, r"epoch 180 is never reached in a run of 180"),
    ({"decay_epochs": (-1, 160)}, "epoch -1 is never reached"),
    ({"decay_epochs": (180, 160)}, "must rise"),
    ({"decay_epochs": (160, 160)}, "must rise"),
    ({"epochs": 0}, r"warmup_epochs 5: a warm-up ends within the run, which has 0"),
    ({"epochs": 0, "warmup_epochs": 0}, "epoch 160 is never reached in a run of 0"),
    ({"epochs": -1}, "epochs -1"),
    ({"warmup_epochs": 201}, "warmup_epochs 201"),
    ({"warmup_epochs": -1}, "warmup_epochs -1"),
    ({"warmup_start": 1.5}, "warmup_start 1.5"),
    ({"schedule": "cosine"}, r"decay_epochs \[160, 180\]: a cosine has no such steps"),
])
def test_an_epoch_outside_the_run_is_one_sentence(changes, said):
    with pytest.raises(UserError, match=said) as error:
        dataclasses.replace(PROTOCOL, **changes)
    assert "\n" not in str(error.value)
    large = LargeProtocol(**vars(PROTOCOL))
    with pytest.raises(UserError, match=said):
        dataclasses.replace(large, **changes)


def test_a_file_whose_numbers_do_not_fit_together_is_named(tmp_path):
    path = write(tmp_path, GOOD.replace("epochs: 200", "epochs: 20"))
    with pytest.raises(UserError, match="epoch 160 is never reached") as error:
        load_yaml(path, Protocol)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("schedule", ["steps", "cosine"])
def test_what_waits_for_a_decay_that_never_comes_is_refused(schedule):
    never = dataclasses.replace(PROTOCOL, decay_epochs=(), schedule=schedule)
    with pytest.raises(UserError, match="would never begin"):
        ldam_drw_row("written", never)
    assert describe_function(ldam_drw_row("written", never, start=3).weights)["start"] == 3


def from_epoch(*_, start: int):
    return None


@pytest.mark.parametrize("part", ["loss", "weights", "sampler"])
@pytest.mark.parametrize(("epochs", "start"), [(20, 24), (20, 20), (20, -1)])
def test_a_start_outside_the_run_is_refused_for_anybodys_row(part, epochs, start):
    column, short = Column("cifar10", "lt", 100, "resnet32"), dataclasses.replace(PROTOCOL, epochs=epochs, decay_epochs=())
    late = dataclasses.replace(ce_row("written"), **{part: partial(from_epoch, start=start)})
    with pytest.raises(UserError, match=f"ce@written: from_epoch starts at epoch {start}, which a run of {epochs} never reaches"):
        run_spec(column, short, late, 0)
    last = dataclasses.replace(late, **{part: partial(from_epoch, start=epochs - 1)})
    assert run_spec(column, short, last, 0).method[part]["start"] == epochs - 1
    assert run_spec(column, short.only_tested(), late, 0).protocol.epochs == 0  # it trains nothing


def test_what_is_only_tested_has_no_schedule():
    tested = PROTOCOL.only_tested()
    assert (tested.epochs, tested.warmup_epochs, tested.decay_epochs, tested.trains) == (0, 0, (), "head")
    assert (tested.batch_size, tested.rate) == (PROTOCOL.batch_size, PROTOCOL.rate)


def run(**changes) -> RunSpec:
    base = {"column": Column("cifar10", "lt", 100, "resnet32"), "protocol": PROTOCOL,
            "method": {"loss": {"function": "ce"}}, "data": "d", "seed": 0}
    return RunSpec(**{**base, **changes})


def test_the_key_is_stable_and_every_part_of_the_spec_decides_it():
    """A change of this value orphans every stored record: change it knowingly."""
    assert run().key == "422b1b4f0b59390c"
    others = [run(seed=1), run(data="e"), run(method={"loss": {"function": "ce", "s": 1}}),
              run(column=Column("cifar10", "lt", 10, "resnet32")),
              run(column=Column("cifar10", "lt", 100, "resnet32", "hash")),
              run(protocol=dataclasses.replace(PROTOCOL, rate=0.2))]
    assert len({r.key for r in [run(), *others]}) == 7
    assert spec_key(run().as_json()) == run().key


def loss(z, *, s: float, inner, beta: float = 0.5):
    return z


def inside(z, power: int = 2):
    return z


def test_functions_are_described_by_name_and_keywords():
    nested = partial(partial(loss, s=3.0), inner=partial(inside, power=3), s=4)
    described = {"function": "loss", "beta": 0.5, "inner": {"function": "inside", "power": 3}, "s": 4.0}
    assert describe_function(nested) == described
    assert str(describe_function(nested)["s"]) == "4.0"
    assert describe_function(partial(nested, beta=0.5)) == described
    with pytest.raises(UserError, match="by their places"):
        describe_function(partial(loss, 1))


def test_a_large_column_bears_the_name_of_its_values():
    values = {"dataset": "imagenet-lt", "imbalance": "lt", "ratio": 1, "backbone": "resnet50"}
    assert build({"columns": {"imagenet-lt-resnet50": values}, "protocols": {}}, LargeColumns, "large")
    with pytest.raises(UserError, match="large: columns: imagenet-lt-resnet50 is imagenet-lt-resnet152 by its own values"):
        build({"columns": {"imagenet-lt-resnet50": values | {"backbone": "resnet152"}}, "protocols": {}}, LargeColumns, "large")


def test_column_names():
    assert Column("cifar10", "lt", 100, "resnet32").name == "cifar10-lt-100"
    assert Column("cifar10", "step", 10, "resnet110").name == "cifar10-step-10-resnet110"
    assert Column("mnist", "none", 1, "resnet20").name == "mnist-resnet20"


def test_a_name_says_the_subset_where_the_authors_images_could_be_had():
    assert Column("cifar100", "lt", 100, "vgg16", "hash").name == "cifar100-lt-100-vgg16-hash"
    assert Column("cifar10", "lt", 100, "resnet32", "seed-666").name == "cifar10-lt-100-seed-666"
    assert Column("cifar10", "counts", 1, "resnet32", counts=(50, 20)).name == "cifar10-50-20"
    assert Column("digits", "lt", 20, "resnet8", "hash").name == "digits-lt-20"
    assert Column("tiny-imagenet", "lt", 50, "resnet18", "hash").name == "tiny-imagenet-lt-50-resnet18"
