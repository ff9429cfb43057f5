"""A model as a folder that stands alone: ONNX in FP32, INT8 or INT4, or GGUF; verified before it is there."""

import contextlib
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.conversions.gguf.writer import write_gguf
from lightgpt2.conversions.onnx.calibration import BOUND, measure_inputs
from lightgpt2.conversions.onnx.decoder import Decoder, Forms, Stored
from lightgpt2.conversions.onnx.graph import GRAPH, WEIGHTS, Graph
from lightgpt2.conversions.onnx.weights import GROUP, Form, block_size
from lightgpt2.conversions.target import Target
from lightgpt2.conversions.verification import verify
from lightgpt2.errors import UserError
from lightgpt2.models import ledger
from lightgpt2.models.axes import Shape
from lightgpt2.models.files import atomic_folder, write_json
from lightgpt2.models.loading import load_config, load_model
from lightgpt2.models.saving import measure_sizes
from lightgpt2.models.standalone import stored_weights
from lightgpt2.runtime.engines import Engine
from lightgpt2.runtime.folder import seal
from lightgpt2.runtime.transformers_engine import TransformersEngine

GGUF = "model.gguf"

# A matrix in INT8 or INT4 takes at most this share of its bytes in FP32, and so many more a row: its scale, and what fills up
# its last block of inputs. GGUF has some in F16 where there are no whole blocks.
_SHRINKS, _SHRINKS_SOME, _ROW = 0.35, 0.55, 64
_CALIBRATION_WINDOWS = 4


def export(
    source: str,
    target: Target,
    output: Path,
    data: Any,
    *,
    documents: int | None = None,
    before: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Writes a model in another format, atomically, and verifies what it wrote.

    Args:
        source: Hub id, folder or GGUF file.
        target: What to make of it.
        output: Folder to write; it must not exist.
        data: The data module, with the model's tokenizer: its training split calibrates, its validation split verifies.
        documents: How many documents of the validation split are scored, the first ones; None for all.
        before: The model's figures on those, as in a ledger, if they are known.
        trust_remote_code: Whether code in the model's folder may run.

    Returns:
        What `export.json` says.

    Raises:
        UserError: The model does not fit the format, or what was written is not good enough; then nothing is left of it.
    """
    tokenizer: PreTrainedTokenizerFast = data.tokenizer
    if problems := target.problems(load_config(source, "MODEL", trust_remote_code), tokenizer):
        raise UserError(problems)
    model = load_model(source, "MODEL", trust_remote_code).eval()
    with atomic_folder(output) as folder:
        written = (
            _write_gguf(model, tokenizer, folder, target)
            if target.form == "gguf"
            else _write_onnx(source, model, folder, target, data)
        )
        _write_rest(model, tokenizer, folder)
        found = verify(_engine(folder, model, target), model, data, documents, target.precision, before)
        problems = [*_size_problems(model, written, target), *found.pop("problems")]
        if problems:
            raise UserError([f"--format {target.form}: {problem}; nothing was written" for problem in problems])
        about = {"format": target.form, **written, **found, "validation": data.describe()["source"]}
        _write_ledger(source, model, folder, data, about, target)
        seal(folder, about)
    return about


def _write_onnx(source: str, model: PreTrainedModel, folder: Path, target: Target, data: Any) -> dict[str, Any]:
    """Writes graph and weights; how what is stored."""
    stored = _stored(source, model)
    forms = _forms(model, target, stored, data)
    with torch.no_grad(), Graph(folder) as graph:
        Decoder(graph, model, forms, stored).write()
    return {
        "weights": graph.bytes,
        "layers": forms.layers,
        "embeddings": forms.embeddings,
        "other_layers": dict(forms.others),
        "prefill": None if forms.prefill is None else {"layers": target.prefill, "other_layers": forms.prefill},
        "scales": "trained" if stored else "rounded",
        "bytes": {name: (folder / name).stat().st_size for name in (GRAPH, WEIGHTS)},
    }


def _stored(source: str, model: PreTrainedModel) -> Stored | None:
    """The integers of the model's own file."""
    if "stored" not in getattr(model.config, "lightgpt2", {}):
        return None
    return stored_weights.read_stored(Path(source).expanduser() / "model.safetensors")


def _calibration(data: Any) -> list[Tensor]:
    """Windows of the training split; of the validation split where that is too short for any."""
    with contextlib.suppress(UserError):
        found: list[Tensor] = data.calibration(_CALIBRATION_WINDOWS)
        return found
    batch = next(iter(data.scoring_loader("valid")))
    rows = zip(batch["input_ids"], batch["lengths"], strict=True)
    return [row[None, :length] for row, length in itertools.islice(rows, _CALIBRATION_WINDOWS)]


def _forms(model: PreTrainedModel, target: Target, stored: Stored | None, data: Any) -> Forms:
    layers = target.layers
    if layers == "fp32":
        return Forms()
    table = stored[1] if stored else {}
    names = {id(module): name for name, module in model.named_modules()}
    embedding = table.get(f"{names[id(model.get_input_embeddings())]}.weight")
    own: dict[int, Form] = {8: "int8", 4: "int4"}
    trained = own[embedding["bits"]] if embedding else None
    embeddings: Form = trained or target.embeddings or "int8"
    problems = []
    if trained and target.embeddings not in (None, trained):
        problems.append(f"--embeddings: the model's are {trained} with scales that were trained; remove it")
    if broken := sorted(
        {about["group"] for about in table.values() if about["bits"] == 4 and not block_size(about["group"])}
    ):
        problems.append(
            f"--format: groups of {broken[0]} inputs share a scale, and ONNX Runtime's are whole blocks of 16; train with "
            "groups of 16, 32, 64 or 128"
        )
    if problems:
        raise UserError(problems)
    group = target.group or GROUP
    inputs = measure_inputs(model, _calibration(data))
    uneven = {name for name, found in inputs.items() if found.error > BOUND}
    head = names[id(model.get_output_embeddings())]
    if embeddings == "int8" and head in uneven:
        embeddings = "int8-blocks"
    others: dict[str, Form] = dict.fromkeys(sorted(uneven - {head}), "int8-blocks") if layers == "int8" else {}
    powers = {name: found.power for name, found in inputs.items()}
    return Forms(layers, embeddings, others, sorted(uneven) if target.prefill else None, group, powers)


def _write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, target: Target
) -> dict[str, Any]:
    written = write_gguf(model, tokenizer, folder / GGUF, target.kind)
    weights, size = sum(written["bytes"].values()), (folder / GGUF).stat().st_size
    return {"type": target.kind, **written, "weights": weights, "bytes": {GGUF: size}}


def _write_rest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Configuration, generation configuration and tokenizer: what clients of such folders read beside the graph."""
    plain_config(model.config).save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def plain_config(config: PretrainedConfig) -> PretrainedConfig:
    """A configuration without what it says about files that are not in an exported folder."""
    values = config.to_dict()
    for key in ("auto_map", "quantization_config"):
        values.pop(key, None)
    return type(config).from_dict(values)


def _engine(folder: Path, model: PreTrainedModel, target: Target) -> Engine:
    if target.form == "gguf":
        return TransformersEngine(load_model(str(folder / GGUF), "MODEL", config=plain_config(model.config)).eval())
    from lightgpt2.runtime.onnx_engine import OnnxEngine  # and ONNX Runtime: only what exports pays for it

    return OnnxEngine(folder / GRAPH, model.config.max_position_embeddings, torch.get_num_threads())


def _size_problems(model: PreTrainedModel, written: dict[str, Any], target: Target) -> list[str]:
    """Whether the weights take the room that they should."""
    if target.precision not in ("int8", "int4"):
        return []
    whole = {getattr(model.base_model, "wpe", None)}  # positions stay in FP32
    if target.embeddings == "fp32":
        whole |= {model.get_input_embeddings(), model.get_output_embeddings()}
    kept = [module.weight for module in whole if module is not None]
    share = _SHRINKS_SOME if written.get("fallback") else _SHRINKS
    most = 0.0
    for weight in model.parameters():
        small = weight.ndim == 2 and all(weight is not other for other in kept)
        most += 4 * weight.numel() * share + _ROW * max(weight.shape) if small else 4 * weight.numel()
    if hasattr(model.base_model, "rotary_emb"):
        most += 4 * model.config.max_position_embeddings * Shape.of(model.config).head
    if written["weights"] <= most:
        return []
    return [f"its weights take {written['weights'] / 1e6:.2f} MB where {most / 1e6:.2f} were expected at most"]


def _write_ledger(
    source: str, model: PreTrainedModel, folder: Path, data: Any, about: dict[str, Any], target: Target
) -> None:
    operation = {"op": "export", **{key: about[key] for key in about if key not in ("quality", "validation")}}
    sizes = measure_sizes(model, folder).as_dict() | {"megabytes": sum(about["bytes"].values()) / 1e6}
    if target.precision in ("int8", "int4") and about.get("scales") != "trained":
        sizes["nonzero"] = None  # rounding has made more zeros
    entry = ledger.Entry(
        stage="export",
        method="Export",
        config={"format": about["format"]},
        parent=ledger.Parent.of(source),
        operations=[operation],
        data=data.describe(),
        seed=0,
        steps=0,
        seconds=0.0,
        quality={name: about["quality"][name] for name in ("before", "after")},
        sizes=sizes,
    )
    write_json(folder / ledger.FILE, ledger.extended(source, entry))
