"""The freeze ladder: an experiment for each freeze point, in DVC's queue; a table and a chart.

    python -m benchmarks.freeze_ladder ladder

Writes `ladder.csv` and `ladder.png` to the folder. The experiments stay, as `ladder-none`,
`ladder-conv1`, ..., for `dvc exp show`, `dvc exp apply` and the like; those of an earlier ladder
go. Seconds are those of all folds' training, features included, as each experiment's log has them;
there are none where DVC had a fold's results already.
"""

import json
import math
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import dvc.api
import pandas as pd
import typer
import vl_convert
from rich.console import Console
from rich.table import Table

from stages.command import stage_command
from stages.errors import UserError
from stages.files import write_table, write_whole
from stages.learning.network import build, parts
from stages.params import read_params

SECONDS_OF_FOLD = re.compile(r"^train fold \d+: macro F1 .* ([\d.]+) s$", re.MULTILINE)
POLL_SECONDS = 10.0
MOST_FAILURES = 5
"""Looks at the queue in a row that may fail."""


def dvc_command(*arguments: str) -> str:
    """Run DVC; what it printed.

    Raises:
        UserError: if it fails, with its last line.
    """
    # No pipes, which `dvc queue start` would leave to its worker, to be waited for until that ends.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        code = subprocess.run(["dvc", *arguments], stdout=output, stderr=errors).returncode
        output.seek(0)
        errors.seek(0)
        printed, complaint = output.read(), errors.read()
    if code != 0:
        said = (complaint or printed).strip().splitlines()
        raise UserError(f"dvc {' '.join(arguments)}: {said[-1] if said else 'failed'}")
    return printed


def queue_status() -> tuple[dict[str, str], int]:
    """What the queue holds, name -> Queued, Running, Success or Failed; how many workers work."""
    said = dvc_command("queue", "status")
    tasks = re.findall(r"^[0-9a-f]{7} +(ladder-\S+) .* (\w+) *$", said, re.MULTILINE)
    active = re.search(r"^Worker status: (\d+) active", said, re.MULTILINE)
    return dict(tasks), int(active[1]) if active else 0


def queue(points: list[str]) -> dict[str, str]:
    """Put an experiment for each freeze point into the queue: its name -> the point.

    Raises:
        UserError: if one of an earlier ladder is still running.
    """
    names = {f"ladder-{point.replace('.', '-')}": point for point in points}
    tasks, _ = queue_status()
    running = [name for name, status in tasks.items() if status == "Running"]
    if running:
        raise UserError(f"{running[0]} is still running: wait for it, or dvc queue stop --kill")
    in_queue = sorted(set(tasks) & set(names))
    if in_queue:
        dvc_command("queue", "remove", *in_queue)
    earlier = set(dvc_command("exp", "list", "--name-only").split()) & set(names)
    if earlier:
        dvc_command("exp", "remove", *sorted(earlier))
    for name, point in names.items():
        dvc_command("exp", "run", "--queue", "-n", name, "-S", f"train.freeze={point}")
    return names


def wait_for(names: dict[str, str], jobs: int) -> dict[str, str]:
    """Until all experiments are over, `jobs` of them at a time, with a line for each.

    Returns:
        Those that did not fail, as `names` has them.

    Raises:
        UserError: if one has left the queue; if DVC does not tell any more how they are.
    """
    waiting, succeeded, failures = set(names), set[str](), 0
    dvc_command("queue", "start", "-j", str(jobs))
    while waiting:
        time.sleep(POLL_SECONDS)
        try:
            tasks, active = queue_status()
        except UserError as error:
            # DVC reads the queue's messages without regard to whether they are being written.
            failures += 1
            if failures == MOST_FAILURES:
                raise
            print(f"{error}: asks again", flush=True)
            continue
        failures = 0
        for name in sorted(waiting):
            status = tasks.get(name, "gone from the queue")
            if status in ("Queued", "Running"):
                continue
            waiting.remove(name)
            if status == "Success":
                succeeded.add(name)
                print(f"{name} is done, {len(waiting)} to go", flush=True)
            elif status == "Failed":
                log = dvc_command("queue", "logs", name).splitlines()
                why = [said for said in log if said.startswith("error: ")] or log[-1:]
                print(f"{name} has failed, {len(waiting)} to go: {why[0]}", flush=True)
            else:
                raise UserError(f"{name} is {status}: start again")
        if waiting and not active:
            # Again and again: an idle worker that is about to end counts as one that is there.
            dvc_command("queue", "start", "-j", str(jobs))
    return {name: point for name, point in names.items() if name in succeeded}


def results(names: dict[str, str]) -> pd.DataFrame:
    """A row for each freeze point: freeze, macro_f1, low, high, trainable (parameters), seconds.

    Seconds are missing where not all folds were trained: DVC had the results of some already.
    """
    folds = len(read_params().folds.index)
    rows = []
    for name, point in names.items():
        metrics: dict[str, Any] = json.loads(dvc.api.read("metrics.json", rev=name))
        fold = json.loads(dvc.api.read("data/train/fold0/metrics.json", rev=name))
        seconds = SECONDS_OF_FOLD.findall(dvc_command("queue", "logs", name))
        rows.append(
            {
                "freeze": point,
                "macro_f1": metrics["macro_f1"],
                **metrics["interval_95"]["macro_f1"],
                "trainable": fold["parameters"]["trainable"],
                "seconds": sum(map(float, seconds)) if len(seconds) == folds else math.nan,
            }
        )
    return pd.DataFrame(rows)


def chart(table: pd.DataFrame) -> bytes:
    """Macro F1 with its interval, and seconds, against the freeze point, as a PNG."""
    point = {"field": "freeze", "type": "nominal", "sort": None, "axis": {"labelAngle": 0}}
    score = {"type": "quantitative", "title": "macro F1 (95%)", "scale": {"zero": False}}
    frozen = {**point, "title": "frozen up to"}
    specification = {
        "data": {"values": json.loads(table.to_json(orient="records"))},
        "config": {"font": "sans-serif", "background": "white"},
        "vconcat": [
            {
                "width": 480,
                "height": 200,
                "layer": [
                    {
                        "mark": {"type": "rule", "strokeWidth": 2},
                        "encoding": {
                            "x": {**point, "title": None},
                            "y": {**score, "field": "low"},
                            "y2": {"field": "high"},
                        },
                    },
                    {
                        "mark": {"type": "point", "filled": True, "size": 90},
                        "encoding": {"x": point, "y": {**score, "field": "macro_f1"}},
                    },
                ],
            },
            {
                "width": 480,
                "height": 120,
                "mark": {"type": "bar", "size": 28},
                "encoding": {
                    "x": frozen,
                    "y": {"field": "seconds", "type": "quantitative", "title": "seconds"},
                },
            },
        ],
    }
    picture: bytes = vl_convert.vegalite_to_png(specification, scale=2)
    return picture


@stage_command
def main(
    out: Annotated[Path, typer.Argument(help="Folder to write to")],
    points: Annotated[str, typer.Option(help="Freeze points, with commas; all where empty")] = "",
    jobs: Annotated[int, typer.Option(help="Experiments at a time")] = 1,
) -> None:
    """Run the pipeline with each freeze point of the network and compare."""
    params = read_params()
    everything = ["none", *parts(build(params.weights.model, params.crop.side))]
    names = queue(points.split(",") if points else everything)
    succeeded = wait_for(names, jobs)
    failed = [name for name in names if name not in succeeded]
    if not succeeded:
        raise UserError(f"{', '.join(failed)}: failed, as said above")
    table = results(succeeded)
    write_table(out / "ladder.csv", table, float_format="%.6g")
    with write_whole(out / "ladder.png") as file:
        file.write(chart(table))
    shown = Table("frozen up to", "macro F1 (95%)", "trainable parameters", "seconds")
    for row in table.to_dict("records"):
        score = f"{row['macro_f1']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        seconds = "had them" if math.isnan(row["seconds"]) else f"{row['seconds']:.0f}"
        shown.add_row(row["freeze"], score, f"{row['trainable']:,}", seconds)
    Console().print(shown)
    print(f"chart: {out / 'ladder.png'}")
    if failed:
        raise UserError(f"{', '.join(failed)}: failed, as said above, and not in the table")


if __name__ == "__main__":
    main()
