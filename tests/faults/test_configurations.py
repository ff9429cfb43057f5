"""The attack on configurations: mutations of those that ship run, or are refused in lines that name a key."""

import copy
import random
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightgpt2.runs.configs import shipped_configs
from lightgpt2.runs.yaml_text import YamlError, load_yaml
from tests.faults.conftest import Tried, cases
from tests.support.mistakes import Bench, errors
from tests.support.models import write_model

_SECONDS = 60  # for a case
_PYTHON = re.compile(
    r"NoneType|unhashable|has no attribute|<class|not iterable|not subscriptable|unsupported operand|Traceback"
)
_TINY: dict[str, Any] = {
    "data": {"source": "corpus", "sequence_length": 32, "stride": 16, "batch_size": 4},
    "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 3, "enable_progress_bar": False},
    "task": {
        "class_path": "lightgpt2.tasks.LanguageModeling", "init_args": {"samples": 1, "sample_tokens": 2, "prompt_tokens": 8},
    },
    "optimizer": {"lr": 1.0e-3, "weight_decay": 0.01, "warmup_steps": 1, "decay": "cosine"},
}  # fmt: skip


_SIZES: dict[str, dict[str, int]] = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_positions": 64},
    "lstm": {"embedding_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 64},
}


@pytest.fixture
def wide(bench: Bench) -> Bench:
    """A bench whose teacher can be in 4 bit."""
    shutil.rmtree("teacher")
    write_model(Path("teacher"), n_embd=64)
    return bench


class Hang(BaseException):
    """A case has taken too long."""


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    def end(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def shipped(name: str) -> dict[str, Any]:
    """A shipped configuration that fits a small model and a small text."""
    config: dict[str, Any] = yaml.safe_load((shipped_configs() / name).read_text())
    model = config["model"]["init_args"]
    model |= {key: "teacher" for key in ("model", "teacher", "student") if isinstance(model.get(key), str)}
    if classifies := "task" in model:
        config["data"]["init_args"] |= {"source": "requirements:300", "vocab_size": 300}
    elif isinstance(model.get("model"), dict):
        model["model"] |= _SIZES[model["model"]["model_type"]]
        config["data"]["init_args"]["vocab_size"] = 300
    if name == "trim.yaml":
        model |= {"width": 16, "heads": 1}
    if name == "movement.yaml":
        model["pruning"] = {"attention": 0.5, "ffn": 0.5}
    model["optimizer"] = {**_TINY["optimizer"]}
    if not classifies:
        model["task"] = copy.deepcopy(_TINY["task"])
        config["data"]["init_args"] |= _TINY["data"]
    trainer = config["trainer"]
    trainer |= _TINY["trainer"]
    trainer |= {"callbacks": [{"class_path": "lightgpt2.callbacks.GlobalL1Pruning", "init_args": {"amount": 0.5}}]}
    for key in ("max_epochs", "precision", "accumulate_grad_batches"):
        trainer.pop(key, None)
    trainer |= {"val_check_interval": 2, "check_val_every_n_epoch": None}
    if name in ("lora.yaml", "qlora.yaml", "movement.yaml"):
        trainer["callbacks"] = [
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": "kept"}}
        ]
    config.pop("needs", None)
    return config


# -- one by one ------------------------------------------------------------------------------------------------------


def new(**sizes: Any) -> dict[str, Any]:
    """A model that starts from random weights, with its tokenizer."""
    model = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64, **sizes}
    return {
        "model": {"class_path": "lightgpt2.methods.FineTune", "init_args": {"model": model}},
        "data.vocab_size": 300,
    }


def callback(path: str, **settings: Any) -> dict[str, Any]:
    return {"trainer.callbacks": [{"class_path": path, "init_args": settings}]}


_CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
_NEEDS = {"model.teacher": "checkpoints/t/model", "needs": {"checkpoints/t/model": "teacher.yaml"}}
NAMED: list[tuple[dict[str, Any], str]] = [
    ({"trainer.callbacks": [{"init_args": {}}]}, "trainer.callbacks.1.class_path: required, but not given"),
    ({"trainer.callbacks": [{}]}, "trainer.callbacks.1.class_path: required, but not given"),
    ({"trainer.callbacks": [None]}, "trainer.callbacks.1: must be a group of settings, got null; give a class_path"),
    ({"trainer.callbacks": 3}, "trainer.callbacks: must be null or a group of settings, got 3"),
    (
        {"trainer.callbacks": [{"class_path": "lightgpt2.callbacks.GlobalL1Pruning", "init_ags": {"amount": 0.5}}]},
        "trainer.callbacks.GlobalL1Pruning.init_ags: no such key; did you mean init_args?",
    ),
    ({"model": {"class_path": "lightgpt2.methods.FineTune", "init_ags": {}}}, "model.init_ags: no such key; did you"),
    ({"model": {"class_path": ["a"]}}, "model.class_path: must be text, got ['a']"),
    ({"model": {"class_path": "lightgpt2.methods.FineTune", "init_args": [1]}}, "model.init_args: must be a mapping, got"),
    (
        {"data": {"class_path": "lightgpt2.data.LanguageModelingData", "init_args": None}},
        "data.init_args: must be a mapping, got null",
    ),
    ({"model": {"class_path": "1e999"}}, "model.class_path: must be the path of a class, got '1e999'"),
    ({"model": {"init_args": {}}}, "model.class_path: required, but not given"),
    ({"model.optimizer.lr": float("inf")}, "model.optimizer.lr: must be a finite number, got inf"),
    ({"model.optimizer.lr": "1e999"}, "model.optimizer.lr: must be a finite number, got '1e999'"),
    ({"trainer.gradient_clip_val": float("nan")}, "trainer.gradient_clip_val: must be a finite number, got nan"),
    ({"checkpoint": {"every_n_steps": None}}, "checkpoint.every_n_steps: must be a whole number >0, got null"),
    ({"model.optimizer.lr": 10**400}, "model.optimizer.lr: must be below 2^63, got 1000"),
    ({"trainer.max_steps": 10**30}, "trainer.max_steps: must be below 2^63, got 1000000000000000000000000000000"),
    ({"data.text_field": "a\0b"}, "data.text_field: must hold no NUL character, got 'a\\x00b'"),
    ({"data.source": "a" * 300}, "data.source: aaaaaaaa"),
    ({"model.teacher": "a" * 5000}, "model.teacher: aaaaaaaa"),
    ({"model.optimizer.warmup_steps": 9}, "model.optimizer.warmup_steps: 9 is more than the 3 optimizer steps"),
    ({"trainer.devices": 10**9}, "trainer.devices: must be at most 1024, got 1000000000"),
    (new(n_layer=0), "model.model.n_layer: must be a whole number from 1 to 10,000, got 0"),
    (new(n_layer=10**9), "model.model.n_layer: must be a whole number from 1 to 10,000, got 1000000000"),
    (new(model_type=["gpt2"]), "model.model.model_type: must be text, got ['gpt2']"),
    (new(n_head=0), "model.model.n_head: must be a whole number of at least 1, got 0"),
    (new(n_head="x/" * 3000), "model.model.n_head: must be a whole number of at least 1, got 'x/x/x/"),
    (new(resid_pdrop=[0.0]), "model.model: model_type gpt2 could not be loaded (Field 'resid_pdrop' with value [0.0]"),
    (new(vocab_size=10**9), "model.model: it has 32,000,027,520 parameters: 512.0 GB of memory are needed, and "),
    ({**new(), "data.vocab_size": 10**10}, "data.vocab_size: 720.0 GB of memory to train the tokenizer are needed, and "),
    (callback(_CHECKPOINT, save_top_k=3), "trainer.callbacks.ModelCheckpoint: ModelCheckpoint(save_top_k=3, "),
    (callback(_CHECKPOINT, dirpath="x" * 300), "trainer.callbacks.dirpath: must be a path of at most 4096 bytes, each"),
    ({**callback("lightning.pytorch.callbacks.LearningRateMonitor"), "trainer.logger": False}, "trainer: Cannot use `Lear"),
    ({**_NEEDS, "data.source": "empty.txt"}, "data.source: empty.txt holds no text"),
    ({**_NEEDS, "data.source": "binary.txt"}, "data.source: binary.txt is binary, not text"),
    ({**_NEEDS, "data.source": "table.csv"}, "data.text_field: table.csv has no field 'text'"),
    ({**_NEEDS, "needs": {"checkpoints/t/model": "gone.yaml"}}, "needs.checkpoints/t/model: gone.yaml does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), NAMED, ids=[message[:60] for _, message in NAMED])
def test_a_mistake_is_named_by_check_and_fit(
    bench: Bench,
    changes: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setattr("lightgpt2.cli.trainer.make_missing", lambda *_: pytest.fail("trained the teacher first"))
    Path("empty.txt").touch()
    Path("binary.txt").write_bytes(b"a\0\1")
    Path("table.csv").write_text("title,body\nx,y\n")
    bench.configure(changes)
    likely = "fit" if "needs" in changes else "check"
    for verb in ("check", "fit") if request.config.getoption("--faults") == "large" else (likely,):
        with limit(_SECONDS):
            first, *more = bench.refuse(verb, touches="logger" in str(changes))
        assert first.startswith(message), first
        assert len(first) < 400
        assert all(
            each.startswith(("needs: not there yet", "model.model: it has", "trainer.callbacks")) for each in more
        ), more


def test_a_checkpoint_callback_is_checked_as_it_is_run(bench: Bench) -> None:
    bench.configure(callback(_CHECKPOINT, monitor="val/loss", dirpath="kept"))
    for verb in ("check", "fit", "validate"):
        bench.succeed(verb)


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{here}: &{here} [{', '.join([f'*{before}'] * 10)}]\n" for before, here in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trainer:\n  max_steps: 1\n  max_steps: 2\n", "line 3: max_steps is given twice"),
        (BOMB, "line 5: its aliases stand for more than 100,000 values"),
        ("trainer:\n  callbacks: &a [*a]\n", "line 2: a value holds itself"),
        ("model: &a\n  init_args: *a\n", "line 2: a value holds itself"),
        ("a: " + "[" * 5000 + "]" * 5000, "line 1: values are nested more than 40 levels deep"),
        ("seed_everything: " + "9" * 5000, "cannot be read as int"),
        ("a: !!timestamp x", "line 1: 'x' cannot be read as timestamp"),
        (
            "a: !!python/object/apply:os.system ['touch executed']",
            "line 1: could not determine a constructor for the tag",
        ),
        ("? [1]\n: 2\n", "line 1: found unhashable key"),
    ],
    ids=["twice", "bomb", "list", "mapping", "deep", "number", "date", "code", "key"],
)
def test_yaml_that_no_configuration_needs_is_refused_with_its_line(text: str, words: str) -> None:
    with limit(5), pytest.raises(YamlError) as caught:
        load_yaml(text)
    assert words in str(caught.value)


def test_configurations_are_read_as_plain_yaml_says() -> None:
    for path in shipped_configs().rglob("*.yaml"):
        assert load_yaml(path.read_text()) == yaml.safe_load(path.read_text())
    assert load_yaml("{<<: {a: 1}, a: 2, day: 2020-01-01}") == {"a": 2, "day": "2020-01-01"}


# -- mutations -------------------------------------------------------------------------------------------------------


def places(value: Any, parents: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a configuration."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*parents, key)
        yield from places(inner, (*parents, key))


def typo(rng: random.Random, word: str) -> str:
    """A word with one letter gone, twice there, or exchanged with the next."""
    at = rng.randrange(len(word))
    return rng.choice([word[:at] + word[at + 1 :] or "x", word[:at] + word[at] + word[at:], f"{word[at:]}{word[:at]}_"])


_WRONG: list[Any] = [
    None, True, 0, -1, 1, 0.5, -0.5, 10**9, 10**12, 2**63, 10**30, 1e300, "", " ", "x", "a\0b", "x" * 300, "x/" * 3000, "1e999",
    "~nobody/x", [], {}, [None], {"a": 1}, [[[]]], {"class_path": "x.Y"}, {1: 2},
]  # fmt: skip
_REFUSED: list[Any] = [float("nan"), float("inf"), "nan", [1, "x", None], {"x": {"y": []}}, 10**400, "\0"]
_CLASSES = [
    "lightgpt2.methods.Distil",
    "nowhere.Class",
    "builtins.dict",
    "lightgpt2.methods",
    "os.system",
    "Nothing",
    ".",
]


def mutate(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    """Changes a configuration in one place; what was done, and whether it must be refused."""
    path = rng.choice([*places(config)])
    *parents, key = path
    section: Any = config
    for parent in parents:
        section = section[parent]
    kind = rng.choice(["delete", "typo", "wrong", "wrong", "wrong", "refused", "nested", "listed", "class", "swapped"])
    about, refused = f"{kind} {'.'.join(map(str, path))}", False
    plain = not isinstance(section[key], dict | list)
    if kind == "typo" and isinstance(key, str):
        new = typo(rng, key)
        refused = new not in section
        section[new] = section.pop(key)
        return f"{about} -> {new}", refused
    if kind == "class" and key == "class_path":
        section[key] = rng.choice(_CLASSES)
        return f"{about} = {section[key]}", True
    if kind == "nested":
        section[key], refused = {key: section[key]}, plain
    elif kind == "listed":
        section[key], refused = (
            [section[key]],
            plain and key not in ("teacher", "layers", "source"),
        )  # of which there may be several
    elif kind == "refused":
        section[key], refused = rng.choice(_REFUSED), True
        about += f" = {str(section[key])[:40]!r}"
    elif kind == "swapped" and (
        others := [name for name in section if name != key] if isinstance(section, dict) else []
    ):
        other = rng.choice(others)
        section[key], section[other] = section[other], section[key]
        about += f" with {other}"
    elif kind == "delete":
        del section[key]
    else:
        section[key] = rng.choice(_WRONG)
        about += f" = {str(section[key])[:40]!r}"
    return about, refused


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    ships = sorted(path.name for path in shipped_configs().glob("*.yaml"))
    for name, (every, few) in {"seed": (range(300), 10), "fit_seed": (range(60), 2), "ships": (ships, 2)}.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, cases(metafunc.config, every, few))


def mutant(seed: int) -> tuple[dict[str, Any], str, bool]:
    rng = random.Random(seed)
    name = rng.choice(sorted(path.name for path in shipped_configs().glob("*.yaml")))
    config = shipped(name)
    about, refused = mutate(rng, config)
    return config, f"{seed}: {name}: {about}", refused


# -- the attack ------------------------------------------------------------------------------------------------------


def attempt(bench: Bench, config: dict[str, Any], verb: str) -> tuple[int, list[str], str]:
    """Runs a verb with a configuration: exit code, error messages, standard output."""
    Path("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    with limit(_SECONDS):
        code, out, err = bench.run(verb)
    messages = [] if code == 0 else errors(err)
    assert code in (0, 2), f"exit code {code}"
    assert code == 0 or messages, err
    for message in messages:
        assert re.match(r"[^\s:]+(\.[^\s:]+)*( [\w/.-]+)?: \S", message), f"names no key: {message}"
        assert not _PYTHON.search(message), f"Python's words: {message}"
        assert len(message) < 500, f"a dump: {message[:600]}"
    return code, messages, out


def test_every_shipped_configuration_runs_before_it_is_mutated(wide: Bench, ships: str) -> None:
    code, messages, _ = attempt(wide, shipped(ships), "check")
    assert code == 0, messages


def test_a_mutation_runs_or_is_refused_in_lines_that_name_a_key(wide: Bench, seed: int, tried: Tried) -> None:
    config, about, refused = mutant(seed)
    tried("mutated configurations")
    code, _, _ = attempt(wide, config, "check")
    assert code == 2 or not refused, f"accepted {about}"
    if code:
        tried("mutated configurations: refused")


def test_fit_does_what_check_says(wide: Bench, fit_seed: int, tried: Tried) -> None:
    config, about, _ = mutant(1000 + fit_seed)
    code, messages, out = attempt(wide, config, "check")
    if code == 0 and int(re.findall(r"optimizer steps: ([\d,]+)", out)[0].replace(",", "")) > 20:
        return  # right, and too long for a test
    tried("mutated configurations: fit beside check")
    fit_code, fit_messages, _ = attempt(wide, config, "fit")
    assert (fit_code, fit_messages) == (code, messages), about
