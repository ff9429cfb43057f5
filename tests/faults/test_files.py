"""Damaged files: named in one line, or read as if nothing were wrong with them because nothing is."""

import json
import os
import resource
import shutil
import signal
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
from safetensors.torch import load_file, save_file

from lightgpt2.cli import verbs
from lightgpt2.data import LanguageModelingData
from lightgpt2.models import files, loading
from lightgpt2.models.files import write_json
from lightgpt2.runs import pipeline
from tests.faults.conftest import Tried, cases
from tests.faults.damage import damage, restore
from tests.support.cli import write_config
from tests.support.mistakes import spoilt
from tests.support.models import WHOLE_BLOCKS, write_corpus, write_model

SECONDS, MEMORY = 60, 40 * 2**30
RUN, LORA, CHAIN = "checkpoints/r", "checkpoints/l", "checkpoints/chain"
SHORT = ("--prompt", "The", "--max-new-tokens", "4")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str  # or the traceback

    @property
    def is_clean(self) -> bool:
        """True if it has worked, or ended with messages of one line each."""
        lines = self.err.splitlines()
        refused = self.code == 2 and bool(lines) and all(line.startswith("lightgpt2: ") for line in lines)
        return self.code == 0 or refused


def outcome(*args: str) -> Outcome:
    """`lightgpt2 ARGS` in this process; code -1 if it ends in a traceback, -2 if it hangs."""

    def hang(*_: Any) -> None:
        raise TimeoutError

    loading._named_config.cache_clear()
    files._digest_of.cache_clear()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before, out, err, code = signal.signal(signal.SIGALRM, hang), StringIO(), StringIO(), 0
    signal.alarm(SECONDS)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            verbs.run([*args])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except TimeoutError:
        code = -2
        err.write(traceback.format_exc())
    except BaseException:
        code = -1
        err.write(traceback.format_exc())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Outcome(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Reader:
    """A command that reads some files.

    `equal`: its output is what it is without the damage, or it refuses. `other`: it may be another one, since nothing says
    what a file of somebody else should be. `noticed`: it must not say that nothing has changed.
    """

    files: tuple[str, ...]  # patterns
    command: tuple[str, ...]
    holds: Literal["equal", "other", "noticed"]
    written: str = ""  # compared, too


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
MODEL = ("config.json", "model.safetensors", "generation_config.json", *TOKENIZER)


def _in(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


ARTEFACT = _in(f"{RUN}/model", *MODEL, "ledger.json")
READERS = [
    Reader(_in(RUN, "model-nf4/ledger.json", "model-nf4/scores.npz"), ("report", RUN, "--output", "page"), "other"),
    Reader(_in("teacher", *MODEL), ("generate", "teacher", *SHORT), "other"),
    Reader(_in("teacher", *MODEL), ("check", "--config", "config.yaml", "--run", "new"), "other"),
    Reader(ARTEFACT, ("generate", f"{RUN}/model", "--verify", *SHORT), "equal"),
    Reader(ARTEFACT, ("generate", f"{RUN}/model", *SHORT), "other"),
    Reader(ARTEFACT, ("validate", "--config", "config.yaml", "--run", "r"), "equal"),
    Reader(ARTEFACT, ("predict", "--config", "config.yaml", "--ckpt_path", f"{RUN}/model", "--run", "p"), "equal"),
    Reader(ARTEFACT, ("export", f"{RUN}/model", "--format", "onnx", "--data", "corpus", "--output", "new"), "equal"),
    Reader(
        _in(RUN, "model/ledger.json", "model/scores.npz", "benchmark.json"),
        ("report", RUN, "--output", "page"), "equal", "page/report.md",
    ),
    Reader(
        _in(f"{LORA}/adapter", "adapter_config.json", "adapter_model.safetensors", "ledger.json", *TOKENIZER),
        ("check", "--config", "lora.yaml", "--run", "new"), "equal",
    ),
    Reader(_in("onnx", "model.onnx", "model.onnx_data", "config.json", "tokenizer.json", "export.json", "ledger.json"),
           ("generate", "onnx", *SHORT), "equal"),
    Reader(_in("gguf", "model.gguf", "config.json", "tokenizer.json", "export.json", "ledger.json"),
           ("generate", "gguf", *SHORT), "equal"),
    Reader(_in("gguf", "model.gguf", "ledger.json"), ("generate", "gguf/model.gguf", *SHORT), "equal"),
    Reader(("alone/model.gguf",), ("generate", "alone/model.gguf", *SHORT), "other"),
    Reader(("checkpoints/.data/tokens-*/*",), ("validate", "--config", "config.yaml", "--run", "r"), "equal"),
    Reader(_in(RUN, "last.ckpt"),
           ("validate", "--config", "config.yaml", "--run", "r", "--ckpt_path", f"{RUN}/last.ckpt"), "equal"),
    Reader(_in(RUN, "last.ckpt", "best.ckpt", "config.yaml"),
           ("fit", "--config", "config.yaml", "--run", "r", "--ckpt_path", "last", "--trainer.max_steps=4"), "other"),
    Reader(_in(RUN, "config.yaml"), ("fit", "--config", "config.yaml", "--run", "r"), "other"),
    Reader(("chain.yaml", f"{CHAIN}/pipeline.json"), ("pipeline", "chain.yaml", "--dry-run"), "other"),
    Reader(_in(f"{CHAIN}/a/model", *MODEL, "ledger.json"), ("pipeline", "chain.yaml", "--dry-run"), "noticed"),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a model of every kind, of which nothing is damaged."""
    folder = tmp_path_factory.mktemp("whole")
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        write_model(Path("teacher"), n_layer=2, **WHOLE_BLOCKS["gpt2"])
        write_corpus(Path("corpus"), documents=24)
        short = {"trainer.max_steps": 2, "model.layers": 1}
        config = spoilt(short)
        config["trainer"]["callbacks"] = [{"class_path": "lightgpt2.callbacks.PostTrainingQuantization",
                                           "init_args": {"formats": ["nf4"]}}]  # fmt: skip
        write_config(Path("config.yaml"), spoilt(short))
        write_config(Path("full.yaml"), config)
        lora = {"class_path": "lightgpt2.methods.LoRA", "init_args": {"model": "teacher", "task": _task(config)}}
        write_config(Path("lora.yaml"), spoilt({**short, "model": lora}))
        write_config(Path("chain.yaml"), {"stages": [{"name": "a", "config": "config.yaml"}]})
        for args in (
            ("fit", "--config", "full.yaml", "--run", "r"), ("fit", "--config", "lora.yaml", "--run", "l"),
            ("export", f"{RUN}/model", "--format", "onnx", "--data", "corpus", "--output", "onnx"),
            ("export", f"{RUN}/model", "--format", "gguf", "--data", "corpus", "--output", "gguf"),
        ):  # fmt: skip
            made = outcome(*args)
            assert made.code == 0, made
        lora["init_args"] = {"model": f"{LORA}/adapter", "task": _task(config), "lora": None}
        write_config(Path("lora.yaml"), spoilt({**short, "model": lora}))
        patch.setattr(pipeline, "fit", lambda options, held: (outcome("fit", *options).code, False))
        assert outcome("pipeline", "chain.yaml").code == 0
        Path("alone").mkdir()
        shutil.copy("gguf/model.gguf", "alone")
        write_json(Path(f"{RUN}/benchmark.json"), {"arms": []})
    return folder


def _task(config: dict[str, Any]) -> Any:
    return config["model"]["init_args"]["task"]


@pytest.fixture(scope="module")
def spare(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of it to damage, and the working folder; nothing may take more memory than a large model would."""
    folder = tmp_path_factory.mktemp("spare")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with ExitStack() as stack:
        stack.enter_context(chdir(folder))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(pipeline, "check_stages", lambda stages: [])  # in another process, and of configurations only
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_AS, (soft, hard))
        yield folder


_EXPECTED: dict[Reader, tuple[Outcome, str]] = {}


def read(reader: Reader) -> tuple[Outcome, str]:
    found = outcome(*reader.command)
    written = Path(reader.written) if reader.written else None
    return found, written.read_text() if written and written.is_file() else ""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", cases(metafunc.config, range(int(os.environ.get("FAULTS", 400))), len(READERS)))


def test_a_damaged_file_is_named_or_does_no_harm(whole: Path, spare: Path, seed: int, tried: Tried) -> None:
    random = Random(seed)
    reader = READERS[seed % len(READERS)]
    restore(whole, spare)
    if reader not in _EXPECTED:
        _EXPECTED[reader] = read(reader)
        assert _EXPECTED[reader][0].code == 0, _EXPECTED[reader][0]
        restore(whole, spare)
    expected, text = _EXPECTED[reader]
    name = str(random.choice([path for pattern in reader.files for path in sorted(Path().glob(pattern))]))
    before = Path(name).read_bytes()
    way = damage(Path(name), random)
    tried("damaged files")
    found, written = read(reader)
    told = f"{' '.join(reader.command)}\n{way} of {name}: exit code {found.code}\n{found.err[-3000:]}"
    print(told)
    assert found.is_clean, told
    if found.code:
        tried("damaged files: refused")
    if found.code or (Path(name).is_file() and Path(name).read_bytes() == before):
        return
    if reader.holds == "equal":
        assert (found.out, written) == (expected.out, text), f"{told}\n{found.out}"
    elif reader.holds == "noticed":
        assert "nothing has changed" not in found.out, told


# -- the examples --------------------------------------------------------------------------------------------------------------


def flip_in(path: str) -> None:
    """In the last eighth: a value of the weights, a token."""
    content = bytearray(Path(path).read_bytes())
    content[-len(content) // 8] ^= 1
    Path(path).write_bytes(content)


VERIFYING = {
    "generate": ("generate", f"{RUN}/model", "--verify", *SHORT),
    "benchmark": ("benchmark", f"{RUN}/model", "--verify", "--rounds", "1"),
    "validate": ("validate", "--config", "config.yaml", "--run", "r"),
    "test": ("test", "--config", "config.yaml", "--run", "new", "--ckpt_path", f"{RUN}/model"),
    "predict": ("predict", "--config", "config.yaml", "--run", "r"),
    "export": ("export", f"{RUN}/model", "--format", "gguf", "--data", "corpus", "--output", "new"),
    "fit": ("fit", "--config", "config.yaml", "--run", "new", f"--model.teacher={RUN}/model"),
}


def refusal(*args: str) -> str:
    """The one message with which a command refuses."""
    found = outcome(*args)
    lines = found.err.splitlines()
    assert (found.code, len(lines)) == (2, 1), found
    return lines[0].removeprefix("lightgpt2: error: ")


def test_bytes_flipped_in_the_weights_are_named_by_every_verb_that_compares_all(whole: Path, spare: Path) -> None:
    restore(whole, spare)
    flip_in(f"{RUN}/model/model.safetensors")
    for command in VERIFYING.values():
        message = refusal(*command)
        assert f"model.safetensors in {RUN}/model is not what was written" in message
        assert message.endswith(f"restore it, or remove {RUN}/model and make it again")
    assert outcome("generate", f"{RUN}/model", *SHORT).code == 0, "what is free to see is whole"


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_a_file_that_is_gone_is_seen_without_being_asked(whole: Path, spare: Path, name: str) -> None:
    restore(whole, spare)
    Path(f"{RUN}/model/README.md").write_text("mine")
    assert outcome(*VERIFYING["generate"]).code == 0, "a file that a person adds is no damage"
    Path(f"{RUN}/model", name).unlink()
    assert f"{name} in {RUN}/model is not what was written" in refusal("generate", f"{RUN}/model", *SHORT)


def test_what_has_no_record_is_not_said_to_be_verified(whole: Path, spare: Path) -> None:
    restore(whole, spare)
    for command in (("generate", "teacher", "--verify", *SHORT), ("benchmark", "teacher", "--verify")):
        assert "there is no record of the files of teacher" in refusal(*command)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "ledger.json"])
def test_a_finished_stage_whose_folder_has_changed_is_made_again(whole: Path, spare: Path, name: str) -> None:
    restore(whole, spare)
    flip_in(f"{CHAIN}/a/model/{name}")
    assert f"its artefact has changed ({name})" in outcome("pipeline", "chain.yaml", "--dry-run").out


@pytest.mark.parametrize("kind", ["tokens", "tokenizer"])
def test_a_cache_that_is_cut_or_flipped_or_lacks_a_part_is_made_again(
    kind: str, whole: Path, spare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def read() -> tuple[Any, list[int]]:
        data = LanguageModelingData("corpus", vocab_size=300)
        data.prepare_data()
        data.setup("validate")
        return data.meta, data._splits["train"].tokens[:].tolist()

    restore(whole, spare)
    shutil.rmtree("checkpoints/.data")
    expected = read()
    (folder,) = Path("checkpoints/.data").glob(f"{kind}-*")
    for path in sorted(folder.iterdir()):
        for spoil in (
            (flip_in, lambda name: os.truncate(name, 3), os.remove) if path.stat().st_size > 3 else (os.remove,)
        ):
            spoil(str(path))
            assert read() == expected, (path, spoil)
            assert f"{folder} is not what was written" in capsys.readouterr().err


def test_a_ledger_that_was_edited_is_named(whole: Path, spare: Path) -> None:
    restore(whole, spare)
    path = Path(f"{RUN}/model/ledger.json")
    path.write_text(path.read_text().replace('"steps": 2', '"steps": 3'))
    assert refusal("report", RUN, "--output", "page").startswith(f"{path}: damaged (its checksum differs); restore it")


def test_a_change_of_ones_own_can_be_said_in_the_ledger(whole: Path, spare: Path) -> None:
    restore(whole, spare)
    Path(f"{RUN}/model/generation_config.json").write_text('{"max_new_tokens": 3}')
    assert "generation_config.json in" in refusal(*VERIFYING["generate"])
    path = Path(f"{RUN}/model/ledger.json")
    entries = json.loads(path.read_text())
    del entries[-1]["files"]["generation_config.json"]
    entries[-1]["sha256"] = ""
    path.write_text(json.dumps(entries))
    assert outcome(*VERIFYING["generate"]).code == 0


def test_the_base_of_adapters_may_move_and_nothing_else_of_their_configuration_may_change(
    whole: Path, spare: Path
) -> None:
    restore(whole, spare)
    path = Path(f"{LORA}/adapter/adapter_config.json")
    about = json.loads(path.read_text())
    Path("teacher").rename("moved")
    path.write_text(json.dumps(about | {"base_model_name_or_path": "moved"}))
    command = ("check", "--config", "lora.yaml", "--run", "new")
    assert outcome(*command).code == 0
    path.write_text(json.dumps(about | {"base_model_name_or_path": "moved", "lora_alpha": 64}))
    assert f"adapter_config.json in {LORA}/adapter is not what was written" in refusal(*command)


def test_weights_that_are_no_numbers_are_refused(whole: Path, spare: Path) -> None:
    restore(whole, spare)
    weights = load_file("teacher/model.safetensors")
    weights["transformer.h.0.mlp.c_fc.bias"][3] = float("nan")
    save_file(weights, "teacher/model.safetensors", {"format": "pt"})
    assert refusal("generate", "teacher", *SHORT).startswith("MODEL: the model's logits are not finite")
    for verb in ("check", "validate", "fit"):
        assert "hold values that are not finite, first transformer.h.0.mlp.c_fc.bias" in refusal(
            verb, "--config", "config.yaml", "--run", "new"
        )


def test_an_artefact_that_was_damaged_after_its_last_step_is_written_again(whole: Path, spare: Path) -> None:
    restore(whole, spare)
    path = Path(f"{RUN}/model/model.safetensors")
    before = path.read_bytes()
    flip_in(str(path))
    assert outcome("fit", "--config", "config.yaml", "--run", "r", "--ckpt_path", "last").code == 0
    assert path.read_bytes() == before
