"""`lightgpt2.load` and what it gives: text as transformers writes it, from any folder, in any batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lightgpt2
from lightgpt2.errors import UserError
from lightgpt2.runtime.folder import is_exported, seal
from lightgpt2.runtime.language_model import LanguageModel
from tests.support.models import write_model, write_uneven_model
from tests.support.onnx_decoder import write_decoder

PROMPTS = ["The assert statement", "A", "class names are bound in the local", "x = y"]
KINDS = ["gpt2", "llama", "uneven gpt2", "uneven llama", "onnx"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family in ("gpt2", "llama"):
        changes = {"n_positions" if family == "gpt2" else "max_position_embeddings": 160}
        write_model(folder / family, family, **changes)
        write_uneven_model(folder / f"uneven {family}", family)
    write_decoder(folder / "onnx")
    return folder


def sealed(folder: Path) -> None:
    """Seals an exported folder anew, after a change that is meant."""
    if is_exported(str(folder)):
        seal(folder, {"format": "onnx"})


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, folder: Path) -> LanguageModel:
    return lightgpt2.load(folder / request.param, threads=1)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("penalties", [{}, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}])
def test_greedy_text_is_that_of_transformers(folder: Path, family: str, penalties: dict[str, Any]) -> None:
    plain, tokenizer = (kind.from_pretrained(folder / family) for kind in (AutoModelForCausalLM, AutoTokenizer))
    ours = {name.removesuffix("_size"): value for name, value in penalties.items()}
    found = lightgpt2.load(folder / family).generate(PROMPTS, max_new_tokens=64, **ours)
    for prompt, text in zip(PROMPTS, found, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        made = plain.generate(**ids, max_new_tokens=64, do_sample=False, pad_token_id=0, **penalties)[0]
        assert text == tokenizer.decode(made[ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_seed_gives_the_same_text_in_any_batch(model: LanguageModel, temperature: float) -> None:
    def texts(prompts: list[str], batch_size: int, seed: int = 3) -> list[str]:
        return model.generate(prompts, temperature=temperature, max_new_tokens=30, seed=seed, batch_size=batch_size)

    together = texts(PROMPTS, 4)
    assert texts(PROMPTS, 4) == together
    assert texts(PROMPTS, 1) == together
    assert texts(PROMPTS, 3) == together
    assert texts(PROMPTS[:1], 1) == together[:1]
    assert model.generate(PROMPTS[0], temperature=temperature, max_new_tokens=30, seed=3) == together[0]
    assert (texts(PROMPTS, 4, seed=4) == together) == (temperature == 0)


def test_no_more_prompts_at_a_time_than_asked(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    start = model.engine.start
    monkeypatch.setattr(model.engine, "start", lambda ids, *rest: shapes.append(ids.shape) or start(ids, *rest))
    model.generate(["A", "B", "class names are bound", "C"], max_new_tokens=2, batch_size=2)
    assert [shape[0] for shape in shapes] == [2, 2]
    assert shapes[0][1] > shapes[1][1] == 1, "like lengths are together"


def test_pieces_make_up_the_texts(model: LanguageModel) -> None:
    pieces = [""] * len(PROMPTS)

    def tell(index: int, piece: str) -> None:
        assert piece
        pieces[index] += piece

    told = model.generate(PROMPTS, temperature=1.0, max_new_tokens=30, on_text=tell)
    assert told == pieces == model.generate(PROMPTS, temperature=1.0, max_new_tokens=30)


def test_a_stop_text_ends_the_text(model: LanguageModel) -> None:
    whole = model.generate(PROMPTS[0], temperature=1.0, max_new_tokens=40)
    middle = whole[10:14]
    assert model.generate(PROMPTS[0], temperature=1.0, max_new_tokens=40, stop=middle) == whole[: whole.index(middle)]
    assert model.generate(PROMPTS[0], temperature=1.0, max_new_tokens=40, stop=["@@", middle]) in whole


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_of_text_token_of_the_folder_ends_the_text(folder: Path, kind: str) -> None:
    model = lightgpt2.load(folder / kind, threads=1)
    whole = model.generate(PROMPTS, max_new_tokens=30)
    first = int(model.logits(np.array([model.tokenizer.encode(PROMPTS[0]).ids]))[0, -1].argmax())
    path = folder / kind / "generation_config.json"
    before = path.read_text() if path.exists() else None
    for ends in (first, [1, first]):
        path.write_text(json.dumps({"eos_token_id": ends}))
        sealed(folder / kind)
        shorter = lightgpt2.load(folder / kind, threads=1).generate(PROMPTS, max_new_tokens=30)
        assert shorter[0] == ""
        assert all(long.startswith(short) for long, short in zip(whole, shorter, strict=True))
    path.unlink() if before is None else path.write_text(before)
    sealed(folder / kind)


def test_text_ends_with_the_context_and_no_sooner_in_a_batch(model: LanguageModel) -> None:
    context = model.engine.context
    prompts = ["a", "b " * (context // 3)]
    lengths = [len(model.tokenizer.encode(prompt).ids) for prompt in prompts]
    together = model.generate(prompts, max_new_tokens=10_000, no_repeat_ngram=1)
    for index, prompt in enumerate(prompts):
        alone = model.generate(prompt, max_new_tokens=10_000, no_repeat_ngram=1)
        assert together[index] == alone
        assert alone.startswith(model.generate(prompt, max_new_tokens=context - lengths[index], no_repeat_ngram=1))
    assert model.generate(prompts[1], max_new_tokens=context - lengths[1] - 1, no_repeat_ngram=1) != together[1]


def test_logits_without_and_with_pads(model: LanguageModel) -> None:
    ids = np.array([[5, 6, 7, 8], [9, 8, 7, 6]])
    whole = model.logits(ids)
    assert whole.shape == (2, 4, model.engine.vocabulary)
    padded = model.logits(np.pad(ids, ((0, 0), (3, 0))), np.pad(np.ones_like(ids), ((0, 0), (3, 0))))
    np.testing.assert_allclose(padded[:, 3:], whole, atol=2e-4)


def test_logits_of_transformers(folder: Path) -> None:
    ids = np.array([[5, 6, 7, 8], [9, 8, 7, 6]])
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(folder / "gpt2").eval()(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(lightgpt2.load(folder / "gpt2").logits(ids), wanted, atol=1e-5)


def test_a_folder_says_how_it_is_sampled(folder: Path) -> None:
    path = folder / "onnx/generation_config.json"
    path.write_text(json.dumps({"do_sample": True, "temperature": 1.5, "top_k": 0, "max_new_tokens": 20}))
    sealed(folder / "onnx")
    model = lightgpt2.load(folder / "onnx", threads=1)
    path.unlink()
    sealed(folder / "onnx")
    plain = lightgpt2.load(folder / "onnx", threads=1)
    assert model.generate("A") == plain.generate("A", temperature=1.5, top_k=0, max_new_tokens=20)
    assert model.generate("A", temperature=0.0) == plain.generate("A", max_new_tokens=20)
    assert model.generate("A", top_k=1) == plain.generate("A", max_new_tokens=20)


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ("", {}, ["prompt: it is empty; give some text to continue"]),
        (["A", ""], {}, ["prompt 2: it is empty"]),
        ("x = y\n" * 200, {}, ["tokens leave none of the model's", "positions; give at most"]),
        ("A", {"max_new_tokens": 0}, ["max_new_tokens: 0 is not allowed; give a value of at least 1"]),
        ("A", {"batch_size": 0}, ["batch_size: 0 is not allowed"]),
        ("A", {"temperature": -1.0}, ["temperature: -1.0 is not allowed"]),
        ("A", {"stop": ["a", ""]}, ["stop: an empty text is everywhere"]),
        ("A", {"top_k": 5}, ["top_k: the likeliest token is taken at temperature 0, whatever this is"]),
        ("A", {"temperature": 0.0, "top_p": 0.5}, ["top_p: the likeliest token is taken"]),
    ],
)
def test_what_cannot_be(model: LanguageModel, prompts: Any, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        model.generate(prompts, **options)
    (problem,) = refused.value.problems
    assert all(word in problem for word in words), problem


def test_all_that_is_wrong_is_said_at_once(model: LanguageModel) -> None:
    with pytest.raises(UserError) as refused:
        model.generate("A", max_new_tokens=0, top_p=2.0, temperature=1.0)
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["max_new_tokens", "top_p"]


def test_no_prompts_no_texts(model: LanguageModel) -> None:
    assert model.generate([]) == []


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.onnx", b"\0", ["model.onnx could not be loaded", "export it again"]),
        ("tokenizer.json", b"{", ["tokenizer.json cannot be read", "export it again"]),
        ("config.json", b"[]", ["config.json holds no settings"]),
        ("config.json", b"{}", ["config.json has no max_position_embeddings or n_positions"]),
    ],
)
def test_an_export_that_cannot_be_loaded(tmp_path: Path, file: str, content: bytes, words: list[str]) -> None:
    (write_decoder(tmp_path) / file).write_bytes(content)
    sealed(tmp_path)
    with pytest.raises(UserError) as refused:
        lightgpt2.load(tmp_path)
    (problem,) = refused.value.problems
    assert problem.startswith("MODEL: ")
    assert all(word in problem for word in words), problem


@pytest.mark.parametrize("file", ["model.onnx", "tokenizer.json", "config.json"])
def test_an_export_that_was_changed(tmp_path: Path, file: str) -> None:
    path = write_decoder(tmp_path) / file
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(UserError, match=f"^MODEL: {file} in .* is not what was written .*; export the model again$"):
        lightgpt2.load(tmp_path)
