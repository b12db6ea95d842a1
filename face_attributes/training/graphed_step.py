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
        discard: removes what an unfinished step leaves behind.
    """

    def __init__(self, eager: Step, recorded: Step, discard: Callable[[], None]) -> None:
        self.eager, self.recorded, self.discard = eager, recorded, discard
        self.recordings = dict[tuple[torch.Size, ...], Recording]()
        self.started = self.failed = False

    def __call__(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """Take a step. Its results stay valid until the next call."""
        sizes = tuple(tensor.shape for tensor in batch)
        if self.started and not self.failed and sizes not in self.recordings:
            self._try_to_record(sizes, batch)
        self.started = True
        if sizes in self.recordings:
            return self.recordings[sizes].replay(batch)
        return self.eager(*batch)

    def _try_to_record(self, sizes: tuple[torch.Size, ...], batch: tuple[Tensor, ...]) -> None:
        generators = global_generators(batch[0].device)
        states = [generator.get_state() for generator in generators]
        stream = torch.cuda.current_stream() if torch.cuda.is_available() else None
        try:
            self.recordings[sizes] = self._record(batch)
            return
        except RuntimeError as error:
            reason = str(error.__context__ or error).splitlines()[0]
        # After the except block, because its traceback keeps the unfinished step's tensors alive.
        print(f"note: training without CUDA graphs, which may be slower: {reason}", flush=True)
        self.failed = True
        self.recordings.clear()
        if stream is not None:
            torch.cuda.set_stream(stream)  # torch stays on the one that it was recording
        self.discard()
        torch.cuda.empty_cache()
        for generator, state in zip(generators, states, strict=True):
            if generator.device.type == "cuda":
                # torch goes on to take this generator's numbers for those of a recording.
                fresh = torch.Generator(generator.device).set_state(state)
                generator.graphsafe_set_state(fresh.graphsafe_get_state())
            else:
                generator.set_state(state)

    def _record(self, batch: tuple[Tensor, ...]) -> Recording:
        """Record a step for batches of this size, which does not take it.

        Raises:
            RuntimeError: if that is not possible.
        """
        places, graph = [tensor.clone() for tensor in batch], torch.cuda.CUDAGraph()
        pool = next((each.graph.pool() for each in self.recordings.values()), None)
        if pool is None and not has_room_for_another_step(batch[0].device):
            raise torch.OutOfMemoryError("graphs would hold memory that other work needs")
        host_state = torch.get_rng_state()
        # Other threads may use the GPU meanwhile, to fetch photos or to write a checkpoint.
        with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
            results = self.recorded(*places)
        if not torch.equal(torch.get_rng_state(), host_state):
            raise RuntimeError("the network draws random numbers on the host")
        return Recording(graph, places, results)


def has_room_for_another_step(device: torch.device) -> bool:
    """Whether twice as much memory is free as work took since the peak was reset.

    A graph keeps the memory of a step to itself, and augmentation and predictions need theirs.
    """
    in_use = torch.cuda.memory_allocated(device)
    free, _ = torch.cuda.mem_get_info(device)
    available = free + torch.cuda.memory_reserved(device) - in_use
    return available >= 2 * (torch.cuda.max_memory_allocated(device) - in_use)
