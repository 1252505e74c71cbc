"""Trained networks by name: what they answer is what their record says, from a checkout, an export and a DVC remote."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.data.class_names import NAMES, class_names
from common.data.sets import load as load_images
from common.errors import UserError
from common.publish.export import export_runs
from common.spec import spec_key
from common.store import load_records, save_record
from common.train.device import Device
from common.train.loop import train_pack
from common.train.state import Workspace
from common.zoo import Classifier, load, measure
from tests.common.train.toys import METHODS, ROTATION, planned

NAME = "digits-lt-20/ldam-drw"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, digits) -> Path:
    """A checkout with three trained runs: two methods, and the pretext task."""
    root = tmp_path_factory.mktemp("checkout")
    runs = [planned(METHODS[0], root / "papers"), planned(METHODS[1], root / "papers"), planned(ROTATION, root / "papers")]
    assert train_pack(runs, digits, Device("cpu", "float32", False), Workspace(root / ".work", None))
    return root


@pytest.mark.parametrize("name", ["digits-lt-20/ce", NAME])
def test_a_model_is_measured_again_and_its_record_holds(checkout, digits, name) -> None:
    model = load(name, seed=0, source=checkout, profile="quick")
    assert isinstance(model, torch.nn.Module)
    confusion = measure(model, digits)
    assert confusion.tolist() == model.record["confusion"]
    assert 100 * confusion.trace() / confusion.sum() == pytest.approx(model.record["accuracy"]["last"], abs=1e-3)
    assert model.record["accuracy"]["last"] > 20  # it has learned something


def test_a_model_says_what_it_needs(checkout) -> None:
    model = load(NAME, source=checkout, profile="quick")
    assert (model.classes, model.shape) == (tuple("0123456789"), (1, 8, 8))
    assert (float(model.mean), float(model.std)) == (pytest.approx(0.2872), pytest.approx(0.3539))
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert model.features(torch.zeros(3, 1, 8, 8)).shape == (3, 32)
    assert not model.training


def test_another_image_scale_is_not_taken_for_granted(checkout, digits) -> None:
    """The record holds for images in 0 to 1 as the network normalises them, and for no others."""
    model = load(NAME, source=checkout, profile="quick")
    model.mean += 0.2
    assert measure(model, digits).tolist() != model.record["confusion"]


def test_the_pretext_task_names_its_turns_and_is_not_measured(checkout, digits) -> None:
    model = load("digits-lt-20/rotation", source=checkout, profile="quick")
    assert model.classes == ("0", "90", "180", "270")
    with pytest.raises(UserError, match="by how much an image was turned"):
        measure(model, digits)


def test_an_export_is_enough(checkout, digits, tmp_path) -> None:
    runs = [planned(METHODS[0], checkout / "papers"), planned(METHODS[1], checkout / "papers")]
    folders = export_runs(runs, tmp_path / "out", tmp_path, print)
    for source in (tmp_path / "out", folders[1]):
        model = load(NAME, source=source)
        assert measure(model, digits).tolist() == model.record["confusion"]


@pytest.mark.parametrize(("name", "said"), [
    ("digits-lt-20/nope", "no finished run digits-lt-20/nope of seed 0; it has digits-lt-20/ce@written"),
    ("digits-lt-9/ce", "no finished run digits-lt-9/ce"),
    ("ce", "A name is COLUMN/METHOD"),
])
def test_an_unknown_name_lists_what_is_there(checkout, name, said) -> None:
    with pytest.raises(UserError, match=said):
        load(name, source=checkout, profile="quick")


def test_seed_profile_and_folder_are_taken_at_their_word(checkout) -> None:
    for how in ({"seed": 1}, {"profile": "paper"}):
        with pytest.raises(UserError, match="has no finished run"):
            load(NAME, **{"source": checkout, "profile": "quick", **how})
    with pytest.raises(UserError, match="is not a folder"):
        load(NAME, source=checkout / "nowhere")


def test_a_run_of_two_settings_wants_its_paper_or_key(checkout, tmp_path, digits) -> None:
    root = tmp_path / "copy"
    shutil.copytree(checkout, root)
    [record] = [r for r in load_records(root / "papers").values() if r["label"].endswith(" ce@written")]
    other = {**record, "spec": {**record["spec"], "protocol": {**record["spec"]["protocol"], "rate": 0.2}}}
    other["key"] = spec_key(other["spec"])
    save_record(root / "papers/other/results/quick/digits-lt-20", other)
    with pytest.raises(UserError, match=f"is 2 runs: other/digits-lt-20/ce@written .*{record['key']}"):
        load("digits-lt-20/ce", source=root, profile="quick")
    for name in ("toy/digits-lt-20/ce", record["key"]):
        assert load(name, source=root, profile="quick").record["key"] == record["key"]


def test_the_text_comes_before_the_code(checkout, tmp_path, digits) -> None:
    root = tmp_path / "copy"
    shutil.copytree(checkout, root)
    released = planned(replace(METHODS[0], reading="released"), root / "papers", seed=0)
    released = replace(released, spec=replace(released.spec, protocol=replace(released.spec.protocol, rate=0.2)))
    assert train_pack([released], digits, Device("cpu", "float32", False), Workspace(root / ".work", None))
    assert load("digits-lt-20/ce", source=root, profile="quick").record["label"] == "digits-lt-20 ce@written"
    assert load("digits-lt-20/ce@released", source=root, profile="quick").record["key"] == released.spec.key


def test_weights_of_another_network_are_refused(checkout) -> None:
    model = load(NAME, source=checkout, profile="quick")
    state = {n: t for n, t in model.state_dict().items() if n.startswith(("backbone.", "head."))}
    with pytest.raises(UserError, match=r"do not fit the network that its record describes: head\.weight"):
        Classifier(model.record, {**state, "head.weight": torch.zeros(1, 2, 10)}, model.classes)


def test_missing_weights_come_from_the_dvc_remote(checkout, digits, tmp_path) -> None:
    pytest.importorskip("dvc")
    root = tmp_path / "clone"
    shutil.copytree(checkout, root, ignore=shutil.ignore_patterns(".work"))

    def sh(*words: str) -> None:
        subprocess.run(words, cwd=root, check=True, capture_output=True)

    dvc = (sys.executable, "-m", "dvc")
    sh("git", "init", "-q")
    sh(*dvc, "init", "-q")
    sh(*dvc, "remote", "add", "-d", "store", str(tmp_path / "remote"))
    sh(*dvc, "add", "-q", "papers/toy/checkpoints/quick/digits-lt-20")
    sh(*dvc, "push", "-q")
    for folder in ("papers/toy/checkpoints/quick/digits-lt-20", ".dvc/cache"):
        shutil.rmtree(root / folder)
    model = load(NAME, source=root, profile="quick")
    assert measure(model, digits).tolist() == model.record["confusion"]
    assert len(list((root / "papers/toy/checkpoints/quick/digits-lt-20").iterdir())) == 1  # the one that was asked for
    shutil.rmtree(tmp_path / "remote")
    with pytest.raises(UserError, match=r"could not be pulled: .*Bring [0-9a-f]{16}.safetensors into"):
        load("digits-lt-20/ce", source=root, profile="quick")


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100"])
def test_the_names_of_classes_are_those_of_the_images(name, digits_folder, request) -> None:
    folder = digits_folder if name == "digits" else request.getfixturevalue(name)
    assert NAMES[name] == load_images(name, folder).classes


def test_names_that_are_nowhere_are_numbers(tmp_path) -> None:
    assert class_names("tiny-imagenet", tmp_path)[:3] == ("0", "1", "2")
    assert len(class_names("places-lt", tmp_path)) == 365
