"""Exported folders: sealed with checksums, and opened only when they hold."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

import lightgpt2
from lightgpt2.errors import UserError
from lightgpt2.runtime.folder import is_exported, open_export, seal
from tests.support.onnx_decoder import write_decoder


def cut(folder: Path) -> None:
    file = folder / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1])


def flip(folder: Path) -> None:
    file = folder / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def edit(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text().replace("64", "65"))


def remove(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def replace_by_folder(folder: Path) -> None:
    remove(folder)
    (folder / "tokenizer.json").mkdir()


def test_what_is_sealed_is_opened(tmp_path: Path) -> None:
    assert not is_exported(str(write_decoder(tmp_path / "m") / "config.json"))
    folder = tmp_path / "m"
    assert is_exported(str(folder))
    assert not is_exported(str(tmp_path))
    seal(folder, {"format": "onnx", "bytes": {"model.onnx": 3}})
    about = open_export(folder)
    assert about["format"] == "onnx"
    assert about["bytes"] == {"model.onnx": 3}
    assert about["files"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "export.json"
    }
    assert {"model.onnx", "config.json", "tokenizer.json"} <= about["files"].keys()


def test_a_file_that_came_later_does_no_harm(tmp_path: Path) -> None:
    before = open_export(write_decoder(tmp_path))
    (tmp_path / "README.md").write_text("mine")
    assert open_export(tmp_path) == before


@pytest.mark.parametrize(
    ("spoil", "name"),
    [(cut, "model.onnx"), (flip, "model.onnx"), (edit, "config.json"), (remove, "tokenizer.json"),
     (replace_by_folder, "tokenizer.json")],
)  # fmt: skip
def test_what_was_changed_is_refused(tmp_path: Path, spoil: Callable[[Path], None], name: str) -> None:
    spoil(write_decoder(tmp_path))
    for open_ in (lambda: open_export(tmp_path), lambda: lightgpt2.load(tmp_path)):
        with pytest.raises(UserError) as refused:
            open_()
        (problem,) = refused.value.problems
        assert problem.startswith(f"MODEL: {name} in {tmp_path} is not what was written")
        assert problem.endswith("export the model again")


def test_all_that_is_damaged_is_named(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path)
    cut(folder)
    remove(folder)
    with pytest.raises(UserError, match=r"^MY: model\.onnx, tokenizer\.json in"):
        open_export(folder, "MY")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"files": 3}', '{"files": ["a"]}', "\xff\xfe"])
def test_a_description_that_says_nothing_is_refused(tmp_path: Path, text: str) -> None:
    (write_decoder(tmp_path) / "export.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"export\.json cannot be read .*; export the model again"):
        lightgpt2.load(tmp_path)
