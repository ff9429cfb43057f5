"""What do movement scores of a model that has converged say? More of what is noise than of what is needed.

    python -m benchmarks.scores --model MODEL --source requirements [--steps 60] [--lr 1e-4] [--scope layer]

Trains MODEL further with cross-entropy, with all gates open, and the scores of its neurons with it; then takes out the share of
neurons that each ranking puts last, with no training after it, and scores what is left on windows that were not trained on. The
rankings: the scores, the same with their sign turned, the norm of the weights, the sum of absolute gradients with respect to
the gates (first-order importance, Michel et al. 2019, arXiv:1905.10650), and random numbers.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from benchmarks.common import markdown, parser
from lightgpt2.data.corpora import Corpus
from lightgpt2.functional.movement import Units
from lightgpt2.functional.pruning import random_scores
from lightgpt2.models.loading import load_model
from lightgpt2.models.tokenizers import load_tokenizer
from lightgpt2.models.units import gate_weights, magnitudes, make_units, unit_map

_LENGTH, _HELD_OUT, _BATCH = 128, 64, 8


def windows(source: str, model: str) -> Tensor:
    """All of a corpus in windows `[n, 129]`, in random order."""
    tokenizer = load_tokenizer(model, "--model")
    start = tokenizer.bos_token_id
    ids = [token for _, text in Corpus(source).documents() for token in (start, *tokenizer(text)["input_ids"])]
    count = len(ids) // (_LENGTH + 1)
    tokens = torch.tensor(ids[: count * (_LENGTH + 1)]).view(count, -1)
    return tokens[torch.randperm(count, generator=torch.Generator().manual_seed(0))]


def loss(model: PreTrainedModel, batch: Tensor) -> Tensor:
    """Cross-entropy with the next token."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def train(model: PreTrainedModel, neurons: Units, batches: Tensor, steps: int, lr: float) -> dict[str, Tensor]:
    """Trains weights and scores; the sum of absolute gradients with respect to each gate."""
    scores = list(neurons.scores.parameters())
    groups = [
        {"params": [*model.parameters()], "lr": lr, "weight_decay": 0.1},
        {"params": scores, "lr": 1e-2, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    sums = {name: torch.zeros_like(neurons.gate(name)) for name in neurons.names}
    generator = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, batches[torch.randint(len(batches), (_BATCH,), generator=generator)]).backward()
        for name, score in zip(neurons.names, scores, strict=True):
            assert score.grad is not None
            sums[name] += score.grad.abs()
        nn.utils.clip_grad_norm_([*model.parameters(), *scores], 1.0)
        optimizer.step()
    return sums


@torch.no_grad()
def perplexity(model: PreTrainedModel, held_out: Tensor) -> float:
    """The perplexity of windows that were not trained on."""
    model.eval()
    losses = [float(loss(model, part)) for part in held_out.split(16)]
    return math.exp(sum(losses) / len(losses))


def main() -> None:
    scope = {"choices": ["global", "layer"], "default": "global", "help": "as model.pruning.scope"}
    settings = {"source": "pydoc", "steps": 60, "lr": 1e-4, "shares": [0.3, 0.6, 0.9], "scope": scope}
    options = parser(__doc__, model=str, **settings).parse_args()
    model, tokens = load_model(options.model, "--model"), windows(options.source, options.model)
    mapped = {name: part for name, part in unit_map(model, "structured", 1).items() if part.kind == "ffn"}
    units = make_units(model, mapped, trained=True)
    neurons = units["ffn"]
    assert isinstance(neurons, Units)
    gate_weights(model, mapped, units)
    gradients = train(model, neurons, tokens[_HELD_OUT:], options.steps, options.lr)
    learned = {name: neurons.scores[name].detach().clone() for name in neurons.names}
    rankings = {
        "movement scores": learned,
        "the same, sign turned": {name: -score for name, score in learned.items()},
        "norm of the weights": magnitudes(model, mapped)["ffn"],
        "absolute gradients": gradients,
        "random": random_scores(learned, 0),
    }
    rows = []
    for name, scores in rankings.items():
        neurons.set_scores(scores)
        rows.append([name])
        for share in (0.0, *options.shares):
            neurons.decide(share, options.scope, regrow=True)
            rows[-1].append(f"{perplexity(model, tokens[:_HELD_OUT]):.4g}")
    print(markdown(["neurons ranked by", "0 %", *(f"{share:.0%}" for share in options.shares)], rows))


if __name__ == "__main__":
    main()
