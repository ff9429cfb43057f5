"""Language modeling: predict the next token; scored by perplexity, shown by continuations."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.functional.vocabulary import LossWeights, token_nll, vocabulary_loss
from lightgpt2.models.families import backbone, head_weight, recorded_states


@dataclass(frozen=True)
class Features:
    """What a model makes of a batch, positions flattened to `N = B * T`.

    Attributes:
        final: Hidden states that the head reads `[N, D]`.
        weight: The head `[V, D]`.
        states: Hidden states `[N, D]` by index: 0 is the embedding output, i the output of block i before the final norm.
    """

    final: Tensor
    weight: Tensor
    states: dict[int, Tensor]


class LanguageModeling:
    """Next-token prediction.

    Args:
        samples: Number of validation prompts that are continued at each validation and shown in TensorBoard.
        sample_tokens: New tokens of each continuation.
        prompt_tokens: Tokens of each prompt, the separator included.
        predict: What `predict` writes for each document: its `scores` or a greedy `continuations` of its beginning.
    """

    def __init__(
        self,
        samples: NonNegativeInt = 3,
        sample_tokens: PositiveInt = 40,
        prompt_tokens: PositiveInt = 24,
        predict: Literal["scores", "continuations"] = "scores",
    ) -> None:
        self.samples, self.sample_tokens, self.prompt_tokens = samples, sample_tokens, prompt_tokens
        self.predict = predict

    def features(self, model: PreTrainedModel, batch: dict[str, Any], layers: list[int] | None = None) -> Features:
        """Runs a model up to its head.

        Args:
            model: A decoder of a supported family.
            batch: With `input_ids [B, T]`.
            layers: Hidden states to keep, as in `Features.states`.
        """
        with recorded_states(model, layers or []) as states:
            final = backbone(model)(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        flat = {index: state.flatten(0, 1) for index, state in states.items()}
        return Features(final.flatten(0, 1), head_weight(model), flat)

    def labels(self, batch: dict[str, Any]) -> Tensor:
        """The token that each position predicts, `[N]`."""
        labels: Tensor = batch["labels"]
        return labels.flatten()

    def cross_entropy(self, model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
        """Cross-entropy with the next token, summed over the supervised positions of a batch, in nats."""
        out = self.features(model, batch)
        loss, _, _ = vocabulary_loss(out.final, out.weight, self.labels(batch), LossWeights())
        return loss

    @torch.no_grad()
    def nll(self, model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
        """Summed negative log likelihood of each window `[B]`, in nats, in double precision."""
        features = self.features(model, batch)
        values = token_nll(features.final, features.weight, self.labels(batch))
        return values.double().view_as(batch["labels"]).sum(dim=1)

    @torch.no_grad()
    def continuations(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
    ) -> list[str]:
        """Greedy continuations of prompts, `sample_tokens` each; draws no random number.

        Args:
            model: The model, put in eval mode meanwhile.
            tokenizer: Its tokenizer.
            prompts: Token lists.

        Returns:
            The new text of each.
        """
        training = model.training
        model.eval()
        room = model.config.max_position_embeddings - max(map(len, prompts), default=0)
        texts = []
        for prompt in prompts:
            ids = torch.tensor([prompt], device=model.device)
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max(1, min(self.sample_tokens, room)),
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id,
            )
            texts.append(tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True))
        model.train(training)
        return texts
