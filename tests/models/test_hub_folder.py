"""A pretrained folder is read whole or refused: every family, half precision, shards, ternary weights; and what is none."""

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained import MORE, TEXT, make_folder, make_net
from safetensors.torch import load_file, save_file
from torch import nn

from research.data.spec import Tokens
from research.data.text import text
from research.data.tokenizers import Folder
from research.losses import next_token
from research.models.hub import Hub, load_as_saved
from research.models.hub_weights import unpack_codes
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.preflight.check import find_mistakes
from research.training.evaluate import evaluate

pytest.importorskip("transformers", reason="needs pip install -e '.[hub]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, at its import
SHAPE = Tokens(300, 24)
TOKENS = torch.arange(24)[None] * 7 % 300


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("hub") / "a llama")


@pytest.mark.parametrize("kind", MORE)
def test_every_family_comes_in_and_becomes_ternary(kind: str, tmp_path: Path) -> None:
    """In full precision it computes what transformers computes; its blocks become ternary, embedding and head do not."""
    from transformers import AutoModelForCausalLM

    folder = make_folder(tmp_path / kind, kind)
    net = AutoModelForCausalLM.from_pretrained(folder).eval()
    plain = Hub(SHAPE, folder=str(folder)).eval()
    assert torch.equal(plain(TOKENS), net(TOKENS).logits)
    ternary = Hub(SHAPE, folder=str(folder), linear=BitLinear).eval()
    layers, per_block = bitlinear_layers(ternary.net), 4 if kind == "gpt2" else 7
    assert len(layers) == 2 * per_block
    assert ternary(TOKENS).isfinite().all()
    kept = bitlinear_layers(Hub(SHAPE, folder=str(folder), linear=BitLinear, keep_blocks=[-1]).net)
    assert list(kept) == list(layers)[:per_block]
    inputs, head = ternary.net.get_input_embeddings(), ternary.net.get_output_embeddings()
    assert (inputs.weight is head.weight) == bool(net.config.tie_word_embeddings)


def test_bits_per_byte_of_an_unchanged_folder_are_those_of_transformers(llama: Path, tmp_path: Path) -> None:
    """On text with several documents, between which stands the folder's own end."""
    from transformers import AutoModelForCausalLM

    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(f"{name} {TEXT[:300]}", encoding="utf-8")
    tokenizer = Folder(str(llama))
    data = text(str(tmp_path), seq_len=24, tokenizer=tokenizer, val_bytes=10**6, pattern="*")
    metrics = evaluate(Hub(data.shape, folder=str(llama)), data.train, next_token, 4)
    net, (x, y) = AutoModelForCausalLM.from_pretrained(llama).eval(), data.train[torch.arange(len(data.train))]
    with torch.no_grad():
        loss = sum(float(net(input_ids=ids[None], labels=ids[None]).loss) * 24 for ids in torch.cat([x, y[:, -1:]], 1))
    assert tokenizer.end in x
    num_bytes = int(tokenizer.count_bytes()[y.flatten()].sum())
    assert metrics["val/bpb"] == pytest.approx(loss / math.log(2) / num_bytes, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32_masters(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Hub(SHAPE, folder=str(make_folder(tmp_path / "half", dtype=dtype)), linear=BitLinear)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    weight = make_net().get_parameter("model.layers.1.mlp.up_proj.weight")
    assert torch.equal(model.net.get_parameter("model.layers.1.mlp.up_proj.weight"), weight.to(dtype).float())


def test_shards_and_links_are_read(llama: Path, tmp_path: Path) -> None:
    """A hub's cache has links in its folders; a large model has several files."""
    folder = make_folder(tmp_path / "shards", max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    (tmp_path / "links").mkdir()
    for file in folder.iterdir():
        (tmp_path / "links" / file.name).symlink_to(file)
    one, other = Hub(SHAPE, folder=str(llama)), Hub(SHAPE, folder=str(tmp_path / "links"))
    assert torch.equal(one(TOKENS), other(TOKENS))


def test_an_architecture_alone_has_new_weights(llama: Path, tmp_path: Path) -> None:
    """Also of a folder that holds no weights, as a run keeps it."""
    model = Hub(SHAPE, folder=str(llama), linear=BitLinear)
    model.save_config(tmp_path / "model")
    kept = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}  # what an export needs
    assert {file.name for file in (tmp_path / "model").iterdir()} == kept
    new = Hub(SHAPE, folder=str(tmp_path / "model"), load_weights=False, linear=BitLinear)
    assert {k: v.shape for k, v in new.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert not torch.equal(new(TOKENS), model(TOKENS))
    with pytest.raises(ValueError, match=r"has no weights.*\n.*model.load_weights=false"):
        Hub(SHAPE, folder=str(tmp_path / "model"))


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Pack codes as the format has it: byte i of a column holds rows i, i + out / 4, ..., two bits each."""
    quarters = (codes + 1).to(torch.uint8).chunk(4)
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def make_ternary_folder(folder: Path, linear_class: str, mode: str, is_packed: bool = True) -> Path:
    """Write a BitNet whose layers are ternary, as transformers reads them, by its two classes and modes."""
    make_folder(folder, "bitnet")
    tensors = load_file(folder / "model.safetensors")
    for key in [key for key in tensors if key.endswith("proj.weight") and mode == "offline"]:
        weight = tensors[key]
        scale = weight.abs().mean().reshape(1)
        codes = (weight / scale).round().clamp(-1, 1)
        tensors[key] = pack(codes) if is_packed else codes
        tensors[f"{key}_scale"] = 1 / scale if linear_class == "bitlinear" else scale
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitnet", "linear_class": linear_class, "quantization_mode": mode,
                                     "modules_to_not_convert": ["lm_head"]}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("linear_class", "mode", "is_packed"),
    [("autobitlinear", "online", False), ("autobitlinear", "offline", True), ("autobitlinear", "offline", False),
     ("bitlinear", "offline", True)],
)  # fmt: skip
def test_a_ternary_folder_computes_what_it_computed(
    linear_class: str, mode: str, is_packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' own layers are the reference; full precision has the same ternary weights."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations import bitnet

    for kind, name in ((bitnet.WeightQuant, "forward"), (bitnet.ActQuant, "forward")):
        monkeypatch.setattr(kind, name, staticmethod(getattr(kind, name)._torchdynamo_orig_callable))
    for name in ("activation_quant", "post_quant_process"):
        monkeypatch.setattr(bitnet.BitLinear, name, getattr(bitnet.BitLinear, name)._torchdynamo_orig_callable)
    monkeypatch.setattr(bitnet, "unpack_weights", bitnet.unpack_weights._torchdynamo_orig_callable)
    folder = make_ternary_folder(tmp_path / "ternary", linear_class, mode, is_packed)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    kinds = {type(module).__name__ for module in reference.modules()}
    assert ("BitLinear" if linear_class == "bitlinear" else "AutoBitLinear") in kinds
    model = Hub(SHAPE, folder=str(folder), linear=BitLinear).eval()
    torch.testing.assert_close(model(TOKENS), reference(TOKENS).logits, rtol=2e-3, atol=2e-3)
    assert not hasattr(model.net.config, "quantization_config")
    assert torch.equal(load_as_saved(SHAPE, str(folder)).eval()(TOKENS), model(TOKENS)), "what is judged, and what teaches"
    full = Hub(SHAPE, folder=str(folder))
    for name, layer in bitlinear_layers(model.net).items():
        codes, scale = layer.get_quantized_weight()
        if mode == "offline":
            torch.testing.assert_close(codes * scale, full.net.get_parameter(f"{name}.weight"))


def test_packed_codes_are_unpacked() -> None:
    codes = torch.randint(-1, 2, (8, 5)).float()
    assert torch.equal(unpack_codes(pack(codes)), codes)


def test_ternary_weights_that_another_quantizer_changes_are_refused(tmp_path: Path) -> None:
    folder = make_ternary_folder(tmp_path / "ternary", "autobitlinear", "offline")
    with pytest.raises(ValueError, match=r"have one scale each, and model.linear makes other ones of them\n"):
        Hub(SHAPE, folder=str(folder), linear=partial(BitLinear, granularity=8))


def change(name: str, **fields: Any) -> Callable[[Path], None]:
    """Return what sets fields of a JSON file of a folder; None removes one."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        content = {key: value for key, value in (content | fields).items() if value is not None}
        (folder / name).write_text(json.dumps(content))

    return edit


def edit_weights(action: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Return what changes the tensors of a folder."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        action(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return edit


def remove(*names: str) -> Callable[[Path], None]:
    """Return what removes files of a folder."""

    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return edit


def spoil(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][3] = torch.nan


def move_inside(folder: Path) -> None:
    shutil.copytree(folder, folder / "snapshots" / "abc")
    (folder / "config.json").unlink()


DRY = [  # what the preflight says, too
    (remove("config.json"), r"has no config.json: give a local folder that save_pretrained wrote; it holds"),
    (move_inside, r"has no config.json: a folder in it has one\ngive model.folder=.*snapshots/abc$"),
    (change("adapter_config.json", base_model_name_or_path="meta/llama"), r"an adapter of meta/llama.*\n.*merge_and_unload"),
    (lambda f: (remove("config.json")(f), change("adapter_config.json")(f)), r"an adapter of BASE.*\n.*merge_and_unload"),
    (lambda f: (f / "config.json").rename(f / "w.gguf"), r"it holds GGUF, which runs and is not trained\ngive the folder"),
    (lambda f: (f / "config.json").rename(f / "model_index.json"), r"a pipeline of images, and no language model"),
    (lambda f: (f / "config.json").rename(f / "config.yaml"), r"a run of this program\ngo on with it by resume="),
    (lambda f: (f / "config.json").write_text("{"), r"cannot be read: its config.json: .*\ngive a local folder"),
    (change("config.json", model_type=None), r"cannot be read: its config.json has no model_type"),
    (change("config.json", quantization_config={"quant_method": "gptq"}), r"quantized by gptq, which does not train\ngive the"),
    (
        change("config.json", quantization_config={"quant_method": "bitnet", "use_rms_norm": True}),
        r"norms of their own \(use_rms_norm\)",
    ),
    (remove("model.safetensors"), r"has no weights: model.safetensors is not there\n"),
    (
        lambda f: (
            (f / "model.safetensors").rename(f / "x")
            and change("model.safetensors.index.json", weight_map={"a": "model-1.safetensors", "b": "x"})(f)
        ),
        r"lacks model-1.safetensors of its 2 files",
    ),
    (
        change("config.json", max_position_embeddings=8),
        r"has 8 positions, the data has 24 tokens a text\ngive data.seq_len=8 or",
    ),
]
WHOLE = [  # what only the weights tell
    (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-999]), r"cannot be read: "),
    (edit_weights(lambda t: t.pop("model.layers.1.mlp.up_proj.weight")), r"lacks model.layers.1.mlp.up_proj.weight.*\n"),
    (edit_weights(lambda t: t.update(score=torch.ones(3))), r"has also score, which LlamaForCausalLM does not have\n"),
    (edit_weights(lambda t: t.update({"model.norm.weight": torch.ones(3)})), r"(?s)model.norm.weight|cannot be read"),
    (edit_weights(spoil), r"model.norm.weight holds NaN or infinity\n"),
    (change("config.json", model_type="own", auto_map={"AutoConfig": "x.Y"}), r"own is no model of transformers, and code of"),
    (change("config.json", model_type="lama9"), r"transformers has no lama9\n"),
    (change("config.json", model_type="t5", architectures=["T5ForConditionalGeneration"]), r"T5ForC\w+ is no language model"),
    (change("config.json", model_type="vit", architectures=["ViTModel"]), r"ViTModel is no language model that predicts"),
]


@pytest.mark.parametrize(("damage", "words"), [*DRY, *WHOLE])
def test_what_cannot_be_trained_on_is_refused(damage: Any, words: str, llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "folder"))
    damage(folder)
    with pytest.raises(ValueError, match=words) as caught:
        Hub(SHAPE, folder=str(folder))
    assert str(caught.value).startswith(f"model.folder={folder}")
    assert len(str(caught.value).splitlines()) <= 2
    if (damage, words) in DRY:
        mistakes = find_mistakes(["model=hub", f"model.folder={folder}", "data=text", "data.seq_len=24"], False)
        assert len(mistakes) == 1
        assert str(caught.value).splitlines()[-1] in mistakes[0]


def test_the_folder_of_another_task_names_it(tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    kind: Any = LlamaForSequenceClassification
    kind(make_net(tie_word_embeddings=False).config).save_pretrained(tmp_path / "classes")
    with pytest.raises(ValueError, match=r"lacks lm_head.weight.*, as a folder of LlamaForSequenceClassification\n"):
        Hub(SHAPE, folder=str(tmp_path / "classes"))


def test_pickled_weights_are_read_as_numbers_alone(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "folder"))
    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert torch.equal(Hub(SHAPE, folder=str(folder))(TOKENS), Hub(SHAPE, folder=str(llama))(TOKENS))
    torch.save(tensors | {"code": nn.Linear(2, 2)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"cannot be read: its pytorch_model.bin holds more than tensors, which could run"):
        Hub(SHAPE, folder=str(folder))


@pytest.mark.parametrize("index", [2, -3])
def test_a_block_that_is_not_there_is_named(index: int, llama: Path) -> None:
    with pytest.raises(ValueError, match=rf"model.keep_blocks=\[{index}\]: {index} is no block: give numbers from -2 to 1"):
        Hub(SHAPE, folder=str(llama), linear=BitLinear, keep_blocks=[index])


def test_a_smaller_vocabulary_is_refused(llama: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab_size is 304, the data has 400.*own tokenizer"):
        Hub(Tokens(400, 24), folder=str(llama))
