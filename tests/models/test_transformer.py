"""Document masks and heads of classes: a row of several documents computes what each of them computes alone."""

import pytest
import torch
from torch import Tensor, nn

from research.data.spec import Tokens
from research.models.decoder import Decoder
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.nn.decode import Decoder as Decoding
from research.preflight.check import find_mistakes

END = 3
LENGTHS = (5, 1, 9, 3, 14)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 6e-2}


def build(
    linear: type[nn.Linear], document_mask: bool, num_classes: int = 0, dtype: torch.dtype = torch.float32
) -> Transformer:
    torch.manual_seed(0)
    shape = Tokens(17, 64, END, num_classes)
    model = Transformer(shape, 32, 2, 4, linear, kv_heads=2, sub_norm=True, init_std=0.2, document_mask=document_mask)
    return model.to(dtype)


def make_documents() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(4, 17, (length,), generator=generator) for length in LENGTHS]
    return [torch.cat((text, torch.tensor([END]))) for text in texts]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("linear", [nn.Linear, BitLinear])
def test_a_packed_row_computes_what_its_documents_do(linear: type[nn.Linear], dtype: torch.dtype) -> None:
    """Outputs and gradients, with grouped heads; the rows of a batch have documents of their own."""
    model, plain = build(linear, True, dtype=dtype), build(linear, False, dtype=dtype)
    documents = make_documents()
    packed = model(torch.stack([torch.cat(documents), torch.cat(documents[::-1])]))
    alone = [plain(document[None])[0] for document in documents]
    expected = torch.stack([torch.cat(alone), torch.cat(alone[::-1])])
    torch.testing.assert_close(packed, expected, rtol=0, atol=TOLERANCE[dtype] * expected.abs().max().item())
    weights = torch.linspace(-1, 1, packed.numel()).view_as(packed)
    (packed.double() * weights).sum().backward()
    (expected.double() * weights).sum().backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).double().norm() <= TOLERANCE[dtype] * other.grad.double().norm()


@pytest.mark.parametrize("linear", [nn.Linear, BitLinear])
def test_without_an_end_a_mask_changes_nothing(linear: type[nn.Linear]) -> None:
    """So a prompt is continued, and an exported file computes one document, as in training."""
    model, plain = build(linear, True), build(linear, False)
    tokens = torch.randint(4, 17, (2, 20))
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=0, atol=1e-5)
    decoder = Decoding(model.eval())
    logits = [decoder.feed(part) for part in tokens[0].split((7, 1, 12))]
    torch.testing.assert_close(logits[-1], model(tokens)[0, -1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("linear", [nn.Linear, BitLinear])
@pytest.mark.parametrize("padding", [0, 1, 11])
def test_classes_do_not_depend_on_padding(linear: type[nn.Linear], padding: int) -> None:
    model = build(linear, True, num_classes=4)
    document = make_documents()[2][:-1]
    logits = model(torch.cat((torch.full((padding,), END), document))[None])
    assert logits.shape == (1, padding + 9, 4)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[0, -1], model(document[None])[0, -1], rtol=0, atol=1e-5)


def test_a_row_of_padding_gives_numbers() -> None:
    model = build(nn.Linear, True)
    model(torch.full((2, 7), END)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_head_of_classes_is_not_the_embedding() -> None:
    model = build(nn.Linear, False, num_classes=4)
    assert model.head.weight is not model.embed.weight
    assert model.head.out_features == 4
    assert Decoder(Tokens(17, 8, num_classes=4), 8, 1, 2, nn.Linear)(torch.zeros(3, 8, dtype=torch.int64)).shape == (3, 1, 4)


def test_a_mask_needs_an_end() -> None:
    with pytest.raises(ValueError, match=r"model.document_mask=true needs data with a token between documents") as error:
        Transformer(Tokens(5, 4), 8, 1, 2, nn.Linear, document_mask=True)
    (mistake,) = find_mistakes(["model.document_mask=true"], False)
    assert [text.strip() for text in mistake.splitlines()[1:]] == str(error.value).splitlines()
    assert find_mistakes(["data=text", "model.document_mask=true"], False) == []
