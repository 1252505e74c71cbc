"""Backbones for images of 224 pixels: timm's ResNets up to their last maps, then the tail that the small ones have too.

The last block stands apart from the trunk, so that a bilateral network can have it twice, and a setting can train it alone.
"""

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.errors import UserError
from common.models.pooling import Pooling
from common.models.sizes import NETWORKS

WEIGHTS = ".tv_in1k"  # torchvision's first weights, as the released codes load them


class LargeNetwork(nn.Module):
    """Images [batch, 3, height, width] -> features [1, batch, copies * width]; the leading axis is that of runs.

    network: "plain", "bilateral" with a last block for each of two streams, or "shifted" with nine means of each channel; no
    source has a "two-branch" one of this size.
    adapter: channels of a 1x1 convolution at the end, 0 for none.
    """

    def __init__(self, name: str, network: str = "plain", adapter: int = 0):
        super().__init__()
        import timm

        shape = NETWORKS[name]
        self.trunk = timm.create_model(shape.timm, num_classes=0, global_pool="", zero_init_last=False, **shape.changes)
        last = self.trunk.layer4[-1]
        self.trunk.layer4 = self.trunk.layer4[:-1]
        if network == "two-branch":
            raise UserError(f"A two-branch network is built from a CIFAR ResNet; {name} is none, so take a plain one.")
        if network == "bilateral" and adapter:
            raise UserError(f"A bilateral network has no adapter; {name} was asked for with both.")
        self.branches = nn.ModuleList([last, copy.deepcopy(last)] if network == "bilateral" else [last])
        self.tail = Pooling(1, self.trunk.num_features, adapter, network == "shifted")
        self.width, self.copies = self.tail.width * len(self.branches), self.tail.copies
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.num_batches_tracked = None  # only a cumulative average needs it

    def forward(self, x: Tensor, stream: int | None = None) -> Tensor:
        """Given the stream, images go through its branch alone; else through all, side by side."""
        x = self.trunk(x)
        branches = self.branches if stream is None else [self.branches[stream]]
        return torch.cat([self.tail(branch(x)) for branch in branches], -1)

    @property
    def ending(self) -> list[nn.Module]:
        """What a setting that trains the last block alone trains: the last block, and what comes after it."""
        return [*self.branches, self.tail]


@torch.no_grad()
def draw_weights(parts: list[nn.Module], generator: torch.Generator) -> None:
    """Normal with variance 2 / fan-out for every convolution (He et al., 2015; as timm's and torchvision's ResNets, which count
    the outputs of all groups of a grouped one), 1 and 0 for batch normalisation, also of the last one in a block."""
    for module in (m for part in parts for m in part.modules()):
        if isinstance(module, nn.Conv2d):
            drawn = torch.empty(module.weight.shape, dtype=torch.float32)
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel()
            module.weight.copy_(drawn.normal_(0, (2 / fan_out) ** 0.5, generator=generator))
        elif isinstance(module, nn.BatchNorm2d):
            for ones, zeros in ((module.weight, module.bias), (module.running_var, module.running_mean)):
                ones.fill_(1)
                zeros.fill_(0)


def load_imagenet(net: LargeNetwork, name: str, folder: Path) -> str:
    """Give the backbone weights trained on ImageNet; returns where they are from, for the record.

    folder: may hold `weights/<name>*`, a state of torchvision or timm (.safetensors, .pth, .pt or .bin); else timm's loader is
    asked, which needs its cache or a network. Neither, or a file that does not fit, is a UserError.
    """
    shape, held = NETWORKS[name], folder / "weights"
    files = [p for p in sorted(held.glob(f"{name}*")) if p.suffix in (".safetensors", ".pth", ".pt", ".bin")]
    state, origin = _read(files[0]) if files else _ask_timm(shape.timm, name, held)
    last = f"layer4.{len(net.trunk.layer4)}."
    named = {}
    for key, tensor in state.items():
        if key.startswith("fc.") or key.endswith("num_batches_tracked"):
            continue
        if key.startswith(last):
            named |= {f"branches.{i}.{key.removeprefix(last)}": tensor for i in range(len(net.branches))}
        else:
            named[f"trunk.{key}"] = tensor
    wanted = {k: v.shape for k, v in net.state_dict().items() if not k.startswith("tail.")}
    given = {key: tensor.shape for key, tensor in named.items()}
    if odd := sorted(key for key in wanted.keys() | given.keys() if wanted.get(key) != given.get(key)):
        raise UserError(f"{origin} does not hold the weights of a {name} ({odd[0]} is missing, unknown or of another shape).")
    net.load_state_dict(named, strict=False)
    return origin


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The state in a file, and its name with the start of its SHA-256."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise UserError(f"{path} is not a file of weights ({type(error).__name__}); replace or delete it.") from None
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}, f"{path.name} {digest[:16]}"


def _ask_timm(kind: str, name: str, held: Path) -> tuple[dict[str, Tensor], str]:
    import timm

    try:
        return timm.create_model(kind + WEIGHTS, pretrained=True).state_dict(), kind + WEIGHTS
    except Exception as error:  # no network, no cache, no such weights
        raise UserError(f"No ImageNet weights of {name} are here and timm could not fetch them ({type(error).__name__}); put "
                        f"torchvision's or timm's file into {held} as {name}.pth or {name}.safetensors.") from None


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SharedNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, on any device (PyTorch's own has no CPU kernel). A process whose
    images are blank, as it has none, does not `count`."""

    counts = True

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        n = torch.full((1,), x.numel() // x.shape[1], dtype=wide.dtype, device=x.device)
        n, total = _Sum.apply(self.counts * torch.cat([n, wide.sum((0, 2, 3))])).split([1, x.shape[1]])
        centred = wide - (total / n)[:, None, None]
        variance = _Sum.apply(self.counts * (centred**2).sum((0, 2, 3))) / n
        with torch.no_grad():
            self.running_mean.lerp_(total / n, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scaled = centred * (self.weight * (variance + self.eps).rsqrt())[:, None, None] + self.bias[:, None, None]
        return scaled.to(x.dtype)


@contextmanager
def exclude_from_batch_stats(net: nn.Module, blank: bool) -> Iterator[None]:
    """What passes through the network inside is of no account to statistics that processes share, where it is blank."""
    shared = [module for module in net.modules() if isinstance(module, SharedNorm)] if blank else []
    for module in shared:
        module.counts = False
    yield
    for module in shared:
        module.counts = True


def share_norms(net: nn.Module) -> None:
    """Turn every batch normalisation of the network into a `SharedNorm`, in place."""
    for module in net.modules():
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = SharedNorm(child.num_features, child.eps, child.momentum)
                shared.num_batches_tracked = None
                shared.load_state_dict(child.state_dict(), strict=False)
                setattr(module, name, shared)
