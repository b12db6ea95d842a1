"""Convolutions as matrix products: the same numbers, and only where they are faster."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from face_attributes.networks import convolution
from face_attributes.networks.convolution import MatrixProducts, Patches, prefers_matmul
from tests.small import seeded

Pass = tuple[Tensor, Tensor, Tensor]


def random_images(count: int, channels: int, height: int, width: int) -> Tensor:
    images = torch.randn(count, channels, height, width, generator=seeded())
    return images.to(memory_format=torch.channels_last).requires_grad_()


def run_both_passes(layer: nn.Conv2d, images: Tensor) -> Pass:
    """Return the output, and the gradients of the images and of the weights."""
    images.grad, layer.weight.grad = None, None
    output = layer(images)
    output.square().sum().backward()
    assert images.grad is not None
    assert layer.weight.grad is not None
    return output.detach(), images.grad, layer.weight.grad


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the images that were convolved by a product."""
    shapes, convolve = list[tuple[int, ...]](), convolution.convolve

    def record(images: Tensor, *others: object) -> Tensor:
        shapes.append(tuple(images.shape))
        return convolve(images, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(convolution, "convolve", record)
    return shapes


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "bias"),
    [
        (1, 1, 0, False),
        (1, 2, 0, True),
        (2, 1, 0, False),
        (3, 1, 1, False),
        (3, 2, 1, True),
        (3, 1, 0, True),
        ((3, 1), (2, 1), (0, 1), False),
    ],
)
def test_products_equal_convolutions_and_their_gradients(
    products: list[tuple[int, ...]],
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    bias: bool,
) -> None:
    layer = nn.Conv2d(256, 96, kernel, stride, padding, bias=bias)
    layer.to(memory_format=torch.channels_last)
    images = random_images(1, 256, 4, 5)
    expected = run_both_passes(layer, images)
    assert not products
    with MatrixProducts():
        results = run_both_passes(layer, images)
    assert products == [(1, 256, 4, 5)]
    for result, tensor in zip(results, expected, strict=True):
        torch.testing.assert_close(result, tensor, atol=1e-3, rtol=1e-4)
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("kernel", "stride"), [((3, 3), (1, 1)), ((1, 1), (2, 2)), ((2, 3), (1, 2))]
)
def test_patches_equal_shifted_slices_and_their_gradients_exactly(
    kernel: tuple[int, int], stride: tuple[int, int]
) -> None:
    images = torch.randn(4, 7, 6, 32, generator=seeded()).bfloat16().requires_grad_()
    patches = Patches.apply(images, kernel, stride)
    height, width = (size * step for size, step in zip(patches.shape[1:3], stride, strict=True))
    slices = torch.cat(
        [
            images[:, row : row + height : stride[0], column : column + width : stride[1]]
            for row in range(kernel[0])
            for column in range(kernel[1])
        ],
        dim=-1,
    )
    assert torch.equal(patches, slices)
    gradient = torch.randn(patches.shape, generator=seeded(1)).bfloat16()
    (result,), (expected,) = (
        torch.autograd.grad(output, images, gradient) for output in (patches, slices)
    )
    assert torch.equal(result, expected)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(64, 64, 5, padding=2),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 3, padding="same"),
        nn.Conv2d(8, 8, 3, padding=1),
    ],
)
def test_other_convolutions_are_left_to_torch(
    products: list[tuple[int, ...]], layer: nn.Conv2d
) -> None:
    images = random_images(1, layer.in_channels, 5, 5)
    expected = layer(images)
    with MatrixProducts():
        assert torch.equal(layer(images), expected)
    assert not products


@pytest.mark.parametrize(
    ("dtype", "gradients", "amx", "largest_batch"),
    [
        (torch.float32, True, False, 18),
        (torch.float32, False, True, 18),
        (torch.bfloat16, True, False, 36),
        (torch.bfloat16, False, True, 72),
        (torch.bfloat16, False, False, 0),
        (torch.float64, True, True, 0),
    ],
)
def test_products_need_more_weights_than_outputs(
    dtype: torch.dtype,
    gradients: bool,
    amx: bool,
    largest_batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """8 times as many in float32, 4 in bfloat16; without gradients 2 with AMX, else never."""
    monkeypatch.setattr(convolution, "has_amx", lambda: amx)
    weight = nn.Conv2d(64, 64, 3).weight  # 36,864 weights; 256 outputs per photo
    with torch.set_grad_enabled(gradients):
        for batch in (largest_batch, largest_batch + 1):
            images = random_images(batch, 64, 2, 2).to(dtype)
            preferred = prefers_matmul(images, weight, None, (1, 1), (1, 1), (1, 1), 1)
            assert preferred == (0 < batch <= largest_batch)


def test_weights_behind_a_frozen_part_get_gradients() -> None:
    """Their images need none."""
    layer, images = nn.Conv2d(64, 64, 3, padding=1), random_images(2, 64, 2, 2)
    _, _, expected = run_both_passes(layer, images)
    layer.weight.grad = None
    with MatrixProducts():
        layer(images.detach()).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, expected, atol=1e-3, rtol=1e-4)


def test_image_smaller_than_the_kernel_is_torch_s_error() -> None:
    with MatrixProducts(), pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        nn.Conv2d(64, 64, 3)(random_images(1, 64, 2, 2))


def test_products_follow_autocast(products: list[tuple[int, ...]]) -> None:
    layer, images = nn.Conv2d(64, 64, 3, padding=1), random_images(2, 64, 2, 2)
    with MatrixProducts(), torch.autocast("cpu", torch.bfloat16):
        output = layer(images)
    assert products
    assert output.dtype == torch.bfloat16
    expected = functional.conv2d(images, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(output.float(), expected, atol=0.03, rtol=0.03)
