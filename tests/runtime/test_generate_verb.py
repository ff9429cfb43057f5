"""`lightgpt2 generate`: its files, its messages, and text while it is written."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

import lightgpt2
from lightgpt2.cli.verbs import main, run
from lightgpt2.errors import UserError
from lightgpt2.runtime.language_model import Continuation
from lightgpt2.runtime.onnx_engine import OnnxEngine
from lightgpt2.runtime.prompts import Texts, read_prompts
from tests.support.cli import ENVIRONMENT, refused, run_cli
from tests.support.models import write_model
from tests.support.onnx_decoder import write_decoder

PROMPTS = ["The assert statement", "A", "class names", "naïve 日本"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "plain")
    write_model(folder / "bert")
    (folder / "bert/config.json").write_text('{"model_type": "bert"}')
    write_decoder(folder / "exported")
    lines = [json.dumps({"id": index, "prompt": prompt}) for index, prompt in enumerate(PROMPTS)]
    (folder / "prompts.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "exported"])
def test_one_prompt_and_a_file_of_many(folder: Path, name: str) -> None:
    model = lightgpt2.load(folder / name, threads=1)
    options = {"max_new_tokens": 12, "temperature": 1.1, "top_k": 20, "top_p": 0.9, "seed": 5}
    texts = model.generate(PROMPTS, stop=["qq", "zz"], **options)
    sampled = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    sampled += ["--stop", "qq", "zz", "--threads", "1"]
    done = run_cli(folder, "generate", name, "--prompt", PROMPTS[0], *sampled)
    assert (done.returncode, done.stdout, done.stderr) == (0, texts[0] + "\n", "")
    output = f"out/{name}.jsonl"
    done = run_cli(folder, "generate", name, "--prompts", "prompts.jsonl", "--output", output, "--batch", "3", *sampled)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr == "", "no bar where there is no terminal"
    rows = [json.loads(line) for line in (folder / output).read_text(encoding="utf-8").splitlines()]
    pairs = enumerate(zip(PROMPTS, texts, strict=True))
    ended = {"finish_reason": "length"}
    assert rows == [{"id": index, "prompt": prompt, "text": text, **ended} for index, (prompt, text) in pairs]


def test_text_is_shown_while_it_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, seen = io.BytesIO(), []
    decode = OnnxEngine.decode
    monkeypatch.setattr(OnnxEngine, "decode", lambda *args: seen.append(shown.getvalue()) or decode(*args))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="utf-8"))
    monkeypatch.chdir(folder)
    run(["generate", "exported", "--prompt", "A", "--temperature", "1", "--threads", "1"])
    wanted = (lightgpt2.load("exported", threads=1).generate("A", temperature=1.0) + "\n").encode()
    assert shown.getvalue() == wanted
    assert len({*seen}) > len(seen) / 3, "it is not kept for the end"
    for text in seen:
        assert wanted.startswith(text)
        text.decode()  # whole characters


@pytest.mark.slow
def test_a_reader_may_leave(folder: Path) -> None:
    command = [sys.executable, "-m", "lightgpt2", "generate", "exported", "--prompt", "A", "--temperature", "1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=pipe, stderr=pipe, bufsize=0) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_prompt_is_text_whatever_it_looks_like(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    model = lightgpt2.load("exported", threads=1)
    for text in ("null", "12", "[1, 2]", "a: b", "  two\nlines", "-"):
        run(["generate", "exported", f"--prompt={text}", "--max-new-tokens", "4", "--threads", "1"])
        assert capsys.readouterr().out == model.generate(text, max_new_tokens=4) + "\n"


LONG = "x = y\n" * 60
BAD = {
    "nothing to continue": ([], "--prompt: give it or --prompts, one of the two"),
    "empty": (["--prompt", ""], "--prompt: it is empty; give some text"),
    "too long, of many": (["--prompts", "long.jsonl"], "--prompts: prompt 2: must leave room in the model's 64 "),
    "output of one": (["--prompt", "A", "--output", "x"], "--output: it is for --prompts"),
    "folder for output": (["--prompts", "prompts.jsonl", "--output", "plain"], "--output: plain is a folder"),
    "missing file": (["--prompts", "gone.jsonl"], "--prompts: gone.jsonl cannot be read (No such file or directory)"),
    "no JSON": (["--prompts", "bad.jsonl"], "--prompts: line 2 of bad.jsonl must be of the form {\"prompt\": \"some text\"}"),
    "no prompts": (["--prompts", "empty.jsonl"], "--prompts: empty.jsonl has no lines"),
    "not UTF-8": (["--prompts", "latin.jsonl"], "--prompts: latin.jsonl cannot be read (not UTF-8)"),
    "top_k without sampling": (["--prompt", "A", "--top-k", "5"], "--top-k: must be left out at temperature 0"),
    "option": (["--prompt", "A", "--beams", "4"], "unrecognized arguments: --beams"),
    "no folder": (["--prompt", "A"], "MODEL: ./gone does not exist; give"),
    "family": (["--prompt", "A"], "MODEL: models of type 'bert' are not supported for this task; use a model"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args, words = BAD[name]
    monkeypatch.chdir(folder)
    long = [json.dumps({"prompt": text}) for text in ("A", LONG)]
    Path("long.jsonl").write_text("\n".join(long))
    Path("bad.jsonl").write_text('{"prompt": "A"}\n{"text": "B"}\n')
    Path("empty.jsonl").write_text("\n")
    Path("latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    before = sorted(folder.rglob("*"))
    model = {"no folder": "./gone", "family": "bert"}.get(name, "exported")
    (said,) = refused(["generate", model, *args], capsys)
    assert said.startswith(words)
    assert sorted(folder.rglob("*")) == before


def test_many_bad_lines_are_few_messages(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": ""}\n' * 40)
    with pytest.raises(UserError) as refused:
        read_prompts(path)
    assert len(refused.value.problems) == 6
    assert refused.value.problems[-1] == f"--prompts: 35 more lines of {path} are like this"


@pytest.mark.parametrize("option", ["--prompt", "--stop"])
def test_what_is_no_unicode_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """As Python gives bytes of a command line that are not UTF-8."""
    monkeypatch.chdir(folder)
    (message,) = refused(["generate", "exported", "--prompt", "The", option, "The \udcff"], capsys)
    assert message == f"{option}: must be valid Unicode, got 'The \\udcff'; see lightgpt2 generate --help"


def test_a_terminal_that_lacks_characters_ends_no_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr("sys.argv", ["lightgpt2", "generate", "exported", "--prompts", "prompts.jsonl"])
    monkeypatch.chdir(folder)
    main()
    rows = [json.loads(line) for line in shown.getvalue().decode("ascii").splitlines()]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in read_prompts(Path("prompts.jsonl"))]


FILES: dict[str, bytes] = {
    "U+2028, U+2029, U+0085": '{"prompt": "a\u2028b\u2029c\x85d"}\n'.encode(),
    "other ends of lines": '{"prompt": "a\x1cb\x1dc\x1ed", "id": "\u2028"}'.encode("unicode_escape").replace(
        b"\\x", b"\\u00"
    ),
    "a byte order mark": b"\xef\xbb\xbf" + b'{"prompt": "hello"}\r\n',
    "CRLF and blank lines": b'\r\n{"prompt": "one"}\r\n \r\n{"prompt": "two"}\r\n',
    "a NUL": b'{"prompt": "a\\u0000b"}',
    "half a pair elsewhere": b'{"prompt": "one", "id": "\\ud83d"}',
    "NaN elsewhere": b'{"prompt": "one", "id": NaN}',
}


@pytest.mark.parametrize("name", FILES)
def test_what_json_allows_is_read_and_written_again(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(FILES[name])
    rows = read_prompts(path)
    lines = [line for line in FILES[name].decode("utf-8-sig").split("\n") if line.strip()]
    assert str(rows) == str([json.loads(line) for line in lines])
    for output in (path, None):
        with Texts(rows, output, Continuation) as texts:
            for index in range(len(rows)):
                texts.add(Continuation(index, "made\u2028text", "stop"))
            texts.finish()
    added = {"text": "made\u2028text", "finish_reason": "stop"}
    assert str(read_prompts(path)) == str([{**row, **added} for row in rows])
    assert len(capsys.readouterr().out.split("\n")) == len(rows) + 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"prompt": "one"}\n{"prompt": "\\ud83d"}', "the prompt in line 2 of "),
        ('{"prompt": "one"}'.encode("utf-16"), "cannot be read (not UTF-8)"),
        (b'{"prompt": ' + b"[" * 100_000, "line 1 of "),
        (b'{"prompt": "one"}\r{"prompt": "two"}', "line 1 of "),
    ],
)
def test_prompts_that_cannot_be_are_one_message(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_prompts(path)
    (problem,) = refused.value.problems
    assert words in problem
