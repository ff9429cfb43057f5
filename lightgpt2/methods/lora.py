"""LoRA: low-rank adapters on frozen weights (Hu et al. 2021, arXiv:2106.09685, eq. 3), by PEFT.

W' = W + alpha / r * B A, where B `[out, r]` starts at zero and A `[r, in]` at random; only A and B are trained.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from safetensors import SafetensorError
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.errors import UserError
from lightgpt2.methods.finetune import FineTune
from lightgpt2.methods.optimizer import OptimizerConfig
from lightgpt2.models.adapters import CONFIG, WEIGHTS, base_of, is_adapter
from lightgpt2.models.families import LINEAR
from lightgpt2.models.files import atomic_folder
from lightgpt2.models.loading import load_config, load_model
from lightgpt2.models.operations import Operation
from lightgpt2.models.pruning import saved_zeros
from lightgpt2.models.saving import save_model
from lightgpt2.tasks.language_modeling import LanguageModeling


@dataclass
class LoraAdapters:
    """Which modules get adapters, and of what kind; names and meanings are PEFT's.

    Attributes:
        r: Rank of the adapters.
        alpha: Scale: the update is multiplied by alpha / r.
        dropout: Dropout on the adapters' input while training.
        target_modules: Names of the modules, `all-linear`, or a regular expression on their full names. The default is PEFT's
            own choice for the family (`c_attn` for GPT-2, `q_proj` and `v_proj` for Llama).
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


class LoRA(FineTune):
    """Trains adapters on a frozen model with cross-entropy.

    Checkpoints hold the adapters only. At the end `checkpoints/<run>/adapter/` is a folder that PEFT loads onto the model that
    the stage started from, and `checkpoints/<run>/model/` is that model with the adapters merged into its weights.

    Args:
        model: Hub id, model folder or GGUF file; or an adapter folder, to go on with its adapters on the model that it names.
        lora: The adapters; not together with an adapter folder. The default is `LoraAdapters()`.
        task: What is predicted and how it is scored.
        optimizer: AdamW and its schedule.
        compile: Whether to compile the model with torch.compile, in place.
        activation_checkpointing: Whether to keep of each block only its input for the backward pass, and compute the rest again
            there (Chen et al. 2016, arXiv:1604.06174): less memory for more time, and the same gradients.
        trust_remote_code: Whether code in the model's folder may run. Off unless asked.
    """

    def __init__(
        self,
        model: str,
        lora: LoraAdapters | None = None,
        task: LanguageModeling = LanguageModeling(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        compile: bool = False,
        activation_checkpointing: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(model, task, optimizer, compile, activation_checkpointing, trust_remote_code)
        self.lora = lora

    @property
    def base(self) -> str:
        """The model that the adapters are put on."""
        source, key = self.parent
        assert isinstance(source, str)
        return base_of(source, key)

    @property
    def frozen_sources(self) -> list[str]:
        """The model under the adapters."""
        return [self.base]

    @property
    def tokenizer_source(self) -> tuple[str | dict[str, Any], str]:
        """The base model's."""
        return self.base, self.parent[1]

    def configs(self) -> dict[str, PretrainedConfig]:
        """The base model's configuration."""
        source, key = self.parent
        try:
            return {key: load_config(self.base, key, self.trust_remote_code)}
        except UserError as error:
            if self.base == source:
                raise
            named = f"{source} names {self.base} as its base model (in {CONFIG})"
            raise UserError(
                [f"{key}: {named}: {problem.removeprefix(f'{key}: ')}" for problem in error.problems]
            ) from error

    def misfits(self, quantized: str) -> str | None:
        """Why adapters cannot be trained on and merged into quantized weights."""
        if quantized == "nf4":
            return "adapters cannot be merged into 4 bit; use lightgpt2.methods.QLoRA, which merges into dequantized weights"
        return "give the model in full precision"

    def build(self) -> None:
        """Loads the model, freezes it, and puts adapters on the chosen modules."""
        self.model = self.load_base()
        source, key = self.parent
        assert isinstance(source, str)
        try:
            peft_model = self._continued(source) if is_adapter(source) else self._begun()
        except (ValueError, RuntimeError, SafetensorError, re.error) as error:
            name = key if is_adapter(source) else "model.lora"
            raise UserError(f"{name}: {' '.join(str(error).split())}") from error
        self._check_vocabulary()
        self._hidden_peft_model = (peft_model,)  # the same parameters under other names: not to be registered twice
        self.operations = [*self._base_operations(), self._operation(peft_model)]

    def _begun(self) -> Any:
        # Here, since it takes seconds and only this method needs it
        from peft import LoraConfig, get_peft_model

        chosen = self.lora or LoraAdapters()
        self._check_names(chosen)
        adapters = LoraConfig(
            task_type="CAUSAL_LM",
            r=chosen.r,
            lora_alpha=chosen.alpha,
            lora_dropout=float(chosen.dropout),
            target_modules=chosen.target_modules,
            use_dora=chosen.use_dora,
            use_rslora=chosen.use_rslora,
            modules_to_save=chosen.modules_to_save or None,
            fan_in_fan_out=self.model.config.model_type == "gpt2",  # of the plain model, whatever this one's layers are
        )
        return get_peft_model(self.model, adapters)

    def _continued(self, folder: str) -> Any:
        from peft import PeftModel

        if self.lora is not None:
            raise UserError(
                f"model.lora: {folder} brings its own adapters; remove it (model.lora: null), or give their base model"
            )
        return PeftModel.from_pretrained(self.model, folder, is_trainable=True)

    def _operation(self, peft_model: Any) -> Operation:
        from peft.tuners.lora import LoraLayer

        config = peft_model.peft_config["default"]
        names = config.target_modules if isinstance(config.target_modules, str) else sorted(config.target_modules)
        trainable, total = peft_model.get_nb_trainable_parameters()
        kinds = {
            "use_dora": config.use_dora,
            "use_rslora": config.use_rslora,
            "modules_to_save": config.modules_to_save,
        }
        return {
            "op": "lora",
            "r": config.r,
            "alpha": config.lora_alpha,
            "dropout": config.lora_dropout,
            "target_modules": names,
            **{key: value for key, value in kinds.items() if value},
            "matched": sum(isinstance(module, LoraLayer) for module in self.model.modules()),
            "trainable": trainable,
            "parameters": total,
        }

    def _check_vocabulary(self) -> None:
        """The loss works through the head's weight itself, and what is tied cannot be merged into."""
        from peft.tuners.lora import LoraLayer

        wrapped = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        if any(isinstance(layer, LoraLayer) for layer in wrapped):
            raise UserError(
                "model.lora.target_modules: adapters on the embedding or the vocabulary head are not supported; choose linear "
                "layers of the blocks, and train those whole with model.lora.modules_to_save"
            )

    def _base_operations(self) -> list[Operation]:
        """What was done to the base model itself."""
        return []

    def _check_names(self, chosen: LoraAdapters) -> None:
        """PEFT passes over a name that fits no module as long as another one does."""
        present = {part for name, _ in self.model.named_modules() for part in (name, name.rpartition(".")[2])}
        for key in ("target_modules", "modules_to_save"):
            names = getattr(chosen, key)
            if isinstance(names, list) and (absent := [name for name in names if name not in present]):
                linear = {name.rpartition(".")[2] for name, m in self.model.named_modules() if isinstance(m, LINEAR)}
                raise UserError(
                    f"model.lora.{key}: the model has no module {', '.join(absent)}; its linear ones are "
                    f"{', '.join(sorted(linear))}"
                )

    def load_base(self) -> PreTrainedModel:
        """The model without adapters, as it is trained on."""
        return load_model(self.base, self.parent[1], self.trust_remote_code)

    def plain_base(self) -> PreTrainedModel:
        """The same in full precision, as adapters are merged into it."""
        return self.load_base()

    @property
    def start(self) -> PreTrainedModel:
        """The model as the first step finds it, in full precision: new adapters change nothing yet."""
        source = self.parent[0]
        assert isinstance(source, str)
        return self._merged(source) if is_adapter(source) else self.plain_base()

    def _merged(self, adapter: str | Path) -> PreTrainedModel:
        from peft import PeftModel

        merged: Any = PeftModel.from_pretrained(self.plain_base(), adapter).merge_and_unload()
        return merged

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerFast, weights: dict[str, Tensor]) -> None:
        """Writes the adapters beside the artefact, and as artefact the model with what that folder holds merged into it."""
        (peft_model,) = self._hidden_peft_model
        adapter = self._adapter(folder)
        with atomic_folder(adapter) as temporary:
            named = {f"base_model.model.{name}": value for name, value in weights.items()}
            peft_model.save_pretrained(str(temporary), state_dict=named, save_embedding_layers=False)
            tokenizer.save_pretrained(temporary)
        save_model(self._merged(adapter), tokenizer, folder)

    def ledgers(self, folder: Path) -> dict[Path, list[Operation]]:
        """The artefact's operations end with the merge; the adapters' do not have it."""
        adapters = super().ledgers(folder)[folder]
        return {self._adapter(folder): adapters, folder: [*adapters, {"op": "merge", "dense": True}]}

    def zeros(self, folder: Path, names: list[str]) -> int:
        """How many of the named parameters' elements are zero in the adapter folder."""
        saved = [
            f"base_model.model.{name.replace('.modules_to_save.default', '').replace('.default', '')}" for name in names
        ]
        return saved_zeros(self._adapter(folder) / WEIGHTS, saved)

    @staticmethod
    def _adapter(folder: Path) -> Path:
        return folder.with_name("adapter")
