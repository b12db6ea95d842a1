"""Check and time training on a GPU, in about two minutes, on a machine without internet.

    python -m benchmarks.gpu           # right first, then fast; ends with a row for docs/results.md
    python -m benchmarks.gpu --cpu     # all that goes without a GPU, tiny

Checks: float32 is float32, the same seed gives the same bytes, a resumed run too, predictions agree
with the CPU's, memory that runs out, batches from the host, lower precision, steps as CUDA graphs.
Speed, in photos per second: the project's epoch with all that belongs to it, also without graphs
and in bfloat16; a plain eager step on one batch that is already there, without augmentation; a loop
that a `DataLoader` with decoding workers feeds; a whole fold. Exit code 1 if a check failed.
"""

import argparse
import dataclasses
import gc
import hashlib
import io
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

NEEDED = {  # module: package
    "filelock": "filelock",
    "numpy": "numpy",
    "pandas": "pandas",
    "PIL": "pillow",
    "psutil": "psutil",
    "pydantic": "pydantic",
    "ruamel": "ruamel.yaml",
    "torchvision": "torchvision",
    "tqdm": "tqdm",
}
"""What the checks import besides torch; the stages need all of requirements.txt."""

if missing := [package for module, package in NEEDED.items() if find_spec(module) is None]:
    python = ".".join(map(str, sys.version_info[:2]))
    sys.exit(
        f"error: missing here: {', '.join(missing)}. Where there is internet: pip install --target "
        f"carried -c constraints.txt --only-binary=:all: --python-version {python} --platform "
        f"manylinux_2_17_x86_64 --platform manylinux_2_28_x86_64 {' '.join(missing)}; copy the "
        "folder `carried` here and run: PYTHONPATH=carried python -m benchmarks.gpu"
    )

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from face_attributes.networks.build import build  # noqa: E402
from face_attributes.networks.device import Hardware, prepare_hardware  # noqa: E402
from face_attributes.networks.freezing import freeze, set_train_modes  # noqa: E402
from face_attributes.networks.views import IMAGENET_MEAN, IMAGENET_STD, normalise  # noqa: E402
from face_attributes.params import TrainParams, read_params  # noqa: E402
from face_attributes.photos import packed  # noqa: E402
from face_attributes.photos.labels import NUM_CLASSES  # noqa: E402
from face_attributes.photos.packed import read_packed, write_packed  # noqa: E402
from face_attributes.training.checkpoint import Checkpoint  # noqa: E402
from face_attributes.training.feature_store import FeatureStore  # noqa: E402
from face_attributes.training.graphed_step import GraphedStep, Step  # noqa: E402
from face_attributes.training.imbalance import class_counts  # noqa: E402
from face_attributes.training.inputs import (  # noqa: E402
    Inputs,
    Photos,
    load_photos,
    plain_views,
    prepare_inputs,
)
from face_attributes.training.loop import (  # noqa: E402
    Fold,
    TrainingRun,
    backward_in_micro_batches,
    fit,
    make_step,
    start_run,
    take_step,
    train_epoch,
)

CPU = Hardware(torch.device("cpu"), torch.float32)
PHOTOS, FOLDS, EPOCHS = 19_000, 5, 20
"""The run whose time is estimated."""
TARGETS = {
    "H100": {"224 px": 13_000, "96 px": 30_000, "run": 180},
    "H200": {"224 px": 18_000, "96 px": 35_000, "run": 130},
}
"""Photos per second of the project's epoch, and seconds of the run."""
RATIOS = {"224 px": 1.3, "96 px": 2.5, "workers": 2.5}
"""Targets against the plain step at each side, and against the decoding workers at 224 px."""

PAGE = 2**21
"""Bytes of which torch's allocator asks CUDA for multiples."""

START = time.perf_counter()


class NotMeasured(Exception):  # noqa: N818
    """Why a check or a time could not be taken here."""


# ---------------------------------------------------------------------------------- small data


def make_photos(count: int, side: int, hardware: Hardware) -> Photos:
    """Noisy crops of 18 classes that can be told apart, on the device."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % NUM_CLASSES
    pattern = torch.randint(40, 216, (NUM_CLASSES, 3, 4, 4), generator=generator).float()
    pattern = functional.interpolate(pattern, (side, side), mode="bilinear").permute(0, 2, 3, 1)
    noise = torch.randint(-40, 40, (count, side, side, 3), generator=generator)
    pixels = (pattern[labels] + noise).to(torch.uint8)
    return Photos(pixels.to(hardware.device), labels.to(hardware.device), f"{count} {side}")


def change(params: TrainParams, **changes: Any) -> TrainParams:
    """The parameters with changes, by their keys below `train`."""
    sections = dict[str, Any]()
    for key, value in changes.items():
        *section, name = key.split(".")
        if section:
            own = sections.get(section[0], getattr(params, section[0]))
            name, value = section[0], own.model_copy(update={name: value})
        sections[name] = value
    return params.model_copy(update=sections)


def make_network(side: int, hardware: Hardware) -> nn.Module:
    network: nn.Module = build("resnet18", side, seed=0)
    return network.to(memory_format=torch.channels_last).to(hardware.device)


def make_fold(photos: Photos, hardware: Hardware) -> Fold:
    """Every fifth photo is held out."""
    rows = torch.arange(len(photos), device=hardware.device)
    targets = functional.one_hot(photos.labels, NUM_CLASSES).float()
    return Fold(0, rows[rows % 5 != 0], rows[rows % 5 == 0], targets)


def make_run(
    photos: Photos, params: TrainParams, hardware: Hardware
) -> tuple[TrainingRun, Inputs, Fold]:
    """A run of EPOCHS at its start, which trains on all photos, and its inputs."""
    params = change(params, epochs=EPOCHS)
    network = make_network(photos.pixels.shape[1], hardware)
    targets = functional.one_hot(photos.labels, NUM_CLASSES).float()
    rows = torch.arange(len(photos), device=hardware.device)
    fold = Fold(0, rows, rows[:0], targets)
    run = start_run(network, fold, params, hardware.loss_scaler())
    set_train_modes(network)
    return run, Inputs(photos, params, hardware, None, network), fold


def digest(tensors: Iterable[Tensor]) -> str:
    """A hash of all values."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:12]


def fit_whole(
    photos: Photos, params: TrainParams, hardware: Hardware, folder: str, kill_after: int = 0
) -> tuple[str, list[str]]:
    """Fit a fold as the stage `train` does: a hash of the weights, and the reported lines.

    It resumes from the checkpoint in `folder`, and stops after `kill_after` epochs as if killed.
    """
    network = make_network(photos.pixels.shape[1], hardware)
    store = FeatureStore(Path(folder) / "features", 10**10)
    checkpoint, lines = Checkpoint(Path(folder) / "checkpoint", "benchmark"), list[str]()

    def report(line: str) -> None:
        lines.append(line)
        if kill_after and line.startswith(f"epoch {kill_after}/"):
            checkpoint.wait()
            raise InterruptedError

    make_inputs = partial(
        prepare_inputs, photos=photos, params=params, hardware=hardware, store=store
    )
    freeze(network, params.freeze)
    try:
        scaler = hardware.loss_scaler()
        fold = make_fold(photos, hardware)
        fit(network, fold, make_inputs, params, checkpoint, report, scaler)
    except InterruptedError:
        return "", lines
    return digest(network.state_dict().values()), lines


# -------------------------------------------------------------------------------------- checks


def check_float32(hardware: Hardware, params: TrainParams, side: int) -> str:
    """Gradients of one batch against float64, and the settings of both versions of torch."""
    backends: Any = torch.backends
    for name, setting in {"all": backends, "convolutions": backends.cudnn.conv}.items():
        assert setting.fp32_precision == "ieee", f"{name}: {setting.fp32_precision}"
    photos = make_photos(16, side, CPU)
    assert isinstance(photos.pixels, Tensor)
    images, targets = normalise(photos.pixels), functional.one_hot(photos.labels, NUM_CLASSES)

    def gradient(kind: Hardware, network: nn.Module, batch: Tensor) -> Tensor:
        set_train_modes(network)
        with kind.forward_pass():
            logits = network(batch)
        shares = targets.to(logits.device, logits.dtype)
        (-(shares * logits.log_softmax(1)).sum(1).mean()).backward()
        return torch.cat([p.grad.flatten().cpu().double() for p in network.parameters()])  # type: ignore[union-attr]

    exact = gradient(CPU, build("resnet18", side, seed=0).double(), images.double())
    apart = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        kind = Hardware(hardware.device, dtype)
        found = gradient(kind, make_network(side, kind), images.to(kind.device))
        apart[str(dtype).removeprefix("torch.")] = float((found - exact).norm() / exact.norm())
    text = "gradients against float64: " + ", ".join(f"{k} {v:.0e}" for k, v in apart.items())
    # TF32 would be as far apart as float16, of the same mantissa. What float32 is apart comes from
    # a few pixels that win a pooling by less than its last digit.
    assert apart["float32"] < apart["float16"] / 10, text
    return text


def check_reproducible(hardware: Hardware, params: TrainParams, side: int) -> str:
    """The same seed twice, and a run that is killed after an epoch and resumed."""
    photos, lines = make_photos(20 if side < 64 else 640, side, hardware), list[str]()
    strengths = {"rotation": 9.0, "zoom": 0.1, "camera": 0.5, "occlusion": 0.5, "mixup": 0.4}
    everything = {f"augmentation.{key}": value for key, value in strengths.items()}
    cases: dict[str, dict[str, Any]] = {
        "shipped": {},
        "all augmentation": everything,
        "layer2 cached": {"freeze": "layer2", "cached_views": 2},
    }
    for name, changes in cases.items():
        changed = change(params, epochs=2, patience=9, **changes)
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            first, _ = fit_whole(photos, changed, hardware, one)
            fit_whole(photos, changed, hardware, two, kill_after=1)
            resumed, said = fit_whole(photos, changed, hardware, two)
        assert said[0] == "resuming after epoch 1/2", said
        assert first == resumed, f"{name}: {first}, and when resumed {resumed}"
        lines.append(f"{name} {first}")
    return "the same bytes twice, once resumed: " + ", ".join(lines)


def check_predictions(hardware: Hardware, params: TrainParams, side: int) -> str:
    """The device's predictions against the CPU's in float32."""
    found = {}
    for name, kind in {
        "cpu": CPU,
        "float32": Hardware(hardware.device, torch.float32),
        "auto": hardware,
    }.items():
        photos = make_photos(40, side, kind)
        inputs = Inputs(photos, params, kind, None, make_network(side, kind))
        rows = torch.arange(len(photos), device=kind.device)
        found[name] = inputs.predict(rows, plain_views(params))
    exact, half = (float((found["cpu"] - found[k]).abs().max()) for k in ("float32", "auto"))
    assert exact < 2e-3 and half < 0.3, f"float32 {exact:.1e}, {hardware.dtype} {half:.1e} apart"
    return f"log-probabilities apart: float32 {exact:.0e}, {hardware.dtype} {half:.0e}"


def check_precision(hardware: Hardware, params: TrainParams, side: int) -> str:
    """Training in lower precision, with loss scaling in float16, learns as in float32."""
    on_gpu(hardware)  # on a CPU, float16 takes seconds for a step
    losses = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        kind = Hardware(hardware.device, dtype)
        photos = make_photos(640, side, kind)
        with tempfile.TemporaryDirectory() as folder:
            _, lines = fit_whole(photos, change(params, epochs=4, patience=9), kind, folder)
        losses[dtype] = float(lines[-1].split("loss ")[1].split(",")[0])
    exact, *others = losses.values()
    found = "training loss after 4 epochs: " + ", ".join(f"{k} {v}" for k, v in losses.items())
    assert all(abs(other - exact) < 0.25 * exact for other in others), found
    return found.replace("torch.", "")


def check_host(hardware: Hardware, params: TrainParams, side: int) -> str:
    """Packed crops that stay on the host, in several shards, give the same bytes as on the GPU."""
    on_gpu(hardware)
    made, hashes = make_photos(640, side, CPU), set()
    assert isinstance(made.pixels, Tensor)
    with (
        tempfile.TemporaryDirectory() as crops,
        patch.object(packed, "SHARD_BYTES", 200 * side * side * 3),
    ):
        write_packed(Path(crops), made.pixels.numpy(), len(made), side)
        resident = load_photos(Path(crops), made.labels.numpy(), hardware)
        assert isinstance(resident.pixels, Tensor) and resident.pixels.cpu().equal(made.pixels)
        waiting = dataclasses.replace(resident, pixels=read_packed(Path(crops)))
        for photos in (resident, waiting):
            with tempfile.TemporaryDirectory() as folder:
                hashes.add(fit_whole(photos, change(params, epochs=1), hardware, folder)[0])
    assert len(hashes) == 1, hashes
    return f"the same bytes as from the GPU: {hashes.pop()}"


def check_memory(hardware: Hardware, params: TrainParams, side: int) -> str:
    """Steps, predictions and features with 4 to 0.4 times the memory that they want."""
    on_gpu(hardware)
    batch, found = 256, list[str]()
    photos, params = make_photos(batch, 2 * side, hardware), change(params, batch_size=batch)

    def work() -> tuple[int, int]:
        """Everything; the size of the micro-batches at the end, and the number of graphs."""
        run, inputs, fold = make_run(photos, params, hardware)
        step = make_step(run, inputs, fold)
        for _ in range(3):
            train_epoch(run, inputs, fold, step)
        inputs.predict(fold.training, plain_views(params))
        assert isinstance(step, GraphedStep)
        graphs = len(step.recordings)
        del step
        freeze(run.network, "layer2")
        with tempfile.TemporaryDirectory() as folder:
            store = FeatureStore(Path(folder), 10**10)
            prepare_inputs(run.network, photos, change(params, cached_views=1), hardware, store)
        return run.micro_batch, graphs

    with redirect_stdout(io.StringIO()):  # the lines about micro-batches
        run, inputs, fold = make_run(photos, params, hardware)
        torch.cuda.reset_peak_memory_stats()
        train_epoch(run, inputs, fold, eager_step(run, inputs, fold))
        wanted = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        del run, inputs, fold
        for share in (4.0, 0.6, 0.4):
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            free, _ = torch.cuda.mem_get_info()
            # In whole pages of the allocator, which could not give back one with a remainder.
            pages = (free - round(share * wanted)) // PAGE
            held = torch.empty(pages * PAGE, dtype=torch.uint8, device=hardware.device)
            micro_batch, graphs = work()
            assert graphs == (share > 1), f"{graphs} graphs at {share:.0%}"
            del held
            torch.cuda.reset_peak_memory_stats()  # later steps are not to take it for theirs
            assert micro_batch >= min(batch, batch * share / 4), f"{micro_batch} at {share:.0%}"
            found.append(f"{share:.0%}: micro-batches of {micro_batch}, {graphs} graphs")
    return f"of {wanted / 1e9:.1f} GB for batches of {batch}: " + "; ".join(found)


def check_synchronisations(hardware: Hardware, params: TrainParams, side: int) -> str:
    """How often an epoch of 12 steps waits for the GPU: seldom, not in each step."""
    on_gpu(hardware)
    steps, batch = 12, 16
    params = change(params, batch_size=batch)
    run, inputs, fold = make_run(make_photos(steps * batch, side, hardware), params, hardware)
    step = make_step(run, inputs, fold)
    train_epoch(run, inputs, fold, step)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            train_epoch(run, inputs, fold, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchron" in str(w.message)]
    counts = {place: places.count(place) for place in sorted(set(places))}
    assert max(counts.values(), default=0) < steps, counts
    return f"in {steps} steps: {counts or 'none'}"


def eager_step(run: TrainingRun, inputs: Inputs, fold: Fold) -> Step:
    """The project's step, never as a CUDA graph."""
    counts = class_counts(inputs.photos.labels[fold.training])
    return partial(take_step, run, inputs, counts, backward_in_micro_batches)


class WithDropout(nn.Module):
    """A network with dropout, whose forward pass may wait for the GPU."""

    def __init__(self, network: nn.Module, waits: bool = False) -> None:
        super().__init__()
        self.network, self.waits = network, waits

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = functional.dropout(self.network(images), 0.1, self.training)
        return logits * (2 if self.waits and logits[0, 0].item() == math.inf else 1)


def train_both_ways(
    photos: Photos,
    params: TrainParams,
    hardware: Hardware,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    scale: float = 2.0**16,
) -> tuple[str, int]:
    """Train two epochs with eager steps and with `make_step`, whose bytes must be the same.

    Args:
        wrap: changes the network.
        scale: of the loss in float16, at first.

    Returns:
        A hash of weights, moving average, moments and steps, and the number of CUDA graphs.
    """
    hashes, step = [], None
    for make in (eager_step, make_step):
        run, inputs, fold = make_run(photos, params, hardware)
        if run.scaler.is_enabled():
            run.scaler = torch.amp.GradScaler(hardware.device.type, init_scale=scale)
        inputs = dataclasses.replace(inputs, rest=wrap(inputs.rest))
        step = make(run, inputs, fold)
        for _ in range(2):
            train_epoch(run, inputs, fold, step)
        moments = [each for state in run.optimizer.state.values() for each in state.values()]
        network = run.network.state_dict().values()
        hashes.append(digest([*network, *run.average.values(), *moments, run.steps]))
    assert hashes[0] == hashes[1], f"in {hardware.dtype}: {hashes}"
    assert isinstance(step, GraphedStep)
    return hashes[0], len(step.recordings)


def check_graphs(hardware: Hardware, params: TrainParams, side: int) -> str:
    """Steps as CUDA graphs give the same bytes as eager ones."""
    on_gpu(hardware)
    photos, params = make_photos(140, side, hardware), change(params, batch_size=16)
    cases: dict[str, dict[str, Any]] = {
        "AdamW": {},
        "averaged, mixup": {"optimizer.ema": 0.9, "augmentation.mixup": 0.4},
        "SGD": {"optimizer.name": "sgd"},
    }
    hashes = []
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        kind = Hardware(hardware.device, dtype)
        for name, changes in cases.items():
            case = f"{name}, {str(dtype).removeprefix('torch.')}"
            hashed, graphs = train_both_ways(photos, change(params, **changes), kind)
            assert graphs == 2, f"{case}: {graphs} graphs, for batches of 15 and of 16"
            hashes.append(f"{case} {hashed}")
    hashes.append(f"dropout {train_both_ways(photos, params, hardware, WithDropout)[0]}")
    half = Hardware(hardware.device, torch.float16)
    skipping = train_both_ways(photos, params, half, scale=2.0**22)
    return f"the same bytes: {'; '.join(hashes)}; with skipped steps {skipping[0]}"


def check_without_graphs(hardware: Hardware, params: TrainParams, side: int) -> str:
    """Steps that cannot be recorded are eager. The last check: it may leave torch without order.

    (Before 2.12, torch's allocator gives back no memory after a recording that failed.)
    """
    on_gpu(hardware)
    photos, params = make_photos(140, side, hardware), change(params, batch_size=16)
    with redirect_stdout(io.StringIO()) as output:
        hashed, graphs = train_both_ways(photos, params, hardware, partial(WithDropout, waits=True))
    said = output.getvalue()
    assert graphs == 0 and said.startswith("note: training without CUDA graphs"), said
    return f"the same bytes: {hashed}"


CHECKS = (
    check_float32,
    check_predictions,
    check_reproducible,
    check_precision,
    check_host,
    check_memory,
    check_synchronisations,
    check_graphs,
)


def on_gpu(hardware: Hardware) -> None:
    """Stop a check that needs a GPU.

    Raises:
        NotMeasured: without one.
    """
    if hardware.device.type != "cuda":
        raise NotMeasured("there is no GPU")


# --------------------------------------------------------------------------------------- speed


def photos_per_second(work: Callable[[], object], photos: int, repeats: int = 3) -> float:
    """Median speed of a function that goes through so many photos, after a first call."""
    times = []
    for _ in range(repeats + 1):
        synchronise()
        start = time.perf_counter()
        work()
        synchronise()
        times.append(time.perf_counter() - start)
    return photos / statistics.median(times[1:])


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def free_choice_of_algorithms() -> Iterator[None]:
    """As a plain script would run: not deterministic, and cuDNN tries what is fastest."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


def plain_step(network: nn.Module, hardware: Hardware) -> Callable[[Tensor, Tensor], None]:
    """A training step as in a plain script: on a GPU in bfloat16, fused AdamW, and no more."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    network.train()
    half = hardware.device.type == "cuda"

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.autocast(hardware.device.type, torch.bfloat16, enabled=half):
            loss = functional.cross_entropy(network(images), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def random_photos(hardware: Hardware, side: int, count: int) -> Photos:
    """Photos of noise on the device, of all classes in turn."""
    device = hardware.device
    pixels = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, device=device)
    return Photos(pixels, torch.arange(count, device=device) % NUM_CLASSES, "random")


def time_training(
    hardware: Hardware, params: TrainParams, side: int, batch: int, steps: int
) -> dict[str, float]:
    """Photos per second of the project's epoch, its predictions, and a plain eager step."""
    count, params = steps * batch, change(params, batch_size=batch)
    photos = random_photos(hardware, side, count)

    def epoch(kind: Hardware, make: Callable[[TrainingRun, Inputs, Fold], Step]) -> float:
        run, inputs, fold = make_run(photos, params, kind)
        step = make(run, inputs, fold)
        return photos_per_second(lambda: train_epoch(run, inputs, fold, step), count)

    speeds = {"epoch": epoch(hardware, make_step)}
    if hardware.device.type == "cuda":
        speeds["eager"] = epoch(hardware, eager_step)
        speeds["bfloat16"] = epoch(Hardware(hardware.device, torch.bfloat16), make_step)
    _, inputs, fold = make_run(photos, params, hardware)
    views = plain_views(params)
    speeds["prediction"] = photos_per_second(lambda: inputs.predict(fold.training, views), count)
    with free_choice_of_algorithms():
        take = plain_step(make_network(side, hardware), hardware)
        assert isinstance(photos.pixels, Tensor)
        images, labels = normalise(photos.pixels[:batch]), photos.labels[:batch]
        speeds["plain step"] = photos_per_second(
            lambda: [take(images, labels) for _ in range(steps)], count
        )
    return speeds


def time_fold(hardware: Hardware, params: TrainParams, side: int, batch: int) -> float:
    """Seconds in which a fold is fitted to photos that are on the device."""
    photos = random_photos(hardware, side, PHOTOS)
    params = change(params, epochs=EPOCHS, patience=EPOCHS, batch_size=batch)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        fit_whole(photos, params, hardware, folder)
        return time.perf_counter() - start


class Jpegs(Dataset[tuple[Tensor, int]]):
    """JPEG files, opened and augmented one by one, as in torchvision's examples."""

    def __init__(self, folder: Path, files: int, count: int, side: int) -> None:
        self.count = count
        shift = round(0.08 * side)
        self.transform = v2.Compose(
            [
                v2.Resize(side), v2.CenterCrop(side), v2.ToImage(),
                v2.RandomCrop(side, shift, padding_mode="edge"), v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.2), v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD)),
            ]
        )  # fmt: skip
        rng = np.random.default_rng(0)
        self.paths = [folder / f"{number}.jpg" for number in range(files)]
        for path in self.paths:
            small = Image.fromarray(rng.integers(0, 256, (32, 24, 3), dtype=np.uint8))
            small.resize((384, 512)).save(path, quality=90)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index % len(self.paths)]) as image:
            return self.transform(image.convert("RGB")), index % NUM_CLASSES


def time_workers(hardware: Hardware, side: int, batch: int, steps: int, workers: int) -> float:
    """Photos per second of a loop fed by decoding workers, after its first batches."""
    take = plain_step(make_network(side, hardware), hardware)
    with tempfile.TemporaryDirectory() as folder, free_choice_of_algorithms():
        warm_up = 2 * workers  # batches that the workers prepare while they start
        data = Jpegs(Path(folder), 200, (steps + warm_up) * batch, side)
        loader = DataLoader(
            data, batch, True, num_workers=workers, pin_memory=hardware.device.type == "cuda"
        )
        start = 0.0
        for number, (images, labels) in enumerate(loader):
            if number == warm_up:
                synchronise()
                start = time.perf_counter()
            images = images.to(
                hardware.device, memory_format=torch.channels_last, non_blocking=True
            )
            take(images, labels.to(hardware.device, non_blocking=True))
        synchronise()
        return steps * batch / (time.perf_counter() - start)


def time_start(hardware: Hardware) -> float:
    """Seconds in which a process imports the training loop and opens the device."""
    start = time.perf_counter()
    code = (
        f"import torch, face_attributes.training.loop; torch.zeros(1, device='{hardware.device}')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


# -------------------------------------------------------------------------------------- report


def say(mark: str, name: str, text: str) -> None:
    print(f"[{time.perf_counter() - START:4.0f} s] {mark:4} {name}: {text}", flush=True)


def attempt(name: str, work: Callable[[], Any], budget: float) -> tuple[bool, Any]:
    """Do some work, unless the budget is spent, and say how it went.

    Returns:
        Whether it did not fail, and its result.
    """
    if time.perf_counter() - START > budget:
        say("----", name, "NOT MEASURED: out of time, raise --budget")
        return True, None
    try:
        result = work()
    except NotMeasured as reason:
        say("----", name, f"NOT MEASURED: {reason}")
        return True, None
    except Exception as error:
        say("FAIL", name, f"{type(error).__name__}: {error}"[:400])
        traceback.print_exc(limit=-4)
        return False, None
    finally:
        torch.cuda.empty_cache()
    say("ok", name, result if isinstance(result, str) else "done")
    return True, result


def figure(value: float | None, target: float | None = None, unit: str = "") -> str:
    """A number for a table, with its target."""
    text = "not measured" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
    return text + (unit if value is not None else "") + (f" ({target:,g})" if target else "")


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def main() -> None:
    """Run all checks, then the timings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cpu", action="store_true", help="a tiny run on the CPU")
    parser.add_argument(
        "--budget", type=float, default=280, help="seconds; then the rest is left out"
    )
    options = parser.parse_args()
    hardware = prepare_hardware("cpu" if options.cpu else "auto", "fp32" if options.cpu else "auto")
    cuda = hardware.device.type == "cuda"
    if not cuda and not options.cpu:
        sys.exit("error: no GPU can be used here, so NOTHING WAS MEASURED; --cpu checks the rest")
    name = torch.cuda.get_device_name(hardware.device) if cuda else "no GPU"
    cudnn = torch.backends.cudnn.version() if cuda else None
    say("ok", "machine", f"{name}, {hardware.dtype}, torch {torch.__version__}, cuDNN {cudnn}, "
        f"Python {sys.version.split()[0]}, {os.cpu_count()} cores")  # fmt: skip
    params = read_params(Path(__file__).parents[1] / "params.yaml").train
    side = 96 if cuda else 32
    good = [
        attempt(
            check.__name__.removeprefix("check_"),
            partial(check, hardware, params, side),
            options.budget,
        )[0]
        for check in CHECKS
    ]
    sizes = {"224 px": (224, 256, 20), "96 px": (96, 64, 40)} if cuda else {"32 px": (32, 8, 2)}
    speeds = {}
    for label, (width, batch, steps) in sizes.items():
        work = partial(time_training, hardware, params, width, batch, steps)
        well, found = attempt(f"speed, {label}, batch {batch}", work, options.budget)
        good.append(well)
        speeds[label] = found or {}
    large, (width, batch, steps) = next(iter(sizes.items()))
    workers = 16 if cuda else 1
    loop = partial(time_workers, hardware, width, batch, 2 * steps, workers)
    well, decoded = attempt(f"speed, {workers} decoding workers, {large}", loop, options.budget)
    good.append(well)
    well, start = attempt("start of a process", lambda: time_start(hardware), options.budget)
    good.append(well)
    seconds = None
    if cuda:
        fold = partial(time_fold, hardware, params, width, batch)
        well, seconds = attempt(f"a fold, {large}", fold, options.budget)
        good.append(well)
    last = partial(check_without_graphs, hardware, params, side)
    good.append(attempt("without graphs", last, options.budget)[0])
    report(name, hardware, speeds, decoded, start, seconds)
    if not cuda:
        print("NO GPU: nothing above says how fast or how right training is on one.")
    sys.exit(0 if all(good) else "error: checks failed, see FAIL above")


def report(
    name: str,
    hardware: Hardware,
    speeds: dict[str, dict[str, float]],
    decoded: float | None,
    start: float | None,
    fold: float | None,
) -> None:
    """Print the table of speeds, with targets in brackets, and the row for docs/results.md."""
    targets = next((each for key, each in TARGETS.items() if key in name), dict[str, int]())
    print(f"\nphotos per second, ResNet18, {hardware.dtype} (in brackets: target)")
    for label, found in speeds.items():
        epoch, plain = found.get("epoch"), found.get("plain step")
        print(
            f"{label:>7}: epoch {figure(epoch, targets.get(label))}, "
            f"eager {figure(found.get('eager'))}, "
            f"in bfloat16 {figure(found.get('bfloat16'))}, "
            f"plain step {figure(plain)}, "
            f"epoch / plain step {figure(ratio(epoch, plain), RATIOS.get(label), 'x')}, "
            f"prediction {figure(found.get('prediction'))}"
        )
    large, small = list(speeds.values())[0], list(speeds.values())[-1]
    workers = ratio(large.get("epoch"), decoded)
    print(
        f"decoding workers: {figure(decoded)}, "
        f"epoch / workers {figure(workers, RATIOS['workers'], 'x')}"
    )
    folds = FOLDS * (start + fold) if start and fold else None
    print(
        f"a fold of {EPOCHS} epochs, {PHOTOS:,} photos: {figure(fold, None, ' s')}; start of a "
        f"process: {figure(start, None, ' s')}; {FOLDS} folds, computed from both: "
        f"{figure(folds, targets.get('run'), ' s')}\n"
    )
    cells = [
        name,
        str(hardware.dtype).removeprefix("torch."),
        torch.__version__,
        figure(large.get("epoch"), targets.get("224 px")),
        figure(small.get("epoch"), targets.get("96 px")),
        figure(ratio(large.get("epoch"), large.get("plain step")), RATIOS["224 px"], "x"),
        figure(ratio(small.get("epoch"), small.get("plain step")), RATIOS["96 px"], "x"),
        figure(workers, RATIOS["workers"], "x"),
        figure(folds, targets.get("run"), " s"),
    ]
    if hardware.device.type == "cuda":
        print(
            "| GPU | precision | torch | 224 px, batch 256 | 96 px, batch 64 "
            "| against a plain step, 224 px | 96 px | against 16 workers | five folds |"
        )
        print("|" + "---|" * len(cells))
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
