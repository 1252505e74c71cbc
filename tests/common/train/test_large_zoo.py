"""A network that was trained on a large set, by name: it answers the test images as its record says."""

from functools import partial

import pytest
import torch

from common.data.decoding import TestInput
from common.data.large_sets import LARGE
from common.data.lists import load_large
from common.train.state import Workspace
from common.train.torchrun import train_large
from common.zoo import load
from tests.common.train.large_toys import COLUMN
from tests.common.train.pair import OPTIONS
from tests.common.train.test_sharded import chain, watched


def test_a_large_model_is_measured_again_and_its_record_holds(miniature, tmp_path):
    scaled = chain(tmp_path / "papers")[0]  # a second stage with learned factors on the logits
    assert train_large([scaled], miniature, Workspace(tmp_path / "work", 1e9), OPTIONS, partial(watched, []))
    model = load(f"{COLUMN.name}/lws", source=tmp_path, profile="quick")
    assert (model.shape, len(model.classes)) == ((3, 32, 32), 30)
    images, hits = load_large("miniature", miniature), torch.zeros(30)
    test = TestInput(images, LARGE["miniature"], 0, 1, batch=50, workers=0, pin=False)
    with torch.no_grad():
        for pixels, labels in test.batches():
            right = model(pixels.permute(0, 3, 1, 2).float() / 255).argmax(-1) == labels
            hits += torch.bincount(labels[right], minlength=30)
    test.close()
    tested = torch.bincount(torch.from_numpy(images.test_labels), minlength=30)
    assert (100 * hits / tested).tolist() == pytest.approx(model.record["per_class_accuracy"], abs=1e-3)
    assert 100 * float(hits.sum() / tested.sum()) == pytest.approx(model.record["accuracy"]["last"], abs=1e-3)
