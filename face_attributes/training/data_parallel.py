"""Train a fold in several processes of one machine, each on a GPU of its own or on a CPU.

Every process draws, augments and mixes the same whole batches from the same random numbers,
computes the gradients of its share of each batch, and adds those of the others. So all take the
same steps, and the results are those of one process up to rounding, except that dropout and
stochastic depth draw other numbers. The first process alone prints and writes.

Not torch's DistributedDataParallel: it wraps a whole network, and here a frozen prefix runs apart
from the rest, parts begin to train in later epochs, and a loss is divided by the size of the whole
batch.

In a process that trains alone, these functions return what they are given.
"""

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from face_attributes.errors import UserError
from face_attributes.networks.device import global_generators
from face_attributes.processes import GROUP_STORE, place_in_group

LONGEST_WAIT = timedelta(days=7)
"""Time limit of waiting for another process, which may be computing features. The end of a process
ends the others much sooner."""
SECONDS_TO_SAY_WHY = 3.0
"""Time for which a process that is not the first to fail lives on: its end would end the others."""
CONNECTION_LOST = ("onnection closed by peer", "onnection reset by peer", "roken pipe")
"""Parts of gloo's messages when another process has ended."""


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` started together with this one, if it did.

    They communicate over the loopback interface alone: by gloo on CPUs, by NCCL between GPUs. Of
    processes that fail, the first raises its error, and the others end without a message.

    Raises:
        UserError: if some of them are on another machine, or the system ended one.
    """
    place, size = place_in_group()
    if size == 1:
        yield
        return
    loopback = next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if "127.0.0.1" in {each.address for each in addresses}
    )
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
    if place:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    store, _, _ = next(rendezvous(os.environ.get(GROUP_STORE, "env://"), place, size))
    gpus = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    try:
        if int(os.environ["LOCAL_WORLD_SIZE"]) != size:
            raise UserError("processes that train a fold together must be on one machine")
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=store,
            rank=place,
            world_size=size,
            timeout=LONGEST_WAIT,
        )
        _wait_for_all()  # one that failed while others still connect to it would make gloo print
        yield
    except Exception as error:
        if not _is_first_failure(store):
            time.sleep(SECONDS_TO_SAY_WHY)
            os._exit(1)
        atexit.register(_end_at_once)
        if any(sign in str(error) for sign in CONNECTION_LOST):
            raise UserError(
                "another process that trains this fold has ended, perhaps because the system's "
                "memory ran out: end other programs, or start fewer processes"
            ) from None
        raise
    torch.distributed.destroy_process_group()


def _is_first_failure(store: Any) -> bool:
    try:
        return bool(store.add("failures", 1) == 1)
    except RuntimeError:  # the store is gone, with the process that started all of them
        return False


def _end_at_once() -> None:
    """End without the destructors of the group, whose threads still wait: they would abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def rank() -> int:
    """The place of this process among those that train the fold; 0: it prints and writes."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def processes() -> int:
    """The number of processes that train the fold."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Run the block in the first process, then in the others, which read what it has written."""
    if rank():
        _wait_for_all()
    yield
    if not rank():
        _wait_for_all()


def _wait_for_all() -> None:
    sum_over_processes(torch.zeros(1))  # `barrier` would need a GPU where there are some


def own_share(rows: Tensor) -> Tensor:
    """This process's share of the rows of a batch; shares differ by at most one row."""
    return rows if processes() == 1 else rows.tensor_split(processes())[rank()]


def sum_over_processes(numbers: Tensor) -> Tensor:
    """Add the numbers of all processes, in place."""
    if processes() > 1:
        torch.distributed.all_reduce(numbers)
    return numbers


def gather_shares(share: Tensor, count: int) -> Tensor:
    """Put together the `own_share` (float) of each process of `count` rows, in order."""
    if processes() == 1:
        return share
    whole = share.new_zeros(count, *share.shape[1:])
    own_share(whole).copy_(share)
    return sum_over_processes(whole)


def sum_gradients(network: nn.Module) -> None:
    """Replace the gradients of all parameters by their sums over the processes.

    In one buffer, in which each gradient has the memory format of its parameter: that of gradients
    depends on the size of a share, and so would the rounding of their norm.
    """
    if processes() == 1:
        return
    weights, gradients = zip(
        *((weight, weight.grad) for weight in network.parameters() if weight.grad is not None),
        strict=True,
    )
    sizes = [weight.numel() for weight in weights]
    buffer = torch.empty(sum(sizes), device=weights[0].device)
    sums = [
        piece.as_strided(weight.shape, weight.stride())
        for piece, weight in zip(buffer.split(sizes), weights, strict=True)
    ]
    torch._foreach_copy_(sums, gradients)
    sum_over_processes(buffer)
    for weight, total in zip(weights, sums, strict=True):
        weight.grad = total


@contextlib.contextmanager
def own_random_numbers(device: torch.device, step: int) -> Iterator[None]:
    """Let each process draw numbers of its own from the global generators, for dropout.

    They depend on the step alone. Afterwards the generators are as before, the same in all
    processes.
    """
    if processes() == 1:
        yield
        return
    generators = global_generators(device)
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(generator.initial_seed() + step * processes() + rank())
    yield
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def check_agreement(norms: Tensor, generators: Sequence[torch.Generator]) -> None:
    """Check that all processes took the same steps and draw the same random numbers.

    Augmentation draws other numbers after it ran out of memory, which may happen in one process.

    Args:
        norms: of the summed gradients, finite.

    Raises:
        UserError: if they do not agree.
    """
    if processes() == 1:
        return
    states = [generator.get_state() for generator in generators]
    own = torch.cat([norms.cpu().view(torch.uint8), *states])
    all_states = [torch.empty_like(own) for _ in range(processes())]
    torch.distributed.all_gather(all_states, own)
    if not all(torch.equal(own, other) for other in all_states):
        raise UserError(
            "the processes that train this fold no longer agree, as if memory had run out in one "
            "of them: use equal GPUs that nothing else uses, or lower train.batch_size"
        )
