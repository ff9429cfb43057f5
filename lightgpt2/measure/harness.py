"""Models under lm-evaluation-harness: the engine of a model folder or an exported folder as one of its language models.

It needs the package lm_eval (the extra `eval`).
"""

import contextlib
import difflib
import logging
import math
import os
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from lightgpt2.errors import Problem, UserError, cut, refuse
from lightgpt2.models import hub
from lightgpt2.models.files import is_file
from lightgpt2.models.tokenizers import separator_id
from lightgpt2.runtime.engines import Floats
from lightgpt2.runtime.language_model import LanguageModel, left_padded

_RESAMPLES = 1000  # of the bootstrap, for metrics whose standard error has no formula
_KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")
_NEW_TOKENS = 256  # where a task says nothing, as the harness's own models
_OPTIONS = {
    "top_k": "top_k", "top_p": "top_p", "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram", "min_new_tokens": "min_new_tokens",
}  # fmt: skip
_OTHERS = ("do_sample", "temperature", "until", "max_gen_toks", "use_cache")  # which are followed in another way
_GROUP = re.compile(rb"^group:", re.MULTILINE)  # in a task file, which may name tasks of the harness
_OF_SAMPLING = ("top_k", "top_p")


class EngineLM(TemplateLM):  # type: ignore[misc]
    """A model as the harness asks it: log-likelihoods of continuations and of whole texts, and greedy or sampled texts.

    Tokens and windows are those of the harness's own model `hf`, so that both give the same figures.

    Args:
        model: The model.
        tokenizer: Its tokenizer as transformers has it, with the names of its special tokens.
        batch: How many texts are computed together.
        seed: Seed of texts that are sampled.
    """

    def __init__(self, model: LanguageModel, tokenizer: PreTrainedTokenizerFast, batch: int, seed: int = 0) -> None:
        super().__init__()
        self._model, self._batch, self._seed = model, batch, seed
        self.tokenizer = tokenizer
        self.max_length = model.engine.context

    @property
    def eot_token_id(self) -> int | None:
        """The end-of-text token."""
        token: int | None = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int | None:
        """The token before a text that has no other."""
        return separator_id(self.tokenizer)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text; with those around it that the tokenizer adds, unless it begins with one or says otherwise."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        tokens: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return tokens

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation behind its context, and whether every token of it is the most likely one.

        A context that is too long loses its beginning. Requests that read the same tokens are computed once, as the choices
        of one token of a question are.
        """
        if (longest := max((len(tokens) for *_, tokens in requests), default=0)) > self.max_length:
            what = f"a text to score has {longest} tokens, and the model {self.max_length} positions"
            raise UserError([Problem("--tasks", what, "give other tasks, or a model with a longer context")])
        asked = defaultdict[tuple[int, ...], list[int]](list)
        for number, (_, context, continuation) in enumerate(requests):
            asked[(*context, *continuation[:-1])[-self.max_length :]].append(number)
        longest_first = sorted(asked, key=len, reverse=True)
        found = dict[int, tuple[float, bool]]()
        with tqdm(total=len(requests), unit="request", disable=disable_tqdm or None) as bar:
            for start in range(0, len(longest_first), self._batch):
                batch = longest_first[start : start + self._batch]
                logits = self._model.engine.logits(*left_padded(batch))
                for read, row in zip(batch, logits, strict=True):
                    found |= {number: _score(row, requests[number][2]) for number in asked[read]}
                    bar.update(len(asked[read]))
        return [found[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, every token once, in windows of the context's length."""
        windows, owners = list[tuple[None, list[int], list[int]]](), list[int]()
        for number, request in enumerate(requests):
            tokens, first = self.tok_encode(request.args[0]), self.prefix_token_id
            for window in get_rolling_token_windows(tokens, first, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[owner] += value
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text behind each context, up to one of the task's stop texts; a context that is too long loses its beginning."""
        groups = defaultdict[str, list[int]](list)
        for number, request in enumerate(requests):
            groups[repr(request.args[1])].append(number)
        texts = dict[int, str]()
        with tqdm(total=len(requests), unit="text", disable=disable_tqdm or None) as bar:
            for numbers in groups.values():
                settings = normalize_gen_kwargs(requests[numbers[0]].args[1], _NEW_TOKENS)
                options = self._options(settings)
                room = self.max_length - options["max_new_tokens"]
                contexts = [self._end_of(requests[number].args[0], room) for number in numbers]
                for done in self._model.texts(contexts, options):
                    texts[numbers[done.index]] = done.text
                    bar.update()
        return [texts[number] for number in range(len(requests))]

    def _options(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A task's settings of a generation as those of `LanguageModel.texts`."""
        given = {name: value for name, value in settings.items() if name not in _OTHERS and value is not None}
        temperature = float(settings.get("temperature", 1.0)) if settings["do_sample"] else 0.0
        if given.get("num_beams") == 1:
            del given["num_beams"]
        new_tokens = settings["max_gen_toks"]
        fix = "give a task file without it"
        problems = [
            Problem("--tasks", f"a task asks for the generation setting {name}, which is not done", fix)
            for name in given
            if name not in _OPTIONS
        ]
        if new_tokens >= self.max_length:
            what = f"a task asks for {new_tokens} new tokens, and the model has {self.max_length} positions"
            problems.append(Problem("--tasks", what, "give a task file with a smaller max_gen_toks"))
        refuse(problems)
        options = {_OPTIONS[name]: each for name, each in given.items() if temperature or name not in _OF_SAMPLING}
        stop = tuple(text for text in settings["until"] if text)
        return {**options, "temperature": temperature, "max_new_tokens": new_tokens, "stop": stop,
                "seed": self._seed, "batch_size": self._batch}  # fmt: skip

    def _end_of(self, text: str, most: int) -> str:
        """The end of a text: its last `most` tokens, or all of it."""
        encoded = self._model.tokenizer.encode(text)
        return text if len(encoded.ids) <= most else text[encoded.offsets[-most][0] :]


def _score(logits: Floats, tokens: Sequence[int]) -> tuple[float, bool]:
    """The log-likelihood of tokens `[N]` in the last rows of logits `[T, V]`, and whether each is the most likely one."""
    rows = logits[len(logits) - len(tokens) :].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    chosen = rows[np.arange(len(tokens)), tokens]
    return float((chosen - np.log(np.exp(rows).sum(axis=1))).sum()), bool((chosen == 0).all())


@cache
def _manager(own: bool) -> TaskManager:
    """What loads tasks; `own`: those of the harness too, whose 14,000 files take seconds to read."""
    return TaskManager(include_defaults=own)


class Tasks:
    """The harness's tasks of some names, loaded with their data.

    Args:
        names: Names of tasks, groups and tags, and paths of task files (YAML).
        seed: Seed of what is chosen at random: examples with answers, and whatever a task chooses itself.

    Raises:
        UserError: One has no such name, or cannot be loaded; with one problem each.
    """

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._names, self._seed = ", ".join(names), seed
        files = [name for name in names if is_file(Path(name))]
        own = len(files) < len(names) or any(_GROUP.search(Path(file).read_bytes()) for file in files)
        with contextlib.redirect_stdout(sys.stderr):
            manager = _manager(own)
            known = manager.all_tasks
            refuse(_unknown(name, known) for name in names if name not in known and name not in files)
            hub.try_once()
            random.seed(seed)
            np.random.seed(seed)
            with _explained(self._names):
                self._loaded = manager.load([*names])
        refuse(_unfit(name, task) for name, task in self._loaded["tasks"].items() if _needs(task))

    def evaluate(self, model: EngineLM, limit: int | None = None, fewshot: int | None = None) -> dict[str, Any]:
        """The harness's results: `results` by task and metric, with standard errors, and what they are of.

        Args:
            model: The model.
            limit: Examples of each task; None: all.
            fewshot: Examples with answers before each question, but of tasks that say 0; None: as many as a task says.
        """
        for task in self._loaded["tasks"].values():
            said = task.get_config("num_fewshot")
            task.set_config("num_fewshot", said or 0 if fewshot is None or said == 0 else fewshot)
            task.set_fewshot_seed(self._seed)
        os.environ["DISABLE_MULTIPROC"] = "1"  # of the bootstrap, whose processes would copy this one with its threads
        with contextlib.redirect_stdout(sys.stderr), _explained(self._names):
            settings: Any = {"limit": limit, "log_samples": False, "bootstrap_iters": _RESAMPLES}
            found = evaluate(model, self._loaded, **settings)
        kept: dict[str, Any] = {name: found[name] for name in _KEPT if name in found}
        return {**_plain(kept), "lm_eval": version("lm_eval")}


def _needs(task: Any) -> str:
    """What a task needs that is not there."""
    wants = {"UNSAFE_CODE": "runs code that the model writes", "MULTIMODAL": "has pictures or sound"}
    return next((text for name, text in wants.items() if getattr(task, name, False)), "")


def _unfit(name: str, task: Any) -> Problem:
    return Problem("--tasks", f"{name} {_needs(task)}, which is not done here", "leave it out")


def _unknown(name: str, known: Sequence[str]) -> Problem:
    near = "".join(f"did you mean {close}? Else " for close in difflib.get_close_matches(name, known, 1))
    what = f"there is no task {name!r} in lm_eval, and no file of that name"
    return Problem("--tasks", what, f"{near}give one of lm_eval ls tasks, or a task file (YAML)")


@contextlib.contextmanager
def _explained(names: str) -> Iterator[None]:
    """Turn what the harness and the libraries of its data raise into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any kind, for a task file that is wrong and data that cannot be had
        reason = cut(" ".join(str(error).split()) or type(error).__name__, 200)
        fix = "correct the task file"
        if isinstance(error, ConnectionError):  # also that of huggingface_hub and datasets, offline
            fix = "its data are on the hub: fetch them where there is a network, or give a task file with data of your own"
        elif isinstance(error, ModuleNotFoundError):
            fix = f"install the package {error.name}, which the task needs"
        what = f"{names} cannot be evaluated ({reason})"
        raise UserError([Problem("--tasks", what, fix)]) from error


def _plain(value: Any) -> Any:
    """Converts values to those of JSON. Numbers of NumPy become Python's; NaN, infinity and "N/A" become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if value == "N/A" or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, bool | int | float | str | None) else str(value)
