"""Convolutions as matrix products: the same numbers, only where that is the faster way."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.learning import convolution
from stages.learning.convolution import MatrixProducts, Patches

Made = tuple[Tensor, Tensor, Tensor]


def images(count: int, channels: int, high: int, wide: int) -> Tensor:
    made = torch.randn(count, channels, high, wide, generator=torch.Generator().manual_seed(0))
    return made.to(memory_format=torch.channels_last).requires_grad_()


def made_by(layer: nn.Conv2d, photos: Tensor) -> Made:
    """What comes out, and the gradients of the photos and of the weights."""
    photos.grad, layer.weight.grad = None, None
    out = layer(photos)
    out.square().sum().backward()
    assert photos.grad is not None
    assert layer.weight.grad is not None
    return out.detach(), photos.grad, layer.weight.grad


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the images that were convolved by a product."""
    seen, convolve = [], convolution.convolve

    def noted(photos: Tensor, *others: object) -> Tensor:
        seen.append(tuple(photos.shape))
        return convolve(photos, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(convolution, "convolve", noted)
    return seen


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel", [1, 2, 3, (3, 1)])
@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (1, 0), (2, 0), ((2, 1), (0, 1))])
def test_products_give_the_convolution_and_its_gradients(
    products: list[tuple[int, ...]],
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    bias: bool,
) -> None:
    layer = nn.Conv2d(64, 96, kernel, stride, padding, bias=bias)
    layer.to(memory_format=torch.channels_last)
    photos = images(1, 64, 4, 5)
    plainly = made_by(layer, photos)
    assert not products
    with MatrixProducts():
        as_product = made_by(layer, photos)
    for one, other in zip(plainly, as_product, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)
        assert other.is_contiguous(memory_format=torch.channels_last)
    many_weights = layer.weight.numel() >= 8 * plainly[0].numel()
    assert products == [(1, 64, 4, 5)] * many_weights


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 3)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2)])
def test_patches_are_shifted_slices_and_their_gradients_to_the_bit(
    kernel: tuple[int, int], stride: tuple[int, int]
) -> None:
    seeded = torch.Generator().manual_seed(0)
    photos = torch.randn(4, 7, 6, 32, generator=seeded).bfloat16().requires_grad_()
    patches = Patches.apply(photos, kernel, stride)
    high, wide = (size * step for size, step in zip(patches.shape[1:3], stride, strict=True))
    slices = torch.cat(
        [
            photos[:, row : row + high : stride[0], column : column + wide : stride[1]]
            for row in range(kernel[0])
            for column in range(kernel[1])
        ],
        dim=-1,
    )
    assert torch.equal(patches, slices)
    gradient = torch.randn(patches.shape, generator=seeded).bfloat16()
    (found,), (expected,) = (
        torch.autograd.grad(made, photos, gradient) for made in (patches, slices)
    )
    assert torch.equal(found, expected)


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
def test_other_convolutions_stay_what_they_are(
    products: list[tuple[int, ...]], layer: nn.Conv2d
) -> None:
    photos = images(1, layer.in_channels, 5, 5)
    plainly = layer(photos)
    with MatrixProducts():
        assert torch.equal(layer(photos), plainly)
    assert not products


@pytest.mark.parametrize(
    ("dtype", "gradients", "amx", "most"),
    [
        (torch.float32, True, False, 18),
        (torch.float32, False, True, 18),
        (torch.bfloat16, True, False, 36),
        (torch.bfloat16, False, True, 72),
        (torch.bfloat16, False, False, 0),
        (torch.float64, True, True, 0),
    ],
)
def test_products_want_more_weights_than_outputs(
    dtype: torch.dtype, gradients: bool, amx: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 times in float32, 4 in bfloat16; in a pass forward alone 2 with AMX, else never."""
    monkeypatch.setattr(convolution, "AMX", amx)
    weight = nn.Conv2d(64, 64, 3).weight  # 36,864 numbers, against 256 a photo
    with torch.set_grad_enabled(gradients):
        for batch in (most, most + 1):
            photos = images(batch, 64, 2, 2).to(dtype)
            pays = convolution.pays(photos, weight, None, (1, 1), (1, 1), (1, 1), 1)
            assert pays == (0 < batch <= most)


def test_weights_learn_from_images_that_do_not_as_behind_a_frozen_part() -> None:
    layer, photos = nn.Conv2d(64, 64, 3, padding=1), images(2, 64, 2, 2)
    _, _, expected = made_by(layer, photos)
    layer.weight.grad = None
    with MatrixProducts():
        layer(photos.detach()).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, expected, atol=1e-3, rtol=1e-4)


def test_an_image_smaller_than_the_kernel_is_the_error_that_it_was() -> None:
    with MatrixProducts(), pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        nn.Conv2d(64, 64, 3)(images(1, 64, 2, 2))


def test_products_are_of_the_precision_of_the_pass(products: list[tuple[int, ...]]) -> None:
    layer, photos = nn.Conv2d(64, 64, 3, padding=1), images(2, 64, 2, 2)
    with MatrixProducts(), torch.autocast("cpu", torch.bfloat16):
        out = layer(photos)
    assert products
    assert out.dtype == torch.bfloat16
    expected = functional.conv2d(photos, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(out.float(), expected, atol=0.03, rtol=0.03)
