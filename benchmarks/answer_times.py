"""Benchmark classification: time to the first answer, photos per second, CPU time per step.

    python -m benchmarks.answer_times data/sample/eval/images

Classifies a folder of photos with five ResNet18 with random weights, or the networks in --networks.
`ours` is the command `commands.classify`; `reference` runs the same networks in a plain loop, one
photo at a time. Each runs in a separate process; medians over the repeats are printed. The time to
the first answer is for a single photo and includes starting Python; photos per second are those of
the others. CPU time is the sum over all processes of a command and depends least on other load; on
a busy machine, set OMP_NUM_THREADS=1, because the loop's threads wait for each other.
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

from commands.classify import PassedOver, find_photos
from face_attributes.command import user_command
from face_attributes.errors import UserError
from face_attributes.faces.boxes import WHOLE_PHOTO
from face_attributes.faces.cut import cut
from face_attributes.faces.detect import find_faces, use_one_thread
from face_attributes.inference.ensemble import Ensemble, predict_batch, read_networks
from face_attributes.inference.recognition import MAX_BATCH, find_networks
from face_attributes.networks.build import build
from face_attributes.networks.device import prepare_hardware
from face_attributes.networks.recipe import Recipe
from face_attributes.networks.weight_files import write_weights
from face_attributes.params import PredictionParams, read_params
from face_attributes.photos.opening import open_photo

FEWEST_PHOTOS = 50

Result = TypeVar("Result")


def write_networks(folder: Path, side: int) -> None:
    """Write five networks with random weights for crops of `side` pixels."""
    recipe = Recipe(
        model="resnet18",
        heads="split",
        prediction=PredictionParams(flip=True, zoom=0.0),
        age_edges=[30, 60],
        crop=read_params().crop.model_copy(update={"side": side}),
        fallback=None,
        temperature=1.0,
    )
    for fold in range(5):
        state = build(recipe.model, side, recipe.heads, seed=fold).state_dict()
        write_weights(folder / f"fold{fold}/network.safetensors", state, recipe)


def run(command: Sequence[str]) -> dict[str, float]:
    """Run a command that prints a header and then its answers.

    Returns:
        Seconds to the first answer and in all, CPU seconds.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        next(process.stdout)
        next(process.stdout)
        first = time.perf_counter() - start
        for _ in process.stdout:
            pass
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "first": first,
        "all": time.perf_counter() - start,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def reference(paths: Sequence[Path], networks: Path) -> None:
    """Classify one photo at a time, and print a line for each."""
    gc.freeze()  # as stages do (`face_attributes/command.py`)
    hardware = prepare_hardware("auto", "auto")
    loaded, recipes = read_networks(list(find_networks(networks, None).values()), hardware)
    ensemble, recipe = Ensemble(loaded, recipes), recipes[0]
    print("header", flush=True)
    for path in paths:
        photo = open_photo(path)
        faces = find_faces(photo, recipe.crop)
        box = faces.boxes[0] if len(faces.boxes) else WHOLE_PHOTO
        crop = cut(photo, box, faces.turn, recipe.crop)
        pixels = torch.from_numpy(crop.copy())[None]
        print(predict_batch(ensemble, pixels, hardware).argmax().item(), flush=True)


def cpu_per_step(paths: Sequence[Path], networks: Path) -> dict[str, float]:
    """Measure the CPU milliseconds per photo of each step, in one thread."""
    use_one_thread()
    hardware = prepare_hardware("auto", "auto")
    loaded, recipes = read_networks(list(find_networks(networks, None).values()), hardware)
    ensemble, recipe = Ensemble(loaded, recipes), recipes[0]
    spent = dict.fromkeys(("decode", "detect", "cut", "networks"), 0.0)

    def timed(step: str, work: Callable[..., Result], *arguments: object) -> Result:
        start = time.process_time()
        result = work(*arguments)
        spent[step] += time.process_time() - start
        return result

    crops = []
    for path in paths:
        photo = timed("decode", open_photo, path)
        faces = timed("detect", find_faces, photo, recipe.crop)
        box = faces.boxes[0] if len(faces.boxes) else WHOLE_PHOTO
        crops.append(timed("cut", cut, photo, box, faces.turn, recipe.crop))
    for batch in torch.from_numpy(np.stack(crops)).split(MAX_BATCH):
        timed("networks", predict_batch, ensemble, batch, hardware)
    return {step: 1000 * seconds / len(paths) for step, seconds in spent.items()}


@user_command
def main(
    photos: Annotated[Path, typer.Argument(help="Folder of photos")],
    networks: Annotated[
        Path | None, typer.Option(help="Folder with fold0/..., such as data/train")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the crops, for random networks")] = 96,
    count: Annotated[int, typer.Option(min=1, help="Number of photos")] = 200,
    repeats: Annotated[int, typer.Option(help="Runs of each contender")] = 3,
    contender: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Compare `commands.classify` with a plain loop on PHOTOS."""
    paths = list(islice(find_photos([photos], PassedOver()), count))
    if contender and networks:
        return reference(paths, networks)
    if len(paths) < FEWEST_PHOTOS:
        raise UserError(f"{len(paths)} photos take too short a time: at least {FEWEST_PHOTOS}")
    with tempfile.TemporaryDirectory() as folder:
        if networks is None:
            networks = Path(folder)
            write_networks(networks, size)
        ours = [sys.executable, "-m", "commands.classify", "--networks", str(networks)]
        ours += ["--fallback", "--csv", "-"]
        plain = [sys.executable, "-m", "benchmarks.answer_times", str(photos), "--networks"]
        plain += [str(networks), "--contender", "reference", "--count"]
        commands = {
            "reference": ([*plain, "1"], [*plain, str(len(paths))]),
            "ours": ([*ours, str(paths[0])], [*ours, *map(str, paths)]),
        }
        runs: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {}
        for _ in range(repeats):
            for name, (one, many) in commands.items():
                runs.setdefault(name, []).append((run(one), run(many)))
        table = Table("", "first answer", "CPU to first answer", "photos/s", "CPU per photo")
        for name, results in runs.items():
            first = statistics.median(one["first"] for one, _ in results)
            cpu = statistics.median(one["cpu"] for one, _ in results)
            more = len(paths) - 1
            rate = statistics.median(more / (many["all"] - one["all"]) for one, many in results)
            per_photo = statistics.median(
                (many["cpu"] - one["cpu"]) / more for one, many in results
            )
            table.add_row(
                name, f"{first:.1f} s", f"{cpu:.1f} s", f"{rate:.1f}", f"{1000 * per_photo:.0f} ms"
            )
        Console().print(table)
        spent = cpu_per_step(paths, networks)
    steps = ", ".join(f"{step} {milliseconds:.1f}" for step, milliseconds in spent.items())
    print(f"CPU milliseconds per photo, in one thread: {steps}")
    return None


if __name__ == "__main__":
    main()
