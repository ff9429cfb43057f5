"""Encoder-decoders in plain ONNX Runtime, by the names that every client knows, against transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from transformers import PreTrainedModel

from lightgpt2.conversions.onnx.encoder_decoder import TargetDecoder
from lightgpt2.conversions.onnx.graph import WEIGHTS
from lightgpt2.conversions.onnx.writer import Forms
from lightgpt2.errors import UserError
from lightgpt2.runtime.engines import DECODER, DECODER_WITH_PAST, ENCODER
from lightgpt2.runtime.onnx_encoder_decoder import OnnxEncoderDecoder
from lightgpt2.runtime.transformers_encoder_decoder import TransformersEncoderDecoder
from tests.models.test_encoder_decoder import emptied
from tests.support.models import ENCODER_DECODERS, make_seq2seq
from tests.support.onnx_client import Array, Seq2SeqClient, off

KINDS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in ENCODER_DECODERS),
    ("bart", {"scale_embedding": True, "activation_function": "relu"}),
    ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
]
FORMS = {
    "fp32": Forms(),
    "int8": Forms(TargetDecoder.int8, TargetDecoder.int8_vocabulary),
    "int4": Forms("int4", "int4", group=16),
}


@torch.no_grad()
def talkative(family: str, **changes: Any) -> PreTrainedModel:
    """A model that does not say one thing: its last norm turns what was read away from the same token's head."""
    model = make_seq2seq(family, **changes)
    decoder: Any = model.get_decoder()
    parts = (decoder, *getattr(decoder, "layers", ()))
    last = [getattr(part, name) for part in parts for name in ("layer_norm", "final_layer_norm") if hasattr(part, name)]
    norm = last[0] if hasattr(decoder, "layer_norm") or hasattr(decoder, "final_layer_norm") else last[-1]
    norm.weight.normal_(std=float(norm.weight.abs().mean()))
    for weak in (getattr(norm, "bias", None), getattr(model, "final_logits_bias", None)):
        if weak is not None:
            weak.mul_(0.1)
    for name, parameter in model.named_parameters():
        if "embed_positions" in name:
            parameter.normal_()
        elif name.endswith(("encoder_attn.out_proj.weight", "EncDecAttention.o.weight")):
            parameter.mul_(8)  # the source matters
    return model


def sources(lengths: list[int]) -> tuple[Array, Array]:
    """Tokens with pads on the right, and their mask."""
    random = np.random.default_rng(1)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return np.where(mask, random.integers(3, 300, mask.shape), 1), mask


def written(folder: Path, model: PreTrainedModel, form: str = "fp32") -> Path:
    folder.mkdir(exist_ok=True)
    TargetDecoder.into(folder, model, FORMS[form])
    return folder


def targets(count: int, length: int) -> Array:
    return np.random.default_rng(2).integers(3, 300, (count, length))


@pytest.mark.parametrize(("family", "changes"), KINDS)
def test_plain_onnx_runtime_writes_what_transformers_writes(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    model = talkative(family, **changes)
    ids, mask = sources([23, 40, 3])
    tensors = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    wanted = model.generate(**tensors, max_new_tokens=30, do_sample=False, eos_token_id=None)
    start = model.config.decoder_start_token_id
    found = Seq2SeqClient(written(tmp_path, model)).generate(ids, mask, start, 30)
    assert found.tolist() == wanted[:, 1:].tolist()
    assert len(np.unique(found)) > 1, "a model that says one thing would hide what its cache does"


@pytest.mark.parametrize(("family", "changes"), KINDS)
@pytest.mark.parametrize("uneven", [False, True])
def test_logits_with_and_without_the_cache_are_those_of_transformers(
    tmp_path: Path, family: str, changes: dict[str, Any], uneven: bool
) -> None:
    """Also of models whose layers have unlike heads or none, between encoder and decoder too."""
    model = emptied(family, **changes) if uneven else make_seq2seq(family, **changes)
    engines = [OnnxEncoderDecoder(written(tmp_path, model), 1), TransformersEncoderDecoder(model)]
    batch, tokens = sources([30, 9, 1]), targets(3, 26)
    whole, wanted = (engine.logits(*batch, tokens) for engine in engines)
    assert off(whole, wanted) < 1e-4
    for engine in engines:
        steps = [engine.prefill(*batch, tokens[:, :2]).copy()]
        steps += [engine.decode(tokens[:, place]).copy() for place in range(2, 26)]
        assert off(np.stack(steps, axis=1), wanted[:, 1:]) < 1e-4


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("form", FORMS)
def test_sequences_go_on_from_others_of_their_source(tmp_path: Path, family: str, form: str) -> None:
    """Two beams of each source that become two others: as if each had been written alone."""
    model = make_seq2seq(family)
    engine = OnnxEncoderDecoder(written(tmp_path, model, form), 1)
    (ids, mask), tokens = sources([30, 9]), targets(4, 3)
    engine.prefill(ids, mask, np.full((2, 1), 2))
    engine.decode(tokens[:, 0], np.array([0, 0, 1, 1]))
    engine.decode(tokens[:, 1], np.array([1, 1, 3, 2]))
    found = engine.decode(tokens[:, 2])
    rows = [[2, tokens[first, 0], *tokens[row, 1:]] for row, first in enumerate([1, 1, 3, 2])]
    alone = [
        engine.logits(ids[r // 2, None], mask[r // 2, None], np.array(row)[None])[0, -1] for r, row in enumerate(rows)
    ]
    assert off(found, np.stack(alone)) < (1e-4 if form == "fp32" else 0.02)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_quantized_files_shrink_and_stay_near(tmp_path: Path, family: str) -> None:
    """With larger layers, of which pages and scales are a small part."""
    sizes = {"bart": {"encoder_ffn_dim": 512, "decoder_ffn_dim": 512}, "t5": {"d_ff": 512}}[family]
    model = make_seq2seq(family, **sizes, d_model=128, vocab_size=2000)
    batch, tokens = sources([30, 9]), targets(2, 20)
    wanted = TransformersEncoderDecoder(model).logits(*batch, tokens)
    bytes_ = {}
    for form, bound in (("fp32", 1e-4), ("int8", 0.1), ("int4", 0.6)):
        folder = written(tmp_path / form, model, form)
        found = OnnxEncoderDecoder(folder, 1).logits(*batch, tokens)
        assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < bound
        bytes_[form] = (folder / WEIGHTS).stat().st_size
    assert bytes_["int8"] < 0.35 * bytes_["fp32"]
    assert bytes_["int4"] < 0.26 * bytes_["fp32"]


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_no_text_depends_on_its_neighbours(tmp_path: Path, family: str, form: str) -> None:
    """Greedy tokens of a batch of unlike lengths are those of each text alone."""
    engine = OnnxEncoderDecoder(written(tmp_path, talkative(family), form), 1)

    def greedy(ids: Array, mask: Array) -> Array:
        logits, tokens = engine.prefill(ids, mask, np.full((len(ids), 1), 2)), []
        for _ in range(20):
            tokens.append(logits.argmax(axis=1))
            logits = engine.decode(tokens[-1])
        return np.stack(tokens, axis=1)

    lengths = [30, 9, 2, 17]
    ids, mask = sources(lengths)
    alone = [greedy(ids[r : r + 1, :n], mask[r : r + 1, :n])[0] for r, n in enumerate(lengths)]
    assert greedy(ids, mask).tolist() == np.stack(alone).tolist()


@pytest.mark.parametrize("family", ["bart", "t5"])
@pytest.mark.parametrize("form", FORMS)
def test_a_weight_is_on_the_disk_once(tmp_path: Path, family: str, form: str) -> None:
    """All graphs read one file: what two of them have in common, the tied embedding too, is at one place of it."""
    written(tmp_path, make_seq2seq(family), form)
    places: dict[str, dict[str, tuple[int, int]]] = {}
    for name in (ENCODER, DECODER, DECODER_WITH_PAST):
        onnx.checker.check_model(str(tmp_path / name))
        stored = [value.const_value for value in ir.load(tmp_path / name).graph.initializers.values()]
        external = [each for each in stored if isinstance(each, ir.ExternalTensor)]
        assert {str(each.location) for each in external} == {WEIGHTS}
        places[name] = {str(each.name): (each.offset or 0, each.nbytes) for each in external}
    first, next_ = places[DECODER], places[DECODER_WITH_PAST]
    assert {*next_.items()} <= {*first.items()}, "the further steps need nothing that the first does not have"
    assert {*places[ENCODER].values()} & {*first.values()}, "the embedding"
    spans = sorted({place for name in places for place in places[name].values()})
    arrays = [
        (start, length) for start, length in spans if not any(s <= start < s + n and n > length for s, n in spans)
    ]
    assert (tmp_path / WEIGHTS).stat().st_size <= sum(length for _, length in arrays) + 4096 * len(arrays)


def test_a_decoder_without_heads_of_its_own_is_refused(tmp_path: Path) -> None:
    model = emptied("bart")
    for block in model.get_decoder().layers:
        block.self_attn.out_proj = torch.nn.Identity()  # as far as the writer looks
        block.self_attn.out_proj.bias = None
    with pytest.raises(UserError, match="no layer of the decoder has heads"):
        written(tmp_path, model)
