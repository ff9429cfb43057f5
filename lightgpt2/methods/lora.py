"""LoRA: low-rank adapters on frozen weights (Hu et al. 2021, arXiv:2106.09685, eq. 3), by PEFT.

W' = W + alpha / r * B A, where B `[out, r]` starts at zero and A `[r, in]` at random; only A and B are trained.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from lightgpt2.errors import UserError
from lightgpt2.methods.finetune import FineTune
from lightgpt2.methods.optimizer import OptimizerConfig
from lightgpt2.models.files import atomic_folder
from lightgpt2.models.loading import load_model
from lightgpt2.models.saving import save_model
from lightgpt2.tasks.language_modeling import LanguageModeling

_LINEAR = (nn.Linear, Conv1D)  # GPT-2's own kind is no nn.Linear


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
        model: Hub id, model folder or GGUF file.
        lora: The adapters.
        task: What is predicted and how it is scored.
        optimizer: AdamW and its schedule.
        compile: Whether to compile the model with torch.compile, in place.
        trust_remote_code: Whether code in the model's folder may run. Off unless asked.
    """

    def __init__(
        self,
        model: str,
        lora: LoraAdapters = LoraAdapters(),
        task: LanguageModeling = LanguageModeling(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        compile: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(model, task, optimizer, compile, trust_remote_code)
        self.lora = lora

    def build(self) -> None:
        """Loads the model, freezes it, and puts adapters on the chosen modules."""
        # Here, since it takes seconds and only this method needs it
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer

        self.model = self.load_parent()
        self._check_names()
        adapters = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.lora.r,
            lora_alpha=self.lora.alpha,
            lora_dropout=float(self.lora.dropout),
            target_modules=self.lora.target_modules,
            use_dora=self.lora.use_dora,
            use_rslora=self.lora.use_rslora,
            modules_to_save=self.lora.modules_to_save or None,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in self.model.modules()),
        )
        try:
            peft_model = get_peft_model(self.model, adapters)
        except (ValueError, re.error) as error:
            raise UserError(f"model.lora: {' '.join(str(error).split())}") from error
        self._hidden_peft_model = (peft_model,)  # the same parameters under other names: not to be registered twice
        matched = sum(isinstance(module, LoraLayer) for module in self.model.modules())
        trainable, total = peft_model.get_nb_trainable_parameters()
        settings = {key: value for key, value in vars(self.lora).items() if value not in (None, False, [])}
        chosen = peft_model.peft_config["default"].target_modules
        settings["target_modules"] = chosen if isinstance(chosen, str) else sorted(chosen)
        self.operations = [{"op": "lora", **settings, "matched": matched, "trainable": trainable, "parameters": total}]

    def _check_names(self) -> None:
        """PEFT passes over a name that fits no module as long as another one does."""
        present = {part for name, _ in self.model.named_modules() for part in (name, name.rpartition(".")[2])}
        for key in ("target_modules", "modules_to_save"):
            names = getattr(self.lora, key)
            if isinstance(names, list) and (absent := [name for name in names if name not in present]):
                linear = {name.rpartition(".")[2] for name, m in self.model.named_modules() if isinstance(m, _LINEAR)}
                raise UserError(
                    f"model.lora.{key}: the model has no module {', '.join(absent)}; its linear ones are "
                    f"{', '.join(sorted(linear))}"
                )

    def load_parent(self) -> PreTrainedModel:
        """The model without adapters."""
        source, key = self.parent
        assert isinstance(source, str)
        return load_model(source, key, self.trust_remote_code)

    @property
    def start(self) -> PreTrainedModel:
        """The model without adapters: they change nothing yet, and no plain folder can hold them."""
        return self.load_parent()

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerFast, weights: dict[str, Tensor]) -> None:
        """Writes the adapters beside the artefact, and as artefact the model with what that folder holds merged into it."""
        from peft import PeftModel

        (peft_model,) = self._hidden_peft_model
        adapter = folder.with_name("adapter")
        with atomic_folder(adapter) as temporary:
            named = {f"base_model.model.{name}": value for name, value in weights.items()}
            peft_model.save_pretrained(str(temporary), state_dict=named, save_embedding_layers=False)
            tokenizer.save_pretrained(temporary)
        merged: Any = PeftModel.from_pretrained(self.load_parent(), adapter).merge_and_unload()
        save_model(merged, tokenizer, folder)
