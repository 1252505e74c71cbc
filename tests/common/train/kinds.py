"""A small method of every kind that the engine knows beside the plain one: streams, mixup, noise, second stages."""

from dataclasses import replace
from functools import partial

import torch

from common.methods.losses import cross_entropy, lade, meta_embedding, softmax_cross_entropy
from common.methods.method import COSINE, Clusters, Head, Meta, Method, Net, Start, Streams
from common.methods.sampling import again, class_balanced, effective_number_weights, held_out, reversed_frequency
from tests.common.train.toys import METHODS, PROTOCOL

SECOND_PROTOCOL = replace(PROTOCOL, epochs=2, warmup_epochs=0, decay_epochs=(), schedule="cosine", trains="head")
MOVING = replace(SECOND_PROTOCOL, moving_statistics=True)


def clouded(outputs, labels, context, *, s: float):
    """Cosines with noise that grows towards the small classes."""
    size = (context.counts.max() / context.counts).log() / 3
    return cross_entropy(s * (outputs.logits - size * context.noise.abs()), labels)


def halves(features, context):
    """First stream and second stream, side by side, shifting from one to the other."""
    share = 1 - context.epoch / 4
    return torch.cat([share * features[..., 0, :, :], (1 - share) * features[..., 1, :, :]], -1)


def two_labels(outputs, labels, context):
    return 0.7 * cross_entropy(outputs.logits, labels[..., 0, :]) + 0.3 * cross_entropy(outputs.logits, labels[..., 1, :])


def attract(outputs, labels, context):
    """Views of an image attract each other; the third stream is classified."""
    first, second = outputs.projected[..., 0, :, :], outputs.projected[..., 1, :, :]
    return 1 - (first * second).sum(-1) + cross_entropy(outputs.logits[..., 2, :, :], labels[..., 2, :])


MIXUP = Method("mixup", "written", softmax_cross_entropy, mixup=1.0)
NOISY = Method("noisy", "written", partial(clouded, s=10.0), COSINE, noise="normal")
CLOUDED = Method("clouded", "written", partial(clouded, s=10.0), COSINE, noise="normal", mixup=1.0)
BILATERAL = Method("bilateral", "written", two_labels, net=Net("bilateral"),
                   streams=Streams((reversed_frequency,), halves))
CONTRAST = Method("contrast", "written", attract, Head("linear", project=16), streams=Streams((again, class_balanced)))
META = Method("meta", "written", softmax_cross_entropy, weights=effective_number_weights, reduction="batch",
              streams=Streams((held_out,)), meta=Meta(held_out=3, rate=0.5))
META_LDAM = replace(META, name="meta-ldam", loss=METHODS[1].loss, head=COSINE)
CAUSAL = Method("causal", "written", softmax_cross_entropy, Head("causal", alpha=1.0))
LADE = Method("lade", "written", partial(lade, alpha=0.1, strength=0.01))

ADAM = replace(PROTOCOL, rate=0.01, weight_decay=0.001, optimiser="adam")


def with_centres(outputs, labels, context, *, share: float):
    """Cross-entropy, and the squared distance to the centre of the class."""
    centres = outputs.head["centres"].transpose(-1, -2).gather(-2, labels.unsqueeze(-1).expand(outputs.features.shape))
    return cross_entropy(outputs.logits, labels) + share / 2 * ((outputs.features - centres) ** 2).sum(-1)


GAUSSIAN = Method("gaussian", "written", softmax_cross_entropy, Head("gaussian"), protocol=ADAM)
MEANS = Method("means", "written", softmax_cross_entropy, Head("centres"), protocol=ADAM)
QUADRATIC = Method("quadratic", "released", softmax_cross_entropy, Head("quadratic"), protocol=ADAM)
CENTRED = Method("centred", "written", partial(with_centres, share=0.01), Head("linear", centres=0.5), protocol=ADAM)
UNBIASED = Method("unbiased", "written", softmax_cross_entropy, Head("linear", biased=False), protocol=ADAM)
NESTEROV = Method("nesterov", "written", softmax_cross_entropy, protocol=replace(PROTOCOL, optimiser="nesterov"))
DECOUPLED = Method("decoupled", "written", softmax_cross_entropy, protocol=replace(ADAM, optimiser="adamw"))

FIRST = replace(CLOUDED, protocol=PROTOCOL)
AGAIN = Method("retrained", "written", softmax_cross_entropy, sampler=class_balanced, start=Start(FIRST),
               protocol=SECOND_PROTOCOL)
KEPT = Method("kept", "written", partial(clouded, s=10.0), replace(COSINE, keep=True), noise="normal", sampler=class_balanced,
              start=Start(FIRST), protocol=SECOND_PROTOCOL)
SCALED = Method("scaled", "written", softmax_cross_entropy, Head("cosine", keep=True, rate=0.0, rescale="class"),
                sampler=class_balanced, start=Start(FIRST), protocol=SECOND_PROTOCOL)
TAU = Method("tau", "written", softmax_cross_entropy, Head("linear", keep=True, rate=0.0, rescale="tau"),
             sampler=class_balanced, start=Start(replace(MIXUP, protocol=PROTOCOL)), protocol=SECOND_PROTOCOL)
HALF = Method("half", "written", softmax_cross_entropy, Head("linear", keep=True, rate=0.5, rescale="class"),
              sampler=class_balanced, start=Start(replace(MIXUP, protocol=PROTOCOL)), protocol=MOVING)
ALIGNED = Method("aligned", "written", softmax_cross_entropy, Head("linear", keep=True, rate=0.0, rescale="align"),
                 effective_number_weights, start=Start(replace(MIXUP, protocol=PROTOCOL)), protocol=SECOND_PROTOCOL)
MEMORY = Method("memory", "written", partial(meta_embedding, s=16.0), Head("memory", rate=10.0), sampler=class_balanced,
                start=Start(replace(MIXUP, protocol=PROTOCOL)),
                protocol=replace(PROTOCOL, epochs=2, rate=0.01, warmup_epochs=0, decay_epochs=(1,)))


def per_class(counts):
    """Three clusters of the largest class, one of the smallest."""
    return 1 + (2 * (counts - counts.min())) // (counts.max() - counts.min())


def auxiliary(outputs, labels, context):
    """Cross-entropy of both outputs of a balanced head."""
    return cross_entropy(outputs.logits, labels) + cross_entropy(outputs.balanced, labels)


def to_clusters(outputs, labels, context, *, share: float):
    """Cross-entropy of clusters, and of their classes where there is a balanced head."""
    own = cross_entropy(outputs.logits, labels)
    return own if outputs.balanced is None else own + share * cross_entropy(outputs.balanced, context.parent[labels])


DIVIDING = partial(to_clusters, share=0.5)
BALANCED = Method("balanced", "written", auxiliary, Head("linear", groups="uneven"), net=Net("shifted"))
BOTH = Method("both", "written", DIVIDING, Head("linear", groups="drop"), net=Net("shifted"), clusters=Clusters(per_class))
ADAPTED = replace(BOTH, name="adapted", net=Net("shifted", adapter=20), mixup=1.0)
DIVIDED = Method("divided", "written", DIVIDING, weights=effective_number_weights, clusters=Clusters(per_class))
CYCLIC = Method("cyclic", "written", auxiliary, Head("linear", groups="cyclic"))
KMEANS = replace(DIVIDED, name="kmeans", clusters=Clusters(per_class, by="kmeans"), start=Start(MIXUP, takes="clusters"))
WARD = replace(BOTH, name="ward", clusters=Clusters(per_class, by="hierarchical"), start=Start(MIXUP, takes="clusters"))
TESTED = replace(DIVIDED, name="tested", clusters=Clusters(per_class, pooling="sum"), head=Head("linear", keep=True),
                 start=Start(DIVIDED), protocol=PROTOCOL.only_tested())

FIRST_STAGES = ([MIXUP, CLOUDED], [NOISY, CAUSAL, LADE, METHODS[0]], [METHODS[0], MIXUP, NOISY],
                [BILATERAL], [CONTRAST], [META, META_LDAM],
                [GAUSSIAN, MEANS, QUADRATIC, CENTRED, UNBIASED], [NESTEROV], [DECOUPLED],
                [BALANCED, BOTH], [ADAPTED], [DIVIDED, CYCLIC])
SECOND_STAGES = ([AGAIN, KEPT, SCALED, TAU, ALIGNED], [HALF], [MEMORY], [KMEANS], [WARD])
