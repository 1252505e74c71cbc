"""Images of a large set on their way to the device: decoded and augmented in worker processes, normalised on the device.

Crop, flip and jitter of an image depend on the run's seed, the epoch and the image's position in it alone, so an epoch is
the same on any number of processes and workers, and after a resume.
"""

import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from common.data.augment import normalise
from common.data.feed import generator_for
from common.data.large_sets import LargeSet
from common.data.lists import LargeImages, prepare_command
from common.data.pixels import eight_bit
from common.data.shares import EpochOrder, Span, evaluation_share, stream_name
from common.errors import UserError

# torchvision 0.29 says so at every image; where a later one has dropped its decoder, `read_image` needs Pillow's branch alone.
warnings.filterwarnings("ignore", "The image decoding and encoding capabilities of TorchVision", DeprecationWarning)

SHOWN = 10  # damaged images that a message names
AHEAD = 2  # batches that each worker prepares ahead
AREA = (0.08, 1.0)  # share of the image that a random-resized crop covers


class Batch(NamedTuple):
    """A process's share of a global batch. images: uint8 [streams, share, side, side, 3] on the CPU; index: which training
    images they are, int64 [streams, share]."""

    span: Span
    images: Tensor
    index: Tensor


class Key(NamedTuple):
    """One image that is to be read: its index in the list, and what its augmentation depends on."""

    index: int
    stream: str = ""
    epoch: int = 0
    position: int = 0


LIBJPEG = re.compile(r"jpeg|huffman|marker|segment|scan", re.IGNORECASE)
_passed_on: set[str] = set()  # the complaints of this process, each once
_decoding = Lock()  # the standard error of a process is one


@cache
def _heard(process: int) -> IO[bytes]:
    """The file that takes the standard error's place in a process; one that forks must not share it."""
    return tempfile.TemporaryFile()  # closed with the process


@contextmanager
def _overheard(path: Path, complaints: list[str] | None) -> Iterator[None]:
    """What libjpeg writes to the standard error meanwhile comes out with the file's name, once, or is appended to
    `complaints`: it decodes what it can of a damaged file, and says so without naming it."""
    with _decoding:
        try:
            heard, kept = _heard(os.getpid()), os.dup(2)
        except OSError:  # this process has none
            yield
            return
        os.dup2(heard.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if os.fstat(heard.fileno()).st_size:
                heard.seek(0)
                lines = heard.read().decode(errors="replace").splitlines()
                heard.seek(0)
                heard.truncate()
                for line in lines:
                    _pass_on(path, line, complaints)


def _pass_on(path: Path, line: str, complaints: list[str] | None) -> None:
    text = f"{path}: {line}" if LIBJPEG.search(line) else line
    if complaints is not None and text != line:
        complaints.append(text)
    elif text not in _passed_on:
        _passed_on.add(text)
        os.write(2, f"{text}\n".encode())


def read_image(path: Path, complaints: list[str] | None = None) -> Tensor:
    """A file as uint8 [3, height, width]; grey, CMYK and palette images become RGB. One that is missing or damaged is a
    UserError that names it.

    A JPEG that is damaged inside is decoded in part, as libjpeg does for every tool; what libjpeg complains of is printed with
    the file's name, or appended to `complaints`. The genuine sets have a few such files.
    """
    try:
        with _overheard(path, complaints):
            image = decode_image(str(path), mode=ImageReadMode.RGB)
        if image.dtype == torch.uint8 and image.dim() == 3:
            return image
    except (RuntimeError, ValueError):
        pass  # Pillow reads more kinds of files than libjpeg, and says better what is wrong with the others
    try:
        with Image.open(path) as file:
            return torch.from_numpy(eight_bit(file, "RGB")).permute(2, 0, 1)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; bring it back, and check the others with `python -m papers prepare`.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}); take another copy of this image.") from None


def train_transform(facts: LargeSet) -> nn.Module:
    """Crop, mirror and jitter of the training images, from the default generator."""
    crop = ([v2.RandomResizedCrop(facts.side, AREA, antialias=True)] if facts.crop == "random-resized" else
            [v2.Resize(facts.resize, antialias=True), v2.RandomCrop(facts.side)])
    jitter = [v2.ColorJitter(facts.jitter, facts.jitter, facts.jitter)] if facts.jitter else []
    return v2.Compose([*crop, v2.RandomHorizontalFlip(), *jitter])


def centre_transform(facts: LargeSet) -> nn.Module:
    """The centre square of the image whose shorter side was resized."""
    return v2.Compose([v2.Resize(facts.resize, antialias=True), v2.CenterCrop(facts.side)])


class _Files(Dataset):
    """Images by key; what is wrong with one is returned in its place, as the loader would bury an exception."""

    def __init__(self, root: Path, paths: np.ndarray, transform: nn.Module, seed: int | None = None):
        self.root, self.paths, self.transform, self.seed = root, paths, transform, seed

    def __getitem__(self, key: Key) -> Tensor | str:
        try:
            image = read_image(self.root / self.paths[key.index].decode())
        except UserError as error:
            return str(error)
        if self.seed is None:
            return self.transform(image).permute(1, 2, 0)
        # torchvision draws from the process's default generator: lend it the image's own stream
        default = torch.default_generator
        kept = default.get_state()
        default.manual_seed(generator_for(self.seed, f"augmentation{key.stream}/{key.epoch}", key.position).initial_seed())
        try:
            return self.transform(image).permute(1, 2, 0)
        finally:
            default.set_state(kept)


def _stack(items: list[Tensor | str], side: int) -> Tensor | str:
    """uint8 [images, side, side, 3], also of none; or the first complaint."""
    if complaint := next((item for item in items if isinstance(item, str)), None):
        return complaint
    return torch.stack(items) if items else torch.empty(0, side, side, 3, dtype=torch.uint8)


class _Batches:
    """What a loader is to read next. An object of its own: a loader in a cycle of references would be cleared away by the
    collector of cycles, which takes the workers' queues before the workers and then waits for these in vain."""

    keys: Sequence[list[Key]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


class _Loader:
    """A DataLoader whose workers live on from epoch to epoch, each of which has its own batches of keys."""

    def __init__(self, files: _Files, side: int, workers: int, pin: bool):
        self.batches = _Batches()
        self.loader = DataLoader(
            files, batch_sampler=self.batches, num_workers=workers, persistent_workers=workers > 0, pin_memory=pin,
            prefetch_factor=AHEAD if workers else None, collate_fn=partial(_stack, side=side),
            generator=torch.Generator(),  # else every epoch would draw from the default one
        )

    def read(self, batches: Sequence[list[Key]]) -> Iterator[Tensor]:
        """The images of every batch. What is wrong with one ends the workers and is a UserError."""
        self.batches.keys, complaint = batches, ""
        try:
            for images in self.loader:
                if isinstance(images, str):
                    complaint = images
                    break
                yield images
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            complaint = (f"A process that reads images was ended from outside ({' '.join(str(error).split())[:200]}); give the "
                         "machine more shared memory, or read with fewer --workers.")
        if complaint:  # raised out here, as an exception's context would keep the workers' queues alive
            self.close()
            raise UserError(complaint)

    def close(self) -> None:
        """End the workers."""
        self.loader = None


class TrainInput:
    """The training images of a set, for one run and one process. workers: processes that decode; 0 decodes in this one."""

    def __init__(self, images: LargeImages, facts: LargeSet, seed: int, workers: int, pin: bool):
        files = _Files(images.root, images.train_paths, train_transform(facts), seed)
        self._loader = _Loader(files, facts.side, workers, pin)

    def epoch(self, epoch: int, order: EpochOrder, spans: Sequence[Span]) -> Iterator[Batch]:
        """The process's share of each span, in order; to go on within an epoch, leave out the first spans."""
        names = [stream_name(k) for k in range(len(order.index))]
        for span, images in zip(spans, self._loader.read(_Keys(epoch, order, spans, names)), strict=True):
            yield Batch(span, images.unflatten(0, (len(names), span.share)), order.index[:, span.first:span.last])

    def close(self) -> None:
        """End the workers, after the last epoch."""
        self._loader.close()


class _Keys(Sequence):
    """The keys of every span, made when a worker is due for them: a whole epoch of them would be large."""

    def __init__(self, epoch: int, order: EpochOrder, spans: Sequence[Span], names: Sequence[str]):
        self.epoch, self.order, self.spans, self.names = epoch, order, spans, names

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, i: int) -> list[Key]:
        span = self.spans[i]
        return [Key(index, name, self.epoch, span.first + k)
                for name, indices in zip(self.names, self.order.index[:, span.first:span.last].tolist(), strict=True)
                for k, index in enumerate(indices)]


class TestInput:
    """The test images that process `rank` of `world` has to judge; each image is on exactly one process."""

    __test__ = False  # no test of pytest's

    def __init__(self, images: LargeImages, facts: LargeSet, rank: int, world: int, batch: int, workers: int, pin: bool):
        share = evaluation_share(len(images.test_paths), rank, world)
        self.parts = [share[i:i + batch] for i in range(0, len(share), batch)]
        self.labels = torch.from_numpy(images.test_labels)
        self._loader = _Loader(_Files(images.root, images.test_paths, centre_transform(facts)), facts.side, workers, pin)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images uint8 [batch, side, side, 3] and labels int64 [batch], on the CPU."""
        keys = [[Key(i) for i in part.tolist()] for part in self.parts]
        for part, images in zip(self.parts, self._loader.read(keys), strict=True):
            yield images, self.labels[part]

    def close(self) -> None:
        """End the workers, after the last test."""
        self._loader.close()


def synthetic(facts: LargeSet, images: int, spans: Sequence[Span], streams: int, pin: bool) -> Iterator[Batch]:
    """Random pixels in the form of `TrainInput.epoch`, without a disk: to measure the step alone.

    images: of the pretended training set, whose indices are drawn at random. All batches share their pixels.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (streams, max((s.share for s in spans), default=0), facts.side, facts.side, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    pixels = pixels.pin_memory() if pin else pixels
    for span in spans:
        yield Batch(span, pixels[:, :span.share], torch.randint(0, images, (streams, span.share), generator=generator))


def as_input(images: Tensor, facts: LargeSet, device: torch.device, dtype: torch.dtype) -> Tensor:
    """uint8 [images, side, side, 3] -> network input [images, 3, side, side] on the device, channels last in memory."""
    values = normalise(images.to(device, non_blocking=True), *_statistics(facts.mean, facts.std, device), dtype)
    return values.permute(0, 3, 1, 2)


@cache
def _statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation on the device, moved there once: a copy in every step would wait for the device."""
    return torch.tensor(mean, device=device), torch.tensor(std, device=device)


class _Complaints(Dataset):
    """What is wrong with each image, "" for nothing, and what libjpeg says of one that it decodes."""

    def __init__(self, root: Path, paths: np.ndarray):
        self.root, self.paths = root, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, list[str]]:
        complaints: list[str] = []
        try:
            read_image(self.root / self.paths[index].decode(), complaints)
        except UserError as error:
            return str(error), []
        return "", complaints


def check_decodable(images: LargeImages) -> None:
    """Decode every image of both splits on all cores; the damaged ones are one UserError, which names the first ten. Those of
    which libjpeg says something, as it does of a few in the genuine sets, are printed."""
    paths = np.concatenate([images.train_paths, images.test_paths])
    loader = DataLoader(_Complaints(images.root, paths), batch_size=64, num_workers=os.cpu_count() or 1, collate_fn=list,
                        generator=torch.Generator())
    results = [item for batch in loader for item in batch]
    if doubtful := [complaints[0] for _, complaints in results if complaints]:
        print(f"{len(doubtful):,} of {len(paths):,} images of {images.name} are decoded in part or with a complaint: "
              f"{'; '.join(doubtful[:SHOWN])}{'; and so on' * (len(doubtful) > SHOWN)}.")
    if wrong := [error for error, _ in results if error]:
        raise UserError(f"{len(wrong):,} of {len(paths):,} images of {images.name} cannot be read: {' '.join(wrong[:SHOWN])} "
                        f"Then run again: {prepare_command(images.name)} --check-images.")
