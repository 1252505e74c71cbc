"""What runs begin with that start from another run: its weights, its class means, or a division of classes by its features."""

from collections.abc import Mapping

import torch
from safetensors.torch import load_file
from torch import Tensor

from common.errors import UserError
from common.models.memory import FROM_FIRST, class_means
from common.store import has_diverged, record_files
from common.train.clusters import cluster_counts, divide_by_features
from common.train.resident import ResidentSteps
from common.train.steps import Steps


def load_start(steps: Steps) -> None:
    """Give runs that start from another run its backbone, and its head where the method keeps it, else that stays as
    drawn. A memory head begins with that run's classifier inside it, and with the class means of its features. A start that
    diverged ends the run too."""
    pack = steps.pack
    for run, member in enumerate(pack.members):
        if start := member.start:
            path = start.checkpoint
            if not path.exists():
                if has_diverged(start.identity, record_files(member.root)):
                    pack.stop_run(run, 0)
                    continue
                raise UserError(f"{path} is missing: {member.label} starts from {start.label}, so train that first.")
            state = load_file(path, device=str(pack.rate.device))
            if member.method.start.takes == "clusters":
                give_clusters(steps, run, state)
                continue
            parts = ("backbone.", "head.") if member.method.head.keep else ("backbone.",)
            mine = pack.run_state(run)
            if member.method.head.kind == "memory":
                state |= {f"head.{to}": state[f"head.{name}"] for to, name in FROM_FIRST.items()}
                parts = (*parts, *(f"head.{to}" for to in FROM_FIRST))
            pack.load_run_state(run, {n: t for n, t in state.items() if n.startswith(parts) and n in mine})
    if any(m.start and m.method.head.kind == "memory" for m in pack.members):
        give_centroids(steps)


def give_centroids(steps: Steps) -> None:
    """Let memory heads begin with the class means of the features that their runs' backbones have now."""
    pack = steps.pack
    means = class_means(steps.plain_features(), len(pack.counts))
    for group, head in zip(pack.groups, pack.heads, strict=True):
        if group.method.head.kind == "memory":
            with torch.no_grad():
                head.centroids.copy_(means[group.first:group.stop])


def give_clusters(steps: ResidentSteps, run: int, state: Mapping[str, Tensor]) -> None:
    """Divide the training images of a run by the features that the weights `state` of its start give them."""
    pack, member = steps.pack, steps.pack.members[run]
    net = steps.make_network(member.method.first_stage, 1)
    net = net.to(pack.rate.device, pack.device.dtype).to(memory_format=torch.channels_last)
    for name, tensor in net.state_dict().items():
        tensor.copy_(state[f"backbone.{name}"])
    features = torch.cat([part[0].float().cpu() for part, _ in steps.plain_features_of(net, 1)])
    each = cluster_counts(member.method, pack.counts)
    clusters = divide_by_features(pack.cpu_labels, each, features, member.method.clusters.by, member.spec.seed)
    pack.load_run_state(run, {"head.clusters": clusters[None]})
