"""A clone of the project with a small sample, in which real DVC runs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from dvc.repo import Repo
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
PEOPLE = 36
SMALL: dict[str, dict[str, Any]] = {
    "data": {"corrections": "data/none.csv"},
    "sample": {"people": PEOPLE, "evaluation_people": 3},
    "crop": {"side": 32},
    "folds": {"index": [0, 1]},
    "weights": {"source": "none"},
    "train": {"epochs": 1, "prediction": {"flip": True, "zoom": 0.1}},
    "aggregate": {"bootstrap": 100},
}
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
}  # fmt: skip

RECORDER = """
import os, sys

if "DVC_STAGE" in os.environ:
    stage, project, seen = os.environ["DVC_STAGE"].split(":")[-1], os.getcwd(), set()
    log = os.open(os.environ["OPENED_FILES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def record(event, arguments):
        if event != "open" or not isinstance(arguments[0], (str, bytes)):
            return
        path, mode, flags = arguments
        reads = "r" in mode if mode else flags & os.O_ACCMODE == os.O_RDONLY
        path = os.path.relpath(os.fsdecode(path), project)
        if reads and path not in seen and not path.startswith(".."):
            seen.add(path)
            os.write(log, os.fsencode(f"{stage} {path}\\n"))

    sys.addaudithook(record)
"""
"""A sitecustomize.py that lists the files in the project that stages of DVC open for reading.

Those that Python opens, modules included; libraries in other languages open some by themselves."""


class Project:
    """A repository with the project in it, to run commands in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str, code: int = 0, **variables: str) -> str:
        """Run a command, with environment variables; return its output, both streams together."""
        # Not a pipe, which a process that the command leaves behind would keep open.
        with tempfile.TemporaryFile("w+") as output:
            result = subprocess.run(
                command, cwd=self.folder, env={**ENVIRONMENT, **variables},
                stdout=output, stderr=output, timeout=900,
            )  # fmt: skip
            output.seek(0)
            text = output.read()
        assert (result.returncode == 0) == (code == 0), text
        return text

    def python(self, *arguments: str, code: int = 0) -> str:
        """Run a module, such as "commands.compare"."""
        return self.run(sys.executable, "-m", *arguments, code=code)

    def repro(self, *options: str, **variables: str) -> set[str]:
        """Reproduce, and return the stages that ran or came from the run cache."""
        output = self.run("dvc", "repro", *options, **variables)
        return set(re.findall(r"(?:Running stage|Stage) '([\w@]+)'(?::| is cached)", output))

    def outdated(self) -> set[str]:
        """The stages whose own parameters or dependencies changed, as `dvc status` lists them."""
        with Repo(str(self.folder)) as repo:
            return {stage.split(":")[-1] for stage in repo.status()}

    def set(self, **sections: dict[str, object]) -> None:
        """Change values in params.yaml: set(train={"freeze": "layer3"})."""
        yaml, path = YAML(), self.folder / "params.yaml"
        content = yaml.load(path)
        for section, values in sections.items():
            content[section].update(values)
        yaml.dump(content, path)

    def restore(self) -> None:
        """Return to the committed run."""
        self.run("git", "checkout", "-q", ".")
        self.run("dvc", "checkout", "-q")

    def metrics(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text())
        return content

    def checksums(self) -> dict[str, str]:
        """The MD5 of every output in dvc.lock, except the report, which shows times."""
        lock = YAML(typ="safe").load(self.folder / "dvc.lock")
        outs = [out for stage in lock["stages"].values() for out in stage.get("outs", [])]
        return {out["path"]: out["md5"] for out in outs if out["path"] != "reports/report.html"}


def create_project(folder: Path) -> Project:
    """The project's files in a new repository, committed after its first `dvc repro`."""
    listed = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in names:
        wanted = not name.startswith("tests/") and name not in ("dvc.lock", "metrics.json")
        if wanted and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    project = Project(folder)
    project.set(**SMALL)
    (folder / "data/none.csv").write_text("person,photo,field,old,new,reason\n")
    project.run("git", "init", "-q")
    project.run("git", "add", "--all")
    project.run("git", "add", "--force", "data/none.csv")
    recorder = folder / ".git/recorder"
    recorder.mkdir()
    (recorder / "sitecustomize.py").write_text(RECORDER)
    stages = project.repro(PYTHONPATH=str(recorder), OPENED_FILES=str(recorder / "opened.txt"))
    (folder / "first_run.txt").write_text("\n".join(sorted(stages)))
    project.run("git", "add", "--all", ":!first_run.txt")
    project.run("git", "commit", "-qm", "baseline")
    (folder / "first_run.txt").rename(folder / ".git/first_run.txt")
    return project


def processes_of(process: psutil.Process) -> list[str]:
    """The process ids of a process and of all that it started, such as a stage's workers."""
    return [str(each.pid) for each in (process, *process.children(recursive=True))]


def ends_soon(pid: str) -> bool:
    """Whether a process is gone within two seconds, or a zombie that nobody has waited for."""
    for _ in range(40):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            # Its other threads may end after the first one, and hold its locks until then.
            if state == "Z" and len(os.listdir(f"/proc/{pid}/task")) == 1:
                return True
        except (FileNotFoundError, ProcessLookupError):  # gone before, or while, it is read
            return True
        time.sleep(0.05)
    return False


def heed_interrupts() -> None:
    """For a child process: do not inherit that Ctrl-C is ignored, as in a shell's background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
