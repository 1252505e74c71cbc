"""A protocol in words, wherever one is shown."""

from dataclasses import fields

from common.spec import Protocol


def protocol_words(protocol: Protocol) -> str:
    """All that a protocol fixes, on one line; unequal protocols read differently."""
    words = [f"{protocol.epochs} epochs", f"batch {protocol.batch_size}{', last one dropped' if protocol.drop_last else ''}",
             f"{protocol.optimiser} {protocol.rate:g}, momentum {protocol.momentum:g}", f"weight decay {protocol.weight_decay:g}"]
    warm = protocol.warmup_epochs
    share = f" from {protocol.warmup_start:.3g} of it" if protocol.warmup_start else ""
    words += [f"{warm} warm-up epoch{'s' if warm > 1 else ''}{share}"] if warm else []
    if protocol.schedule == "cosine":
        words.append("cosine")
    elif protocol.decay_epochs:
        words.append(f"× {protocol.decay_factor:g} at {', '.join(map(str, protocol.decay_epochs))}")
    words += {"all": [], "head": ["head only"], "last": ["last block and head only"]}[protocol.trains]
    words += ["moving statistics"] if protocol.moving_statistics else []
    usual = {field.name for field in fields(Protocol)}
    for field in fields(protocol):  # what protocols of large sets fix beside
        value, name = getattr(protocol, field.name), field.name.replace("_", " ")
        if field.name not in usual and value != field.default:
            words.append(name if value is True else f"{name} {value}")
    return ", ".join(words)
