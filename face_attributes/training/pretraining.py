"""Pretrain a backbone on the attributes of many faces, before it learns the 18 classes."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from face_attributes.networks.build import head_name
from face_attributes.networks.device import Hardware
from face_attributes.networks.views import normalise
from face_attributes.progress import progress
from face_attributes.training.augmentation import brighten, shift_and_flip
from face_attributes.training.optimizer import prepare_steps

EPOCHS = 6
BATCH = 64
LEARNING_RATE = 0.003
WARMUP = 0.1


def pretrain(
    network: nn.Module, pixels: Tensor, attributes: Tensor, seed: int, hardware: Hardware
) -> float:
    """Train all of a network but its head, in place, to tell binary attributes of faces.

    A linear layer, which is thrown away, takes the place of the head.

    Args:
        network: on the CPU; it is returned there, with its own head.
        pixels: crops, N x S x S x 3, uint8.
        attributes: N x A, float32, 0 or 1.
        seed: of the batches and of the augmentation.

    Returns:
        The mean accuracy over the attributes in the last epoch.
    """
    name = head_name(network)
    head = network.get_submodule(name)
    assert isinstance(head, nn.Linear)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.set_submodule(name, nn.Linear(head.in_features, attributes.shape[1]))
        network.to(memory_format=torch.channels_last).to(hardware.device).train()
        accuracy = _train(network, pixels, attributes, hardware)
    network.to("cpu").set_submodule(name, head)
    return accuracy


def _train(network: nn.Module, pixels: Tensor, attributes: Tensor, hardware: Hardware) -> float:
    pixels, attributes = pixels.to(hardware.device), attributes.to(hardware.device)
    generator = torch.Generator(hardware.device).manual_seed(torch.initial_seed())
    weights = network.parameters()
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    prepare_steps(optimizer)
    scaler = hardware.loss_scaler()
    steps = EPOCHS * math.ceil(len(pixels) / BATCH)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, steps, pct_start=WARMUP, cycle_momentum=False
    )
    for epoch in range(EPOCHS):
        correct = torch.zeros((), device=hardware.device)
        order = torch.randperm(len(pixels), generator=generator, device=hardware.device)
        batches = order.tensor_split(math.ceil(len(pixels) / BATCH))
        label = f"pretraining, epoch {epoch + 1}/{EPOCHS}: batches"
        for rows in progress(batches, len(batches), label):
            images = shift_and_flip(pixels[rows], 0.08, 0.5, generator)
            with hardware.forward_pass():
                logits = network(normalise(brighten(images, 0.2, generator)))
            loss = functional.binary_cross_entropy_with_logits(logits.float(), attributes[rows])
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            optimizer.zero_grad()
            correct += ((logits > 0) == (attributes[rows] > 0.5)).sum()
    return float(correct / attributes.numel())
