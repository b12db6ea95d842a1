"""A training step as a CUDA graph, whose few hundred kernels start without the host."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from face_attributes.networks.device import global_generators

Step = Callable[..., tuple[Tensor, ...]]
"""Takes the tensors of a batch, and returns tensors."""


class Recording(NamedTuple):
    """A recorded step, and the tensors that it reads and writes each time."""

    graph: torch.cuda.CUDAGraph
    batch: list[Tensor]
    results: tuple[Tensor, ...]

    def replay(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Take the step with another batch of the same size."""
        torch._foreach_copy_(self.batch, list(batch))
        self.graph.replay()
        return self.results


class GraphedStep:
    """A step that is recorded once for each size of a batch, and then replayed to the same bytes.

    The first call is `eager`: libraries then allocate what they keep, and a batch that does not fit
    into memory is divided. `recorded` must do the same, but never wait for the GPU; all else that
    it reads or changes must stay where it is. If it cannot be recorded, a line says why, and all
    calls are `eager`. (PyTorch's notes on CUDA semantics, "Whole-network capture".)

    Args:
        forget: removes what an unfinished step leaves behind.
    """

    def __init__(self, eager: Step, recorded: Step, forget: Callable[[], None]) -> None:
        self.eager, self.recorded, self.forget = eager, recorded, forget
        self.recordings = dict[tuple[torch.Size, ...], Recording]()
        self.started = self.failed = False

    def __call__(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """Take a step. Its results stay valid until the next call."""
        sizes = tuple(tensor.shape for tensor in batch)
        if self.started and not self.failed and sizes not in self.recordings:
            self._record(sizes, batch)
        self.started = True
        if sizes in self.recordings:
            return self.recordings[sizes].replay(batch)
        return self.eager(*batch)

    def _record(self, sizes: tuple[torch.Size, ...], batch: tuple[Tensor, ...]) -> None:
        """Record a step for batches of these sizes, which does not take it."""
        device = batch[0].device
        generators = [each for each in global_generators(device) if each.device.type == "cuda"]
        states = [generator.get_state() for generator in generators]
        pool = next((each.graph.pool() for each in self.recordings.values()), None)
        try:
            places, graph = [tensor.clone() for tensor in batch], torch.cuda.CUDAGraph()
            if pool is None and not has_room_for_another_step(device):
                raise torch.OutOfMemoryError("they would hold memory that other things need")
            # Other threads may use the GPU meanwhile, to fetch photos or to write a checkpoint.
            with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
                results = self.recorded(*places)
            self.recordings[sizes] = Recording(graph, places, results)
            return
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
        # After the except block, because its traceback keeps the unfinished step's tensors alive.
        print(
            f"note: training steps are no CUDA graphs here, and may take longer: {reason}",
            flush=True,
        )
        self.failed = True
        self.recordings.clear()
        self.forget()
        torch.cuda.empty_cache()
        for generator, state in zip(generators, states, strict=True):
            # Else torch takes the generator for one that is still being recorded.
            fresh = torch.Generator(generator.device).set_state(state)
            generator.graphsafe_set_state(fresh.graphsafe_get_state())


def has_room_for_another_step(device: torch.device) -> bool:
    """Whether as much memory is free as the largest piece of work so far took, twice.

    A graph keeps the memory of a step to itself, and augmentation and predictions need theirs.
    """
    in_use = torch.cuda.memory_allocated(device)
    free, _ = torch.cuda.mem_get_info(device)
    available = free + torch.cuda.memory_reserved(device) - in_use
    return available >= 2 * (torch.cuda.max_memory_allocated(device) - in_use)
