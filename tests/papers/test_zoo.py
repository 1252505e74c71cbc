"""The zoo builds what the engine computed, for every kind of method that the papers train."""

from pathlib import Path

import numpy as np
import torch
from torch.testing import assert_close

from common.data.class_names import TURNS, class_names
from common.train.device import Device
from common.train.groups import class_scores
from common.train.pack import Pack
from common.train.packing import form_packs, together
from common.train.resident import ResidentSteps
from common.zoo import Classifier
from tests.golden.golden import COUNTS, kinds, made_images, most


def disturb(pack: Pack) -> None:
    """Let every weight, statistic and rescaling of the pack differ from what it starts as."""
    draw = torch.Generator().manual_seed(1)
    for name, tensor in pack.state().items():
        if tensor.is_floating_point() and name.startswith(("backbone.", "heads.")):
            noise = torch.rand(tensor.shape, generator=draw) * 0.1
            tensor.copy_(tensor * (1 + noise) if name.endswith("running_var") else tensor + noise)


def record_of(steps: ResidentSteps, run: int) -> dict:
    """The fields of the record that a model is built from."""
    pack = steps.pack
    group = pack.groups[pack.group_of(run)]
    more = {"clusters": {"counts": np.bincount(group.parent).tolist()}} if group.parent else {}
    counts = steps.feed.counts.tolist() if pack.members[run].method.task == "classes" else [len(steps.feed.labels)] * 4
    return {"spec": pack.members[run].spec.as_json(), "label": pack.members[run].label, "counts": counts, **more}


@torch.no_grad()
def test_a_model_of_every_kind_has_the_logits_of_its_run() -> None:
    built = 0
    for members in form_packs(kinds(), most):
        members = together(members)
        images = made_images(members[0].spec.column.dataset)
        steps = ResidentSteps(members, images, Device("cpu", "float32", False))
        pack = steps.pack
        disturb(pack)
        pack.net.eval()
        pack.heads.eval()
        x, _, _ = steps.feed.test_batch(0, 40, 1, [False] * pack.runs)
        features = pack.net(x)
        plain = torch.from_numpy(images.x_test[:40]).permute(0, 3, 1, 2).float() / 255
        for run, member in enumerate(members):
            at = pack.group_of(run)
            group, head = pack.groups[at], pack.heads[at]
            wanted = (class_scores(group, head, features[group.first:group.stop]) + pack.adjusts[at])[run - group.first]
            names = TURNS if group.classes == 4 else class_names(member.spec.column.dataset, Path("nowhere"))
            state = {n: t for n, t in pack.run_state(run).items() if n.startswith(("backbone.", "head."))}
            model = Classifier(record_of(steps, run), state, names)
            assert_close(model(plain), wanted, rtol=2e-4, atol=2e-4, msg=lambda text, member=member: f"{member.label}: {text}")
            assert model(plain).shape == (40, len(names))
            built += 1
    assert built > 60
    assert len(COUNTS) == 10
