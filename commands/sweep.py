"""Sweep: run an experiment for each combination of values, and rank them.

    python -m commands.sweep train.freeze=none,layer1,layer2,layer3,layer4
    python -m commands.sweep train.freeze=none,layer3 train.seed=0,1,2 --jobs 2

Each combination is a DVC experiment of the current commit, run up to the stage `aggregate` in a
copy of the repository. It is named after its values (`freeze-layer3_seed-1`), with a suffix if
there are uncommitted changes. `dvc exp show`, `dvc exp apply` and `python -m commands.compare` know
it by that name. A failure does not stop the others. After a failure or a kill, run the same command
again: it skips finished experiments, and DVC reuses the finished folds of the others.

Writes to the output folder `sweep.csv`, `sweep.png` and `sweep.html`, and a log per experiment.
"""

import hashlib
import itertools
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from dvc.exceptions import DvcException
from dvc.utils.hydra import apply_overrides
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from face_attributes.command import TIMES_VARIABLE, user_command
from face_attributes.errors import UserError, last_error
from face_attributes.files import read_json, write_table, write_whole
from face_attributes.pages.charts import sweep_chart, to_html, to_png
from face_attributes.params import check_params, read_params, read_yaml
from face_attributes.progress import progress
from face_attributes.scoring.paired_differences import (
    FIRST,
    format_difference,
    rank_runs,
    remarks,
    worth_of_the_best,
)
from face_attributes.scoring.runs import read_run

TARGET = "aggregate"
PIPELINE = ["dvc.yaml", "params.yaml", "stages", "face_attributes", "data"]
"""Files and folders in git that an experiment's results depend on."""
LOG_LINES = 6
DVC = (
    "import sys\n"
    "from face_attributes.processes import end_with_parent\n"
    "end_with_parent()\n"
    "from dvc.cli import main\n"
    "sys.exit(main(sys.argv[1:]))"
)
"""DVC as a program that ends when the sweep is killed, and the stage that it runs with it."""
"""Last lines of a failed experiment's log that are shown."""

Grid = dict[str, list[str]]
"""Name of an experiment -> its overrides, as `dvc exp run -S` takes them."""


def make_grid(arguments: Sequence[str]) -> Grid:
    """List all combinations of values, in the order of the arguments.

    Args:
        arguments: such as "train.freeze=none,layer3", in the syntax of `dvc exp run -S`.

    Raises:
        UserError: if an argument is not of the form KEY=VALUE,..., or a key or a name occurs twice.
    """
    choices: dict[str, list[str]] = {}
    for argument in arguments:
        try:
            override = OverridesParser.create().parse_override(argument)
        except HydraException:
            raise UserError(f"{argument!r}: write KEY=VALUE,VALUE, as in train.seed=0,1") from None
        key = override.get_key_element()
        if key in choices:
            raise UserError(f"{key} occurs twice: list all its values in one argument")
        if override.is_sweep_override():
            choices[key] = list(dict.fromkeys(override.sweep_string_iterator()))
        else:
            choices[key] = [override.get_value_element_as_str()]
    grid: Grid = {}
    for values in itertools.product(*choices.values()):
        pairs = list(zip(choices, values, strict=True))
        name = _name(pairs)
        if name in grid:
            raise UserError(
                f"two experiments would have the name {name}: run them in separate sweeps"
            )
        grid[name] = [f"{key}={value}" for key, value in pairs]
    return grid


def check_values(grid: Grid) -> None:
    """Check that params.yaml accepts the values of each experiment, before any runs.

    Raises:
        UserError: naming the experiment.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, overrides in grid.items():
            changed = shutil.copy("params.yaml", folder)
            try:
                apply_overrides(changed, overrides)
                check_params(read_yaml(Path(changed)), Path("params.yaml"))
            except (DvcException, UserError) as error:
                reason = " ".join(str(error.__cause__ or error).split())
                # Hydra's advice is to add what does not exist.
                reason = re.sub(r"Could not override '(.+?)'.*", r"params.yaml has no \1", reason)
                raise UserError(f"{name}: {reason}") from None


def _name(pairs: Sequence[tuple[str, str]]) -> str:
    """An experiment's name: its values, in letters that git allows in names."""
    words = (f"{key.removeprefix('train.')}-{value}" for key, value in pairs)
    return "_".join(re.sub(r"[^\w.]+", "-", word).strip("-.") for word in words)


def check_installed(program: str) -> None:
    """Check that git or DVC can be run.

    Raises:
        UserError: if it is not on PATH.
    """
    if shutil.which(program) is None:
        raise UserError(
            f"{program} is not on PATH: `source .venv/bin/activate`, or install it, then run again"
        )


def run_command(*command: str) -> str:
    """Run git or DVC and return its output.

    Raises:
        UserError: if it is not on PATH; with the last line of its errors, if it fails.
    """
    check_installed(command[0])
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command)}: {last_error(done.stderr)}")
    return done.stdout


def uncommitted_state() -> str:
    """A hash of the uncommitted changes that experiments would start from; "" without any."""
    changes = run_command("git", "diff", "HEAD", "--", *PIPELINE)
    return hashlib.sha256(changes.encode()).hexdigest()[:6] if changes else ""


def finished(grid: Grid, folder: Path) -> set[str]:
    """Names of the experiments that an earlier run of this sweep finished.

    Raises:
        UserError: if there is an experiment of the same name that is not of this sweep.
    """
    existing = set(run_command("dvc", "exp", "list", "--name-only").split()) & set(grid)
    done = {name for name in existing if (folder / name / "log.txt").exists()}
    if existing - done:
        names = " ".join(sorted(existing - done))
        raise UserError(
            f"there are experiments of the same name that are not in {folder}: rename or remove "
            f"them first: dvc exp remove {names}"
        )
    return done


def run_experiment(name: str, overrides: Sequence[str], folder: Path) -> bool:
    """Run one experiment up to TARGET, and return whether it succeeded.

    Args:
        folder: of its log and of the times of its stages.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = [word for override in overrides for word in ("-S", override)]
    with (folder / "log.txt").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-c", DVC, "exp", "run", "--temp", "--name", name, *settings, TARGET],
            env={**os.environ, TIMES_VARIABLE: str((folder / "times").resolve())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return done.returncode == 0


def run_all(grid: Grid, folder: Path, jobs: int) -> list[str]:
    """Run the experiments, `jobs` at a time, and return the names of those that failed."""
    failed = []
    pool = ThreadPoolExecutor(jobs)
    try:
        running: dict[Future[bool], str] = {
            pool.submit(run_experiment, name, overrides, folder / name): name
            for name, overrides in grid.items()
        }
        for future in progress(as_completed(running), len(running), "sweep: experiments"):
            name = running[future]
            if future.result():
                print(f"{name}: done", flush=True)
                continue
            failed.append(name)
            log = folder / name / "log.txt"
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            print(f"{name}: failed; the end of {log}:", *lines[-LOG_LINES:], sep="\n  ", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return failed


def training_seconds(folder: Path, folds: int) -> float:
    """Seconds that training all folds took; NaN if DVC already had the result of any."""
    times = [read_json(path)["seconds"] for path in folder.glob("times/train@*.json")]
    return sum(times) if len(times) == folds else math.nan


def print_ranking(table: pd.DataFrame, worth: str) -> None:
    """Print the experiments, the best first, and what the best one's score is worth."""
    name = Column("experiment", overflow="fold")  # or names that differ at their end look alike
    shown = Table(name, "macro F1 (95%)", "minus the first (95%)", "", "seconds")
    for row in table.to_dict("records"):
        difference = format_difference(
            row["difference"], row["difference_low"], row["difference_high"]
        )
        first = row["verdict"] == FIRST
        shown.add_row(
            escape(row["run"]),
            f"{row['macro_f1']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
            "" if first else difference,
            row["verdict"],
            "cached" if math.isnan(row["seconds"]) else f"{row['seconds']:.0f}",
        )
    console = Console()
    console.print(shown)
    console.print(
        "Seconds are those of training all folds. The intervals of the differences hold for all at "
        f"once. {worth}",
        markup=False,
    )


def run_sweep(
    arguments: Sequence[str],
    out: Path,
    jobs: int = 1,
    train_first: Callable[[Grid, Path], list[str]] = lambda grid, folder: [],
) -> None:
    """Run a DVC experiment for each combination of values, and rank them by macro F1.

    Args:
        train_first: trains the folds of a grid elsewhere, so that DVC has their results when the
            experiments run; takes the folder of their logs, and returns the names that failed.

    Raises:
        UserError: if an argument is wrong, or some experiments failed; the others are ranked.
    """
    params = read_params()
    grid = make_grid(arguments)
    check_values(grid)
    commit, state = run_command("git", "rev-parse", "HEAD")[:9], uncommitted_state()
    folder = out / commit
    if state:
        grid = {f"{name}-{state}": overrides for name, overrides in grid.items()}
    done = finished(grid, folder)
    for name in sorted(done):
        print(f"{name}: done before")
    left = {name: grid[name] for name in grid if name not in done}
    failed = train_first(left, folder) if left else []
    failed += run_all({name: left[name] for name in left if name not in failed}, folder, jobs)
    names = [name for name in grid if name not in failed]
    if names:
        runs = [read_run(name) for name in names]
        for line in dict.fromkeys(line for run in runs[1:] for line in remarks(runs[0], run)):
            print(f"note: {line}")
        ranking = rank_runs(runs, params.aggregate.bootstrap)
        table, worth = ranking.table, worth_of_the_best(ranking) if len(runs) > 1 else ""
        folds = {run.name: run.predictions["fold"].nunique() for run in runs}
        table["seconds"] = [training_seconds(folder / name, folds[name]) for name in table["run"]]
        write_table(out / "sweep.csv", table, float_format="%.6g")
        in_order = table.set_index("run").loc[names].reset_index()
        for path, draw in {"sweep.png": to_png, "sweep.html": to_html}.items():
            with write_whole(out / path) as file:
                file.write(draw(sweep_chart(in_order, worth)))
        print_ranking(table, worth)
        print(f"charts: {out / 'sweep.png'}, {out / 'sweep.html'}; table: {out / 'sweep.csv'}")
    if failed:
        raise UserError(f"failed, and not in the table: {', '.join(failed)}")


@user_command
def main(
    arguments: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE,...", help="Values of a parameter to combine")
    ],
    out: Annotated[Path, typer.Option(help="Output folder")] = Path("sweep"),
    jobs: Annotated[int, typer.Option(min=1, help="Experiments at a time")] = 1,
) -> None:
    """Run a DVC experiment for each combination of values, and rank them by macro F1."""
    run_sweep(arguments, out, jobs)


if __name__ == "__main__":
    main()
