"""Ternary models of images and of vectors: torch and onnxruntime compute them, and what cannot says so."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exporting import run_documented_code
from omegaconf import OmegaConf
from PIL import Image
from test_conf import compose_config
from torch import Tensor, nn

from research.data.images import images
from research.data.spec import Images, MemoryDataset, Split, Vectors
from research.export import gguf, hf, layout, plain, safetensors, verify
from research.load import TrainedRun
from research.models.mlp import MLP
from research.models.vision import Vision
from research.nn.bitlinear import BitLinear
from research.run_dir import write_json

CLASSES, PIXELS = Images(3, 8, 12, 5), Images(1, 8, 8, 3, per_pixel=True)
ONNX = [pytest.mark.slow, pytest.mark.skipif(find_spec("onnxruntime") is None, reason="no onnxruntime")]
FORMATS = [
    pytest.param("torch", PIXELS, marks=pytest.mark.slow),
    pytest.param("onnx", CLASSES, marks=ONNX),
    pytest.param("onnx", Vectors(7, 4), marks=ONNX),
]


def make_source(shape: Images | Vectors, linear: type[nn.Linear] = BitLinear) -> layout.Source:
    """Return a model with random weights, as if trained, and its validation samples."""
    torch.manual_seed(0)
    model: nn.Module
    inputs: Tensor
    if isinstance(shape, Images):
        model = Vision(shape, 32, 2, 2, linear, sub_norm=True, init_std=0.2)
        inputs = torch.randint(256, (130, *shape[:3]), dtype=torch.uint8)
    else:
        model, inputs = MLP(shape, 32, 2, linear), torch.randn(130, shape.num_features)
    size = shape[1:3] if isinstance(shape, Images) and shape.per_pixel else ()
    targets = torch.randn(130) if shape.num_classes == 1 else torch.randint(shape.num_classes, (130, *size))
    run = TrainedRun(
        Path("run"), Path("run"), OmegaConf.create({"data": {"_target_": "none"}}), model.eval().requires_grad_(False)
    )
    split = Split(inputs, targets)
    run.data = MemoryDataset(shape, split, split, "", "", "sample")
    return layout.build_source(run)


@pytest.mark.parametrize(("kind", "shape"), FORMATS)
def test_images_and_vectors_are_exported(kind: str, shape: Images | Vectors, tmp_path: Path) -> None:
    source = make_source(shape)
    (tmp_path / "out").mkdir()
    report = verify.verify_export(source, kind, layout.Options(), tmp_path / "out", 100)
    assert all(check["holds"] for check in report["checks"].values())
    assert report["samples"] == 100
    assert report["checks"]["one sample alone"]["value"]
    assert source.architecture == {"name": type(source.model).__name__, **shape._asdict()}


@pytest.mark.parametrize("shape", [CLASSES, PIXELS, Vectors(7, 4)], ids=["classes", "pixels", "vectors"])
def test_the_check_compares_what_was_trained(shape: Images | Vectors) -> None:
    """A plain model passes, one with another head is found."""
    source = make_source(shape)
    inputs, targets = verify.select_held_out(source, 100)
    assert inputs.dtype == source.inputs[1].dtype
    model = plain.build_plain_model(source)
    codes = {name: layout.quantize_layer(layer) for name, layer in source.linears.items()}
    result = verify.ClientResult("torch", codes, model(inputs))
    assert verify.describe_failures(verify.build_report(source, result, inputs, targets)) == ""
    nn.init.normal_(model.get_submodule("head").get_parameter("weight"))
    result = verify.ClientResult("torch", codes, model(inputs))
    assert "mean KL" in verify.describe_failures(verify.build_report(source, result, inputs, targets))


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_the_code_of_the_docs_tells_a_picture(
    mode: str, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gives the model what the data set does; the file itself is that of the tests above."""
    pixels = np.random.default_rng(0).integers(256, size=(4, 17, 24, channels), dtype=np.uint8)
    for number, name in enumerate(("cat", "cat", "dog", "dog")):
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number].squeeze()).save(tmp_path / "data" / name / f"{number}.png")
    data = images(str(tmp_path / "data"), size=8, val_fraction=0.25)
    source = make_source(data.shape)
    report = {"model": source.architecture, "class_names": data.classes}
    output = tmp_path / "exports" / "images"
    output.mkdir(parents=True)
    write_json(output / "export.json", report)
    Image.fromarray(pixels[3].squeeze()).save(tmp_path / "cat.jpg", format="PNG")  # as it is, whatever its name
    monkeypatch.setattr(torch.export, "load", lambda path: SimpleNamespace(module=lambda: source.model))
    run_documented_code(output, monkeypatch)
    everything = torch.cat([split.inputs for split in (data.train, data.val)])
    expected = [
        [f"{share:.2f} {name}" for share, name in zip(shares, ("cat", "dog"), strict=True)]
        for shares in source.model(everything).softmax(1).tolist()
    ]
    assert capsys.readouterr().out.splitlines() in expected
    assert len({tuple(lines) for lines in expected}) == 4, "they differ, so it is this picture's"


@pytest.mark.parametrize("writer", [hf, gguf, safetensors])
def test_formats_of_tokens_name_the_others(writer: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"RUN has the model Vision, and --format \w+ .*; use --format torch or onnx"):
        writer.write(make_source(CLASSES), tmp_path, layout.Options())  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


def test_what_no_format_holds_is_named() -> None:
    with pytest.raises(ValueError, match=r"RUN predicts numbers, and the check of exports compares classes; load it in Python"):
        verify.select_held_out(make_source(Vectors(7, 1)), 100)
    for kind, options in layout.MODELS.items():
        for option in options:
            assert compose_config(f"model={option}").model._target_ == f"{kind.__module__}.{kind.__name__}"
