"""Check what the finished model writes: whether it repeats itself, and whether its sentences are well-formed."""

from itertools import takewhile
from typing import Any

import torch
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from lightning import Trainer
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.callbacks.base import RunCallback
from lightgpt2.callbacks.board import Board
from lightgpt2.data.requirements import is_requirement
from lightgpt2.errors import Problem, UserError
from lightgpt2.functional.diversity import distinct, repeated
from lightgpt2.methods.method import Method
from lightgpt2.models.ledger import FILE, Ledger
from lightgpt2.models.loading import load_model
from lightgpt2.models.tokenizers import separator_id
from lightgpt2.runtime.folder import is_exported

_BATCH = 50


class GenerationCheck(RunCallback):
    """Lets the artefact, and its quantized siblings, continue validation documents, and looks at what they write.

    (Exported ones are left out: how far their tokens agree with the artefact's is measured when they are exported.)

    How often a token repeats one of the sixteen before it, and how many of all pairs of tokens are different ones, beside the
    same figures of the documents' own continuations: a model that was made too small, or cut too deep, repeats itself. On the
    `requirements` corpus also how many of the sentences are well-formed. Perplexity alone shows neither.

    ```yaml
    trainer:
      callbacks:
        - class_path: lightgpt2.callbacks.GenerationCheck
          init_args: {samples: 200}
    ```

    Args:
        samples: How many documents of the validation split are continued; the first ones that are long enough.
        prompt_tokens: Their tokens that the model is given, the beginning-of-text token included.
        new_tokens: The most tokens that it adds.
        temperature: Softmax temperature of the sampling.
        seed: Seed of the sampling.
    """

    phase = 2  # after the conversions

    def __init__(
        self,
        samples: PositiveInt = 200,
        prompt_tokens: PositiveInt = 8,
        new_tokens: PositiveInt = 40,
        temperature: PositiveFloat = 1.0,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.samples, self.prompt_tokens, self.new_tokens = int(samples), int(prompt_tokens), int(new_tokens)
        self.temperature, self.seed = float(temperature), int(seed)

    def on_fit_start(self, trainer: Trainer, pl_module: Method) -> None:
        key, data, room = "prompt_tokens", pl_module.data, pl_module.model.config.max_position_embeddings
        prompt, new = self.prompt_tokens, self.new_tokens
        if prompt >= room:
            what, fix = f"{prompt} leave none of the model's {room} positions", f"give at most {room - 1}"
        elif prompt + new > room:
            key, fix = "new_tokens", f"give at most {room - prompt}"
            what = f"{prompt} tokens of prompt and {new} new ones are more than the model's {room} positions"
        elif not data.passages("valid", 1, prompt, new):
            what, fix = f"no document of the validation split is longer than {prompt} tokens", "give less"
        else:
            return
        raise UserError([Problem(f"trainer.callbacks.GenerationCheck.{key}", what, fix)])

    def on_fit_end(self, trainer: Trainer, pl_module: Method) -> None:
        if not trainer.is_global_zero:
            return
        board = Board(trainer)
        siblings = [path for path in self.run.derived() if (path / FILE).is_file()]
        for folder in [self.run.model, *(path for path in siblings if not is_exported(str(path)))]:
            model = load_model(str(folder), "model", pl_module.trust_remote_code).to(trainer.strategy.root_device)
            found = self._measure(model.eval(), pl_module.data)
            Ledger.read(folder).amended(generation=found).write(folder)
            print(f"{folder.name}: {_described(found)}", flush=True)
            figures = {key: value for key, value in found.items() if isinstance(value, float)}
            board.figures({f"generation/{folder.name}/{key}": value for key, value in figures.items()})
        board.flush()

    def _measure(self, model: PreTrainedModel, data: Any) -> dict[str, Any]:
        passages = data.passages("valid", self.samples, self.prompt_tokens, self.new_tokens)
        prompts = [prompt for prompt, _ in passages]
        written = self._continue(model, prompts, data.tokenizer)
        # As long as the documents' own: both figures depend on the length.
        pairs = [(mine, own) for mine, (_, own) in zip(written, passages, strict=True)]
        mine, own = [m[: len(o)] for m, o in pairs], [o[: len(m)] for m, o in pairs]
        found: dict[str, Any] = {
            "samples": len(passages),
            "settings": {key: getattr(self, key) for key in ("prompt_tokens", "new_tokens", "temperature", "seed")},
            "repeated": _mean_repeated(mine),
            "repeated_text": _mean_repeated(own),
            "distinct_2": distinct(mine, 2),
            "distinct_2_text": distinct(own, 2),
        }
        worse = found["repeated"] > max(2 * found["repeated_text"], found["repeated_text"] + 0.2)
        found["collapsed"] = worse or found["distinct_2"] < found["distinct_2_text"] / 2
        if data.describe()["source"].partition(":")[0] == "requirements":
            texts = data.tokenizer.batch_decode(
                [p + w for p, w in zip(prompts, written, strict=True)], skip_special_tokens=True
            )
            found["well_formed"] = sum(map(is_requirement, texts)) / len(texts)
        return found

    @torch.no_grad()
    def _continue(
        self, model: PreTrainedModel, prompts: list[list[int]], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[int]]:
        """Sample continuations, each up to the token that separates or ends documents."""
        ends = {token for token in (separator_id(tokenizer), tokenizer.eos_token_id) if token is not None}
        written = []
        sampling = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        options = {**sampling, "max_new_tokens": self.new_tokens, "eos_token_id": [*ends], "pad_token_id": min(ends)}
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            for i in tqdm(range(0, len(prompts), _BATCH), desc="Generating", leave=False, disable=None):
                ids = torch.tensor(prompts[i : i + _BATCH], device=model.device)
                output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
                written += [_until(row[ids.shape[1] :], ends) for row in output.tolist()]
        return written


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    return list(takewhile(lambda token: token not in ends, tokens))


def _mean_repeated(sequences: list[list[int]]) -> float:
    """The mean over all tokens, not over sequences: short ones count less."""
    total = sum(map(len, sequences))
    return sum(repeated(tokens) * len(tokens) for tokens in sequences) / total if total else 0.0


def _described(found: dict[str, Any]) -> str:
    text = (
        f"of {found['samples']} documents continued: repeats {found['repeated']:.1%} of its tokens (the text "
        f"{found['repeated_text']:.1%}), distinct pairs {found['distinct_2']:.1%} (the text {found['distinct_2_text']:.1%})"
    )
    return f"{text}, well-formed {found['well_formed']:.1%}" if "well_formed" in found else text
