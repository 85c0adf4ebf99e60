"""Tasks of lm-eval over a run: its three methods beside sums by hand, and tasks over local files."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from program import ROOT

from research.data.tokenizers import BPE
from research.load import load_run

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
Evaluate = Callable[..., tuple[int, str, str]]
TEXTS = ["import torch\n", "def f(x: int) -> int:\n    return x\n" * 4, "é€\n"]


@pytest.fixture(scope="module")
def model(sweep: Path) -> Any:
    from research.evaluate.harness import TrainedLM

    return TrainedLM(str(sweep / "0"), batch_size=3)


@pytest.fixture(scope="module")
def log_probs(sweep: Path) -> Callable[[list[int]], torch.Tensor]:
    """Return the run's log-probabilities after each of some tokens, at most 32."""
    net = load_run(str(sweep / "0")).model
    return lambda tokens: net(torch.tensor([tokens])).log_softmax(-1)[0].double()


def ask(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def test_a_continuation_has_the_sum_of_its_log_probabilities(model: Any, log_probs: Any) -> None:
    pairs = [("def f", "(x):"), ("import ", "torch"), ("a", "b"), ("", "xyz"), ("x" * 50, "yz"), ("def f", "(y):")]
    for (context, continuation), (total, is_greedy) in zip(pairs, model.loglikelihood([ask(*p) for p in pairs]), strict=True):
        moved = len(context) - len(context.rstrip())  # lm-eval gives spaces at the end of a context to the continuation
        after = list((context[len(context) - moved :] + continuation).encode())
        before = list(context[: len(context) - moved].encode()) or [0]  # the end of a document
        tokens = (before + after)[-33:]  # the start of a long context is cut off
        rows = log_probs(tokens[:-1])[-len(after) :]
        assert total == pytest.approx(sum(row[token].item() for row, token in zip(rows, after, strict=True)), abs=1e-4)
        assert is_greedy == all(row.argmax() == token for row, token in zip(rows, after, strict=True))


def test_the_likeliest_continuation_is_greedy(model: Any) -> None:
    (text,) = model.generate_until([ask("def ", {"until": [], "max_gen_toks": 5})])
    if len(text) == len(text.encode()) == 5:
        assert model.loglikelihood([ask("def", " " + text)])[0][0] < 0
    tokens = model.tok_encode("def ")
    for _ in range(5):
        tokens.append(int(model.compute_logits(torch.tensor([tokens]))[0, -1].argmax()))
    assert text.encode() == bytes(tokens[4:]).decode(errors="replace").encode()
    answer = model._loglikelihood_tokens([(None, tokens[:4], tokens[4:])])[0]
    assert answer[1]


def test_a_long_text_is_read_in_windows_and_each_token_once(model: Any, log_probs: Any) -> None:
    for text, total in zip(TEXTS, model.loglikelihood_rolling([ask(text) for text in TEXTS]), strict=True):
        tokens, expected = list(text.encode()), 0.0
        for start in range(0, len(tokens), 32):  # of the last window the tokens before it are its context
            end = min(start + 32, len(tokens))
            first = max(0, end - 32)
            inputs = ([0, *tokens] if first == 0 else tokens[first - 1 :])[: end - first]
            rows = log_probs(inputs)[start - first :]
            expected += sum(row[token].item() for row, token in zip(rows, tokens[start:end], strict=True))
        assert total == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_neighbours_in_a_batch_change_nothing(batch_size: int, model: Any, sweep: Path) -> None:
    from research.evaluate.harness import TrainedLM

    other = TrainedLM(str(sweep / "0"), batch_size=batch_size)
    requests = [ask(text[:cut], text[cut : cut + 9]) for text in TEXTS for cut in (1, 4, 9)]
    for mine, theirs in zip(model.loglikelihood(requests), other.loglikelihood(requests), strict=True):
        assert mine[0] == pytest.approx(theirs[0], abs=1e-4)
        assert mine[1] == theirs[1]


def test_generation_ends_before_a_stop_and_leaves_room(model: Any) -> None:
    (whole,) = model.generate_until([ask("x" * 100, {"until": ["\0"], "max_gen_toks": 12})])
    assert 0 < len(whole) <= 12
    (cut,) = model.generate_until([ask("x" * 100, {"until": whole[2:4], "max_gen_toks": 12})])
    assert cut == whole[: whole.index(whole[2:4])]
    drawn = [model.generate_until([ask("x", {"until": [], "do_sample": True, "temperature": 2.0})])[0] for _ in range(2)]
    assert drawn[0] == drawn[1]  # from a fixed seed


@pytest.mark.parametrize(
    ("context", "continuation", "before", "after"),
    [
        ("", "", [0], []),
        ("a", "", [97], []),
        ("  ", "x", [0], [32, 32, 120]),  # spaces at its end are the continuation's, and nothing is left
        ("a ", "", [97], [32]),
        ("", "\0", [0], [0]),
        ("\ud83d", "\ude00", [63], [63]),  # halves of a character, as broken JSON has them
        ("é", "漢", [*"é".encode()], [*"漢".encode()]),
    ],
)
def test_odd_pairs_have_tokens(context: str, continuation: str, before: list[int], after: list[int], model: Any) -> None:
    assert model._encode_pair(context, continuation) == (before, after)
    ((total, is_greedy),) = model.loglikelihood([ask(context, continuation)])
    if after:
        assert (total, is_greedy) == model._loglikelihood_tokens([(None, before, after)])[0]
        assert total < 0
    else:
        assert (total, is_greedy) == (0.0, True)
    assert model.loglikelihood([]) == []


def test_a_continuation_that_a_token_of_the_context_takes_in_is_judged(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bpe = BPE(300)
    bpe.train([b"there the then " * 50])
    monkeypatch.setattr(model, "text_tokenizer", bpe)
    assert len(bpe.encode([b"the"])[0]) == 1
    assert model._encode_pair("t", "he") == (model.tok_encode("t"), model.tok_encode("he"))


@pytest.mark.parametrize(
    ("context", "settings", "at_most"),
    [
        ("x", {"max_gen_toks": 0}, 0),
        ("x", {"max_tokens": 3}, 3),
        ("x", {"until": None, "max_gen_toks": 3}, 3),
        ("x", {"until": "", "max_gen_toks": 3}, 3),
        ("x", {"until": ["é", "\ud83d"], "max_gen_toks": 3}, 3),
        ("", {"max_gen_toks": 3}, 3),
        ("\ud83d", {"max_gen_toks": 3}, 3),
        ("x" * 100, {"max_gen_toks": 40}, 40),  # more than the model has positions
        ("x", {"do_sample": True, "max_gen_toks": 3}, 3),
        ("x", {"do_sample": True, "temperature": 1e-9, "top_k": 0, "top_p": None, "max_gen_toks": 3}, 3),
    ],
)
def test_odd_settings_of_generation(context: str, settings: dict[str, Any], at_most: int, model: Any) -> None:
    (text,) = model.generate_until([ask(context, settings)])
    assert len(text) <= at_most
    assert bool(text) == bool(at_most)


def test_a_long_answer_leaves_half_of_the_model_to_the_context(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = list[int]()
    compute_logits = model.compute_logits

    def compute(tokens: torch.Tensor) -> torch.Tensor:
        lengths.append(tokens.shape[1])
        return compute_logits(tokens)  # type: ignore[no-any-return]

    monkeypatch.setattr(model, "compute_logits", compute)
    model.generate_until([ask("x" * 100, {"max_gen_toks": 64})])
    assert (lengths[0], max(lengths)) == (16, 32)


def test_repeated_requests_are_drawn_anew(model: Any) -> None:
    texts = model.generate_until([ask("x", {"do_sample": True, "temperature": 2.0, "max_gen_toks": 8})] * 2)
    assert texts[0] != texts[1]


def test_a_continuation_beyond_the_model_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="40 tokens, the model was trained on 32"):
        model.loglikelihood([ask("x", "y" * 40)])


def write_tasks(folder: Path) -> None:
    """Write a task of choices and one of a text's probability, as docs/evaluation.md has them."""
    rows = [{"question": f"def f{n}(x):", "choices": [" return x", "\n    pass", " zzz"], "answer": n % 3} for n in range(9)]
    (folder / "choices.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in TEXTS))
    common = "dataset_path: json\ntest_split: test\ndataset_kwargs: {data_files: {test: %s}}\n"
    choices = 'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
    choices += 'target_delimiter: ""\nmetric_list: [{metric: acc}]\n'
    texts = 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
    texts += "metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]\n"
    for name, rest in (("choices", choices), ("texts", texts)):
        (folder / f"{name}.yaml").write_text(f"task: my_{name}\n{common % (folder / f'{name}.jsonl')}{rest}")
    away = (folder / "texts.yaml").read_text().replace("my_texts", "away").replace("dataset_path: json", "dataset_path: no/one")
    (folder / "away.yaml").write_text(away)
    (folder / "broken.jsonl").write_text('{"text": "a"}\n{"text": ')
    broken = (folder / "texts.yaml").read_text().replace("my_texts", "broken").replace("texts.jsonl", "broken.jsonl")
    (folder / "broken.yaml").write_text(broken)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There is no network, and it is known."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("offline")
def test_tasks_over_local_files(sweep: Path, tmp_path: Path, evaluate: Evaluate, model: Any) -> None:
    write_tasks(tmp_path)
    words = ["--tasks", tmp_path / "choices.yaml", "--tasks", "my_texts", "--tasks-folder", tmp_path, "--json"]
    code, out, err = evaluate(sweep / "0", sweep / "1", *words)
    assert code == 0, err
    first, other = json.loads(out)["runs"]
    totals = model.loglikelihood_rolling([ask(text) for text in TEXTS])
    bits = -sum(totals) / sum(len(text.encode()) for text in TEXTS) / math.log(2)
    assert first["metrics"]["my_texts/bits_per_byte"]["value"] == pytest.approx(bits)
    rows = [json.loads(line) for line in (tmp_path / "choices.jsonl").read_text().splitlines()]
    scores = [[model.loglikelihood([ask(row["question"], text)])[0][0] for text in row["choices"]] for row in rows]
    right = sum(score.index(max(score)) == row["answer"] for score, row in zip(scores, rows, strict=True)) / len(rows)
    assert first["metrics"]["my_choices/acc"]["value"] == pytest.approx(right)
    for name in ("my_texts/bits_per_byte", "my_texts/byte_perplexity", "my_choices/acc"):
        entry, change = other["metrics"][name], other["differences"][name]
        assert change["value"] == pytest.approx(entry["value"] - first["metrics"][name]["value"])
        assert change["paired"]
    bits, perplexity = (other["metrics"][f"my_texts/{name}"] for name in ("bits_per_byte", "byte_perplexity"))
    assert perplexity["stderr"] == pytest.approx(perplexity["value"] * bits["stderr"] * math.log(2))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("words", "answer"),
    [
        pytest.param(
            ["--tasks", "my_txts", "--tasks-folder", "."],
            "--tasks my_txts: there is no such task or file; did you mean my_texts",
            marks=pytest.mark.slow,  # lm-eval looks through all of its own tasks
        ),
        (["--tasks", "texts.jsonl"], "--tasks texts.jsonl: a task is a yaml file"),
        pytest.param(
            ["--tasks", "away.yaml"],
            "a yaml with dataset_path: json",
            marks=pytest.mark.slow,  # as the first
        ),
        (["--tasks", "broken.yaml"], "JSON parse error"),
    ],
)
def test_tasks_that_cannot_be_run_get_one_answer(
    words: list[str], answer: str, sweep: Path, tmp_path: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tasks(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, out, err = evaluate(sweep / "0", *words)
    assert (code, out) == (2, "")
    assert answer in err


def test_without_lm_eval_its_extra_is_named(sweep: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("research.rules.find_spec", lambda name: None)
    code, _, err = evaluate(sweep / "0", "--tasks", ROOT / "README.md")
    assert (code, err) == (2, "error: --tasks needs lm_eval, which is not installed\npip install -e '.[lm-eval]'\n")


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (ConnectionError("Couldn't reach 'no/one' on the Hub (OfflineModeIsEnabled)"), True),
        (ValueError("Couldn't find cache for no/one for config 'default'"), True),
        (FileNotFoundError("Couldn't find 'no/one' on the Hugging Face Hub either: LocalEntryNotFoundError"), True),
        (ValueError("Failed to load metric, see https://github.com/EleutherAI/lm-evaluation-harness"), False),
        (KeyError("github"), False),
        (ImportError("cannot import name 'connection' from 'hub'"), False),
    ],
)
def test_only_data_that_are_away_get_the_advice_for_no_network(error: Exception, is_away: bool) -> None:
    from research.evaluate.tasks import needs_hub

    assert needs_hub(error) == is_away
