"""What each field of a record holds, asked of every record that is read: its digest only says that nobody touched it, and one
that somebody else made may be sealed and yet stop every table. No torch."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

HEX = re.compile(r"[0-9a-f]{16}")
LONG_HEX = re.compile(r"[0-9a-f]{64}")
PREDICTIONS = re.compile(r"[0-9a-f]{16}\.predictions\.npz")  # in the folder of the record, and nowhere else
LONGEST = 500  # characters of a label

Check = Callable[[Any], bool]


def is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def is_percent(value: Any) -> bool:
    return is_number(value) and -1e-6 <= value <= 100 + 1e-6


def is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST and value.isprintable()


def is_hex(value: Any) -> bool:
    return isinstance(value, str) and bool(HEX.fullmatch(value))


def is_long_hex(value: Any) -> bool:
    return isinstance(value, str) and bool(LONG_HEX.fullmatch(value))


def is_predictions(value: Any) -> bool:
    return isinstance(value, str) and bool(PREDICTIONS.fullmatch(value))


def is_table(value: Any) -> bool:
    """Rows of whole numbers, of equal lengths."""
    return isinstance(value, list) and all(isinstance(row, list) and set(map(type, row)) <= {int} for row in value) and (
        len({len(row) for row in value}) <= 1)


def is_fields(value: Any) -> bool:
    return isinstance(value, dict)


def maybe(check: Check) -> Check:
    """What has the form, or nothing."""
    return lambda value: value is None or check(value)


def every(check: Check) -> Check:
    """A list of what has the form."""
    return lambda value: isinstance(value, list) and all(map(check, value))


ALWAYS: Mapping[str, Check] = {
    "key": is_hex, "method_digest": is_hex, "engine": is_count, "label": is_text, "spec.column": is_fields,
    "spec.protocol": is_fields, "spec.method": is_fields, "spec.seed": is_count, "spec.data": is_text, "counts": every(is_count),
    "curves.train_loss": every(maybe(is_number)), "curves.test_accuracy": every(is_percent), "curves.tested": every(is_count),
    "groups.many": maybe(is_percent), "groups.medium": maybe(is_percent), "groups.few": maybe(is_percent),
    "calibration.ece": maybe(is_percent), "calibration.bins": every(every(is_number)), "norms.classifier": every(is_number),
    "norms.feature_epochs": every(is_count), "norms.feature": every(every(maybe(is_number))), "confusion": is_table,
    "per_class_accuracy": every(maybe(is_percent)), "accuracy.best_epoch": maybe(is_count),
}
DONE: Mapping[str, Check] = {"accuracy.last": is_percent, "accuracy.best": is_percent, "accuracy.best_epoch": is_count}
OFTEN: Mapping[str, Check] = {  # checked where they are
    "made.device": is_text, "made.precision": is_text, "made.torch": is_text, "made.commit": is_text, "made.finished": is_text,
    "made.seconds": is_number, "made.runs_in_pack": is_count, "predictions.file": is_predictions,
    "predictions.digest": is_long_hex,
}


def unequal(record: Mapping[str, Any]) -> str:
    """The first list of a finished record that is not as long as what it belongs to; "" where all are."""
    classes, norms, curves = len(record["counts"]), record["norms"], record["curves"]
    lengths = {
        "per_class_accuracy": len(record["per_class_accuracy"]) == classes,
        "confusion": {len(record["confusion"]), *map(len, record["confusion"])} in ({0}, {classes}),  # none of a large set
        "norms.classifier": len(norms["classifier"]) == classes,
        "norms.feature": len(norms["feature"]) == len(norms["feature_epochs"]) and {classes} >= set(map(len, norms["feature"])),
        "curves.tested": len(curves["tested"]) == len(curves["test_accuracy"]),
    }
    return next((name for name, fits in lengths.items() if not fits), "")


def misfit(record: Mapping[str, Any]) -> str:
    """The first field of a record that does not hold what it must, as a half-sentence; "" where all do."""
    for wanted, is_due in ((ALWAYS, True), (DONE, record["status"] == "done"), (OFTEN, False)):
        for name, check in wanted.items():
            *outer, last = name.split(".")
            fields = record[outer[0]] if outer else record
            if is_due and last not in fields:
                return f"its field {name} is missing"
            if (is_due or (not is_due and wanted is OFTEN and last in fields)) and not check(fields[last]):
                return f"its field {name} does not hold what it must"
    if record["status"] == "done" and (name := unequal(record)):
        return f"its field {name} is longer or shorter than it must be"
    if set(record["predictions"]) not in (set(), {"file", "digest"}):
        return "its field predictions does not name a file and a digest"
    return ""
