"""Classifying: from the start to the first answer, photos a second, and where the time goes.

    python -m benchmarks.classifying data/sample/eval/images

Five ResNet18 with random weights, or the networks in --networks, on the photos of a folder. `ours`
is the command `stages.classify`, `reference` the same networks, asked for one photo after another
in a plain loop. Each is a process of its own; medians over the repeats are printed. Seconds to the
first answer are those of one photo alone, the start of Python included. CPU seconds are those of
all the command's processes, which a machine that others use too disturbs least; there, compare with
OMP_NUM_THREADS=1, because the loop's threads wait for each other.
"""

import gc
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from stages.classify import list_photos
from stages.classifying import MOST_AT_ONCE, find_networks
from stages.faces.boxes import CENTRE
from stages.faces.cut import cut
from stages.faces.detect import find_faces, one_thread
from stages.learning.device import be_deterministic, choose_hardware
from stages.learning.ensemble import Ensemble, predict_batch, read_networks
from stages.learning.network import build
from stages.learning.recipe import Recipe
from stages.learning.weight_files import write_weights
from stages.params import read_params
from stages.photos.opening import open_photo

Result = TypeVar("Result")


def write_networks(folder: Path, size: int) -> None:
    """Five networks for crops of that size, that have learned nothing."""
    recipe = Recipe(
        model="resnet18",
        heads="split",
        flip_at_test=True,
        zoom_at_test=0.0,
        age_edges=[30, 60],
        crop=read_params().crop.model_copy(update={"side": size}),
        fallback=None,
    )
    for fold in range(5):
        state = build(recipe.model, size, recipe.heads, seed=fold).state_dict()
        write_weights(folder / f"fold{fold}/network.safetensors", state, recipe)


def run(command: Sequence[str]) -> dict[str, float]:
    """Run a command that prints a line an answer: seconds to the first, rate of the others, CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, marks = time.perf_counter(), list[float]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in process.stdout:
            marks.append(time.perf_counter() - start)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    answers = marks[1:]  # without the header
    return {
        "first": answers[0],
        "rate": (len(answers) - 1) / max(answers[-1] - answers[0], 1e-9),
        "cpu": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
    }


def reference(paths: Sequence[Path], networks: Path) -> None:
    """Ask the networks for one photo after another, and print a line for each."""
    gc.freeze()  # as stages do (`stages/command.py`)
    be_deterministic()
    hardware = choose_hardware("auto", "auto", "device")
    asked, recipe = read_networks(list(find_networks(networks, None).values()), hardware)
    ensemble = Ensemble(asked, recipe)
    print("header", flush=True)
    for path in paths:
        photo = open_photo(path)
        boxes, _ = find_faces(photo, recipe.crop)
        crop = cut(photo, boxes[0] if len(boxes) else CENTRE, recipe.crop)
        pixels = torch.from_numpy(crop.copy())[None]
        print(predict_batch(ensemble, pixels, hardware).argmax().item(), flush=True)


def split_of_time(paths: Sequence[Path], networks: Path) -> dict[str, float]:
    """Milliseconds of CPU a photo takes in each step, in one thread."""
    one_thread()
    hardware = choose_hardware("auto", "auto", "device")
    asked, recipe = read_networks(list(find_networks(networks, None).values()), hardware)
    ensemble = Ensemble(asked, recipe)
    spent = dict.fromkeys(("decode", "detect", "cut", "networks"), 0.0)

    def timed(step: str, work: Callable[..., Result], *arguments: object) -> Result:
        start = time.process_time()
        result = work(*arguments)
        spent[step] += time.process_time() - start
        return result

    crops = []
    for path in paths:
        photo = timed("decode", open_photo, path)
        boxes, _ = timed("detect", find_faces, photo, recipe.crop)
        box = boxes[0] if len(boxes) else CENTRE
        crops.append(timed("cut", cut, photo, box, recipe.crop))
    for batch in torch.from_numpy(np.stack(crops)).split(MOST_AT_ONCE):
        timed("networks", predict_batch, ensemble, batch, hardware)
    return {step: 1000 * seconds / len(paths) for step, seconds in spent.items()}


def main(
    photos: Annotated[Path, typer.Argument(help="Folder of photos")],
    networks: Annotated[
        Path | None, typer.Option(help="Folder with fold0/..., as data/train")
    ] = None,
    size: Annotated[int, typer.Option(help="Of the crops, for networks made here")] = 96,
    count: Annotated[int, typer.Option(help="Photos")] = 200,
    repeats: Annotated[int, typer.Option(help="Runs of each contender")] = 3,
    contender: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Compare `stages.classify` with a plain loop on PHOTOS."""
    paths = list(islice(list_photos([photos]), count))
    if contender and networks:
        return reference(paths, networks)
    with tempfile.TemporaryDirectory() as folder:
        if networks is None:
            networks = Path(folder)
            write_networks(networks, size)
        ours = [sys.executable, "-m", "stages.classify", "--networks", str(networks)]
        ours += ["--fallback", "--csv", "-"]
        plain = [sys.executable, "-m", "benchmarks.classifying", str(photos), "--networks"]
        plain += [str(networks), "--contender", "reference", "--count"]
        commands = {
            "reference": ([*plain, "1"], [*plain, str(count)]),
            "ours": ([*ours, str(paths[0])], [*ours, *map(str, paths)]),
        }
        runs: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {}
        for _ in range(repeats):
            for name, (one, many) in commands.items():
                runs.setdefault(name, []).append((run(one), run(many)))
        table = Table("", "first answer", "its CPU", "photos/s", "CPU a photo")
        for name, results in runs.items():
            first = statistics.median(one["first"] for one, _ in results)
            cpu = statistics.median(one["cpu"] for one, _ in results)
            rate = statistics.median(many["rate"] for _, many in results)
            each = statistics.median(
                (many["cpu"] - one["cpu"]) / (count - 1) for one, many in results
            )
            table.add_row(
                name, f"{first:.1f} s", f"{cpu:.1f} s", f"{rate:.1f}", f"{1000 * each:.0f} ms"
            )
        Console().print(table)
        spent = split_of_time(paths, networks)
    steps = ", ".join(f"{step} {milliseconds:.1f}" for step, milliseconds in spent.items())
    print(f"CPU milliseconds a photo, in one thread: {steps}")
    return None


if __name__ == "__main__":
    typer.run(main)
