"""Encoders as folders that stand alone, verified before they are there."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.conversions.onnx.encoder import Encoder, write_encoder
from lightgpt2.conversions.onnx.graph import GRAPH, WEIGHTS, Array
from lightgpt2.conversions.onnx.weights import GROUP, Form
from lightgpt2.conversions.onnx.writer import Forms
from lightgpt2.conversions.target import Target
from lightgpt2.errors import Problem, UserError, refuse
from lightgpt2.models.files import atomic_folder
from lightgpt2.models.ledger import Entry, Ledger, Parent
from lightgpt2.models.loading import load_encoder
from lightgpt2.models.operations import KINDS
from lightgpt2.models.quality import Metric, quality
from lightgpt2.models.saving import carry_licence, save_tokenizer
from lightgpt2.models.sources import explained, source_folder, verify
from lightgpt2.runtime.folder import describe
from lightgpt2.runtime.ort import open_session

_TOKENS = 128
_LAYERS: dict[str, Form] = {"onnx": "fp32", "onnx-int8": Encoder.int8, "onnx-int4": "int4"}
# The least cosine between the vectors of the export and of PyTorch, on average; and how far all that is put out may be off.
_BOUNDS = {"onnx": (0.99999, 0.01), "onnx-int8": (0.97, 0.25), "onnx-int4": (0.9, 0.5)}
_AROUND = ("sentence_*_config.json", "config_sentence_transformers.json")  # sentence-transformers' own settings


def export_encoder(source: str, target: Target, output: Path, texts: Sequence[str], named: str) -> dict[str, Any]:
    """Write an encoder as ONNX, atomically, and verify what was written with some texts.

    It is for what has no labelled texts: base models, and classifiers that LightGPT2 did not train. Their weights are rounded
    without a look at the inputs.

    Returns:
        What `export.json` says: among it `cosine`, of the mean of a text's hidden states (or its logits), mean and least; and
        `error`, the distance of all hidden states (or logits) from PyTorch's: the cosine of one logit is always 1.

    Raises:
        UserError: The model does not fit the format, or what was written is not good enough; then nothing is left of it.
    """
    problems = target.as_options(target.problems())
    if target.form not in _LAYERS:
        problems.append(Problem("--format", "encoders are written as ONNX", f"give {', '.join(_LAYERS)}"))
    if problems:
        raise UserError(problems)
    verify(source, "MODEL")
    model, tokenizer = load_encoder(source, "MODEL")
    refuse(target.as_options([*Encoder.problems(model.config)]))
    layers = _LAYERS[target.form]
    forms = Forms() if layers == "fp32" else Forms(layers, target.embeddings or "int8", group=target.group or GROUP)
    with atomic_folder(output) as folder:
        write_encoder(model, folder, forms)
        model.config.save_pretrained(folder)
        save_tokenizer(tokenizer, folder, model.config.max_position_embeddings)
        carry_licence(source, folder)
        _carry_modules(source, folder)
        cosines, error = _compared(model, tokenizer, folder, texts, centred=target.form == "onnx")
        found = {"mean": float(cosines.mean()), "least": float(cosines.min()), "texts": len(cosines)}
        refuse(_faults(target.form, found["mean"], error))
        scores = {"cosine": Metric("cosine", "higher", cosines, np.ones_like(cosines), digits=5)}
        files = {name: (folder / name).stat().st_size for name in (GRAPH, WEIGHTS)}
        about: dict[str, Any] = {"format": target.form, "layers": forms.layers, "embeddings": forms.embeddings}
        made, scored = KINDS["export"].record(**about), {"after": quality(scores, "cosine", {"texts": len(cosines)})}
        sizes = {"parameters": model.num_parameters(), "megabytes": sum(files.values()) / 1e6}
        entry = Entry("export", "Export", {}, Parent.of(source), [made], {"source": named}, 0, 0, 0.0, scored, sizes)
        about |= {"bytes": files, "cosine": found, "error": error, "validation": named}
        describe(folder, about)
        Ledger.read(source).extended(entry).write(folder)
    return about


def _faults(form: str, cosine: float, error: float) -> Iterator[str]:
    """What is out of bounds; NaN is."""
    least, most = _BOUNDS[form]
    if not cosine >= least:
        what = f"the cosine to PyTorch's vectors must be at least {least}, got {cosine:.5f}"
        yield f"--format {form}: {what}; nothing was written"
    if not error <= most:
        what = f"its outputs may be at most {most:.0%} off PyTorch's, got {error:.2%}"
        yield f"--format {form}: {what}; nothing was written"


def _carry_modules(source: str, folder: Path) -> None:
    """Copy what sentence-transformers does before and after the encoder: its length, pooling, normalization, further layers.

    It names a folder for each layer, and needs none where a layer has no settings; the hub keeps no empty ones.
    """
    with explained(source, "MODEL"):
        here = source_folder(source, "modules.json", *_AROUND, "[0-9]*_*/*")
        listed = here / "modules.json"
        if not listed.is_file():
            return
        for file in (listed, *(file for pattern in _AROUND for file in here.glob(pattern))):
            shutil.copy(file, folder)
        named = {module["path"] for module in json.loads(listed.read_text(encoding="utf-8"))}
        for each in here.iterdir():
            if each.name in named and each.is_dir():
                shutil.copytree(each, folder / each.name)


@torch.inference_mode()
def _compared(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, texts: Sequence[str], centred: bool
) -> tuple[Array, float]:
    """The cosine between the export's and PyTorch's vector for each text; and the error of all outputs (relative, L2).

    `centred`: relative to how much PyTorch's outputs differ, so that what they have in common hides nothing.
    """
    session = open_session(folder / GRAPH, torch.get_num_threads())
    names = {each.name for each in session.get_inputs()}
    longest = min(_TOKENS, model.config.max_position_embeddings)
    cosines, outputs = [], []
    for text in texts:
        encoded = dict(tokenizer(text, truncation=True, max_length=longest, return_tensors="pt"))
        encoded.setdefault("token_type_ids", torch.zeros_like(encoded["input_ids"]))  # of one text
        inputs = {name: value for name, value in encoded.items() if name in names}
        output = model(**inputs)
        wanted = (output.logits if "logits" in output else output.last_hidden_state[0]).numpy()
        (made,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        outputs.append((made.reshape(wanted.shape), wanted))
        mine, theirs = (rows.mean(axis=0) for rows in outputs[-1])
        cosines.append(mine @ theirs / (np.linalg.norm(mine) * np.linalg.norm(theirs)))
    found, expected = (np.concatenate(rows) for rows in zip(*outputs, strict=True))
    middle = expected.mean(axis=0) if centred and len(expected) > 1 else 0.0
    return np.array(cosines), float(np.linalg.norm(found - expected) / np.linalg.norm(expected - middle))
