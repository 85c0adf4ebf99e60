"""The vision transformer: every patch sees every other, images of any channels and sides, a class for each image or pixel."""

import pytest
import torch
from torch import nn

from research.callbacks.ternary import Ternary
from research.data.spec import Images, MemoryDataset, Split, Tokens, Vectors, restore_shape
from research.losses import classification
from research.models.vision import Vision
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.nn.blocks import find_blocks
from research.nn.packed import PackedLinear, pack_model
from research.optim.schedules import constant
from research.preflight.check import find_mistakes
from research.training.trainer import Trainer


def build(shape: Images, linear: type[nn.Linear] = nn.Linear, patch_size: int = 4) -> Vision:
    torch.manual_seed(0)
    return Vision(shape, 16, 2, 2, linear, patch_size=patch_size, sub_norm=True)


def draw(shape: Images, count: int = 3) -> torch.Tensor:
    return torch.randint(256, (count, *shape[:3]), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("linear", [nn.Linear, BitLinear])
@pytest.mark.parametrize(
    ("shape", "patch_size", "expected"),
    [
        (Images(1, 8, 8, 10), 4, (3, 10)),
        (Images(3, 8, 12, 5), 4, (3, 5)),
        (Images(3, 12, 6, 1), 3, (3, 1)),
        (Images(1, 8, 8, 10), 8, (3, 10)),
        (Images(1, 4, 4, 2), 1, (3, 2)),
        (Images(1, 8, 8, 11, per_pixel=True), 4, (3, 11, 8, 8)),
        (Images(3, 8, 12, 4, per_pixel=True), 2, (3, 4, 8, 12)),
    ],
)
def test_images_of_any_shape(linear: type[nn.Linear], shape: Images, patch_size: int, expected: tuple[int, ...]) -> None:
    model = build(shape, linear, patch_size)
    logits = model(draw(shape))
    assert logits.shape == expected
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    without = {name for name, gradient in gradients.items() if gradient is not None and not gradient.any()}
    assert all("q_proj" in name or "k_proj" in name for name in without), "of one patch alone, attention has nothing to choose"
    assert not without or patch_size == shape.height


def test_pixels_stay_where_they_are() -> None:
    """What is cut into patches is joined again; a patch's tokens go row after row."""
    model = build(Images(2, 4, 6, 2, per_pixel=True), patch_size=2)
    images = torch.arange(96.0).view(2, 2, 4, 6)
    patches = model.cut_patches(images)
    assert torch.equal(patches[0, 4].view(2, 2, 2), images[0, :, 2:4, 2:4])
    assert torch.equal(model.join_patches(patches), images)


def test_every_patch_sees_every_other_and_knows_its_place() -> None:
    model = build(Images(1, 8, 8, 3, per_pixel=True))
    image = draw(Images(1, 8, 8, 3), 1)
    for row, column in ((0, 0), (4, 4)):  # the first and the last patch
        other = image.clone()
        other[:, :, row, column] = 255 - other[:, :, row, column]
        assert (model(image) != model(other)).any(1).all()
    model = build(Images(1, 8, 8, 3))
    assert not torch.allclose(model(image), model(image.roll(4, 2)), atol=1e-4)


def test_whole_numbers_are_scaled() -> None:
    model = build(Images(1, 8, 8, 3))
    images = draw(Images(1, 8, 8, 3))
    assert torch.equal(model(images), model(images.float() / 127.5 - 1))
    assert torch.equal(model(images), model(images.to(torch.uint8)))
    assert not torch.allclose(model(images), model(images.float()))


@pytest.mark.parametrize("per_pixel", [False, True])
def test_a_packed_model_computes_the_same(per_pixel: bool) -> None:
    shape = Images(3, 8, 12, 4, per_pixel)
    model, images = build(shape, BitLinear).eval(), draw(Images(3, 8, 12, 4))
    packed = pack_model(model, int8_embeddings=False)
    assert sum(isinstance(layer, PackedLinear) for layer in packed.modules()) == len(bitlinear_layers(model)) == 14
    with torch.no_grad():
        torch.testing.assert_close(packed(images), model(images), rtol=1e-5, atol=1e-6)
        assert (pack_model(model)(images) - model(images)).abs().max() < 0.05 * model(images).abs().max()
    assert list(find_blocks(model)) == ["blocks.0", "blocks.1"]


def test_a_ternary_model_learns_and_is_measured() -> None:
    """Where the bright quarter of an image is; ternary layers are measured as in any other model."""
    shape, generator = Images(1, 8, 8, 4), torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(16)
    images = torch.randint(100, (64, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[:, row : row + 4, column : column + 4] += 150
    split = Split(images, labels)
    model, trainer = build(shape, BitLinear), Trainer(steps=30, batch_size=16, device="cpu", eval_every=30)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = MemoryDataset(shape, split, split, "", "", "sample")
    state = trainer.setup(model, optimizer, constant, classification, data, [Ternary(every=10)], monitor="val/loss")
    metrics = trainer.fit(state).progress.metrics
    assert metrics["val/loss"] < 0.2
    assert "ternary/zero/blocks.0.attention.q_proj" in metrics


@pytest.mark.parametrize("shape", [Images(3, 8, 12, 4, True), Vectors(3, 1), Tokens(5, 4, 0, 2)], ids=str)
def test_a_shape_is_read_back_from_a_summary(shape: Images | Vectors | Tokens) -> None:
    restored = restore_shape(shape._asdict())
    assert type(restored) is type(shape)
    assert restored == shape
    with pytest.raises(ValueError, match="is no shape of data"):
        restore_shape({"sides": 3})


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"model.patch_size=3 does not divide images of 8 x 12 pixels\ngive model.patch_size=[24]"
    ):
        build(Images(1, 8, 12, 2), patch_size=3)
    with pytest.raises(ValueError, match=r"model.heads=3 does not divide model.dim=16"):
        Vision(Images(1, 8, 8, 2), 16, 1, 3, nn.Linear)
    with pytest.raises(ValueError, match=r"images of 1 x 8 x 12: this model was built for 1 x 8 x 8"):
        build(Images(1, 8, 8, 2))(draw(Images(1, 8, 12, 2)))
    mistakes = find_mistakes(["model=vision", "model.heads=3"], False)  # learnt positions: heads may be odd
    assert any("model.heads=3 does not divide model.dim=64\n" in mistake for mistake in mistakes)
