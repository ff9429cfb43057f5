"""A model as a folder that stands alone: ONNX in FP32, INT8 or INT4, or GGUF; verified before it is there."""

import contextlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.errors import UserError
from lightgpt2.exporting.calibration import BOUND, input_errors
from lightgpt2.exporting.folder import is_exported, seal
from lightgpt2.exporting.gguf import Kind, gguf_problems, write_gguf
from lightgpt2.exporting.onnx_decoder import ACTIVATIONS, Decoder, Forms, Stored
from lightgpt2.exporting.onnx_graph import GRAPH, WEIGHTS, Graph
from lightgpt2.exporting.onnx_weights import GROUP, Form, block_size
from lightgpt2.exporting.verification import verify
from lightgpt2.generation.engines import Engine
from lightgpt2.generation.transformers_engine import TransformersEngine
from lightgpt2.models import ledger
from lightgpt2.models.axes import Shape
from lightgpt2.models.files import atomic_folder, write_json
from lightgpt2.models.loading import load_config, load_model, load_tokenizer
from lightgpt2.models.quantization import quantization_of
from lightgpt2.models.saving import measure_sizes
from lightgpt2.models.standalone import stored_weights

Format = Literal["onnx", "onnx-int8", "onnx-int4", "gguf"]
Embeddings = Literal["fp32", "int8", "int4"]

GGUF = "model.gguf"

_LAYERS: dict[str, Form] = {"onnx": "fp32", "onnx-int8": "int8", "onnx-int4": "int4"}
_PRECISIONS = {"F32": "fp32", "F16": "f16", "Q8_0": "int8", "Q4_0": "int4"}
# A matrix in INT8 or INT4 takes at most this share of its bytes in FP32, and so many more a row: its scale, and what fills up
# its last block of inputs. GGUF has some in F16 where there are no whole blocks.
_SHRINKS, _SHRINKS_SOME, _ROW = 0.35, 0.55, 64
_CALIBRATION_WINDOWS = 4
_HEAD_STEPS = {"gpt2": 8, "llama": 16}  # what ONNX Runtime's attention wants a head's channels to be a multiple of


@dataclass(frozen=True)
class Target:
    """What to make of a model.

    Attributes:
        form: The format.
        embeddings: How `onnx-int8` and `onnx-int4` store token embedding and vocabulary head; None: as the model's own file has
            them, or in INT8.
        group: Consecutive inputs that share a scale and zero point in `onnx-int4`, a power of two from 16 to 256; None: 32,
            or as the model's own file has it.
        gguf_type: What GGUF stores matrices as; None: F16.
    """

    form: Format
    embeddings: Embeddings | None = None
    group: int | None = None
    gguf_type: Kind | None = None

    @property
    def kind(self) -> Kind:
        """What GGUF stores matrices as."""
        return self.gguf_type or "F16"

    @property
    def precision(self) -> str:
        """`fp32`, `f16`, `int8` or `int4`."""
        return _PRECISIONS[self.kind] if self.form == "gguf" else _LAYERS[self.form]

    def option_problems(self) -> list[str]:
        """What does not go together, one line each."""
        found = []
        if self.embeddings and self.form not in ("onnx-int8", "onnx-int4"):
            found.append(f"--embeddings: {self.form} stores them as all the rest; remove it")
        if self.group and self.form != "onnx-int4":
            found.append("--group: only onnx-int4 has groups; remove it")
        elif self.group and (self.group > 256 or block_size(self.group) != self.group):
            found.append(f"--group: {self.group} is not possible; give 16, 32, 64, 128 or 256")
        if self.gguf_type and self.form != "gguf":
            found.append(f"--gguf-type: {self.form} is no GGUF; remove it, or give --format gguf")
        return found

    def problems(self, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> list[str]:
        """Why a model cannot be made that, one line each.

        Args:
            config: The model's configuration.
            tokenizer: Its tokenizer.
        """
        if self.form == "gguf":
            return [*self.option_problems(), *gguf_problems(config, tokenizer, self.kind)]
        found = [*self.option_problems(), *_quantized_problems(config, self), *_shape_problems(config)]
        if (tokens := max(tokenizer.get_vocab().values()) + 1) > config.vocab_size:
            found.append(
                f"MODEL: its tokenizer has {tokens} tokens and the model {config.vocab_size}; give it the tokenizer that it "
                "was trained with"
            )
        return found


def check_model(source: str, target: Target, trust_remote_code: bool = False) -> None:
    """Finds what is wrong before text is read and weights are loaded.

    Args:
        source: Hub id, folder or GGUF file.
        target: What to make of it.
        trust_remote_code: Whether code in the model's folder may run.

    Raises:
        UserError: The model cannot be loaded, or does not fit the format.
    """
    try:
        if is_exported(source):
            raise UserError(f"MODEL: {source} is an exported folder already; give the model that it was made from")
        config = load_config(source, "MODEL", trust_remote_code)
        tokenizer = load_tokenizer(source, "MODEL", trust_remote_code)
    except UserError as error:
        raise UserError([*target.option_problems(), *error.problems]) from error
    if problems := target.problems(config, tokenizer):
        raise UserError(problems)


def default_output(source: str, target: Target) -> Path:
    """Where an export goes unless a person says: beside a local model, `MODEL-FORMAT`; else into the working folder."""
    path = Path(source).expanduser()
    if path.name in ("", ".."):  # `.` would be written into itself
        path = path.resolve()
    stem = path.stem if path.suffix == ".gguf" else path.name
    return (path.parent if path.exists() else Path()) / f"{stem}-{target.form}"


def _quantized_problems(config: PretrainedConfig, target: Target) -> list[str]:
    quantized, about = quantization_of(config), getattr(config, "lightgpt2", {})
    if quantized is None:
        return []
    if "stored" not in about:
        return [
            f"--format: the model is {quantized} by another library, whose scales {target.form} does not have; export the "
            "model that it was made from"
        ]
    if target.group:
        return ["--group: the model's weights have groups of their own, with scales that were trained; remove it"]
    if target.form != f"onnx-{quantized}":
        return [f"--format: the model's weights are {quantized} with scales that were trained; give onnx-{quantized}"]
    return []


def _shape_problems(config: PretrainedConfig) -> list[str]:
    found = []
    activation = config.activation_function if config.model_type == "gpt2" else config.hidden_act
    step = _HEAD_STEPS[config.model_type]
    if (head := Shape.of(config).head) % step:
        found.append(
            f"--format: heads have {head} channels, and ONNX Runtime attends with a multiple of {step} in models of type "
            f"{config.model_type}; train one that has"
        )
    if activation not in ACTIVATIONS:
        found.append(f"--format: the activation {activation} is not written; known are {', '.join(ACTIVATIONS)}")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ("default", "linear", "llama3"):
        found.append(
            f"--format: rotary positions of type {rope} change with the length of the text; no format holds them"
        )
    return found


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
    layers = _LAYERS[target.form]
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
    if layers == "int4" and embeddings != "int8":
        return Forms(layers, embeddings, group=group)
    errors = input_errors(model, _calibration(data))
    uneven = {name for name, error in errors.items() if error > BOUND}
    head = names[id(model.get_output_embeddings())]
    if embeddings == "int8" and head in uneven:
        embeddings = "int8-blocks"
    others: dict[str, Form] = dict.fromkeys(sorted(uneven - {head}), "int8-blocks") if layers == "int8" else {}
    return Forms(layers, embeddings, others, group)


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
    from lightgpt2.generation.onnx_engine import OnnxEngine  # and ONNX Runtime: only what exports pays for it

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
