"""`lightgpt2.load` and its model: text as transformers writes it, from any folder, in any batch."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lightgpt2
from lightgpt2.errors import UserError
from lightgpt2.runtime.folder import is_exported
from lightgpt2.runtime.language_model import LanguageModel
from tests.support.models import write_model, write_uneven_model
from tests.support.onnx_decoder import seal, write_decoder

PROMPTS = ["The assert statement", "A", "class names are bound in the local", "x = y"]
KINDS = ["gpt2", "uneven llama", "onnx"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family in ("gpt2", "llama"):
        changes = {"n_positions" if family == "gpt2" else "max_position_embeddings": 48}
        write_model(folder / family, family, **changes)
    write_uneven_model(folder / "uneven llama", "llama")
    write_decoder(folder / "onnx")
    return folder


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, folder: Path) -> LanguageModel:
    return lightgpt2.load(folder / request.param, threads=1)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("penalties", [{}, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}])
def test_greedy_text_and_logits_are_those_of_transformers(folder: Path, family: str, penalties: dict[str, Any]) -> None:
    plain, tokenizer = (kind.from_pretrained(folder / family) for kind in (AutoModelForCausalLM, AutoTokenizer))
    ours = {name.removesuffix("_size"): value for name, value in penalties.items()}
    model = lightgpt2.load(folder / family)
    for prompt, text in zip(PROMPTS, model.generate(PROMPTS, max_new_tokens=24, **ours), strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        whole = plain.generate(**ids, max_new_tokens=24, do_sample=False, pad_token_id=0, **penalties)[0]
        assert text == tokenizer.decode(whole[ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text
    tokens = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])
    with torch.no_grad():
        wanted = plain.eval()(tokens).logits.numpy()
    np.testing.assert_allclose(model.logits(tokens.numpy()), wanted, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_seed_gives_the_same_text_in_any_batch(model: LanguageModel, temperature: float) -> None:
    pieces = [""] * len(PROMPTS)

    def texts(batch_size: int, seed: int = 3, prompts: Any = PROMPTS, **options: Any) -> Any:
        options |= {"temperature": temperature, "max_new_tokens": 16, "batch_size": batch_size, "seed": seed}
        return model.generate(prompts, **options)

    def on_text(index: int, piece: str) -> None:
        assert piece
        pieces[index] += piece

    together = texts(4)
    assert texts(4, on_text=on_text) == pieces == together
    assert texts(1) == texts(3) == together
    assert texts(8, prompts=PROMPTS[0]) == together[0]
    assert (texts(4, seed=4) == together) == (temperature == 0)
    assert model.generate([]) == []


def test_no_more_prompts_at_a_time_than_asked(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    prefill = model.engine.prefill
    monkeypatch.setattr(model.engine, "prefill", lambda ids, *rest: shapes.append(ids.shape) or prefill(ids, *rest))
    model.generate(["A", "B", "class names are bound", "C"], max_new_tokens=2, batch_size=2)
    assert [shape[0] for shape in shapes] == [2, 2]
    assert shapes[0][1] > shapes[1][1] == 1, "like lengths are together"


def test_a_stop_text_ends_the_text(model: LanguageModel) -> None:
    def text(**stop: Any) -> str:
        return model.generate(PROMPTS[0], temperature=1.0, max_new_tokens=30, **stop)

    whole = text()
    middle = whole[10:14]
    assert text(stop=middle) == whole[: whole.index(middle)]
    assert text(stop=["@@", middle]) in whole


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_of_text_token_of_the_folder_ends_the_text(folder: Path, tmp_path: Path, kind: str) -> None:
    copied = Path(shutil.copytree(folder / kind, tmp_path / kind))
    model = lightgpt2.load(copied, threads=1)
    whole = model.generate(PROMPTS, max_new_tokens=20)
    first = int(model.logits(np.array([model.tokenizer.encode(PROMPTS[0]).ids]))[0, -1].argmax())
    for ends in (first, [1, first]):
        (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        if is_exported(str(copied)):
            seal(copied, {"format": "onnx"})
        shorter = lightgpt2.load(copied, threads=1).generate(PROMPTS, max_new_tokens=20)
        assert shorter[0] == ""
        assert all(long.startswith(short) for long, short in zip(whole, shorter, strict=True))


def test_text_ends_with_the_context_and_no_sooner_in_a_batch(model: LanguageModel) -> None:
    context = model.engine.context
    prompts = ["a", "b " * (context // 3)]
    together = model.generate(prompts, max_new_tokens=10_000, no_repeat_ngram=1)
    for prompt, text in zip(prompts, together, strict=True):
        room = context - len(model.tokenizer.encode(prompt).ids)
        assert text == model.generate(prompt, max_new_tokens=10_000, no_repeat_ngram=1)
        assert text.startswith(model.generate(prompt, max_new_tokens=room, no_repeat_ngram=1))
    assert text != model.generate(prompt, max_new_tokens=room - 1, no_repeat_ngram=1)


def test_pads_change_no_logits(model: LanguageModel) -> None:
    ids = np.array([[5, 6, 7, 8], [9, 8, 7, 6]])
    whole = model.logits(ids)
    assert whole.shape == (2, 4, model.engine.vocabulary)
    padded = model.logits(np.pad(ids, ((0, 0), (3, 0))), np.pad(np.ones_like(ids), ((0, 0), (3, 0))))
    np.testing.assert_allclose(padded[:, 3:], whole, atol=2e-4)


SAMPLED = {"temperature": 1.0}
WRONG: list[tuple[Any, dict[str, Any], list[str]]] = [
    ("", {}, ["prompt: must not be empty; give some text to continue"]),
    (["A", ""], {}, ["prompt 2: must not be empty"]),
    ("x = y\n" * 200, {}, ["prompt: must leave room in the model's 64 positions, got 1200 tokens; give at most 63"]),
    ("A", {"max_new_tokens": 0}, ["max_new_tokens: must be at least 1, got 0"]),
    ("A", {"batch_size": 0}, ["batch_size: must be at least 1, got 0"]),
    ("A", {"temperature": -0.1}, ["temperature: must be at least 0 (0: the most likely token), got -0.1"]),
    ("A", {"temperature": float("nan")}, ["temperature: must be at least 0 (0: the most likely token), got nan"]),
    ("A", {"top_k": -1, **SAMPLED}, ["top_k: must be at least 0 (0: no limit), got -1"]),
    ("A", {"top_p": 0.0, **SAMPLED}, ["top_p: must be above 0 and at most 1, got 0.0"]),
    ("A", {"top_p": 1.5, **SAMPLED}, ["top_p: must be above 0 and at most 1, got 1.5"]),
    ("A", {"repetition_penalty": 0.0}, ["repetition_penalty: must be above 0 (1: none), got 0.0"]),
    ("A", {"no_repeat_ngram": -2}, ["no_repeat_ngram: must be at least 0"]),
    ("A", {"seed": -1}, ["seed: must be at least 0, got -1"]),
    ("A", {"stop": ["a", ""]}, ["stop: must not be empty"]),
    ("A", {"top_k": 5}, ["top_k: must be left out at temperature 0, which takes the most likely token; give a "]),
    ("A", {"temperature": 0.0, "top_p": 0.5}, ["top_p: must be left out"]),
    ([3], {}, ["prompt: must be text, or a list of messages, got 3; correct it"]),
    (["A", None], {}, ["prompt: must be text, or a list of messages, got None"]),
    ([b"A"], {}, ["prompt: must be text, or a list of messages, got b'A'"]),
    ("A", {"max_new_tokens": 0, "top_p": 2.0, **SAMPLED}, ["max_new_tokens: must", "top_p: must"]),
]


@pytest.mark.parametrize(("prompts", "options", "words"), WRONG)
def test_what_is_wrong_is_said_at_once(folder: Path, prompts: Any, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        lightgpt2.load(folder / "onnx", threads=1).generate(prompts, **options)
    for problem, start in zip(refused.value.problems, words, strict=True):
        assert problem.startswith(start)


def test_a_text_is_no_conversation(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^messages: must be a list of messages, got 'A'; give \[\{"):
        lightgpt2.load(folder / "onnx", threads=1).chat("A")  # type: ignore[arg-type]
