"""Summarization: what is learnt, what is generated and how it is scored, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lightgpt2.data import TextToTextData
from lightgpt2.errors import UserError
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.functional.vocabulary import token_nll
from lightgpt2.models import decoding
from lightgpt2.models.families import CAUSAL_LM, SEQ2SEQ
from lightgpt2.models.loading import load_config
from lightgpt2.tasks import Summarization, task_of
from tests.data.test_classification import write
from tests.data.test_text_to_text import BART, GPT2, NAMES, ROWS, data_of, here
from tests.support.models import ENCODER_DECODERS, make_model, make_seq2seq

__all__ = ["here"]
KINDS = ["bart", "t5", "gpt2", "llama"]


def model_of(kind: str, data: TextToTextData, **changes: Any) -> Any:
    """A random model whose vocabulary is the tokenizer's."""
    size = {"vocab_size": len(data.tokenizer), **changes}
    if kind in ENCODER_DECODERS:
        longer = {} if kind == "t5" else {"max_position_embeddings": 128}
        return make_seq2seq(kind, **longer, **size)
    positions = {"gpt2": {"n_positions": 128}, "llama": {"max_position_embeddings": 128}}[kind]
    return make_model(kind, **positions, **size, bos_token_id=0, eos_token_id=2, pad_token_id=1)


def config_of(kind: str) -> dict[str, Any]:
    return BART if kind in ENCODER_DECODERS else GPT2


def pairs_of(kind: str, **settings: Any) -> TextToTextData:
    return data_of(write("t.jsonl", ROWS, NAMES), config_of(kind), **settings)


def bound(data: Any, **settings: Any) -> Summarization:
    task = Summarization(**settings)
    task.bind(data)
    return task


def loss_of(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    found = Summarization().predictions(model, batch)
    return token_nll(found.hidden, found.weight, found.labels, found.bias, found.scale).sum()


def gradients(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    found = Summarization().predictions(model, batch)
    logits = found.logits(slice(None), torch.float32)
    torch.nn.functional.cross_entropy(logits, found.labels, ignore_index=IGNORE, reduction="sum").backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_transformers_and_pads_are_in_no_loss(kind: str) -> None:
    data = pairs_of(kind, eval_batch_size=4)
    batch, model = next(iter(data.scoring_loader("train"))), model_of(kind, data)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        targets = {"labels": batch["labels"]} if model.config.is_encoder_decoder else {}
        logits = model(**inputs, **targets).logits
        wanted = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).double(), batch["labels"].flatten(), ignore_index=IGNORE, reduction="sum"
        )
        assert float(loss_of(model, batch)) == pytest.approx(float(wanted), rel=1e-5)
        alone = 0.0
        for row in range(4):
            keep = batch["attention_mask"][row].bool()
            labels = batch["labels"][row]
            labels = labels[labels != IGNORE] if model.config.is_encoder_decoder else labels[keep]
            single = {"input_ids": batch["input_ids"][row][keep], "attention_mask": keep[keep].long(), "labels": labels}
            alone += float(loss_of(model, {name: value[None] for name, value in single.items()}))
        assert alone == pytest.approx(float(wanted), rel=1e-5)


CHAT = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


@pytest.mark.parametrize("rows", ["source and target", "prompt and completion", "messages"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_labels_of_a_prompt_change_no_gradient(kind: str, rows: str, here: Path) -> None:
    """Only the answer is learnt: other labels for the prompt's own tokens would, if any of them were read, change gradients."""
    settings: dict[str, Any] = {}
    if rows == "messages":
        (here / "chat.jinja").write_text(CHAT)
        settings = {"chat_template": "chat.jinja"}
        turns = [([{"role": "user", "content": a}, {"role": "assistant", "content": b}],) for a, b in ROWS]
        source = write("t.jsonl", turns, ("messages",))
    else:
        source = write("t.jsonl", ROWS, NAMES if rows == "source and target" else ("prompt", "completion"))
    data = data_of(source, GPT2, **settings)
    batch, model = next(iter(data.train_dataloader())), model_of(kind, data)
    learnt = gradients(model, batch)
    next_tokens = torch.cat([batch["input_ids"][:, 1:], batch["input_ids"][:, :1]], dim=1)
    prompt = torch.arange(next_tokens.shape[1]) < (batch["lengths"] - 1)[:, None]
    assert prompt.any(dim=1).all()
    assert not (batch["labels"][prompt] != IGNORE).any()
    # Whatever the prompt is labelled with before the data hides it, what is learnt is the answer alone:
    hidden = torch.where(prompt, torch.full_like(next_tokens, IGNORE), batch["labels"])
    for name, gradient in gradients(model, {**batch, "labels": hidden}).items():
        torch.testing.assert_close(gradient, learnt[name], rtol=0, atol=0)
    other = gradients(model, {**batch, "labels": torch.where(prompt, next_tokens, batch["labels"])})
    assert any(not torch.equal(other[name], learnt[name]) for name in learnt)  # which would show


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_summaries_are_those_of_transformers_one_by_one(kind: str, beams: int) -> None:
    data = pairs_of(kind, eval_batch_size=5, max_target_length=12)
    model, task = model_of(kind, data), bound(data, num_beams=beams, length_penalty=2.0, no_repeat_ngram_size=2)
    batch = next(iter(data.scoring_loader("train")))
    found = task.summaries(model, batch)
    for row, text in enumerate(found):
        ids = batch["input_ids"][row][None, : int(batch["lengths"][row])]
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, num_beams=beams, do_sample=False,
            length_penalty=2.0, no_repeat_ngram_size=2, eos_token_id=2, pad_token_id=1,
        )  # fmt: skip
        new = output[0, 1 if model.config.is_encoder_decoder else ids.shape[1] :]
        assert text == data.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_settings_of_the_decoding_are_what_is_generated_by() -> None:
    data = pairs_of("bart", max_target_length=9)
    model, batch = model_of("bart", data), next(iter(data.scoring_loader("train")))
    seen: list[dict[str, Any]] = []
    plain = model.generate
    model.generate = lambda *args, **options: seen.append(options) or plain(*args, **options)
    bound(data).summaries(model, batch)
    bound(data, num_beams=3, length_penalty=0.5, min_new_tokens=4, max_new_tokens=6, no_repeat_ngram_size=3).summaries(
        model, batch
    )
    assert [each["max_new_tokens"] for each in seen] == [9, 6]
    assert [each["num_beams"] for each in seen] == [1, 3]
    assert seen[0]["min_length"] == 0  # whatever the model's own settings say
    assert (seen[1]["length_penalty"], seen[1]["min_new_tokens"], seen[1]["no_repeat_ngram_size"]) == (0.5, 4, 3)


def test_metrics_are_means_of_examples_with_their_intervals() -> None:
    rows = [
        {
            "example": i, "loss": 1.0, "items": 3, "rouge1": 0.1 * i, "rouge2": 0.0, "rougeL": 0.1, "rougeLsum": 0.2,
            "words": 4, "reference_words": 8, "copied": 0.5,
        }
        for i in reversed(range(8))
    ]  # fmt: skip
    found = Summarization().metrics(rows)
    assert next(iter(found)) == Summarization.primary == "rouge1"
    assert found["rouge1"].value() == pytest.approx(0.35)
    assert found["rouge1"].numerators.tolist() == pytest.approx([0.1 * i for i in range(8)])
    assert np.all(found["rouge1"].denominators == 1)
    assert found["length"].value() == 0.5
    assert found["rouge1"].against(found["rouge1"]).ratio == 1.0


@pytest.mark.parametrize("kind", ["bart", "gpt2"])
def test_rows_are_scored_against_whole_references_and_do_not_depend_on_the_batch(kind: str) -> None:
    long = [(f"article {i} says it", f"thing {i} " + "and more " * 20) for i in range(60)]
    source = write("t.jsonl", long, NAMES)
    scored = []
    for size in (1, 7):
        data = data_of(source, config_of(kind), max_target_length=6, eval_batch_size=size)
        task, model = bound(data), model_of(kind, data)
        rows = [row for batch in data.scoring_loader("train") for row in task.rows(model, batch)]
        scored.append(sorted(rows, key=lambda row: row["example"]))
        assert {row["reference_words"] for row in rows} == {42}
    for one, other in zip(*scored, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_lead_3_and_oracle_stand_beside_every_model() -> None:
    rows = [(f"A {i} came. B {i} went. C {i} stayed. D {i} won.", f"D {i} won.") for i in range(60)]
    data = data_of(write("t.jsonl", rows, NAMES))
    found = bound(data).baselines(data, "train")
    assert [*found] == ["lead-3", "oracle"]
    assert found["oracle"]["rouge1"].value() == pytest.approx(1.0)
    assert found["lead-3"]["rouge1"].value() < 0.6
    assert len(found["oracle"]["rouge1"].numerators) == len(data._examples["train"])


def test_samples_have_references() -> None:
    data = pairs_of("bart", valid_fraction=0.3)
    task = bound(data, samples=2)
    prompts = task.prompts(data)
    samples = task.samples(model_of("bart", data), data.tokenizer, prompts)
    assert [text for text, _ in samples] == [*task.references(prompts)]
    assert all(dict(ROWS)[text] == reference for text, reference in task.references(prompts).items())


def test_the_task_of_a_configuration() -> None:
    for values, kind in ((BART, "Summarization"), ({"model_type": "t5"}, "Summarization"), (GPT2, "LanguageModeling")):
        config = load_config(values, "model", auto_classes=(SEQ2SEQ, CAUSAL_LM))
        assert type(task_of(config)).__name__ == kind


# -- what is refused --------------------------------------------------------------------------------------------------


def found_problems(task: Summarization, configs: list[dict[str, Any]], data: Any) -> list[str]:
    loaded = [load_config(each, "model", auto_classes=(SEQ2SEQ, CAUSAL_LM)) for each in configs]
    return [
        str(problem) for problem in task.problems(dict(zip(("model.model", "teacher"), loaded, strict=False)), data)
    ]


def test_a_decoder_does_not_teach_an_encoder_decoder_nor_the_other_way_round() -> None:
    data = TextToTextData(max_source_length=32, max_target_length=16)
    (line,) = found_problems(Summarization(), [BART, GPT2], data)
    assert line == "teacher: it is a decoder, and the model an encoder-decoder; choose two of one kind"
    (line,) = found_problems(Summarization(), [GPT2, BART], data)
    assert line == "teacher: it is an encoder-decoder, and the model a decoder; choose two of one kind"
    assert found_problems(Summarization(), [BART, BART], data) == []


def test_more_new_tokens_than_positions_are_refused() -> None:
    data = TextToTextData(max_source_length=100, max_target_length=16)
    (line,) = found_problems(Summarization(max_new_tokens=200), [BART], data)
    assert line == "max_new_tokens: 200 is more than the model's 128 positions; give at most 128"
    (line,) = found_problems(Summarization(max_new_tokens=40), [GPT2], data)
    assert line == "max_new_tokens: 40 after 100 of a source is more than the model's 128 positions; give at most 28"
    (line,) = found_problems(Summarization(min_new_tokens=40), [BART], data)
    assert line == "min_new_tokens: must be at most the 16 new tokens, got 40; give less, or more max_new_tokens"


def test_beams_that_memory_does_not_hold_are_refused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"model_type": "bart", "d_model": 1024, "max_position_embeddings": 1024}
    data = TextToTextData(eval_batch_size=64)
    monkeypatch.setattr("lightgpt2.tasks.summarization.free_memory", lambda: 10**10)
    assert found_problems(Summarization(), [large], data) == []
    (line,) = found_problems(Summarization(num_beams=64), [large], data)
    assert line.startswith("num_beams: 64 with 128 tokens: ")
    assert line.endswith(
        "of memory for the beams are needed, and 10.0 GB are free; give fewer, or a smaller data.eval_batch_size"
    )


def test_the_estimate_is_near_what_a_cache_takes() -> None:
    data = pairs_of("bart")
    model = model_of("bart", data)
    ids = torch.ones(3, 20, dtype=torch.long)
    output = model.generate(
        ids, max_new_tokens=10, min_new_tokens=10, num_beams=2, do_sample=False, return_dict_in_generate=True
    )
    caches = output.past_key_values
    kept = sum(
        tensor.numel() * tensor.element_size()
        for cache in (caches.self_attention_cache, caches.cross_attention_cache)
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    )
    found = decoding.Decoding(num_beams=2).cache_bytes(model.config, batch=3, source=20, target=10)
    logits = 4 * 6 * 2 * model.config.vocab_size
    assert found - logits == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("forced_bos_token_id", 999),
        ("forced_eos_token_id", -3),
        ("decoder_start_token_id", 300),
        ("suppress_tokens", [5, 400]),
    ],
)
def test_forced_tokens_that_the_model_does_not_have_are_refused(name: str, value: Any) -> None:
    data = pairs_of("bart")
    model = model_of("bart", data)
    bound(data).check(model, "model.model")
    setattr(model.generation_config, name, value)
    with pytest.raises(UserError) as error:
        bound(data).check(model, "model.model")
    what = f"its generation settings have {name} {value}, and it has {len(data.tokenizer)} tokens"
    assert str(error.value) == f"model.model: {what}; correct generation_config.json"


def test_data_without_targets_is_refused() -> None:
    (line,) = found_problems(Summarization(), [BART], object())
    assert line == "object has no texts with their targets; use lightgpt2.data.TextToTextData"


def test_a_tokenizer_of_its_own_has_bart_s_tokens(here: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained("tokenizer")
    assert [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [
        0,
        1,
        2,
        3,
    ]
    assert tokenizer.decode(tokenizer("A text, é.")["input_ids"]) == "<s>A text, é.</s>"
