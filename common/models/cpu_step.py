"""A residual network's forward and backward pass on a CPU, in C++ (`cpu_resnet.cpp`): built once, kept, the same to autograd.

The parameters stay torch's, the gradients come through autograd; what the network computes is what `PackedResNet` of one run
computes, to float32 rounding. Its bits depend on the number of threads, and on nothing else.
"""

import ctypes
import hashlib
import logging
import os
import platform
import sys
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, nn

from common.checkout import ROOT
from common.models.resnet import PackedBilateral, PackedResNet
from common.models.sizes import Residual

SOURCE = Path(__file__).with_name("cpu_resnet.cpp")
FOLDER = ROOT / ".work" / "cpp"
# No -ffast-math: what is linked with it makes the whole process flush denormal numbers to zero.
FLAGS = ("-O2", "-march=native", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
         "-fschedule-insns", "-fsched-pressure", "-falign-functions=64", "-falign-loops=32")
LANES = 16  # channels come in multiples of this


def processor() -> str:
    """What code of -march=native depends on: the processor's model and its instructions; "" where it is not known."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return f"{fields.get('model name', '')} {fields.get('flags', '')}".strip()


def library_file() -> Path:
    """Where the library for this source, these flags, this processor and this torch is kept."""
    parts = (SOURCE.read_text(), *FLAGS, processor(), torch.__version__, platform.machine())
    return FOLDER / f"cpu_resnet-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"


def build(file: Path) -> None:
    """Compile into a folder of its own, then move: two processes may build at once, and none sees half a file."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a missing GPU when it is imported
    from torch.utils import cpp_extension

    file.parent.mkdir(parents=True, exist_ok=True)
    path = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])  # where the environment's ninja is
    try:
        with tempfile.TemporaryDirectory(dir=file.parent) as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            built = cpp_extension.load("cpu_resnet", [str(SOURCE)], extra_cflags=list(FLAGS), extra_ldflags=["-fopenmp"],
                                       build_directory=folder, is_python_module=False)
            os.replace(built, file)
    finally:
        os.environ["PATH"] = path


@cache
def library() -> ctypes.CDLL | None:
    """The library, built if need be; None where it cannot be. Says once a process what was built, or why it is not."""
    if not {"avx2", "fma"} <= set(processor().split()):
        return _none("the processor has no AVX2")
    file = library_file()
    try:
        if not file.exists():
            build(file)
            print(f"Built {file.relative_to(FOLDER.parents[1])}: residual networks train faster on this processor with it.",
                  file=sys.stderr)
        lib = ctypes.CDLL(str(file))
    except Exception as error:  # no compiler, no ninja, no place: whatever the build raises
        return _none(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    lib.create.restype, lib.create.argtypes = ctypes.c_void_p, [ctypes.c_int] * 9
    lib.destroy.restype, lib.destroy.argtypes = None, [ctypes.c_void_p]
    pointer, number = ctypes.c_void_p, ctypes.c_int
    lib.forward.restype, lib.forward.argtypes = None, [pointer, number, number, pointer, pointer, number, pointer]
    lib.backward.restype, lib.backward.argtypes = None, [pointer, pointer, pointer]
    return lib


def _none(why: str) -> None:
    print(f"Residual networks train with torch's own, slower operations: the C++ step cannot be built ({why}).",
          file=sys.stderr)


def cpu_step(net: nn.Module, shape: object, channels: int, side: int, most: int) -> "CpuStep | None":
    """The step for a network built from this shape, in float32 on the CPU; None where torch's own operations have to do.

    most: images of a training batch.
    """
    return CpuStep(net, shape, channels, side, most) if fits(net, shape, side) and library() else None


def fits(net: nn.Module, shape: object, side: int) -> bool:
    """Whether the C++ step knows this network, of one run and on images of that many pixels a side; one with two branches as far
    as all images go through both."""
    if type(net) not in (PackedResNet, PackedBilateral) or not isinstance(shape, Residual) or net.runs > 1:
        return False
    if type(net) is PackedBilateral and shape.blocks == 1:  # its branches would halve the side
        return False
    last = side >> (shape.stages - 1)
    return (net.tail.adapter is None and shape.width % LANES == 0
            and last % 4 == 0 and last << (shape.stages - 1) == side)


class CpuStep:
    """Images [batch, channels, side, side] -> features [1, batch, copies * width], of a network that `fits`; one forward pass is
    kept for one backward pass. most: images at a time; more are tested in parts."""

    def __init__(self, net: PackedResNet, shape: Residual, channels: int, side: int, most: int):
        self.net, self.most = net, most
        self.layers: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = [(net.conv, net.bn)]
        branches = net.branches if isinstance(net, PackedBilateral) else ()
        for block in (*net.blocks, *branches):
            self.layers += [(block.conv1, block.bn1), (block.conv2, block.bn2)]
            self.layers += [tuple(block.projection)] if block.projection is not None else []
        self.library, self.calls, self.parameters = library(), 0, []
        self.handle = self.library.create(most, channels, side, shape.width, shape.blocks, shape.stages, shape.projection,
                                          net.copies, max(1, len(branches)))
        weakref.finalize(self, self.library.destroy, self.handle)

    def __call__(self, images: Tensor, stream: int | None = None) -> Tensor:
        """`stream` is of no account, as in `PackedResNet`; where it is (`PackedBilateral`), another one than None is refused."""
        if stream is not None and isinstance(self.net, PackedBilateral):
            raise ValueError("The C++ step sends images through both branches.")
        if self.net.training:
            parameters = [p for conv, norm in self.layers for p in (conv.weight, norm.weight, norm.bias)]
            return _Step.apply(self, images, *parameters).unsqueeze(0)
        return torch.cat([self.forward(part) for part in images.split(self.most)]).unsqueeze(0)

    def forward(self, images: Tensor) -> Tensor:
        """Features [batch, copies * width]; in training mode with the batch's statistics, which move the running ones."""
        images = images.detach().permute(0, 2, 3, 1).contiguous()
        features = torch.empty(len(images), self.net.copies * self.net.width)
        self.parameters = [t for conv, norm in self.layers for t in (  # the backward pass reads them too
            _by_output(conv.weight), norm.weight, norm.bias, norm.running_mean, norm.running_var)]
        self.calls += 1
        self.library.forward(self.handle, torch.get_num_threads(), len(images), images.data_ptr(),
                             _pointers(self.parameters), self.net.training, features.data_ptr())
        return features

    def backward(self, gradient: Tensor) -> list[Tensor]:
        """Gradients of the weights, scales and shifts of every layer, from that of the features."""
        gradients = [torch.empty_like(t, memory_format=torch.contiguous_format) for conv, norm in self.layers for t in (
            _by_output(conv.weight), norm.weight, norm.bias)]
        self.library.backward(self.handle, gradient.contiguous().data_ptr(), _pointers(gradients))
        return [g.permute(0, 3, 1, 2) if g.dim() == 4 else g for g in gradients]


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, step: CpuStep, images: Tensor, *parameters: Tensor) -> Tensor:
        features = step.forward(images)
        ctx.step, ctx.call = step, step.calls
        return features

    @staticmethod
    def backward(ctx, gradient: Tensor):
        if ctx.call != ctx.step.calls:
            raise RuntimeError("The C++ step keeps one forward pass, and another one came before this one's backward pass.")
        return None, None, *ctx.step.backward(gradient)


def _by_output(weight: Tensor) -> Tensor:
    """[c_out, c_in, k, k] -> [c_out, k, k, c_in]: of channels-last weights a view."""
    return weight.detach().permute(0, 2, 3, 1).contiguous()


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
