"""A language model of LSTM layers (Hochreiter and Schmidhuber 1997), which carries a state from token to token.

A model folder of type `lstm` has this file: `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads it.

    i, f, g, o = split(W x_t + R h_(t-1) + b)
    c_t = sigmoid(f) * c_(t-1) + sigmoid(i) * tanh(g)
    h_t = sigmoid(o) * tanh(c_t)

`generate` carries an `LstmState` where other models have a cache of keys and values; it does not grow.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .stored_weights import StoredModel


class LstmConfig(PretrainedConfig):  # type: ignore[misc]
    """The sizes of an LSTM; `max_position_embeddings` is how many tokens a text may have, which the weights do not know."""

    model_type = "lstm"

    def __init__(
        self,
        vocab_size: int = 57,
        embedding_size: int = 256,
        hidden_size: int = 1024,
        num_hidden_layers: int = 3,
        dropout: float = 0.0,
        max_position_embeddings: int = 2048,
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        tie_word_embeddings: bool = False,
        **settings: Any,
    ) -> None:
        self.vocab_size, self.embedding_size = vocab_size, embedding_size
        self.hidden_size, self.num_hidden_layers, self.dropout = hidden_size, num_hidden_layers, dropout
        self.max_position_embeddings, self.use_cache = max_position_embeddings, use_cache
        special = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        super().__init__(**special, tie_word_embeddings=tie_word_embeddings, **settings)


class LstmState:
    """What the layers carry to the next token: `hidden` and `cell`, `[L, B, H]`; `length` is the number of tokens before it."""

    is_compileable = False

    def __init__(self, hidden: Tensor, cell: Tensor, length: int = 0) -> None:
        self.hidden, self.cell, self.length = hidden, cell, length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequences go on from others of the batch, as beam search wants it."""
        self.hidden, self.cell = (state.index_select(1, beam_idx) for state in (self.hidden, self.cell))


class Gates(nn.Linear):
    """One matrix of the four gates, `[4 H, inputs]`; a layer's kernel multiplies with it."""

    def forward(self) -> tuple[Tensor, Any]:  # type: ignore[override]
        return self.weight, self.bias


class LstmLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """One layer."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input, self.recurrent = Gates(inputs, 4 * hidden), Gates(hidden, 4 * hidden, bias=False)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        """The outputs `[B, T, H]`, and the state `[B, H]` (twice) behind the first `lengths` `[B]` tokens of each row."""
        # What the modules compute with, which may be a substitute. They read nothing: hooks on what they read stay out.
        (w, bias), (r, _) = self.input.forward(), self.recurrent.forward()
        run: Any = torch.lstm
        how = ((w, r, bias, torch.zeros_like(bias)), True, 1, 0.0, self.training, False)
        state = hidden[None], cell[None]
        if lengths is None:
            output, hidden, cell = run(x, state, *how, True)
            return output, hidden[0], cell[0]
        packed: Any = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        begun = tuple(part.index_select(1, packed.sorted_indices) for part in state)
        data, *ends = run(packed.data, packed.batch_sizes, begun, *how)
        output, _ = pad_packed_sequence(PackedSequence(data, *packed[1:]), batch_first=True, total_length=x.shape[1])
        empty = (lengths == 0)[:, None]  # rows of pads alone keep their state
        pairs = zip(ends, state, strict=True)
        return output, *(torch.where(empty, o[0], n.index_select(1, packed.unsorted_indices)[0]) for n, o in pairs)


class LstmPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """The beginnings of the weights."""

    config_class = LstmConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True
    _supports_sdpa = True  # whatever the attention, there is none
    _no_split_modules = ("LstmLayer",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        edge = self.config.hidden_size**-0.5
        if isinstance(module, Gates):
            nn.init.uniform_(module.weight, -edge, edge)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
                nn.init.ones_(module.bias.view(4, -1)[1])  # it forgets little yet
        elif isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -edge, edge)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)


class LstmModel(LstmPreTrainedModel):
    """The embedding and the layers."""

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        sizes = [config.embedding_size, *[config.hidden_size] * config.num_hidden_layers]
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.layers = nn.ModuleList(LstmLayer(*pair) for pair in pairwise(sizes))
        self.dropout = nn.Dropout(config.dropout)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: LstmState | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPast:
        """Read tokens `[B, T]`; pads, 0 in the mask, may be anywhere, and change no state."""

        def placed(x: Tensor) -> Tensor:
            return x if places is None else torch.zeros_like(x).scatter(1, places[..., None].expand_as(x), x)

        batch, width = input_ids.shape
        x = self.dropout(self.embed_tokens(input_ids))
        lengths = places = None
        if attention_mask is not None and not (mask := attention_mask[:, -width:].bool()).all():
            lengths, places = mask.sum(dim=1), (~mask).long().argsort(dim=1, stable=True)  # tokens come first
            x = x.gather(1, places[..., None].expand_as(x))
        past = past_key_values
        if past is None:
            zeros = x.new_zeros(len(self.layers), batch, self.config.hidden_size)
            past = LstmState(zeros, zeros)
        ends, seen = [], [placed(x)] if output_hidden_states else []
        for layer, hidden, cell in zip(self.layers, past.hidden, past.cell, strict=True):
            x, *end = layer(x, hidden, cell, lengths)
            x = self.dropout(x)
            ends.append(end)
            seen += [placed(x)] if output_hidden_states else []
        kept = self.config.use_cache if use_cache is None else use_cache
        hidden, cell = (torch.stack(parts) for parts in zip(*ends, strict=True))
        state = LstmState(hidden, cell, past.length + width) if kept else None
        every = tuple(seen) if output_hidden_states else None
        return BaseModelOutputWithPast(last_hidden_state=placed(x), past_key_values=state, hidden_states=every)


class LstmForCausalLM(StoredModel, LstmPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The layers and a head over the vocabulary."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - as transformers has it

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        self.model = LstmModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: LstmState | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """The logits `[B, T, V]` of tokens `[B, T]`, or of the last `logits_to_keep`."""
        output = self.model(input_ids, attention_mask, past_key_values, use_cache, output_hidden_states)
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        kept = {"past_key_values": output.past_key_values, "hidden_states": output.hidden_states}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **kept)
