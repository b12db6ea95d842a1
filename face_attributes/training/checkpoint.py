"""Checkpoints, from which a killed run resumes.

One per fold, in `.cache/checkpoints` of the working folder: outside DVC's outputs, which DVC
deletes before it runs a stage again. It is deleted when the fold is done.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from face_attributes.files import remove_leftovers, write_whole
from face_attributes.processes import one_at_a_time


class Checkpoint:
    """The checkpoint at `path` of the run with this fingerprint (`training/fingerprint.py`)."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.writer = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from using this checkpoint.

        Trainings by hand may write to different folders and still share it.

        Raises:
            StillRunningError: if another process is using it.
        """
        with one_at_a_time(self.path.with_suffix(".lock"), "another training of this fold"):
            remove_leftovers(self.path)
            yield

    def save(self, content: dict[str, Any]) -> None:
        """Write tensors, numbers and strings, whole or not at all, while training continues.

        No fsync: a half-written file fails its checksum.

        Args:
            content: must not change afterwards.

        Raises:
            OSError: if this or the previous content cannot be written.
        """
        self.wait()
        self.pending = self.writer.submit(self._write, content)

    def _write(self, content: dict[str, Any]) -> None:
        with write_whole(self.path, fsync=False) as file:
            try:
                torch.save({"fingerprint": self.fingerprint, **content}, file)
            except RuntimeError as error:
                # torch then fails to close the file, too, and reports only that.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Return the last saved content; None if there is no checkpoint of this run.

        A damaged file, or one from a run with other code, data or parameters, is set aside.
        """
        if not self.path.exists():
            return None
        problem = "damaged"
        if _is_whole(self.path):
            content: dict[str, Any] = torch.load(self.path, map_location=device, weights_only=True)
            if content["fingerprint"] == self.fingerprint:
                return content
            problem = "from a run with other code, data, parameters or hardware"
        aside = self.path.with_suffix(".aside")
        self.path.replace(aside)
        print(f"the checkpoint {self.path} is {problem}: set aside as {aside.name}", flush=True)
        return None

    def wait(self) -> None:
        """Wait until the last `save` is written.

        Raises:
            OSError: if it cannot be written.
        """
        if self.pending is not None:
            self.pending.result()

    def delete(self) -> None:
        """Delete the checkpoint: the run is over."""
        self.wait()
        self.path.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    """Whether all parts of a file that `torch.save` wrote (a zip archive) match their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False
