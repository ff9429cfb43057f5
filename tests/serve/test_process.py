"""`lightgpt2 serve` as a process: its first line, its end, and what it refuses before a model is loaded."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from lightgpt2.serve.run import _name
from tests.support.chats import write_chat_model
from tests.support.cli import ENVIRONMENT, ROOT, refused
from tests.support.models import write_classifier, write_letters

CURLS = re.findall(r"```bash\n(curl .*?)```", (ROOT / "docs/serving.md").read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of a tiny model with a character model beside it, and its address."""
    folder = tmp_path_factory.mktemp("served")
    write_chat_model(folder / "tiny" / "model")
    models = ["tiny/model", "--partial", str(write_letters(folder / "letters"))]
    command = [sys.executable, "-m", "lightgpt2", "serve", *models, "--port", "0", "--threads", "1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True) as found:
        assert found.stdout
        line = found.stdout.readline()
        address = re.fullmatch(r"lightgpt2: tiny is served on (http://127\.0\.0\.1:\d+)/v1; the page is \1/\n", line)
        assert address, line + (found.stderr.read() if found.stderr and found.poll() is not None else "")
        yield found, address[1]
        found.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    "curl", CURLS, ids=lambda curl: re.split(r"8000|\s", curl.partition("http://127.0.0.1:")[2])[1]
)
def test_the_examples_of_the_page_run(process: tuple[subprocess.Popen[str], str], curl: str) -> None:
    command = curl.replace("http://127.0.0.1:8000", process[1]).replace("curl", "curl --silent --fail-with-body", 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    if "stream" in curl:
        assert done.stdout.endswith("data: [DONE]\n\n")
    elif "metrics" in curl:
        assert done.stdout.startswith("# HELP")
    else:
        assert json.loads(done.stdout)["model"] == "tiny"


@pytest.mark.slow
def test_sigterm_ends_a_running_answer_and_the_process_has_done_its_work(
    process: tuple[subprocess.Popen[str], str],
) -> None:
    """The last test of this file: the server is gone afterwards."""
    server, url = process
    asked = {"prompt": "x", "max_tokens": 240, "n": 16, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=30) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        server.send_signal(signal.SIGTERM)
        last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "the server is shutting down"
    assert server.wait(10) == 0
    assert server.stdout
    assert server.stderr
    assert (server.stdout.read(), server.stderr.read()) == ("", "")


def test_a_port_that_is_taken_is_said_with_the_fix(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (line,) = refused(["serve", "gone", "--port", str(port)], capsys)
    assert line.startswith(
        f"--port: another process listens on 127.0.0.1, port {port}; stop it, or give another one: --port"
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--host", "0.0.0.0", "--port", "0"], "--api-key: must be given to listen on 0.0.0.0"),
        (["--host", "no such host"], "--host: no such host is no address"),
        (["--host", "192.0.2.1", "--port", "0"], "--host: 192.0.2.1 is no address of this machine"),
        (["--port", "70000"], "--port: must be"),
        (["--waiting", "0"], "--waiting: must be"),
        (["--allow-origin", "example.org"], "--allow-origin: must be an origin"),
        (["--api-key", "a b"], "--api-key: must be of visible ASCII"),
        (["--api-key", ""], "--api-key: must be of visible ASCII"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    options: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = refused(["serve", "gone", *options], capsys)
    assert found.startswith(line)


def test_a_model_that_completes_nothing_has_no_partial_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write_classifier(tmp_path))
    (line,) = refused(["serve", folder, "--partial", folder, "--port", "0"], capsys)
    assert line == f"--partial: {folder} completes no words that are being typed; remove it"


def test_a_model_is_called_as_its_run_or_its_folder(tmp_path: Path) -> None:
    for name in ("checkpoints/distill/model", "tiny-onnx"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "tiny-gguf").mkdir()
    (tmp_path / "tiny-gguf/model.gguf").touch()
    names = ["checkpoints/distill/model", "tiny-onnx", "tiny-gguf/model.gguf"]
    assert [_name(str(tmp_path / name)) for name in names] == ["distill", "tiny-onnx", "tiny-gguf"]
    assert _name("org/name") == "org/name"


def test_without_the_extra_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    (line,) = refused(["serve", "gone"], capsys)
    assert line == "serve: the package uvicorn is not installed; install the extra: pip install 'lightgpt2[serve]'"


def test_no_other_command_imports_the_server() -> None:
    script = "import sys, lightgpt2.cli.commands, lightgpt2.runtime.loading\n"
    script += "print({'starlette', 'uvicorn'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_package_holds_the_page() -> None:
    assert (Path(ROOT) / "lightgpt2/serve/page.html").is_file()


@pytest.mark.slow
def test_under_load_there_is_no_error_and_no_other_answer(tmp_path: Path) -> None:
    """The measurement itself is `python -m benchmarks.serving`, for a minute."""
    write_chat_model(tmp_path / "tiny")
    command = [
        sys.executable,
        "-m",
        "benchmarks.serving",
        str(tmp_path / "tiny"),
        "--seconds",
        "5",
        "--threads",
        "1",
        "--keys",
        "5",
    ]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = map(float, re.findall(r"memory: ([\d.]+) MB, at the end ([\d.]+) MB", done.stdout)[0])
    assert after < before + 20
    assert re.search(r"^\| typed, 64 clients \| \d+ \|", done.stdout, flags=re.MULTILINE)
