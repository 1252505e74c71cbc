"""What finished runs answer to a further test set, with the weights of their last epoch."""

from collections.abc import Sequence
from dataclasses import replace

from common.data.second_tests import FurtherImages
from common.data.sets import Images
from common.plan import Run
from common.predictions import Answers, Predictions
from common.store import read_weights
from common.train.device import Device
from common.train.resident import ResidentSteps


def answer(members: Sequence[Run], tests: FurtherImages, images: Images, device: Device) -> list[Predictions]:
    """The predictions of each run of a pack, in the form of a record's; `best` is `last`, as no other epoch's weights are left.
    images: the dataset that the runs were trained on."""
    steps = ResidentSteps(members, replace(images, x_test=tests.images, y_test=tests.labels), device)
    try:
        for run, member in enumerate(steps.pack.members):
            steps.pack.load_run_state(run, read_weights(member.checkpoint, member.spec.key, "pt"))
        tallies = steps.evaluate()
    finally:
        steps.close()
    labels, predictions = tallies[0].labels.cpu().numpy(), []
    for tally in tallies:
        for last, confidence, *plain in zip(*(part.numpy() for part in tally.answered()), strict=True):
            predictions.append(Predictions(labels, Answers(last, last, confidence), Answers(plain[0], *plain) if plain else None))
    return predictions
