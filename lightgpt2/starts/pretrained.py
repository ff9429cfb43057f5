"""A pretrained model."""

from typing import Any, Literal

from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.data.base import TaskData
from lightgpt2.errors import Problem, UserError
from lightgpt2.models.adapters import CONFIG, base_of, has_tokenizer, is_adapter
from lightgpt2.models.loading import load_config, load_model
from lightgpt2.models.operations import KINDS, Operation
from lightgpt2.models.quantization import coverage, dequantized, load_quantized, quantization_of
from lightgpt2.starts.base import Start


class Pretrained(Start):
    """A pretrained model.

    Args:
        model: Hub id, model folder or GGUF file. With `adapters` also an adapter folder, whose base model is loaded.
        precision: What its linear layers are quantized to when it is loaded; `nf4` for adapters to be trained on.
        adapters: Whether adapters will be put on it.
    """

    source: str

    def __init__(self, model: str, precision: Literal["fp32", "nf4"] = "fp32", adapters: bool = False) -> None:
        self.source, self.adapters = model, adapters
        self.precision: Literal["fp32", "nf4"] = precision
        self.adapter = model if adapters and is_adapter(model) else None

    @property
    def base(self) -> str:
        """The model itself: if the source is an adapter folder, the one that it names."""
        return base_of(self.source, f"{self.key}.model") if self.adapters else self.source

    @property
    def tokenizer(self) -> tuple[str, str]:
        return self.source if self.adapter and has_tokenizer(self.adapter) else self.base, f"{self.key}.model"

    @property
    def sources(self) -> list[str]:
        return [self.base]

    def configs(self, trust_remote_code: bool) -> dict[str, PretrainedConfig]:
        key = f"{self.key}.model"
        try:
            return {key: load_config(self.base, key, trust_remote_code, self.task.auto_classes, new_head=True)}
        except UserError as error:
            if self.adapter is None:
                raise
            named = f"{self.source} names {self.base} as its base model (in {CONFIG})"
            raise UserError(
                [Problem(key, f"{named}: {problem.what}", problem.fix) for problem in error.problems]
            ) from error

    def build(self, data: TaskData, trust_remote_code: bool) -> tuple[PreTrainedModel, list[Operation]]:
        model = self._load(trust_remote_code)
        if self.precision == "fp32":
            return model, []
        counted = {key: value for key, value in coverage(model, self.precision).items() if key != "op"}
        return model, [KINDS["dequantize"].record(**counted, **{"from": self.precision})]

    def plain(self, trust_remote_code: bool) -> PreTrainedModel:
        model = self._load(trust_remote_code)
        return model if self.precision == "fp32" else dequantized(model)

    def _load(self, trust: bool) -> PreTrainedModel:
        key = f"{self.key}.model"
        config = load_config(self.base, key, trust)
        how: Any = {"auto_classes": self.task.auto_classes, "settings": self.task.head_settings(config)}
        if self.precision == "fp32" or quantization_of(config) == self.precision:
            return load_model(self.base, key, trust, **how)
        return load_quantized(self.base, key, self.precision, trust, **how)
