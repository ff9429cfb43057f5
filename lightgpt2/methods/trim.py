"""Trimming: a smaller model is cut out of a big one, and trained: on text alone, or with the big one as its teacher.

Depth, width, heads and neurons, and training after it, as in Muralidharan et al. 2024 (Minitron, arXiv:2407.14679). Which
channels stay is decided in `models.trimming`. The vocabulary can go down to what a corpus uses; see `data.tokenizer.trimmed`.
"""

import copy
from typing import Any, Literal

from jsonargparse.typing import PositiveInt
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.errors import UserError
from lightgpt2.functional.layers import central_layers, check_layers, even_layers
from lightgpt2.methods.distill import DistillLoss
from lightgpt2.methods.optimizer import OptimizerConfig
from lightgpt2.methods.taught import Taught
from lightgpt2.models import surgery
from lightgpt2.models.axes import Shape, uneven_sizes
from lightgpt2.models.loading import load_config, load_model
from lightgpt2.models.operations import Operation
from lightgpt2.models.trimming import Importance, Scores, activation_scores, choose, first_scores, norm_scores
from lightgpt2.tasks.language_modeling import LanguageModeling


class Trim(Taught):
    """Cuts a smaller model out of a bigger one and trains it.

    Args:
        model: Hub id, model folder or GGUF file of the bigger one.
        layers: The layers that stay: their number, or a list. The default is all.
        layer_choice: Where a number of layers is taken from: `even`, evenly spaced with both ends, or `centre`, those in the
            middle.
        width: Size of the hidden states. The default is the model's.
        heads: Attention heads of a layer. The default keeps the size of a head.
        ffn: Neurons of a layer. The default keeps their ratio to the width.
        vocabulary: The tokens that stay: with `corpus` those that the training split needs, for a byte-level BPE tokenizer,
            which is cut down with the model and saved beside it. The default is all. The uncut model, which is scored and
            may teach, then chooses among the same tokens: its perplexity is over these, and only bits per byte compare
            with those of the full vocabulary.
        importance: Which channels stay: those with the largest weights (`norm`), those that carry most on the training text
            (`activation`), or the first ones (`first`), as a control.
        calibration: Training windows on which `activation` is measured.
        loss: Weights of the loss, for the uncut model to be the teacher. The default is cross-entropy alone.
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
        layers: PositiveInt | list[int] | None = None,
        layer_choice: Literal["even", "centre"] = "even",
        width: PositiveInt | None = None,
        heads: PositiveInt | None = None,
        ffn: PositiveInt | None = None,
        vocabulary: Literal["corpus"] | None = None,
        importance: Importance = "norm",
        calibration: PositiveInt = 32,
        loss: DistillLoss | None = None,
        layer_map: Literal["even"] | list[int] | None = None,
        task: LanguageModeling = LanguageModeling(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        compile: bool = False,
        activation_checkpointing: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(
            model, model if loss else None, loss, layer_map, task, optimizer, compile, activation_checkpointing,
            trust_remote_code,
        )  # fmt: skip
        self._student_source = None  # which is cut out of the model
        self.layers = layers
        self.layer_choice, self.importance, self.calibration = layer_choice, importance, calibration
        self.width, self.heads, self.ffn = width, heads, ffn
        self.vocabulary = vocabulary

    @property
    def trims_vocabulary(self) -> bool:
        """As configured."""
        return self.vocabulary is not None

    @property
    def reference(self) -> tuple[str, PreTrainedModel]:
        """The model that was cut, with the tokens that stay."""
        return "teacher" if self.learns else "source", self.teacher

    def configs(self) -> dict[str, PretrainedConfig]:
        """The configuration of the model and of what is cut out of it; checks that it can be.

        Raises:
            UserError: It cannot.
        """
        source, key = self.parent
        config = load_config(self._teacher_source, key, self.trust_remote_code)
        if uneven := uneven_sizes(config):
            names = " and ".join(word for name, word in (("heads", "heads"), ("ffn", "neurons")) if name in uneven)
            raise UserError(
                f"{key}: the layers of {source} have different numbers of {names}, which Trim cannot cut; trim before movement "
                "pruning"
            )
        problems = self._loss_problems()
        if self.layer_map is not None and not self.loss.hidden:
            problems.append(
                "model.layer_map: without a hidden loss it means nothing; remove it, or give model.loss.hidden"
            )
        smaller = load_config(self._teacher_source, key, self.trust_remote_code)
        wrong = "model.layers"
        try:
            smaller.num_hidden_layers = len(self._chosen_layers(config))
            wrong = "model.layer_map"
            self._pair_layers(config, smaller)
        except ValueError as error:
            problems.append(f"{wrong}: {error}")
        target, found = self._target(config)
        problems += found
        same = target == Shape.of(config) and smaller.num_hidden_layers == config.num_hidden_layers
        if not problems and same and not self.vocabulary:
            problems.append(
                f"model.layers: nothing of {source} is cut; give model.layers, width, heads, ffn or vocabulary"
            )
        if problems:
            raise UserError(problems)
        for name, value in target.settings(config.model_type).items():
            setattr(smaller, name, value)
        return {"model.layers": smaller, key: config}

    def build(self) -> None:
        """Loads the model and cuts the smaller one out of it."""
        big = load_model(self._teacher_source, self.parent[1], self.trust_remote_code)
        self._vocabulary_cuts = self._cut_vocabulary(big.config.vocab_size)
        big = surgery.apply(big, self._vocabulary_cuts)
        self._hidden_teacher = (big.eval().requires_grad_(False),)
        small, cuts = big, list[Operation]()
        layers = self._chosen_layers(big.config)
        if layers != list(range(big.config.num_hidden_layers)):
            cuts.append({"op": "extract_layers", "layers": layers})
            small = surgery.apply(small, cuts)
        target, _ = self._target(big.config)
        if target != Shape.of(big.config):
            kept = choose(small, target, self._scores(small))
            cuts.append(surgery.trim_operation(target, kept, self.importance))
            small = surgery.apply(small, cuts[-1:])
        self.model = (small if cuts else copy.deepcopy(big)).requires_grad_(True)
        self.operations = [*self._vocabulary_cuts, *cuts]
        self._pair(big)

    def _cut_vocabulary(self, rows: int) -> list[Operation]:
        """The cut from so many tokens down to those that the data found to be needed, if any."""
        if self.vocabulary is None:
            return []
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        ids: list[int] = data.kept_tokens
        if ids[-1] >= rows:
            raise UserError(
                f"data.tokenizer: it has a token {ids[-1]} and the model of {self.parent[1]} has {rows} tokens; use the "
                "model's own tokenizer"
            )
        if len(ids) == rows:
            raise UserError(
                f"model.vocabulary: the training text needs all {rows} tokens of {self.parent[0]}; remove it, or give another "
                "text"
            )
        return [surgery.vocabulary_operation(ids, rows)]

    def _scores(self, model: PreTrainedModel) -> Scores:
        if self.importance == "activation":
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            return activation_scores(model, data.calibration(self.calibration))
        return norm_scores(model) if self.importance == "norm" else first_scores(model)

    def _chosen_layers(self, teacher: PretrainedConfig) -> list[int]:
        deep = teacher.num_hidden_layers
        if self.layers is None:
            return list(range(deep))
        if isinstance(self.layers, int):
            return (central_layers if self.layer_choice == "centre" else even_layers)(deep, self.layers)
        check_layers(self.layers, deep)
        repeated = sorted({layer for layer in self.layers if self.layers.count(layer) > 1})
        if repeated:
            raise ValueError(f"layers {repeated} come more than once")
        return self.layers

    def _target(self, config: PretrainedConfig) -> tuple[Shape, list[str]]:
        """The shape of the smaller model's blocks, and what is wrong with it."""
        old = Shape.of(config)
        asked = {"width": self.width, "heads": self.heads, "ffn": self.ffn}
        problems = [
            f"model.{name}: {new} is more than the model's {was}; give less"
            for name, new in asked.items()
            if new and new > (was := getattr(old, name))
        ]
        if problems:
            return old, problems
        width, shared_out = self.width or old.width, config.model_type == "gpt2"  # where heads share the width out
        heads = self.heads or (width // old.head if shared_out and width % old.head == 0 else old.heads)
        head = width // heads if shared_out else old.head
        if heads % old.groups:
            problems.append(
                f"model.heads: each {old.groups} heads share one head of keys and values; {heads} is no multiple of "
                f"{old.groups}, give one"
            )
        elif width % heads:  # which transformers wants of a Llama too, though its heads have a size of their own
            problems.append(f"model.heads: {heads} heads do not divide a width of {width}; give a divisor of it")
        elif head > old.head:
            problems.append(
                f"model.heads: {heads} heads of a width of {width} would have {head} channels, and have {old.head}; give "
                f"at least {-(-width // old.head)}"
            )
        ffn = self.ffn or max(1, old.ffn * width // old.width)
        return Shape(width, heads, old.groups, head, ffn), problems

    def on_train_start(self) -> None:
        """Lets go of the uncut model, which has been scored, where it does not teach."""
        if not self.learns:
            self._hidden_teacher = ()
        super().on_train_start()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds which tokens the rows of the weights are."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["vocabulary"] = self._vocabulary_cuts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes sure that they are the same.

        Raises:
            UserError: They are not: the training text has changed.
        """
        if checkpoint.get("vocabulary", []) != self._vocabulary_cuts:
            raise UserError(
                "--ckpt_path: the training text needs other tokens than those of the checkpoint; bring the old text back, or "
                "start anew with another --run"
            )
        super().on_load_checkpoint(checkpoint)
