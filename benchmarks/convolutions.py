"""The 3 x 3 convolutions of a ResNet18 as matrix products, against torch's.

    python -m benchmarks.convolutions --side 96 --batch 64
    python -m benchmarks.convolutions --side 96 --batch 128 --forward

Prints milliseconds of both, forward and backward as in training or forward alone as in predictions,
medians, and whether the product is taken (`stages/learning/convolution.py`).
"""

import statistics
import time
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from stages.learning.convolution import convolve, pays
from stages.learning.device import choose_hardware

LAYERS = {
    "layer1": (64, 64, 4, 1), "layer2, first": (64, 128, 4, 2), "layer2": (128, 128, 8, 1),
    "layer3, first": (128, 256, 8, 2), "layer3": (256, 256, 16, 1),
    "layer4, first": (256, 512, 16, 2), "layer4": (512, 512, 32, 1),
}  # fmt: skip
"""Channels in and out, the share of the side of the crop that comes in (1 / so much), stride."""


def milliseconds(product: bool, images: Tensor, weight: Tensor, stride: int) -> float:
    """Of a pass forward and, where there are gradients, backward."""
    images, weight = images.detach().requires_grad_(), weight.detach().requires_grad_()
    start = time.perf_counter()
    if product:
        out = convolve(images, weight, None, (stride, stride), (1, 1))
    else:
        out = functional.conv2d(images, weight, None, stride, 1)
    if out.requires_grad:
        out.backward(out)
    return 1000 * (time.perf_counter() - start)


def main(
    side: Annotated[int, typer.Option(help="Side of the crops in pixels")] = 96,
    batch: Annotated[int, typer.Option(help="Photos at once")] = 64,
    precision: Annotated[str, typer.Option(help="auto (as training), fp32 or bf16")] = "auto",
    forward: Annotated[bool, typer.Option("--forward", help="A pass forward alone")] = False,
    repeats: Annotated[int, typer.Option(help="Runs of each, taking turns")] = 15,
) -> None:
    """Time each kind of 3 x 3 convolution both ways."""
    torch.set_grad_enabled(not forward)
    hardware = choose_hardware("cpu", precision, "--device")
    table = Table("layer", "images", "convolution", "product", "ratio", "taken")
    for name, (channels, out, share, stride) in LAYERS.items():
        images, weight = (
            torch.randn(shape).to(hardware.dtype).to(memory_format=torch.channels_last)
            for shape in ((batch, channels, *[-(-side // share)] * 2), (out, channels, 3, 3))
        )
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(repeats + 1):
            for product, measured in times.items():
                measured.append(milliseconds(product, images, weight, stride))
        usual, other = (statistics.median(measured[1:]) for measured in times.values())
        taken = pays(images, weight, None, (stride, stride), (1, 1), (1, 1), 1)
        table.add_row(
            name,
            " x ".join(map(str, images.shape)),
            f"{usual:.1f} ms",
            f"{other:.1f} ms",
            f"{usual / other:.1f}x",
            "product" if taken else "convolution",
        )
    print(f"{hardware.dtype}, {torch.get_num_threads()} threads")
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
