"""Processes that are killed, asked to stop or refused by the disk, at any of their operations on files.

What the same command then makes is, bit for bit, what it makes undisturbed; nothing is lost, and nothing is left.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from lightgpt2.errors import UserError
from lightgpt2.measure import benchmark
from lightgpt2.models.files import atomic_file, atomic_folder, clear_leftovers
from lightgpt2.runs import fits
from lightgpt2.runs.recipes import read_recipe
from lightgpt2.runs.run import Run
from lightgpt2.runtime.language_model import Continuation
from lightgpt2.runtime.prompts import Texts
from tests.faults.conftest import Tried, cases
from tests.faults.dying import inject
from tests.faults.small_disk import isolate
from tests.support.chats import write_chat_model
from tests.support.cli import ENVIRONMENT, call, run_cli, succeed, write_config
from tests.support.mistakes import spoilt
from tests.support.models import SHAPES, make_model, write_classifier, write_corpus, write_model, write_seq2seq
from tests.support.stages import callback, stage

_ONNX = callback("PostTrainingQuantization", formats=["onnx-int8"])
METHODS: dict[str, dict[str, Any]] = {
    "lora": stage("LoRA"),
    "qlora": stage("QLoRA"),
    "distill": {"trainer.callbacks": [_ONNX, callback("Export", formats=["gguf"]), callback("Report")]},
    "scratch": stage("FineTune", SHAPES["gpt2"] | {"model_type": "gpt2"}) | {"data.vocab_size": 300},  # type: ignore[arg-type]
    "movement": stage("MovementPruning", pruning={"attention": 0.5, "ffn": 0.5}),
    "qat": stage("QAT", callbacks=(callback("PackedArtefact"),)),
    "trim": stage("Trim", width=16, heads=2),
    "pruned": stage(
        "FineTune", callbacks=(callback("GlobalL1Pruning", amount=0.5), callback("SparsitySweep", levels=[0.5]))
    ),
}
FIT, RESUME = "fit --config {}.yaml --run r", "--ckpt_path last"

# By name the command, what the same command needs to go on, and the files that it makes.
COMMANDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "fit": (FIT.format("lora"), RESUME, ("checkpoints/r/*/*.safetensors",)),
    "predict": ("predict --config lora.yaml --run done", "", ("checkpoints/done/predictions.jsonl",)),
    "generate": ("generate teacher --prompts p.jsonl --output o.jsonl --batch 2 --max-new-tokens 5", "", ("o.jsonl",)),
    "classify": ("classify classes --texts t.jsonl --output c.jsonl --batch 2", "", ("c.jsonl",)),
    "summaries": (
        "generate writer --prompts p.jsonl --output s.jsonl --batch 2 --max-new-tokens 5 --num-beams 2", "", ("s.jsonl",)
    ),
    "report": ("report checkpoints/done --output report", "", ("report/**/*.*",)),
    "onnx": ("export teacher --format onnx --data corpus --documents 2 --output onnx", "", ("onnx/*.onnx*",)),
    "gguf": ("export teacher --format gguf --data corpus --documents 2 --output gguf", "", ("gguf/*.gguf",)),
    "pipeline": ("pipeline chain.yaml", "", ("checkpoints/chain/a/*/*.safetensors",)),
    "sweep": (
        "sweep --config lora.yaml --values 0 0.5 --run r", "", ("checkpoints/r/*/*.safetensors", "checkpoints/r/sweep.json")
    ),
    "benchmark": ("benchmark teacher --rounds 1 --new-tokens 2 --prompt-tokens 4 --forward-tokens 4 --batches 1", "", ()),
} | {
    name: (FIT.format(name), RESUME, tuple(f"checkpoints/r/*/*.{kind}" for kind in ("safetensors", "onnx*", "gguf")))
    for name in [*METHODS][1:]
}  # fmt: skip
STOPS = ("SIGINT", "SIGTERM", "SIGHUP")
FAULTS = ("SIGKILL", *STOPS, "ENOSPC", "EROFS", "FSIZE", *["SIGKILL"] * 6, *STOPS, "ENOSPC")  # for every command
LABELS = {
    "SIGKILL": "killed at an operation on files",
    **{stop: f"asked to stop ({stop}) at an operation on files" for stop in STOPS},
    "ENOSPC": "no room from an operation on", "EROFS": "a read-only file system", "FSIZE": "files that cannot grow",
}  # fmt: skip
ATTACKS = [(name, FAULTS[(turn + n) % len(FAULTS)]) for turn in range(len(FAULTS)) for n, name in enumerate(COMMANDS)]
ROOM = [1_000 * 3**step for step in range(10)]  # bytes that a disk has left
DISKS = [(name, ROOM[(turn + n) % len(ROOM)]) for turn in range(3) for n, name in enumerate(COMMANDS)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a corpus, prompts and a finished run, and the outputs of earlier calls."""
    folder = tmp_path_factory.mktemp("bench")
    write_model(folder / "teacher", n_embd=64)  # which QLoRA's blocks divide
    write_classifier(folder / "classes")
    write_seq2seq(folder / "writer", "bart")
    write_corpus(folder / "corpus", documents=24)
    write_config(folder / "chain.yaml", {"stages": [{"name": "a", "config": "lora.yaml"}]})
    for name, changes in METHODS.items():
        write_config(folder / f"{name}.yaml", spoilt(changes))
    for name, key in (("p.jsonl", "prompt"), ("t.jsonl", "text")):
        lines = (json.dumps({key: "The statement " * (n % 3 + 1)}) for n in range(6))
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    succeed(folder, "fit", "--config", "lora.yaml", "--run", "done", "--trainer.max_steps", "1")
    (folder / "report").mkdir()
    for name in ("checkpoints/done/predictions.jsonl", "o.jsonl", "c.jsonl", "s.jsonl", "report/report.md"):
        (folder / name).write_text("old")
    return folder


Made = dict[str, bytes]


@pytest.fixture(scope="module")
def whole(bench: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a command makes undisturbed, and how many operations it takes."""
    known: dict[str, tuple[Made, int]] = {}

    def make(name: str) -> tuple[Made, int]:
        if name not in known:
            folder = tmp_path_factory.mktemp(name) / "work"
            shutil.copytree(bench, folder)
            succeed(folder, "COUNT", "0", *COMMANDS[name][0].split(), module="tests.faults.dying")
            known[name] = made(folder, name), int((folder / "operations").read_text())
        return known[name]

    return make


def made(folder: Path, name: str) -> Made:
    """The files that a command has made."""
    files = (path for pattern in COMMANDS[name][2] for path in folder.glob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if re.fullmatch(r"\..*\.(tmp|old|stale)|.*\.partial", path.name)]


def assert_old_or_new(bench: Path, folder: Path, expected: Made) -> None:
    """Every file of the bench is in a folder, as it was or as it was to become."""
    for path in bench.rglob("*"):
        if path.is_file():
            name = str(path.relative_to(bench))
            assert (folder / name).read_bytes() in (path.read_bytes(), expected.get(name)), (
                f"{name} is neither old nor new"
            )


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What a process has printed, without a traceback."""
    text = done.stderr + done.stdout
    assert "Traceback" not in text, text
    assert "Exception ignored" not in text, text
    return text


def test_a_disturbed_command_loses_nothing_and_goes_on(
    bench: Path, whole: Any, tmp_path: Path, seed: int, tried: Tried
) -> None:
    name, fault = ATTACKS[seed % len(ATTACKS)]
    expected, operations = whole(name)
    places = {"EROFS": (1, 1), "FSIZE": (2_000, 40_000)}  # from the beginning; bytes
    number = random.Random(seed).randint(*places.get(fault, (1, operations)))
    print(f"{fault} at {number} of {operations}: {COMMANDS[name][0]}")  # pytest shows it where the test fails
    tried(LABELS[fault])
    folder = tmp_path / "work"
    shutil.copytree(bench, folder)
    disturbed = run_cli(folder, fault, str(number), *COMMANDS[name][0].split(), module="tests.faults.dying")
    text = said(disturbed)
    if disturbed.returncode:
        assert disturbed.returncode == {"SIGKILL": -signal.SIGKILL, **dict.fromkeys(STOPS, 130)}.get(fault, 2), text
        assert fault == "SIGKILL" or re.search(r"^lightgpt2: (error: )?\S.+", text, re.MULTILINE), text
    assert_old_or_new(bench, folder, expected)
    if disturbed.returncode:
        succeed(folder, *COMMANDS[name][0].split(), *COMMANDS[name][1].split())
    assert made(folder, name) == expected
    assert leftovers(folder) == []


def test_a_disk_without_room_loses_nothing(bench: Path, whole: Any, tmp_path: Path, disk: int, tried: Tried) -> None:
    if forked(tmp_path, "COUNT", 0, isolate)[0]:
        pytest.skip("this user may mount no disks")
    name, room = DISKS[disk]
    expected, _ = whole(name)
    print(f"{room} bytes: {COMMANDS[name][0]}")
    tried(f"a disk with {room:,} bytes left")
    work = tmp_path / "work"
    shutil.copytree(bench, work)
    command, more = COMMANDS[name][0].split(), COMMANDS[name][1].split()
    args = [str(room), str(len(more)), *command, *more]
    done = run_cli(work, *args, module="tests.faults.small_disk")
    text = said(done)
    assert done.returncode in (0, 2), text
    full = r"^lightgpt2: error: .*(the disk is full|of disk are needed)"
    assert done.returncode == 0 or re.search(full, text, re.MULTILINE), text
    assert_old_or_new(bench, work / "first", expected)
    assert made(work / "second", name) == expected
    assert leftovers(work / "second") == []


# -- files and folders, operation by operation -----------------------------------------------------------------------


def forked(folder: Path, fault: str, number: int, write: Callable[[], None]) -> tuple[int, int]:
    """Calls a function in a process of its own, with a fault: its exit code, and how many operations it took."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            os.chdir(folder)
            operations = inject(fault, number)
            write()
            os.write(writer, str(next(operations)).encode())
            os._exit(0)
        os._exit(1)
    os.close(writer)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(reader) as printed:
        return os.waitstatus_to_exitcode(status), int(printed.read() or 0)


def write_file() -> None:
    with atomic_file(Path("made")) as temporary:
        temporary.write_text("new")


def write_folder() -> None:
    with atomic_folder(Path("made")) as temporary:
        (temporary / "a").write_text("new")
        (temporary / "b").write_text("new")


@pytest.mark.parametrize("fault", ["SIGKILL", "EROFS", "ENOSPC"])
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_what_is_written_is_old_or_new_at_every_operation(
    tmp_path: Path, write: Callable[[], None], fault: str, tried: Tried
) -> None:
    def content() -> list[str]:
        made = tmp_path / "made"
        return [path.read_text() for path in ([made] if made.is_file() else sorted(made.iterdir()))]

    forked(tmp_path, "COUNT", 0, write)
    new = content()
    assert {*new} == {"new"}
    operations = forked(tmp_path, "COUNT", 0, write)[1]
    assert operations >= 2
    for number in range(1, operations + 1):
        for path in tmp_path.rglob("*"):
            if path.is_file():
                path.write_text("old")
        tried(f"each operation of writing: {fault}")
        code, _ = forked(tmp_path, fault, number, write)
        assert code == (-signal.SIGKILL if fault == "SIGKILL" else 1) or (code == 0 and content() == new)
        clear_leftovers(tmp_path)
        assert content() in (new, ["old"] * len(new)), number
        assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_a_living_process_writes_is_no_leftover(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file") as file, atomic_folder(tmp_path / "folder") as folder:
        for write in (file, folder / "weights"):
            write.write_text("half")
        assert forked(tmp_path, "COUNT", 0, lambda: clear_leftovers(tmp_path))[0] == 0
        with atomic_file(tmp_path / "file") as other:  # of two that write the same, the later one wins
            other.write_text("other")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/weights").read_text() == "half"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("name", [".x.1.tmp", ".other.1.old", "x.1.tmp", ".tmp", ".x.tmp"])
def test_other_people_s_files_beside_an_output_are_no_leftovers(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("years of work")
    with atomic_file(tmp_path / "made") as temporary:
        temporary.write_text("new")
    assert (tmp_path / name).read_text() == "years of work"


LEFT = (
    "checkpoints/done/.adapter.01ab.tmp/x", "checkpoints/done/.model.01ab.old/x", "checkpoints/done/.last.ckpt.01ab.tmp",
    "checkpoints/done/model/.ledger.json.01ab.tmp", "report/.report.md.01ab.tmp", "report/.report.html.01ab.tmp",
    ".o.jsonl.01ab.tmp", ".gguf.01ab.tmp/model.gguf", ".gguf.01ab.old/model.gguf",
)  # fmt: skip


def test_what_a_killed_process_has_left_goes_when_the_next_one_starts(bench: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(bench, folder)
    for name in LEFT:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("half")
    for name in ("report", "generate", "gguf"):
        succeed(folder, *COMMANDS[name][0].split())
    succeed(folder, "fit", "--config", "lora.yaml", "--run", "done", *RESUME.split(), "--trainer.max_steps", "2")
    assert leftovers(folder) == []


# -- asked to stop ---------------------------------------------------------------------------------------------------


def test_a_stop_in_the_first_moments_prints_no_traceback(tmp_path: Path, milliseconds: int, tried: Tried) -> None:
    """While Python itself starts, which takes some of them, nothing of this package is there to hear it."""
    verbs = ("fit --config distill.yaml", "validate --config distill.yaml", "benchmark x", "export x --format onnx")
    seed, signum = random.Random(milliseconds), (signal.SIGINT, signal.SIGTERM)[milliseconds % 2]
    command = [sys.executable, "-c", _STARTED, *seed.choice(verbs).split()]
    tried("asked to stop in the first moments")
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        time.sleep(seed.random() * 1.5)
        process.send_signal(signum)
        text = process.stdout.read()
    assert "Traceback" not in text, text
    assert "Exception ignored" not in text, text
    assert process.returncode in (130, -signum, 2), text


_STARTED = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); print('begun', flush=True)\n"
    "from lightgpt2.__main__ import main; main()"
)


def test_a_closed_terminal_saves(bench: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(bench, folder)
    command, resume = COMMANDS["fit"][0].split(), COMMANDS["fit"][1].split()
    long = ["--trainer.max_steps=100000", "--checkpoint.every_n_steps=100000", "--trainer.enable_progress_bar=true"]
    steps = json.dumps([("has", "checkpoints/r/best.ckpt")])
    closed = run_cli(folder, steps, *command, *long, module="tests.faults.terminal")
    assert closed.returncode == 130, closed.stderr
    step = torch.load(folder / "checkpoints/r/last.ckpt", weights_only=True)["global_step"]
    assert step >= 2
    succeed(folder, *command, *resume, f"--trainer.max_steps={step}")


HELLO = [("shows", "> $"), ("types", "Hello\n"), ("shows", "Hello\r\n.")]  # and the answer has begun
TALKS: dict[str, tuple[list[tuple[str, str]], int, str]] = {
    "Ctrl-C": (
        [*HELLO, ("types", "\x03"), *HELLO, ("types", "\x03"), ("shows", "> $"), ("types", "\x03"), ("shows", "> $"),
         ("types", "\x04"), ("ends", "")], 0, "",
    ),
    "SIGTERM": ([*HELLO, ("asks", "SIGTERM"), ("ends", "")], 130, "lightgpt2: asked to stop"),
    "SIGTERM between answers": ([("shows", "> $"), ("asks", "SIGTERM"), ("ends", "")], 130, "lightgpt2: asked to stop"),
    "SIGHUP": ([*HELLO, ("asks", "SIGHUP"), ("ends", "")], 130, ""),
}  # fmt: skip


def test_ctrl_c_stops_an_answer_and_other_signals_the_conversation(tmp_path: Path, talk: str, tried: Tried) -> None:
    tried("asked to stop in a conversation on a terminal")
    folder = write_chat_model(tmp_path / "model")
    make_model("gpt2", n_positions=20_000).save_pretrained(folder)
    endless = {"max_new_tokens": 10_000, "suppress_tokens": [0, *range(296, 300)]}
    (folder / "generation_config.json").write_text(json.dumps(endless))
    steps, code, said = TALKS[talk]
    done = run_cli(
        tmp_path, json.dumps(steps), "generate", "model", "--chat", module="tests.faults.terminal", TERM="dumb"
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout
    assert "Traceback" not in done.stdout


def test_a_stop_after_the_last_step_saves_and_is_heard(bench: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(bench, folder)
    command, resume = COMMANDS["fit"][0].split(), COMMANDS["fit"][1].split()
    stop = [f"--trainer.callbacks={__name__}.StopAtTheEnd"]
    stopped = run_cli(folder, *command, *stop)
    assert stopped.returncode == 130
    assert "stopped with the trained model saved; score it with the same command" in stopped.stderr
    assert "Nothing was left to train" in succeed(folder, *command, *resume)


class StopAtTheEnd(Callback):
    """Asks its process to stop when the last step is done."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class Interrupting(contextlib.ExitStack):
    """Stands in for the processes of a benchmark, of which the N-th request is interrupted."""

    at = 0

    def __init__(self, module: str, arms: list[str]) -> None:
        super().__init__()
        self.errors: dict[str, str] = {}
        self._requests = 0

    def ask(self, name: str, do: str, **_: Any) -> dict[str, Any]:
        self._requests += 1
        if self._requests == self.at:
            raise KeyboardInterrupt
        generation = {"first": 1.0, "others": [2.0, 2.0], "cpu_seconds": 0.01}
        peaks = {"peak_memory_mb": 9.0, "peak_above_start_mb": 5.0, "peak_reserved_mb": None}
        machine = {"name": "here", "device": "cpu", "threads": 1, "versions": {"torch": "2"}}
        return {
            "load": {"sizes": {"weights_mb": 1.0, "embedding_mb": 0.5, "load_seconds": 0.1}, "machine": machine},
            "round": {"forward 1x4": [1.0], "forward 16x4": [1.0], "generate 4": generation, "peaks": peaks},
            "profile": {"operators": [], "attention_kernel": "sdpa", "trace": "x"},
        }[do]


# With two models in two rounds: the request that is interrupted, the models and the rounds that are kept.
@pytest.mark.parametrize(
    ("at", "kept", "rounds"), [(2, 0, 0), (3, 0, 0), (4, 1, 1), (5, 2, 1), (6, 2, 1), (7, 2, 2), (8, 2, 2)]
)
def test_a_benchmark_keeps_what_is_measured(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    at: int, kept: int, rounds: int,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "Children", type("At", (Interrupting,), {"at": at}))
    model, short = str(bench / "teacher"), ["--new-tokens", "4", "--prompt-tokens", "4", "--forward-tokens", "4"]
    code, out, err = call(capsys, "benchmark", model, model, "--rounds", "2", *short)
    assert code == 130
    if not kept:
        assert err == "lightgpt2: stopped; benchmark.json was not written\n"
        assert not Path("benchmark.json").exists()
        return
    assert f"benchmark.json has what is measured: {kept} of 2 models, in {rounds} of 2 rounds" in err
    result = json.loads(Path("benchmark.json").read_text())
    assert result["settings"]["rounds"] == rounds
    assert ["error" not in arm for arm in result["arms"]] == [True, kept == 2]
    assert out.count("teacher fp32") >= 3


def test_a_journal_of_other_texts_is_refused_and_kept(tmp_path: Path) -> None:
    rows, output = [{"prompt": "a"}, {"prompt": "b"}], tmp_path / "o.jsonl"
    done = Continuation(1, "\ud800\n", "length")
    with Texts(rows, output, Continuation, model="m") as texts:
        texts.add(done)
    journal = tmp_path / "o.jsonl.partial"
    kept = journal.read_bytes()
    for other in ({"model": "other"}, {"model": "m", "seed": 1}):
        with (
            pytest.raises(UserError, match=r"--output: .*partial is not what this call has left"),
            Texts(rows, output, Continuation, **other),
        ):
            pass
    journal.write_bytes(b"my notes")
    with pytest.raises(UserError, match="not what this call has left"), Texts(rows, output, Continuation, model="m"):
        pass
    assert journal.read_bytes() == b"my notes"
    for cut in range(len(kept)):
        journal.write_bytes(kept[:cut])
        with Texts(rows, output, Continuation, model="m") as texts:
            assert texts.texts == {}
    journal.write_bytes(kept)
    with Texts(rows, output, Continuation, model="m") as texts:
        assert texts.texts == {1: done}
        with pytest.raises(UserError, match="another process writes"), Texts(rows, output, Continuation, model="m"):
            pass
        texts.add(Continuation(0, "x", "stop"))
        texts.finish()
    assert [json.loads(line)["text"] for line in output.read_bytes().splitlines()] == ["x", "\ud800\n"]
    assert not journal.exists()


# -- names, and other people's code ----------------------------------------------------------------------------------

NAMES = (
    "", ".", "..", "../x", "/x", "/tmp/x",
    "x/..", "x/../../y", "a/b/c", "x/", "/", "//", ".x", "a/.x", "~/../x/y", "a\nb", "a\tb",
    "\r", "a\x00b", "\x1b[31mred", "\x7f", "\x9b", "a\u2028b", "\u202egpj.exe", "\ufeffx", "\udc80", "x" * 201, "\u00e9" * 101,
    "a/" + "x" * 300, "a\x0bb",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_that_is_another_path_or_unprintable_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tried: Tried
) -> None:
    tried("hostile names")
    folder = tmp_path / "deep/work"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="give NAME or GROUP/NAME"):
        Run(name)
    write_config(Path("c.yaml"), {"model": {"class_path": "x.X"}, "data": {"x": {f"../../{name}": 1}}})
    stages = [{"name": name, "config": "c.yaml"}]
    write_config(Path("r.yaml"), {"stages": stages})
    with pytest.raises(UserError) as error:
        read_recipe("r.yaml", name or ".")
    assert {"recipe", f"stages.{name or 1}.name"} <= {problem.key for problem in error.value.problems}
    before = sorted(tmp_path.rglob("*"))
    for args in (["--run", name or "."], ["--key", f"data.x.../../{name}", "--values", "1"]):
        code, out, err = call(capsys, "sweep", "--config", "c.yaml", *args)
        assert (code, out) == (2, "")
        assert err.removesuffix("\n").isprintable()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("verb", "name"), [("predict", "../x"), ("fit", "a\nb\x1b[31m")])
def test_no_verb_goes_to_another_folder(bench: Path, tmp_path: Path, verb: str, name: str) -> None:
    folder = tmp_path / "work"
    shutil.copytree(bench, folder)
    before = sorted(tmp_path.rglob("*"))
    done = run_cli(folder, verb, "--config", "lora.yaml", "--run", name)
    assert done.returncode == 2
    assert done.stderr.startswith(f"lightgpt2: error: --run {ascii(name)[1:-1]}: not the name of a folder")
    assert done.stderr.removesuffix("\n").isprintable()
    assert sorted(tmp_path.rglob("*")) == before


def test_predictions_go_to_no_other_run(bench: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(bench, folder)
    (folder / "checkpoints/mine").mkdir()
    (folder / "checkpoints/mine/thesis.txt").write_text("years of work")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    model = ["--ckpt_path", "checkpoints/done/model"]
    for run, other, said in (
        ("done", ["--model.lora.r", "3", *model], "belongs to another run"), ("mine", model, "was not made by lightgpt2"),
    ):  # fmt: skip
        done = run_cli(folder, "predict", "--config", "lora.yaml", "--run", run, *other)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


EVIL = "from pathlib import Path\nPath(__file__).with_name('executed').touch()\n"


@pytest.fixture
def evil(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with modules that must not run."""
    folder = tmp_path / "work"
    shutil.copytree(bench, folder)
    write_config(folder / "r.yaml", {"stages": [{"name": "a", "config": "lora.yaml"}]})
    for name in ("yaml", "json", "lightgpt2", "torch", "sitecustomize", "mine"):
        (folder / f"{name}.py").write_text(EVIL)
    monkeypatch.chdir(folder)
    return folder


def test_no_child_runs_what_lies_in_the_working_folder(
    evil: Path, monkeypatch: pytest.MonkeyPatch, tried: Tried
) -> None:
    """Each looks for a module `yaml`, which the folder has; the package of that name cannot be run."""
    for _ in range(3):
        tried("code that must not run")
    with benchmark.Children("yaml", ["x"]) as worker:
        worker.ask("x", "load")
    assert "yaml" in worker.errors["x"]
    monkeypatch.setattr(fits, "_CHECKER", "yaml")
    with pytest.raises(subprocess.CalledProcessError):
        fits.check_stages({"a": {}})
    python = evil / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m yaml\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert fits.fit([]) == (1, False)
    assert not Path("executed").exists()


def test_a_dry_run_runs_nothing_of_the_working_folder(evil: Path, more: int) -> None:
    assert "not done yet" in succeed(evil, "pipeline", "r.yaml", "--dry-run")
    assert not Path("executed").exists()


MINE = """
from pathlib import Path
from lightning import Callback

Path(__file__).with_name("executed").touch()

class Mine(Callback):
    def __init__(self, x: Path(__file__).with_name("executed").touch() = 1) -> None: ...

def texts():
    return ["text"]
"""
_LAMBDA = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "os.abort"}}
UNSAFE: dict[str, tuple[dict[str, Any], str]] = {
    "a class": ({"trainer.callbacks": [{"class_path": "mine.Mine"}]}, "mine.Mine is code of another package"),
    "its name alone": ({"trainer.callbacks": ["mine.Mine"]}, "mine.Mine is code of another package"),
    "a method": ({"model": {"class_path": "mine.Mine"}}, "mine.Mine is code of another package"),
    "a function": ({"data.source": "python:mine.texts"}, "data.source: python:mine.texts is a function"),
    "a model's": ({"model.trust_remote_code": True}, "model.trust_remote_code: lets code in the model's folder run"),
    "a hook": (
        {"trainer.callbacks": [_LAMBDA]},
        "os.abort is code of another package",
    ),
}  # fmt: skip


def test_a_safe_check_runs_no_code_of_others(bench: Path, tmp_path: Path, case: str, tried: Tried) -> None:
    tried("code that must not run")
    folder = tmp_path / "work"
    shutil.copytree(bench, folder)
    (folder / "mine.py").write_text(MINE)
    changes, said = UNSAFE[case]
    write_config(folder / "unsafe.yaml", spoilt(METHODS["lora"] | changes))
    checked = run_cli(folder, "check", "--safe", "--config", "unsafe.yaml", PYTHONPATH=str(folder))
    assert (checked.returncode, said in checked.stderr) == (2, True), checked.stderr
    assert not (folder / "executed").exists()


def test_a_safe_check_takes_what_ships(bench: Path) -> None:
    assert succeed(bench, "check", "--config", "lora.yaml", "--safe").endswith("ok\n")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All cases by the name of their fixture, and how many the suite tries."""
    many: dict[str, tuple[Sequence[Any], int]] = {
        "seed": (range(len(ATTACKS)), 3), "disk": (range(len(DISKS)), 1), "milliseconds": (range(120), 2),
        "more": (range(1), 0), "case": ([*UNSAFE], 3), "talk": ([*TALKS], 1),
    }  # fmt: skip
    for name in many.keys() & {*metafunc.fixturenames}:
        metafunc.parametrize(name, cases(metafunc.config, *many[name]))
