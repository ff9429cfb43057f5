"""ONNX for ONNX Runtime on processors: in FP32, INT8 or INT4."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.conversions.exported import Exported
from lightgpt2.conversions.onnx.calibration import BOUND, measure_inputs
from lightgpt2.conversions.onnx.decoder import Decoder, DecoderClassifier
from lightgpt2.conversions.onnx.encoder import Encoder
from lightgpt2.conversions.onnx.encoder_decoder import TargetDecoder
from lightgpt2.conversions.onnx.genai import write_genai_config
from lightgpt2.conversions.onnx.graph import WEIGHTS
from lightgpt2.conversions.onnx.recurrent import RecurrentDecoder
from lightgpt2.conversions.onnx.weights import GROUP, Form, block_size
from lightgpt2.conversions.onnx.writer import Forms, ModelWriter, Stored
from lightgpt2.conversions.target import Target
from lightgpt2.data.base import TaskData
from lightgpt2.errors import Problem, UserError
from lightgpt2.models.families import CLASSIFICATION, ENCODER_DECODERS, ENCODERS, RECURRENT, predicts
from lightgpt2.models.operations import Operation
from lightgpt2.models.quantization import quantization_of
from lightgpt2.models.standalone import stored_weights
from lightgpt2.models.vocabulary import needed_rows
from lightgpt2.runtime.engines import Classifier, Engine
from lightgpt2.runtime.loading import exported_runner
from lightgpt2.runtime.text_to_text import TextToText

_LAYERS: dict[str, Form] = {"onnx": "fp32", "onnx-int8": "int8", "onnx-int4": "int4"}
_BLOCKS: Form = "int8-blocks"


def writer_of(config: PretrainedConfig) -> type[ModelWriter]:
    """The class that writes the graph of a model of this configuration."""
    if config.model_type in ENCODERS:
        return Encoder
    if config.model_type in ENCODER_DECODERS:
        return TargetDecoder
    if config.model_type in RECURRENT:
        return RecurrentDecoder
    return DecoderClassifier if predicts(config.architectures) == CLASSIFICATION else Decoder


class Onnx(Exported):
    """Writes `model.onnx`, or the graphs of an encoder-decoder, and `model.onnx_data`."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.layers = self.precision = _LAYERS[target.form]

    def model_problems(self, config: PretrainedConfig, data: TaskData) -> Iterator[Problem]:
        quantized = quantization_of(config)
        if quantized and not _is_stored(config):
            what = f"the model is {quantized} by another library, whose scales {self.name} does not have"
            yield Problem("", what, "export the model that it was made from")
        elif quantized and self.target.group:
            yield Problem("group", "the weights have groups already, with scales that were trained", "remove it")
        elif quantized and self.name != f"onnx-{quantized}":
            yield Problem("", f"the weights are {quantized} with scales that were trained", f"give onnx-{quantized}")
        writer = writer_of(config)
        if self.layers not in writer.layer_forms:
            what = f"ONNX Runtime has no operator for models of type {config.model_type} in {self.layers.upper()}"
            yield Problem("", what, f"give {' or '.join(f for f in _LAYERS if _LAYERS[f] in writer.layer_forms)}")
        if self.target.prefill and writer is not Decoder:
            yield Problem("prefill", "only models that generate read prompts", "remove it")
        yield from writer.problems(config)
        if (tokens := needed_rows(data.tokenizer)) > config.vocab_size:
            what = f"the tokenizer has {tokens} tokens and the model {config.vocab_size}"
            yield Problem("", what, "give the model the tokenizer that it was trained with")

    def write_model(self, source: Path, model: PreTrainedModel, folder: Path, data: TaskData) -> Operation:
        """See `Exported`: `other_layers` and `prefill` name the layers whose inputs are too uneven for one scale."""
        integers: Stored | None = None
        if _is_stored(model.config):
            integers = stored_weights.read_stored(source.expanduser() / "model.safetensors")
        forms = self.forms(model, integers[1] if integers else {}, data)
        writer = writer_of(model.config)
        written = writer.into(folder, model, forms, integers)
        if writer is Decoder:
            write_genai_config(model, folder)
        prefill = None if forms.prefill is None else {"layers": self.target.prefill, "other_layers": forms.prefill}
        return {
            "weights": written.bytes,
            "layers": forms.layers,
            "embeddings": forms.embeddings,
            "other_layers": dict(forms.others),
            "prefill": prefill,
            "scales": "trained" if integers else "rounded",
            "bytes": {name: (folder / name).stat().st_size for name in (*writer.parts(), WEIGHTS)},
        }

    def runner(self, folder: Path) -> Engine | Classifier | TextToText:
        return exported_runner(folder, torch.get_num_threads(), "MODEL")

    def forms(self, model: PreTrainedModel, table: stored_weights.Table, data: TaskData) -> Forms:
        """How each weight is stored: as the model's own file has it (by its table), else by the inputs of training windows."""
        if self.layers == "fp32":
            return Forms()
        names = {id(module): name for name, module in model.named_modules()}
        embeddings = self._embeddings(table, f"{names[id(model.get_input_embeddings())]}.weight")
        writer = writer_of(model.config)
        layers = writer.int8 if self.layers == "int8" else self.layers
        inputs = measure_inputs(model, _calibration(model, data), layers)
        uneven = {name for name, found in inputs.items() if not found.error <= BOUND}  # nor is NaN
        head = names.get(id(model.get_output_embeddings()), "")
        if embeddings == "int8":
            embeddings = _BLOCKS if head in uneven else writer.int8_vocabulary
        others = dict.fromkeys(sorted(uneven - {head}), _BLOCKS) if self.layers == "int8" else {}
        powers = {name: found.power for name, found in inputs.items()}
        prefill = sorted(uneven) if self.target.prefill else None
        return Forms(layers, embeddings, others, prefill, self.target.group or GROUP, powers)

    def _embeddings(self, table: stored_weights.Table, name: str) -> Form:
        """How they are stored; a UserError if trained integers do not allow it."""
        asked, problems = self.target.embeddings, []
        trained = cast(Form, f"int{table[name]['bits']}") if name in table else None
        if trained and asked not in (None, trained):
            what = f"the model's are {trained} with scales that were trained"
            problems.append(Problem("embeddings", what, "remove it"))
        groups = [about["group"] for about in table.values() if about["bits"] == 4]
        if broken := [group for group in groups if not block_size(group)]:
            what = f"groups of {min(broken)} inputs share a scale, and ONNX Runtime's are whole blocks of 16"
            problems.append(Problem("", what, "train with groups of 16, 32, 64 or 128"))
        if problems:
            raise UserError(problems)
        return trained or asked or "int8"


def _is_stored(config: PretrainedConfig) -> bool:
    return "stored" in getattr(config, "lightgpt2", {})


def _calibration(model: PreTrainedModel, data: Any) -> list[dict[str, Tensor]]:
    """Single texts of the training split as inputs; of the validation split where that has too few."""
    if model.config.is_encoder_decoder:
        pairs = data.examples("train", data.calibrates) or data.examples("valid", data.calibrates)
        shift: Any = model.prepare_decoder_input_ids_from_labels
        names = ("input_ids", "attention_mask")
        return [{n: pair[n] for n in names} | {"decoder_input_ids": shift(pair["labels"])} for pair in pairs]
    with contextlib.suppress(UserError):
        return [{"input_ids": ids} for ids in data.calibration(data.calibrates)]
    batch = next(iter(data.scoring_loader("valid")))
    rows = zip(batch["input_ids"], batch["lengths"], strict=True)
    return [{"input_ids": row[None, :length]} for row, length in itertools.islice(rows, data.calibrates)]
