"""A GPU that is none: inside `pretend_cuda()` the code for CUDA runs as it stands, and the CPU computes.

Tensors asked for on "cuda" are made on the CPU. Streams, page-locked memory and compilation are acted. A capture records every
operation of PyTorch with the very tensors it reads and writes; a replay runs these operations again, so that whatever Python
did between them (a number read from an attribute, a branch) is frozen, as in a CUDA graph. A capture refuses what CUDA
refuses: waiting for the device, reading a value, tensors made on the host, random numbers, optimisers that are not capturable,
and operations other than those of the step before it.
"""

import gc
import inspect
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.cuda._utils import _get_device_index
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

WAITING = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__", "nonzero"}
MAKERS = {"tensor", "as_tensor", "zeros", "ones", "empty", "full", "arange", "linspace", "eye", "rand", "randn", "randint",
          "randperm", "from_numpy", "asarray"}
SYNCHRONISING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
                 "is_nonzero", "equal", "histc"}
AFTERMATH = "CUDA error: operation failed due to a previous error during capture"


@dataclass
class Stub:
    """What has happened on the pretended GPU, and what is to go wrong there.

    calls: in order, by name: "set_device 0", "compile", "warm-up", "gc", "capture", "replay", ...
    compile_error, capture_error: raised by the first call of what was compiled, and in the middle of a capture; None for neither.
    pinned: addresses of page-locked memory.
    """

    calls: list[str] = field(default_factory=list)
    compile_error: Exception | None = None
    capture_error: Exception | None = None
    pinned: set[int] = field(default_factory=set)
    stream: "Stream" = field(default_factory=lambda: Stream("default"))
    unjoined: set["Stream"] = field(default_factory=set)
    capturing: "Graph | None" = None
    replaying: bool = False
    trail: list[tuple] = field(default_factory=list)  # of operations on the stream of now: name and shapes

    def note(self, call: str) -> None:
        if self.capturing and threading.current_thread() is not threading.main_thread():
            raise RuntimeError(f"{call}: a call of CUDA from another thread ends a capture")
        self.calls.append(call)

    def refuse(self, what: str) -> None:
        """Whatever a capture does not allow."""
        if self.capturing and not self.replaying:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")

    def count(self, call: str) -> int:
        return self.calls.count(call)


class Stream:
    """A place in line. Work on it must be joined before a capture depends on it."""

    def __init__(self, name: str = "side"):
        self.name = name

    def wait_stream(self, other: "Stream") -> None:
        NOW[-1].unjoined.discard(other)

    def synchronize(self) -> None:
        NOW[-1].refuse("Stream.synchronize")


NOW: list[Stub] = []  # the stub in use, for what PyTorch's code constructs itself


class Graph:
    """The operations of a capture, with the tensors that they read and wrote."""

    def __init__(self):
        self.tape: list[tuple] = []

    def replay(self) -> None:
        stub = NOW[-1]
        stub.note("replay")
        stub.replaying = True
        with torch.no_grad():
            for function, arguments, named, before in self.tape:
                after = function(*arguments, **named)
                if not any(r.alias_info for r in function._schema.returns):  # a view shows what was written; in place is done
                    for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                        if isinstance(old, torch.Tensor) and not old._is_zerotensor():
                            old.copy_(new)
        stub.replaying = False


class Capture:
    """`torch.cuda.graph`. Like the real one it leaves its stream the current one where the capture fails."""

    def __init__(self, graph: Graph, pool: Any = None, **more: Any):
        self.graph, self.stub, self.pool = graph, NOW[-1], pool

    def __enter__(self) -> None:
        self.stub.note("capture")
        assert self.pool is not None, "the graphs of a pack share their memory"
        assert not self.stub.unjoined, "work on another stream was not waited for"
        self.before, self.warm = self.stub.stream, self.stub.trail
        self.stub.stream, self.stub.trail, self.stub.capturing = Stream("capture"), [], self.graph

    def __exit__(self, kind, error, trace) -> None:
        self.stub.capturing = None
        if error is not None:
            raise RuntimeError(AFTERMATH)
        mine = self.stub.trail
        if self.warm[-len(mine):] != mine:
            raise RuntimeError("the captured step has other operations or shapes than the warm-up's last: memory is moved")
        self.stub.stream = self.before


class Redirect(TorchFunctionMode):
    """Tensors asked for on CUDA are made on the CPU, and read from there as a copy."""

    def __init__(self, stub: Stub):
        super().__init__()
        self.stub = stub

    def __torch_function__(self, function, types, arguments=(), named=None):
        named, name = dict(named or {}), getattr(function, "__name__", "")
        if function is torch.device:
            return function(*arguments, **named)
        if name in WAITING:
            self.stub.refuse(name)
        if name in MAKERS and not _is_cuda(named.get("device")):
            self.stub.refuse(f"{name} on the host")
        if name in ("to", "cuda") and any(map(_is_cuda, (*arguments, named.get("device")))):
            self.stub.refuse("a copy from memory that is not page-locked")
        pinned = named.pop("pin_memory", False)
        arguments = tuple(torch.device("cpu") if _is_cuda(a) else a for a in arguments)
        if _is_cuda(named.get("device")):
            named["device"] = torch.device("cpu")
        if name == "one_hot":  # the CPU's looks at the values, CUDA's does not
            labels, classes = arguments
            return (labels.unsqueeze(-1) == labels.new_ones(classes).cumsum(0) - 1).long()
        if name == "cpu":
            return function(*arguments, **named).clone()
        result = function(*arguments, **named)
        if pinned:
            self.stub.note("pin")
            self.stub.pinned.add(result.data_ptr())
        return result


class Watch(TorchDispatchMode):
    """Sees every operation; in a capture it records them, and refuses what would wait or draw."""

    def __init__(self, stub: Stub):
        super().__init__()
        self.stub = stub

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        stub, named, name = self.stub, named or {}, function._schema.name.removeprefix("aten::")
        if stub.replaying or function.namespace == "profiler":
            return function(*arguments, **named)
        if name in SYNCHRONISING or torch.Tag.nondeterministic_seeded in function.tags or (
                name.startswith("index") and _by_a_mask(arguments)):
            stub.refuse(function._schema.name)
        result = function(*arguments, **named)
        shapes = tuple(tuple(t.shape) for t in tree_leaves(result) if isinstance(t, torch.Tensor))
        if threading.current_thread() is threading.main_thread():
            stub.trail.append((name, shapes))
        if stub.capturing:
            stub.capturing.tape.append((function, *tree_map(_alias, (arguments, named, result))))
            if stub.capture_error and len(stub.capturing.tape) == 50:
                raise stub.capture_error
        return result


def _alias(value: Any) -> Any:
    """Of the same memory; autograd counts the references to a tensor itself, and copies a gradient that somebody holds."""
    return value.detach() if isinstance(value, torch.Tensor) else value


def _is_cuda(value: Any) -> bool:
    return isinstance(value, torch.device | str) and str(value).startswith("cuda")


def _by_a_mask(arguments: tuple) -> bool:
    return any(isinstance(t, torch.Tensor) and t.dtype == torch.bool for t in tree_leaves(arguments[1:2]))


@contextmanager
def _on_stream(stream: Stream) -> Iterator[None]:
    stub = NOW[-1]
    stub.note("warm-up")
    before, stub.stream, stub.trail = stub.stream, stream, []
    yield
    stub.stream = before
    stub.unjoined.add(stream)


def _health_check(optimiser: torch.optim.Optimizer) -> None:
    """As PyTorch's own, where it sees a GPU."""
    if NOW[-1].capturing and not all(group.get("capturable", True) for group in optimiser.param_groups):
        raise RuntimeError(f"Attempting CUDA graph capture of step() for an instance of {type(optimiser).__name__} but "
                           "param_groups' capturable is False.")


@contextmanager
def pretend_cuda() -> Iterator[Stub]:
    """One GPU, "cuda:0", as far as the code in it can tell."""
    stub, autocast, collect = Stub(), torch.autocast, gc.collect

    def set_device(device) -> None:
        stub.note(f"set_device {_get_device_index(device)}")  # PyTorch's own rule: a device without a number is a ValueError

    def compiled(function, **how):
        stub.note("compile")

        def call(*arguments, **named):
            if stub.compile_error:
                raise stub.compile_error
            return function(*arguments, **named)

        return call

    def collecting(*arguments) -> int:
        stub.note("gc")
        return collect(*arguments)

    def autocasting(kind, **how):
        return autocast("cpu" if kind == "cuda" else kind, **how)

    def synchronize(device=None) -> None:
        stub.refuse("synchronize")

    def set_stream(stream: Stream) -> None:
        stub.stream = stream

    cuda = {"is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0, "set_device": set_device,
            "Stream": Stream, "stream": _on_stream, "current_stream": lambda device=None: stub.stream, "set_stream": set_stream,
            "CUDAGraph": Graph, "graph": Capture, "graph_pool_handle": lambda: (0, 1), "synchronize": synchronize,
            "empty_cache": lambda: stub.note("empty_cache"), "get_device_name": lambda device=None: "a pretended GPU",
            "is_current_stream_capturing": lambda: stub.capturing is not None}
    with ExitStack() as stack:
        for name, replacement in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, replacement))
        for name in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
            if inspect.getattr_static(torch.optim.Optimizer, name, None):
                stack.enter_context(mock.patch.object(torch.optim.Optimizer, name, _health_check))
        stack.enter_context(mock.patch.object(torch, "compile", compiled))
        stack.enter_context(mock.patch.object(torch, "autocast", autocasting))
        stack.enter_context(mock.patch.object(gc, "collect", collecting))
        for settings, name in ((torch.backends.cudnn, "benchmark"), (torch.backends.cudnn, "allow_tf32")):
            stack.callback(setattr, settings, name, getattr(settings, name))
        NOW.append(stub)
        stack.callback(NOW.pop)
        stack.enter_context(Redirect(stub))
        stack.enter_context(Watch(stub))
        yield stub
