"""Kind, row D21: advice in a circle. Whatever a mistake tells one to type passes the preflight, or is not printed.

Each advice is taken here: it stands in place of what was typed, and the command line is judged again.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from research.composition.compose import MISSING, ComposedConfig, compose, iter_leaves
from research.composition.overrides import parse, to_override
from research.options.conf import CONF, list_groups
from research.options.habits import read_tables
from research.preflight.check import find_mistakes
from research.preflight.program import prepare
from research.sweep.space import parse_space

LEADS = ("did you mean: ", "leave out the +: ", "one list: ", "one text: ", "give ", "leave out ", "a sweep: add ")
PLACES = ("did you mean: ", "leave out the +: ", "one list: ", "one text: ")  # advice in place of what was typed

MISTAKES = [
    # keys that a swept group has in part
    "-m model=mlp,transformer model.n_heads=2,4",
    "-m model=mlp,transformer model.heads=2,4",
    "-m model=mlp,transformer +model.heads=2,4",
    "-m model=mlp,transformer ++model.heads=2,4",
    "-m optim=adamw,grokfast optim.lamb=1,2",
    "-m optim=adamw,grokfast +optim.lamb=1,2",
    "-m optim=grokfast,adamw ++optim.lamb=1,2",
    "-m optim=adamw,grokfast optim.lam=1,2",
    "-m optim=adamw,grokfast 'optim.lamb=interval(0,5)'",
    "-m optim=grokfast,adamw optim.lamb=1",
    "-m optim=grokfast,adamw +optim.lamb=1",
    "-m optim=grokfast,adamw,grokfast_ma optim.lamb=1",
    "-m optim=adamw,grokfast ~optim.lamb",
    "-m model=bitnet,transformer +model.linear.granularity=tensor,channel",
    "-m linear=full,bitnet model.linear.per=tensor,channel",
    "-m callbacks=default,ternary callbacks.ternary.every=20,40",
    "-m callbacks=default,ternary ~callbacks.ternary",
    "-m optim=adamw,grokfast 'hydra.sweeper.params={optim.lamb: \"interval(0,5)\"}'",
    "-m optim=adamw,grokfast 'hydra.sweeper.search_space={optim.lamb: [0,5]}'",
    '-m \'hydra.sweeper.params={optim: "choice(adamw,grokfast)", optim.lamb: "interval(0,5)"}\'',
    "-m sweep=digits optim=sgd,grokfast",
    "-m hydra/sweeper=pbt optim=adamw,grokfast optim.lamb=1,2",
    "-m lr=1e-3,1e-4 trainer.step=5 'hydra.sweeper.n_trials={a: 1}'",
    # sweeps
    "-m modle=bitnet,transformer",
    "-m modle=bitnet,transformer data=modular,text",
    "-m data=modular,text",
    "-m trainer.step=5,6",
    "-m +trainer.steps=5,6",
    "-m n_trials=5 lr=1e-3,1e-4",
    "-m lr=1e-3,1e-4 resume=auto",
    "-m 'seed=interval(0,5)'",
    "-m experiment=grokking,text model.dim=4,8",
    "-m 'lr=1e-3,1e-4' hydra.sweep.subdir=x",
    "lr=1e-3,3e-4",
    "name=a,b",
    "optim.no_decay=norm,bias",
    "'seed=range(0,3)'",
    # brackets and quotes
    "'optim.base.betas=[0.9,0.98'",
    "'name=[a'",
    "'name=a(b'",
    "'nmae=\"a b\"'",
    "\"out='~nobody_of_this_name/x'\"",
    # presets and options that do not fit
    "experiment=grokking data=text",
    "experiment=text model=mlp",
    "experiment=grokkin",
    "sweep=digit",
    "data=digits",
    "model=mlp",
    "modle=mlp",
    "model=mpl",
    "data=text model=decoder",
    "loss=classification",
    "monitor=val/loss",
    "monitor=val/bpb",
    "trainer=dpd",
    "trainer=debug steps=10",
    "trainer=debug stesp=10",
    "tracker=null",
    "callbacks=null",
    "model=Bitnet",
    # + and ~
    "+trainer.steps=5",
    "++trainer.stepss=5",
    "+trainer.stepss=5 +trainer.emaa=0.9",
    "~trainer.stepz",
    "~target",
    "~lr",
    "callbacks.time_limit=null",
    "model.linear=null",
    "schedule=cosine schedule.end=100",
    "optim.base.eps=1e-9",
    "optim.base.momentum=0.9",
    "+optim.base.lr=1",
    "model=hub model.fields.hiden_size=64",
    "model=hub model.fields.rope_theta=1e5",
    "model=hub model.folder=conf model.fields.hidden_size=64",
    # old names, names of others, targets
    "model.hidden=3",
    "model.hidden=96",
    "+judge_train=true",
    "trainer.on_nonfinite=skip",
    "data.length=3",
    "optim._target_=research.optim.plain.plain",
    "optim.base._target_=torch.optim.SGDD",
    "optim.base._target_=torch.optim.Adem",
    "optim.base._target_=SGD",
    "model._target_=research.models.mlp.MPL",
    "wd=0.1",
    "devices=1",
    "hidden_size=4",
    "trainer.max_epochs=3",
    # numbers
    "model.heads=3",
    "model.kv_heads=3",
    "model.heads=3 model.linear.granularity=7",
    "data.p=48 data.operation=/",
    "trainer.grad_accum=600",
    "optim.base.betas=[0.9,0.98,0.99]",
    "optim.start_when=train/acc:0.9",
    "model.linear.warmup=50 steps=40",
    "callbacks=ternary callbacks.ternary.every=7",
    "model.linear.granularity=16 model.linear.backend=int8",
]


def split_line(line: str) -> tuple[list[str], bool]:
    words = shlex.split(line)
    return [word for word in words if word != "-m"], "-m" in words


def read_advice(mistake: str) -> Iterator[tuple[str, list[str]]]:
    """Yield how an advice begins, and the words of each alternative: those before the first that is for people."""
    for line in (line.strip() for line in mistake.splitlines()[1:]):
        for lead in [lead for lead in LEADS if line.startswith(lead)][:1]:
            alternatives: list[list[str]] = [[]]
            for word in shlex.split(line.removeprefix(lead).removesuffix("?")):
                if word == "or":
                    alternatives.append([])
                else:
                    alternatives[-1].append(word)
            for words in alternatives:
                ends = [i for i, w in enumerate(words) if not re.match(r"[+~]*[a-z][\w./@]*=|~\w|-m$", w)]
                told = [word.rstrip(",") for word in words[: ends[0] if ends and lead != "leave out " else None]]
                if told and not any(re.search(r"=(FOLDER|NAME|VALUE|N)$", word) for word in told):
                    yield lead, told


def get_key(word: str) -> str:
    return "resume" if word.startswith("resume") else word.partition("=")[0].lstrip("+~")


def take(words: list[str], multirun: bool, head: str, lead: str, told: list[str]) -> tuple[list[str], bool]:
    """Return the command line of somebody who takes an advice."""
    keys = {get_key(word) for word in told} | ({get_key(head)} if lead in PLACES else set())
    rest = [word for word in words if get_key(word) not in keys]
    if lead == "leave out ":
        return rest, multirun and "-m" not in told
    return [*rest, *(word for word in told if word != "-m")], multirun or "-m" in told


def check_advice(words: list[str], multirun: bool) -> int:
    """Take each advice on a command line; return how much there was."""
    mistakes, count = find_mistakes(words, multirun), 0
    known = {tuple(mistake.splitlines()[:2]) for mistake in mistakes}
    for mistake in mistakes:
        head = mistake.splitlines()[0].removeprefix("error: ")
        for lead, told in read_advice(mistake):
            after = find_mistakes(*take(words, multirun, head, lead, told))
            new = [other for other in after if tuple(other.splitlines()[:2]) not in known]
            assert not new, f"{words}: {lead}{told} leads to {new}"
            assert tuple(mistake.splitlines()[:2]) not in {tuple(other.splitlines()[:2]) for other in after}, (words, told)
            count += 1
    return count


@pytest.mark.parametrize("line", MISTAKES)
def test_what_is_advised_is_accepted(line: str) -> None:
    words, multirun = split_line(line)
    assert find_mistakes(words, multirun)
    check_advice(words, multirun)


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize(
    ("line", "fix"),
    [
        (
            "optim=adamw,grokfast {}optim.lamb=1,2",
            """did you mean: optim.lamb=1,2 hydra.sweeper.when="{optim.lamb: 'optim == \\"grokfast\\"'}" """
            "or optim=grokfast optim.lamb=1,2 ?",
        ),
        (
            "optim=adamw,grokfast,grokfast_ma {}optim.lamb=1",
            """did you mean: optim.lamb='choice(1)' """
            """hydra.sweeper.when="{optim.lamb: 'optim in [\\"grokfast\\", \\"grokfast_ma\\"]'}" """
            "or optim=grokfast,grokfast_ma optim.lamb=1 ?",
        ),
    ],
)
def test_a_key_of_one_option_is_swept_under_a_condition(plus: str, line: str, fix: str) -> None:
    (mistake,) = find_mistakes(line.format(plus).split(), True)
    assert fix in mistake
    assert "no key 'optim.lamb' with optim=adamw, unlike with optim=grokfast" in mistake
    assert "leave out the +" not in mistake


def test_the_sweeper_takes_the_condition_that_is_advised() -> None:
    (mistake,) = find_mistakes(["optim=adamw,grokfast", "optim.lam=1,2"], True)
    lamb, when = next(told for _, told in read_advice(mistake))
    conditions = parse([when])[0][0].value()
    assert isinstance(conditions, dict)
    space = parse_space({}, ["optim=adamw,grokfast", lamb], {"optim.lamb": str(conditions["optim.lamb"])}, None)
    grid = [{"optim": "adamw"}, {"optim": "grokfast", "optim.lamb": 1}, {"optim": "grokfast", "optim.lamb": 2}]
    assert list(space.iter_grid()) == grid


def test_what_needs_more_is_advised_with_it() -> None:
    assert "did you mean: model=mlp data=digits ?" in "".join(find_mistakes(["modle=mlp"], False))
    assert "did you mean: model.dim=4 model.heads=2 ?" in "".join(find_mistakes(["hidden_size=4"], False))


def test_what_is_refused_too_says_why() -> None:
    (mistake,) = find_mistakes(["trainer.step=ten"], False)
    assert "trainer.steps=ten is refused too: trainer.steps takes a whole number" in mistake
    assert "did you mean" not in mistake


def test_every_option_that_a_habit_is_answered_with_is_there() -> None:
    tables, groups = read_tables(), list_groups()
    answers = [text for name, table in tables.items() if name != "values" for text in table]
    answers += [f"{key}={value}" for key, table in tables["values"].items() for value in table]
    advised = re.findall(rf"(?<![\w.])({'|'.join(groups)})=([a-z]\w*)", "\n".join([*answers, *tables["options"].values()]))
    assert len(advised) > 20
    assert [f"{group}={option}" for group, option in advised if option not in groups[group]] == []


@pytest.mark.parametrize("key", [key for key in read_tables()["names"] if not key.startswith("finetune.")])
def test_what_other_programs_call_a_setting_is_answered_with_ours(key: str) -> None:
    word = read_tables()["names"][key].split()[0]
    known = {
        **{
            "batch_size": 8,
            "data": "text",
            "data.path": "conf",
            "data.seq_len": 64,
            "data.size": 32,
            "eval_every": 7,
            "experiment": "text",
        },
        **{"hydra.sweeper.n_trials": 5, "hydra.sweeper.workers": 2, "hydra/launcher": "basic", "hydra/sweeper": "grokbit"},
        **{
            "hydra/sweeper/pruner": "hyperband",
            "hydra/sweeper/sampler": "tpe",
            "loss": "stablemax",
            "lr": 0.1,
            "model": "bitnet",
        },
        **{"model.kv_heads": 2, "monitor": "val/acc", "name": "own", "optim": "adamw", "out": "elsewhere", "resume": "auto"},
        **{
            "schedule": "cosine",
            "schedule.floor": 0.1,
            "steps": 9,
            "tokenizer": "bytes",
            "tracker": "none",
            "trainer": "debug",
        },
        **{"epochs": 3, "callbacks.early_stop.patience": 3},
    }
    needs = {"data.train_fraction": ["data=modular"], "tokenizer": ["data=text"], "schedule.floor": ["schedule=cosine"]}
    needs |= {"data.size": ["data=images", "model=vision"], "data.target": ["data=table", "model=mlp"]}
    needs |= {"data.label": ["data=labelled_text"], "data.source": ["data=pairs"]}
    needs |= {"model.folder": ["data=text", "model=hub"]}
    words = needs.get(key, ["data=text"] if key.startswith("data.") else [])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        value = ComposedConfig(compose(parse(words)[0])).get(key)
    text = to_override(known.get(key, value))
    (mistake,) = find_mistakes([*words, f"{word}={text}"], False)
    assert f"did you mean: {key}=" in mistake, mistake
    assert check_advice([*words, f"{word}={text}"], False) == 1


def list_leaves() -> dict[str, str]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose([])
    leaves = dict(leaf for root, node in config.items() if root != "hydra" for leaf in iter_leaves(root, node))
    return {
        key: to_override(v) for key, v in leaves.items() if v is not MISSING and "${" not in str(v) and v != {} and v != "???"
    }


LEAVES = {**list_leaves(), **{group: options[0] for group, options in list_groups().items() if group != "local"}}


@settings(max_examples=25, deadline=None)
@given(key=st.sampled_from(sorted(LEAVES)), place=st.integers(0, 40), letter=st.sampled_from("aesx_."), kind=st.integers(0, 3))
def test_any_misspelt_key_has_advice_that_holds(key: str, place: int, letter: str, kind: int) -> None:
    place %= len(key)
    other = (
        key[:place]
        + ("", letter, letter + key[place], key[place : place + 2][::-1])[kind]
        + key[place + (2 if kind == 3 else 1) :]
    )
    check_advice([f"{other}={LEAVES[key]}"], False)
    check_advice([f"+{other}={LEAVES[key]}"], False)


@pytest.mark.parametrize("flag", ["--config-dir {}", "--config-dir={}", "-cd {}", "hydra.searchpath=[{}]"])
def test_options_of_a_folder_of_ones_own_are_checked_like_ours(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text((CONF / "model" / "mlp.yaml").read_text())
    flags = flag.format(tmp_path).split()
    assert prepare(["train.py", *flags, "model=mine", "data=digits"]) == ["train.py", *flags, "model=mine", "data=digits"]
    for line, fix in {
        "model=min data=digits": "model=mine",
        "model=mine data=digits trainer.step=5": "trainer.steps=5",
    }.items():
        with pytest.raises(SystemExit) as ended:
            prepare(["train.py", *flags, *line.split()])
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert f"did you mean: {fix} ?" in said
        assert "+trainer" not in said
    assert "no option 'mine'" in find_mistakes(["model=mine"], False)[0], "another command line does not have them"


def test_a_folder_of_options_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        prepare(["train.py", "--config-dir", str(tmp_path / "nowhere")])
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err
