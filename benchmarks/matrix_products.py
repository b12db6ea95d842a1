"""Benchmark the 3 x 3 convolutions of a ResNet18 as matrix products against torch's.

    python -m benchmarks.matrix_products --side 96 --batch 64
    python -m benchmarks.matrix_products --side 96 --batch 128 --forward

Prints median milliseconds of both, of a forward and backward pass as in training or of a forward
pass as in prediction, and which one `face_attributes/networks/convolution.py` chooses.
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

from face_attributes.command import user_command
from face_attributes.networks.convolution import convolve, prefers_matmul
from face_attributes.networks.device import choose_hardware
from face_attributes.params import Precision

LAYERS = {
    "layer1": (64, 64, 4, 1), "layer2, first": (64, 128, 4, 2), "layer2": (128, 128, 8, 1),
    "layer3, first": (128, 256, 8, 2), "layer3": (256, 256, 16, 1),
    "layer4, first": (256, 512, 16, 2), "layer4": (512, 512, 32, 1),
}  # fmt: skip
"""Input channels, output channels, side of the crop / side of the input, stride."""


def milliseconds(product: bool, images: Tensor, weight: Tensor, stride: int) -> float:
    """Time a forward pass and, with gradients enabled, a backward pass."""
    images, weight = images.detach().requires_grad_(), weight.detach().requires_grad_()
    start = time.perf_counter()
    if product:
        out = convolve(images, weight, None, (stride, stride), (1, 1))
    else:
        out = functional.conv2d(images, weight, None, stride, 1)
    if out.requires_grad:
        out.backward(out)
    return 1000 * (time.perf_counter() - start)


@user_command
def main(
    side: Annotated[int, typer.Option(help="Side of the crops in pixels")] = 96,
    batch: Annotated[int, typer.Option(help="Photos per batch")] = 64,
    precision: Annotated[Precision, typer.Option(help="auto: as in training")] = "auto",
    forward: Annotated[bool, typer.Option("--forward", help="Forward pass only")] = False,
    repeats: Annotated[int, typer.Option(help="Runs of each, alternating")] = 15,
) -> None:
    """Time each kind of 3 x 3 convolution as a convolution and as a product."""
    torch.set_grad_enabled(not forward)
    hardware = choose_hardware("cpu", precision, "--device")
    table = Table("layer", "images", "convolution", "product", "ratio", "choice")
    for name, (channels, out, scale, stride) in LAYERS.items():
        images, weight = (
            torch.randn(shape).to(hardware.dtype).to(memory_format=torch.channels_last)
            for shape in ((batch, channels, *[-(-side // scale)] * 2), (out, channels, 3, 3))
        )
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(repeats + 1):
            for product, results in times.items():
                results.append(milliseconds(product, images, weight, stride))
        convolution, matmul = (statistics.median(results[1:]) for results in times.values())
        chosen = prefers_matmul(images, weight, None, (stride, stride), (1, 1), (1, 1), 1)
        table.add_row(
            name,
            " x ".join(map(str, images.shape)),
            f"{convolution:.1f} ms",
            f"{matmul:.1f} ms",
            f"{convolution / matmul:.1f}x",
            "product" if chosen else "convolution",
        )
    print(f"{hardware.dtype}, {torch.get_num_threads()} threads")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
