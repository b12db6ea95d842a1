"""Checkpoints: where a killed run goes on.

One for each fold, in `.cache/checkpoints` of the working folder, outside DVC's outputs, which DVC
deletes before it runs a stage again; it is gone when the fold is done.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from stages.errors import UserError
from stages.files import read_sealed, write_sealed


class Checkpoint:
    """The checkpoint at `path`, of the run with that fingerprint (`learning/fingerprint.py`)."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint

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
        """Write tensors, numbers and texts, whole or not at all."""
        buffer = io.BytesIO()
        torch.save({"fingerprint": self.fingerprint, **content}, buffer)
        with write_sealed(self.path) as file:
            file.write(buffer.getbuffer())

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """What was saved last; None if there is nothing of this run.

        A file that is damaged or of another run (other code, data or parameters) is set aside.
        """
        with read_sealed(self.path) as file:
            if file is not None:
                payload = io.BytesIO(file.read())
                content: dict[str, Any] = torch.load(
                    payload, map_location=device, weights_only=True
                )
                if content["fingerprint"] == self.fingerprint:
                    return content
                problem = "of other code, data or parameters"
            elif self.path.exists():
                problem = "damaged"
            else:
                return None
        aside = self.path.with_suffix(".aside")
        self.path.replace(aside)
        print(f"the checkpoint {self.path} is {problem}: set aside as {aside.name}", flush=True)
        return None

    def delete(self) -> None:
        """The run is over."""
        self.path.unlink(missing_ok=True)
