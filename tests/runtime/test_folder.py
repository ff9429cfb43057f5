"""Exported folders: sealed with checksums, and opened only when they hold."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import lightgpt2
from lightgpt2.errors import UserError
from lightgpt2.models.ledger import Ledger
from lightgpt2.runtime.folder import is_exported, open_export
from tests.support.onnx_decoder import seal, write_decoder


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def test_what_is_sealed_is_opened(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "m")
    assert is_exported(str(folder))
    assert not is_exported(str(folder / "config.json"))
    assert not is_exported(str(tmp_path))
    seal(folder, {"format": "onnx", "bytes": {"model.onnx": 3}})
    about = open_export(folder)
    assert (about["format"], about["bytes"]) == ("onnx", {"model.onnx": 3})
    files, recorded = {path for path in folder.iterdir() if path.name != "ledger.json"}, Ledger.read(folder).files
    assert recorded == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert {"model.onnx", "config.json", "tokenizer.json"} <= recorded.keys()
    (folder / "README.md").write_text("mine")
    assert open_export(folder) == about, "a file that came later does no harm"


@pytest.mark.parametrize("spoil", [cut, flip, Path.unlink, replace_by_folder])
def test_what_was_changed_is_refused(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    folder = write_decoder(tmp_path)
    for name in ("tokenizer.json", "model.onnx"):
        spoil(folder / name)
    for open_ in (open_export, lightgpt2.load):
        with pytest.raises(UserError) as refused:
            open_(tmp_path)
        (problem,) = refused.value.problems
        assert problem.startswith(f"MODEL: model.onnx, tokenizer.json in {tmp_path} is not what was written")
        assert problem.endswith(f"restore it, or remove {tmp_path} and make it again")


def test_a_description_that_says_nothing_is_refused(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path)
    for text in ("", "{", "[]", "null", "{}", '{"files": 3}', '{"files": ["a"]}', "\xff\xfe"):
        (folder / "export.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=r"^MY: export\.json in .* is not what was written .*make it again"):
            open_export(folder, "MY")


def test_an_export_without_a_record_of_its_files_is_refused(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path)
    for text in (None, "[]", "[{}]", '[{"files": {"model.onnx": "0"}}]'):
        (folder / "ledger.json").unlink() if text is None else (folder / "ledger.json").write_text(text)
        with pytest.raises(UserError, match=r"^MY: .* has no record of its files .*; export the model again"):
            open_export(folder, "MY")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.onnx", "\0", ["model.onnx could not be loaded", "export it again"]),
        ("tokenizer.json", "{", ["tokenizer.json cannot be read", "export it again"]),
        ("config.json", "{", ["config.json cannot be read", "export it again"]),
        ("config.json", "{}", ["config.json has no max_position_embeddings or n_positions"]),
    ],
)
def test_an_export_that_cannot_be_loaded(tmp_path: Path, file: str, content: str, words: list[str]) -> None:
    (write_decoder(tmp_path) / file).write_text(content)
    seal(tmp_path, {"format": "onnx"})
    with pytest.raises(UserError) as refused:
        lightgpt2.load(tmp_path)
    (problem,) = refused.value.problems
    assert problem.startswith("MODEL: ")
    assert all(word in problem for word in words), problem


def test_a_folder_says_how_it_is_sampled(tmp_path: Path) -> None:
    plain = lightgpt2.load(write_decoder(tmp_path), threads=1)
    said = {"do_sample": True, "temperature": 1.5, "top_k": 0, "max_new_tokens": 20}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    seal(tmp_path, {"format": "onnx"})
    model = lightgpt2.load(tmp_path, threads=1)
    assert model.generate("A") == plain.generate("A", temperature=1.5, top_k=0, max_new_tokens=20)
    greedy = plain.generate("A", max_new_tokens=20)
    assert model.generate("A", temperature=0.0) == model.generate("A", top_k=1) == greedy
