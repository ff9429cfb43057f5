"""LoRA: low-rank adapters on frozen weights (Hu et al. 2021, arXiv:2106.09685, eq. 3), by PEFT.

W' = W + alpha / r * B A, where B `[out, r]` starts at zero and A `[r, in]` at random; only A and B are trained.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.adaptations.base import Adaptation, Context, Result
from lightgpt2.adaptations.movement_gates import MovementGates
from lightgpt2.errors import Problem, UserError
from lightgpt2.models.adapters import ADAPTER, CONFIG, WEIGHTS, name_base
from lightgpt2.models.architectures import PEFT_TYPES
from lightgpt2.models.families import LINEAR, compute_with, family_of, predicts
from lightgpt2.models.files import atomic_folder
from lightgpt2.models.operations import KINDS, Operation
from lightgpt2.models.pruning import saved_zeros
from lightgpt2.models.saving import positions_of, save_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel

_DORA = "DoRA's weights are not rounded as they are merged"


@dataclass
class LoraAdapters:
    """The modules that get adapters, and of what kind; names and meanings are PEFT's.

    Attributes:
        r: Rank of the adapters.
        alpha: Scale: the update is multiplied by alpha / r.
        dropout: Dropout on the adapters' input while training.
        target_modules: Names of the modules, `all-linear`, or a regular expression on their full names. The default is PEFT's
            own choice for the family (`c_attn` for GPT-2, `q_proj` and `v_proj` for Llama), or where it has none the family's.
        use_dora: Train the weights' magnitudes apart from their directions (DoRA, arXiv:2402.09353).
        use_rslora: Scale by alpha / sqrt(r) instead (arXiv:2312.03732).
        modules_to_save: Names of modules that are trained whole and saved with the adapters.
    """

    r: PositiveInt = 8
    alpha: PositiveInt = 32
    dropout: ClosedUnitInterval = 0.05
    target_modules: list[str] | str | None = None
    use_dora: bool = False
    use_rslora: bool = False
    modules_to_save: list[str] = field(default_factory=list)


class Lora(Adaptation):
    """Adapters on a frozen model.

    At the end `adapter/` beside the artefact is a folder that PEFT loads onto the model that the run started from, and the
    artefact is that model with the adapters merged into its weights.

    Args:
        lora: The adapters; null if the start is an adapter folder, which brings its own. The default is `LoraAdapters()`,
            without dropout beside `FakeQuantize`.
    """

    order = 10
    freezes = True
    accepts = frozenset({"fp32", "nf4"})

    def __init__(self, lora: LoraAdapters | None = None) -> None:
        super().__init__()
        self.lora = lora

    def problems(self, config: PretrainedConfig | None, others: Sequence[Adaptation]) -> list[Problem]:
        """The adaptations that cannot be trained through adapters, and the models that take none."""
        found = []
        if config is not None and family_of(config).recurrent:
            what = (
                f"one kernel reads all weights of a model of type {config.model_type}, and adapters stand beside layers"
            )
            found.append(Problem(self.key, what, "train all weights, with lightgpt2.methods.FineTune"))
        if any(isinstance(other, MovementGates) for other in others):
            what = "adapters leave the weights frozen that movement pruning learns to keep or to remove"
            found.append(Problem(self.key, what, "prune in another stage, or train all weights"))
        if self.lora and any(other.precision for other in others):
            if self.lora.dropout:
                what = f"{self.lora.dropout} on the adapters' input cannot be part of the merged weight that is rounded"
                found.append(Problem(f"{self.key}.lora.dropout", what, "give 0"))
            if self.lora.use_dora:
                found.append(Problem(f"{self.key}.lora.use_dora", _DORA, "give false"))
        return found

    def apply_to(self, model: PreTrainedModel, context: Context) -> list[Operation]:
        """Freezes the model and puts adapters on the chosen modules."""
        from peft.tuners.lora import LoraLayer  # slow to import, and needed for this only

        self._context = context
        rounded = any(other.precision for other in context.others)
        key = "start.model" if context.adapter else f"{self.key}.lora"
        try:
            peft_model = self._continued(model, context.adapter) if context.adapter else self._begun(model, rounded)
        except (ValueError, RuntimeError, SafetensorError, re.error) as error:
            raise UserError([Problem(key, " ".join(str(error).split()))]) from error
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        config = peft_model.peft_config["default"]
        if any(layer in layers for layer in (model.get_input_embeddings(), model.get_output_embeddings())):
            # the loss reads the head's weight itself, and the embedding may be tied to it
            what = "adapters on the embedding or the vocabulary head are not supported"
            fix = "choose linear layers of the blocks, and train those whole with modules_to_save"
            raise UserError([Problem(f"{self.key}.lora.target_modules", what, fix)])
        if rounded and config.use_dora:  # of an adapter folder
            raise UserError([Problem("start.model", _DORA, "give adapters without it")])
        for layer in layers if rounded else ():
            _compute_merged(layer)
        # the same parameters under other names: hidden in a tuple, not to be registered twice
        self._peft_model: tuple[PeftModel] = (peft_model,)
        names = config.target_modules if isinstance(config.target_modules, str) else sorted(config.target_modules)
        settings = {"r": config.r, "alpha": config.lora_alpha, "dropout": config.lora_dropout, "target_modules": names}
        kinds = {key: getattr(config, key) for key in ("use_dora", "use_rslora", "modules_to_save")}
        trainable, total = peft_model.get_nb_trainable_parameters()
        counts = {"matched": len(layers), "trainable": trainable, "parameters": total}
        return [KINDS["lora"].record(**settings, **{key: value for key, value in kinds.items() if value}, **counts)]

    def finish(self, result: Result) -> None:
        """Writes the adapters beside the artefact, and goes on with the model that they are merged into."""
        from peft import PeftModel

        folder = result.folder.with_name(ADAPTER)
        with atomic_folder(folder) as temporary:
            named = {f"base_model.model.{name}": value for name, value in result.weights.items()}
            self._peft_model[0].save_pretrained(str(temporary), state_dict=named, save_embedding_layers=False)
            name_base(temporary)
            save_tokenizer(result.tokenizer, temporary, positions_of(result.model.config))
        result.folders[folder] = [*result.operations]
        result.replace_model(PeftModel.from_pretrained(self._context.plain(), folder).merge_and_unload())
        result.operations.append(KINDS["merge"].record(dense=True))

    def zeros(self, folder: Path, names: Sequence[str]) -> int:
        """The zeros in the adapter folder: nothing else was trained."""
        saved = [f"base_model.model.{n.replace('.modules_to_save.default', '').replace('.default', '')}" for n in names]
        return saved_zeros(folder.with_name(ADAPTER) / WEIGHTS, saved)

    def _begun(self, model: PreTrainedModel, rounded: bool) -> Any:
        from peft import LoraConfig, get_peft_model

        chosen = self.lora or (LoraAdapters(dropout=0.0) if rounded else LoraAdapters())
        self._check_names(model, chosen)
        settings = {name: value for name, value in asdict(chosen).items() if name not in ("alpha", "dropout")}
        settings["target_modules"] = chosen.target_modules or family_of(model).adapted
        settings |= {"lora_alpha": chosen.alpha, "lora_dropout": float(chosen.dropout)}
        head = [] if model.get_output_embeddings() is not None else [*family_of(model).head_parts]  # it may be random
        settings |= {"modules_to_save": [*chosen.modules_to_save, *head] or None}
        settings["task_type"] = PEFT_TYPES[predicts(model.config.architectures)]
        # of the plain model, whatever this one's layers are
        return get_peft_model(model, LoraConfig(fan_in_fan_out=family_of(model).conv1d, **settings))

    def _continued(self, model: PreTrainedModel, folder: str) -> Any:
        from peft import PeftModel, get_peft_model_state_dict, load_peft_weights

        if self.lora is not None:
            what, fix = f"{folder} brings its own adapters", "remove it (lora: null), or give their base model"
            raise UserError([Problem(f"{self.key}.lora", what, fix)])
        found = PeftModel.from_pretrained(model, folder, is_trainable=True)
        task, ours = found.peft_config["default"].task_type, PEFT_TYPES[predicts(model.config.architectures)]
        if task not in (None, ours):
            raise UserError([Problem("start.model", f"{folder} holds adapters for {task}", f"give some for {ours}")])
        held, placed = (set(part) for part in (load_peft_weights(folder, "cpu"), get_peft_model_state_dict(found)))
        if unlike := sorted(held ^ placed):
            what = f"{folder} and its {CONFIG} differ in {len(unlike)} weights, first {unlike[0]}"
            raise UserError([Problem("start.model", what, "give a complete adapter folder")])
        return found

    def _check_names(self, model: PreTrainedModel, chosen: LoraAdapters) -> None:
        """Refuse a name that fits no module: PEFT passes over it as long as another one fits."""
        present = {part for name, _ in model.named_modules() for part in (name, name.rpartition(".")[2])}
        for key in ("target_modules", "modules_to_save"):
            names = getattr(chosen, key)
            if isinstance(names, list) and (absent := [name for name in names if name not in present]):
                linear = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, LINEAR)}
                what = f"the model has no module {', '.join(absent)}; its linear ones are {', '.join(sorted(linear))}"
                raise UserError([Problem(f"{self.key}.lora.{key}", what)])


def _compute_merged(layer: Any) -> None:
    """Let an adapted layer compute with the merged weight, W + alpha / r * B A, which is then rounded as it is saved."""

    def substitute(name: str, value: Tensor) -> Tensor:
        return value + layer.get_delta_weight("default") if name == "weight" else value

    base: nn.Module = layer.base_layer
    compute_with(base, substitute)
    layer.forward = lambda *inputs, **_: base(*inputs)
