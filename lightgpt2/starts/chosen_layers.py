"""Some of the layers of a bigger model."""

import copy

from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.data.base import TaskData
from lightgpt2.errors import UserError
from lightgpt2.models import surgery
from lightgpt2.models.families import check_family, family_of
from lightgpt2.models.layers import LayerChoice, Layers, chosen_layers, recorded
from lightgpt2.models.loading import load_config, load_model
from lightgpt2.models.operations import KINDS, Operation
from lightgpt2.starts.base import Start


class ChosenLayers(Start):
    """Some of the layers of a bigger model, with its embeddings, final norm and head (Sanh et al. 2019, arXiv:1910.01108).

    Args:
        model: Hub id, model folder or GGUF file of the bigger one.
        layers: Their number, evenly spaced with both ends, or a list; `{encoder: ..., decoder: ...}` gives each stack its own.
            The default is half of them.
    """

    source: str

    def __init__(self, model: str, layers: LayerChoice | None = None) -> None:
        self.source, self.chosen = model, layers

    def configs(self, trust_remote_code: bool) -> dict[str, PretrainedConfig]:
        original = load_config(self.source, f"{self.key}.model", trust_remote_code, self.task.auto_classes)
        smaller = copy.deepcopy(original)
        try:
            surgery.keep_layers(smaller, self.layers(original))
        except ValueError as error:
            raise UserError(f"{self.key}.layers: {error}") from error
        check_family(smaller, f"{self.key}.layers")
        return {f"{self.key}.layers": smaller, f"{self.key}.model": original}

    def build(self, data: TaskData, trust_remote_code: bool) -> tuple[PreTrainedModel, list[Operation]]:
        self.original = load_model(self.source, f"{self.key}.model", trust_remote_code, self.task.auto_classes)
        done = [KINDS["extract_layers"].record(layers=recorded(self.layers(self.original.config)))]
        return surgery.apply(self.original, done), done

    def layers(self, original: PretrainedConfig) -> Layers:
        """The layers that are chosen; a `ValueError` if the model lacks one."""
        return chosen_layers(self.chosen, family_of(original).depths(original), lambda deep: max(1, deep // 2))
