"""Some of the layers of a bigger model."""

import copy

from jsonargparse.typing import PositiveInt
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.data.base import TaskData
from lightgpt2.errors import UserError
from lightgpt2.functional.layers import check_layers, even_layers
from lightgpt2.models import surgery
from lightgpt2.models.loading import load_config, load_model
from lightgpt2.models.operations import KINDS, Operation
from lightgpt2.starts.base import Start


class ChosenLayers(Start):
    """Some of the layers of a bigger model, with its embeddings, final norm and head (Sanh et al. 2019, arXiv:1910.01108).

    Args:
        model: Hub id, model folder or GGUF file of the bigger one.
        layers: Their number, evenly spaced with both ends, or a list. The default is half of them.
    """

    source: str

    def __init__(self, model: str, layers: PositiveInt | list[int] | None = None) -> None:
        self.source, self.chosen = model, layers

    def configs(self, trust_remote_code: bool) -> dict[str, PretrainedConfig]:
        original = load_config(self.source, f"{self.key}.model", trust_remote_code, self.task.auto_class)
        smaller = copy.deepcopy(original)
        try:
            surgery.keep_layers(smaller, self.layers(original))
        except ValueError as error:
            raise UserError(f"{self.key}.layers: {error}") from error
        return {f"{self.key}.layers": smaller, f"{self.key}.model": original}

    def build(self, data: TaskData, trust_remote_code: bool) -> tuple[PreTrainedModel, list[Operation]]:
        self.original = load_model(self.source, f"{self.key}.model", trust_remote_code, self.task.auto_class)
        done = [KINDS["extract_layers"].record(layers=self.layers(self.original.config))]
        return surgery.apply(self.original, done).requires_grad_(True), done

    def layers(self, original: PretrainedConfig) -> list[int]:
        """The layers that are chosen; a `ValueError` if the model lacks one."""
        deep = original.num_hidden_layers
        chosen = self.chosen if self.chosen is not None else max(1, deep // 2)
        layers = even_layers(deep, chosen) if isinstance(chosen, int) else chosen
        check_layers(layers, deep)
        return layers
