"""The freeze ladder: an experiment for each freeze point, in DVC's queue; a table and a chart.

    python -m benchmarks.freeze_ladder ladder

Writes `ladder.csv` and `ladder.png` to the folder. The experiments stay, as `ladder-none`,
`ladder-conv1`, ..., for `dvc exp show`, `dvc exp apply` and the like; those of an earlier ladder
go. Seconds are those of all folds' training, features included, as each experiment's log has them.
"""

import json
import re
import subprocess
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
POLL_SECONDS = 2.0


def dvc_command(*arguments: str) -> str:
    """Run DVC; what it printed.

    Raises:
        UserError: if it fails, with its last line.
    """
    result = subprocess.run(["dvc", *arguments], text=True, capture_output=True)
    if result.returncode != 0:
        said = (result.stderr or result.stdout).strip().splitlines()
        raise UserError(f"dvc {' '.join(arguments)}: {said[-1] if said else 'failed'}")
    return result.stdout


def queue(points: list[str]) -> dict[str, str]:
    """Put an experiment for each freeze point into the queue: its name -> the point."""
    names = {f"ladder-{point.replace('.', '-')}": point for point in points}
    earlier = set(dvc_command("exp", "list", "--name-only").split()) & set(names)
    if earlier:
        dvc_command("exp", "remove", *sorted(earlier))
    for name, point in names.items():
        dvc_command("exp", "run", "--queue", "-n", name, "-S", f"train.freeze={point}")
    return names


def wait_for(names: dict[str, str]) -> None:
    """Until all experiments are over, with a line for each.

    Raises:
        UserError: if one has failed, with the line that says why.
    """
    waiting = set(names)
    while waiting:
        time.sleep(POLL_SECONDS)
        for line in dvc_command("queue", "status").splitlines():
            name = next((name for name in waiting if name in line.split()), None)
            if name is not None and "Failed" in line:
                log = dvc_command("queue", "logs", name).splitlines()
                why = [said for said in log if said.startswith("error: ")] or log[-1:]
                raise UserError(f"{name} has failed: {why[0]}")
            if name is not None and "Success" in line:
                waiting.remove(name)
                print(f"{name} is done, {len(waiting)} to go", flush=True)


def results(names: dict[str, str]) -> pd.DataFrame:
    """A row for each freeze point: freeze, macro_f1, low, high, trainable (parameters), seconds."""
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
                "seconds": sum(map(float, seconds)),
            }
        )
    return pd.DataFrame(rows)


def chart(table: pd.DataFrame) -> bytes:
    """Macro F1 with its interval, and seconds, against the freeze point, as a PNG."""
    point = {"field": "freeze", "type": "nominal", "sort": None, "axis": {"labelAngle": 0}}
    score = {"type": "quantitative", "title": "macro F1 (95%)", "scale": {"zero": False}}
    frozen = {**point, "title": "frozen up to"}
    specification = {
        "data": {"values": table.to_dict("records")},
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
    everything = ["none", *parts(build(params.weights.model, params.crop.size))]
    names = queue(points.split(",") if points else everything)
    dvc_command("queue", "start", "-j", str(jobs))
    wait_for(names)
    table = results(names)
    write_table(out / "ladder.csv", table, float_format="%.6g")
    with write_whole(out / "ladder.png") as file:
        file.write(chart(table))
    shown = Table("frozen up to", "macro F1 (95%)", "trainable parameters", "seconds")
    for row in table.to_dict("records"):
        score = f"{row['macro_f1']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        shown.add_row(row["freeze"], score, f"{row['trainable']:,}", f"{row['seconds']:.0f}")
    Console().print(shown)
    print(f"chart: {out / 'ladder.png'}")


if __name__ == "__main__":
    main()
