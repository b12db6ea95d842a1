"""Kill `dvc repro` again and again, and compare what comes out in the end with an undisturbed run.

    python -m tests.kills --kills 100

Works on a small sample in a temporary folder. DVC, its stage and the stage's workers are killed
together at a random moment (SIGKILL), and `dvc repro` is started again at once, until a run ends.
Then every output must have the bytes of the undisturbed run (the report has times, and is left
out); everything is deleted, and the next run starts from nothing. The suite has a short form
(tests/test_interrupted.py).
"""

import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from tests.project import ENVIRONMENT, Project, create_project

CUT_OFF = {"Unable to read RWLock-file": ".dvc/tmp/rwlock", "'./dvc.lock'": "dvc.lock"}
"""Files that DVC does not write whole, by what it says of them after a kill. Users delete the first
and restore the second by git; DVC's run cache has what is finished."""
COMPARED = ["metrics.json", "data/submission.csv", "data/aggregate/out_of_fold.csv"]
"""Compared byte by byte, beside the checksums of all outputs in dvc.lock."""


def results(project: Project) -> dict[str, object]:
    contents = {name: (project.folder / name).read_bytes() for name in COMPARED}
    return {**contents, "checksums": project.checksums()}


def delete_results(project: Project) -> None:
    """Return to the state before the first run."""
    project.run("git", "clean", "-qxfd")
    for name in ("dvc.lock", "metrics.json"):
        (project.folder / name).unlink()


def repro_for(project: Project, seconds: float, log: Path) -> int | None:
    """Run `dvc repro` for so long, then kill its group; its exit code, or None if it was killed."""
    with log.open("w") as output:
        process = subprocess.Popen(
            ["dvc", "repro"], cwd=project.folder, env=ENVIRONMENT, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None


def last_stage(log: str) -> str:
    """The stage that was running, or had run last."""
    named = [line for line in log.splitlines() if line.startswith("Running stage ")]
    return named[-1].split("'")[1] if named else "none"


def main(
    kills: Annotated[int, typer.Option(min=1, help="Number of kills")] = 100,
    seed: Annotated[int, typer.Option(help="Of the moments")] = 0,
) -> None:
    """Kill `dvc repro` at random moments and compare its results with an undisturbed run's."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        start = time.monotonic()
        project = create_project(Path(name))
        # So that each run is killed a few times, in all of its stages.
        longest = (time.monotonic() - start) / 3
        log = project.folder / ".git/repro.log"
        expected = results(project)
        done, runs, cut_off, stages = 0, 0, Counter[str](), Counter[str]()
        while done < kills:
            delete_results(project)
            code = None
            while code is None:
                left = done < kills
                code = repro_for(project, moments.uniform(0, longest) if left else 3600, log)
                text = log.read_text()
                if code is None:
                    done += 1
                    stages[last_stage(text)] += 1
                elif code and (broken := [CUT_OFF[said] for said in CUT_OFF if said in text]):
                    (project.folder / broken[0]).unlink()
                    cut_off[broken[0]] += 1
                    code = None
            runs += 1
            if code != 0 or "Traceback" in text:
                raise SystemExit(f"after {done} kills `dvc repro` failed:\n{text}")
            found = results(project)
            different = [key for key in expected if found[key] != expected[key]]
            if different:
                raise SystemExit(f"after {done} kills these differ: {', '.join(different)}")
            counts = ", ".join(f"{stage}: {count}" for stage, count in stages.most_common())
            print(f"{done} kills, {runs} runs: the same bytes ({counts})", flush=True)
    for name, count in cut_off.items():
        print(f"{name} was cut off and deleted {count} times")


if __name__ == "__main__":
    typer.run(main)
