"""LSTM: character models, which carry a state; their code goes into the model folder."""

from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lightgpt2.models.architectures import CAUSAL_LM
from lightgpt2.models.families.base import Family, Shape
from lightgpt2.models.standalone import modeling_lstm


class Lstm(Family):
    """LSTM layers between an embedding and a head."""

    model_types = ("lstm",)
    auto_classes = (CAUSAL_LM,)
    code: ClassVar = modeling_lstm
    recurrent = first_differs = True
    axes: ClassVar = {
        r"model\.embed_tokens": ("vocabulary", "embedding"),
        r"model\.layers\.\d+\.input": ("gate", "read"),
        r"model\.layers\.\d+\.recurrent": ("gate", "width"),
        r"lm_head": ("vocabulary", "width"),
    }

    def config_problems(self, config: PretrainedConfig) -> Iterator[str]:
        if config.tie_word_embeddings and config.embedding_size != config.hidden_size:
            what = f"a tied head wants one width, and embedding_size is {config.embedding_size}"
            yield f"{what} with a hidden_size of {config.hidden_size}; give both the same, or no tie_word_embeddings"
        if not 0 <= config.dropout < 1:
            yield f"dropout must be at least 0 and below 1, got {config.dropout}; correct it"

    def shape(self, config: PretrainedConfig) -> Shape:
        """The width alone."""
        return Shape(config.hidden_size, 0, 1, 0, 0)

    def state_width(self, config: PretrainedConfig, layers: int) -> int:
        return int(config.hidden_size if layers else config.embedding_size)

    def final_states(self, model: PreTrainedModel, **inputs: Any) -> Tensor:
        """What the head reads of each token; where `position_ids` begin anew, the state does too."""
        positions = inputs.pop("position_ids", None)
        if positions is None:
            return super().final_states(model, **inputs)
        ids, starts = inputs["input_ids"], positions == 0
        starts[:, 0] = True
        begins = starts.flatten().nonzero().flatten()
        lengths = torch.diff(begins, append=begins.new_tensor([ids.numel()]))
        documents = pad_sequence(ids.flatten().split(lengths.tolist()), batch_first=True)
        seen = torch.arange(documents.shape[1], device=ids.device) < lengths[:, None]
        return super().final_states(model, input_ids=documents)[seen].view(*ids.shape, -1)

    def graph(self, writer: Any, model: PreTrainedModel) -> Any:
        for layer in cast(Any, model.base_model).layers:
            writer.recur(layer.input, layer.recurrent)
        return writer.hidden


AutoConfig.register("lstm", modeling_lstm.LstmConfig, exist_ok=True)
AutoModelForCausalLM.register(modeling_lstm.LstmConfig, modeling_lstm.LstmForCausalLM, exist_ok=True)
