"""`icu@written` on real images: its loss and weights stay finite. Skipped where a set is not here.

A few steps of seed 0 on the columns that a CPU trains fast; on demand many steps of three seeds on every column:

    FINITE_STEPS=200 python -m pytest tests/papers/test_icu_real.py
"""

import os

import pytest

from common.data.sets import load
from common.plan import plan
from common.train.device import Device
from common.train.resident import ResidentSteps
from papers.icu.replicate import PAPER
from tests.conftest import real_data

GIVEN = int(os.environ.get("FINITE_STEPS", "0"))
STEPS, SEEDS = GIVEN or 6, 3 if GIVEN else 1
COLUMNS = [column for column in PAPER.columns["paper"] if column.name not in PAPER.large
           and (GIVEN or column.backbone in ("resnet32", "6layercnn2d"))]
LOADED = {}


@pytest.fixture
def images(request, tmp_path_factory):
    name = request.getfixturevalue("column").dataset
    if name not in LOADED:
        LOADED.clear()  # one at a time
        LOADED[name] = load(name, real_data(name, tmp_path_factory))
    return LOADED[name]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("column", COLUMNS, ids=lambda c: c.name)
def test_the_loss_of_the_text_stays_finite(column, seed, images):
    runs = plan(PAPER, "paper", columns=(column.name,), methods=("icu@written",), seeds=seed + 1)
    steps = ResidentSteps(runs[-1:], images, Device("cpu", "float32", False))
    done = 0
    while done < STEPS:
        steps.begin_epoch(done // len(steps.pack.batch_sizes))
        for batch in steps.batches()[:STEPS - done]:
            steps.step(batch)
            done += 1
            assert steps.pack.loss_sum.isfinite().all(), f"the loss at step {done}"
            assert all(p.isfinite().all() for p in steps.pack.parameters()), f"the weights at step {done}"
