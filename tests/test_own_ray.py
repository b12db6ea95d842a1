"""Ray as `commands.cluster` starts it on this machine, where no address says where a cluster is."""

import subprocess
import sys

import psutil
import pytest

from tests.project import ENVIRONMENT, Project
from tests.test_cluster import read_until

pytestmark = pytest.mark.slow


def test_a_full_object_store_is_a_line(project: Project) -> None:
    """The checkpoint of a whole network does not fit; a limit for Ray stands for a full disk."""
    project.set(train={"epochs": 2, "seed": 9})
    full = {"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "80000000"}
    full |= {"RAY_local_fs_capacity_threshold": "0.001"}
    command = [sys.executable, "-m", "commands.cluster", "repro", "train@0"]
    output = project.run(*command, code=1, **full)
    assert "fold 0 epoch 1/2" in output
    assert output.splitlines()[-1].startswith("error: Ray's object store is full, on this machine")
    assert "Traceback" not in output
    project.restore()


def test_without_an_address_ray_starts_on_this_machine_and_listens_to_it_alone(
    project: Project,
) -> None:
    """So do the processes that train a fold together."""
    project.set(train={"freeze": "layer4", "seed": 8})
    command = [sys.executable, "-m", "commands.cluster", "repro", "train@0", "--per-fold", "2"]
    with subprocess.Popen(
        command, cwd=project.folder, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        output = read_until(process, "train fold 0: 126 photos.*, in 2 processes")
        addresses = {
            connection.laddr.ip.removeprefix("::ffff:")
            for each in psutil.Process(process.pid).children(recursive=True)
            for connection in each.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        output += process.communicate()[0]
    assert process.returncode == 0, output
    assert addresses == {"127.0.0.1"}
    assert "Stage 'train@0' is cached - skipping run" in output
    project.restore()
