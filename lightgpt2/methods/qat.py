"""Quantization-aware training: a model learns with its weights rounded to integers, and ships as those integers.

Rounding in the forward pass, a gradient that passes it by (Jacob et al. 2018, arXiv:1712.05877); see
`functional.quantization`. What is scored and saved computes what was trained, bit for bit.
"""

from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import ClosedUnitInterval
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.errors import UserError
from lightgpt2.methods.distill import DistillLoss
from lightgpt2.methods.optimizer import OptimizerConfig
from lightgpt2.methods.taught import Taught
from lightgpt2.models.integers import Integers, operation, round_weights, save_integers
from lightgpt2.models.standalone import stored_weights
from lightgpt2.tasks.language_modeling import LanguageModeling


class QAT(Taught):
    """Trains a model whose weights are rounded to integers in every forward pass, and saves the integers.

    The artefact holds integers with scales; loaded (with `trust_remote_code=True` in plain transformers) it computes in FP32
    with their products, exactly the weights that the model was trained with. What was pruned before stays zero. With
    `trainer.max_steps` 0 the weights are rounded as they are: the control that says what training bought.

    Args:
        model: Hub id, model folder or GGUF file, in full precision.
        quantization: What weights are rounded to.
        delay: Share of the optimizer steps that are taken before rounding starts. (Validation always rounds.) With 1 none of
            them sees it.
        teacher: Hub id, model folder or GGUF file of a teacher, if any; the model itself in full precision, for one.
        loss: Weights of the loss with a teacher.
        layer_map: As for `Distill`, with a hidden loss.
        task: What is predicted and how it is scored.
        optimizer: AdamW and its schedule.
        compile: Whether to compile the models with torch.compile, in place.
        activation_checkpointing: Whether to keep of each block only its input for the backward pass, and compute the rest again
            there (Chen et al. 2016, arXiv:1604.06174): less memory for more time, and the same gradients.
        trust_remote_code: Whether code in a model's folder may run. Off unless asked.
    """

    def __init__(
        self,
        model: str,
        quantization: Integers = Integers(),
        delay: ClosedUnitInterval = 0.0,
        teacher: str | None = None,
        loss: DistillLoss | None = None,
        layer_map: Literal["even"] | list[int] | None = None,
        task: LanguageModeling = LanguageModeling(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        compile: bool = False,
        activation_checkpointing: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(
            model, teacher, loss, layer_map, task, optimizer, compile, activation_checkpointing, trust_remote_code
        )
        self.quantization, self.delay = quantization, delay
        self._rounds = True

    @property
    def makes(self) -> str:
        """What the artefact's weights are quantized to."""
        return self.quantization.name

    def misfits(self, quantized: str) -> str | None:
        """Weights that are quantized cannot be rounded a second time."""
        return "it cannot be converted twice; give the model in full precision that it was made of"

    def configs(self) -> dict[str, PretrainedConfig]:
        """The model's configuration, and the teacher's; checks that they fit together, and the integers to the model.

        Raises:
            UserError: They do not.
        """
        found = super().configs()
        if problems := self.quantization.problems(found["model.model"], "model.quantization"):
            raise UserError(problems)
        return found

    def build(self) -> None:
        """Loads the model, and the teacher; the model rounds from here on."""
        super().build()
        round_weights(self.model, self.quantization, lambda: self._rounds or not self.model.training)
        self.operations = [operation(self.model, self.quantization)]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Says whether this step rounds: from the number of steps, so that a resumed run does what the other one did."""
        super().on_train_batch_start(batch, batch_idx)
        self._rounds = self.global_step >= self.delay * self.total_steps

    @property
    def references(self) -> dict[str, PreTrainedModel]:
        """The model in full precision, and the teacher, if any and another."""
        same = self.teacher_source == self.parent[0]
        return super().references | ({} if same else {"source": self.model})

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerFast, weights: dict[str, Tensor]) -> None:
        """Writes the integers."""
        save_integers(self.model, self.quantization, tokenizer, folder, weights)

    save_start = save  # which rounds already

    def zeros(self, folder: Path, names: list[str]) -> int:
        """Those that were rounded to zero are among them."""
        weights = stored_weights.read(folder / "model.safetensors")
        return sum(weights[name].numel() - int(weights[name].count_nonzero()) for name in names)
