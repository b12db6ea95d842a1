"""Checkpoints: where a killed run goes on.

One for each fold, in `.cache/checkpoints` of the working folder, outside DVC's outputs, which DVC
deletes before it runs a stage again; it is gone when the fold is done.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from stages.errors import UserError
from stages.files import write_whole


class Checkpoint:
    """The checkpoint at `path`, of the run with that fingerprint (`learning/fingerprint.py`)."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.writer = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from this checkpoint.

        Killing DVC alone, and not its process group, leaves the training process behind.

        Raises:
            UserError: if another process is at it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path.with_suffix(".lock"), timeout=0):
                yield
        except Timeout:
            raise UserError(
                f"another process is training this fold (it holds {self.path.with_suffix('.lock')})"
                ": wait until it has ended, or end it"
            ) from None

    def save(self, content: dict[str, Any]) -> None:
        """Write tensors, numbers and texts, whole or not at all, while the training goes on.

        The disk is not waited for: what a power failure leaves half-written is known by its sums.

        Args:
            content: must not change any more.

        Raises:
            OSError: if this or the content before cannot be written.
        """
        self.wait()
        self.writing = self.writer.submit(self._write, content)

    def _write(self, content: dict[str, Any]) -> None:
        with write_whole(self.path, wait_for_disk=False) as file:
            try:
                torch.save({"fingerprint": self.fingerprint, **content}, file)
            except RuntimeError as error:
                # torch cannot end a file that cannot be written, and says that instead of why.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """What was saved last; None if there is nothing of this run.

        A file that is damaged or of another run (other code, data or parameters) is set aside.
        """
        if not self.path.exists():
            return None
        problem = "damaged"
        if _is_whole(self.path):
            content: dict[str, Any] = torch.load(self.path, map_location=device, weights_only=True)
            if content["fingerprint"] == self.fingerprint:
                return content
            problem = "of other code, data or parameters"
        aside = self.path.with_suffix(".aside")
        self.path.replace(aside)
        print(f"the checkpoint {self.path} is {problem}: set aside as {aside.name}", flush=True)
        return None

    def wait(self) -> None:
        """Until what was saved last is written.

        Raises:
            OSError: if it cannot be.
        """
        if self.writing is not None:
            self.writing.result()

    def delete(self) -> None:
        """The run is over."""
        self.wait()
        self.path.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    """Whether all parts of a file that `torch.save` wrote, a zip archive, fit their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False
