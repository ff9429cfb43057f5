"""What a typing assistant is worth: people type a text again, and what is suggested to them is compared with what they type.

Everything is decided by a text and a seed, so that models are compared on the same keystrokes.
"""

import random
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from lightgpt2.errors import Problem, UserError, refuse
from lightgpt2.models.quality import Floats, Metric
from lightgpt2.runtime.completion import Completer, Completion
from lightgpt2.runtime.spellings import in_word

# Letters, with apostrophes between them; not in `<unk>`, nor beside digits or underscores.
_WORD = re.compile(r"(?<![\w'’<@])[^\W\d_]+(?:['’][^\W\d_]+)*(?![\w'’>@])")
_PASSAGE = 200  # characters that are typed in a row
_STEPS = 20  # of the curve

Step = Callable[[], object]
Suggest = Callable[[str, int], Completion]  # of a text so far, and a number of further words


@dataclass(frozen=True)
class Place:
    """A place in a document where something is suggested, and what is right there."""

    document: int
    at: int
    right: str


@dataclass(frozen=True)
class Plan:
    """What is typed: places of the two tests, and passages for keystrokes."""

    documents: Sequence[str]
    incomplete: Sequence[Place]
    complete: Sequence[Place]
    passages: Sequence[Place]
    context: int
    words: int

    def before(self, place: Place, typed: int = 0) -> str:
        """The text before a place, with what was typed since: at most `context` characters.

        It begins at a multiple of half of that, as an editor should send it: what begins elsewhere at each key is read anew.
        """
        end, step = place.at + typed, max(1, self.context // 2)
        start = max(0, -(-(end - self.context) // step) * step)
        return self.documents[place.document][start:end]

    @property
    def steps(self) -> int:
        """How many places there are in all."""
        return len(self.incomplete) + len(self.complete) + len(self.passages)


def read_documents(path: Path, option: str) -> list[str]:
    """The documents of a file: the `text` of each line of JSONL, or one document of plain text."""
    from lightgpt2.runtime.prompts import read_texts

    if path.suffix == ".jsonl":
        try:
            return [str(row["text"]) for row in read_texts(path)]
        except UserError as error:
            raise UserError([Problem(option, each.what, each.fix) for each in error.problems]) from error
    try:
        return [path.read_text(encoding="utf-8")]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError([Problem(option, f"{path} cannot be read ({reason})", "give a text or JSONL file")]) from error


def plan(documents: Sequence[str], name: str, samples: int, keys: int, context: int, words: int, seed: int) -> Plan:
    """Choose places with a seed.

    The incomplete-word test takes positions inside words, each equally likely. The complete-word test takes beginnings of words
    behind a space. A passage begins where a word does.

    Args:
        documents: The texts.
        name: Their name in errors.
        samples: Places of each test.
        keys: Characters that are typed for keystrokes, in passages of 200.
        context: Characters before a place that are read.
        words: Further words that are suggested while a passage is typed.
        seed: Of the choice.

    Raises:
        UserError: There are no words, or fewer places than `samples`.
    """
    found = [(d, m.start(), m[0]) for d, text in enumerate(documents) for m in _WORD.finditer(text) if m.start()]
    words_ = [each for each in found if documents[each[0]][each[1] - 1] == " "]
    ends = [*accumulate(len(word) - 1 for _, _, word in found)]
    inside = ends[-1] if ends else 0
    if not words_ or not inside:
        raise UserError(
            [Problem("text", f"must have words, got none in {name}", "give a text that someone would type")]
        )
    limits = {"positions inside words": inside, "words behind a space": len(words_)}
    fewer = [(what, most) for what, most in limits.items() if samples > most]
    refuse(
        Problem("samples", f"must be at most {most}, the {what} of {name}, got {samples}", "give fewer, or more text")
        for what, most in fewer
    )
    generator = random.Random(seed)
    incomplete = []
    for chosen in sorted(generator.sample(range(inside), samples)):
        index = bisect_right(ends, chosen)
        document, start, word = found[index]
        typed = chosen - (ends[index] - (len(word) - 1)) + 1
        incomplete.append(Place(document, start + typed, word[typed:]))
    complete = [Place(*words_[index]) for index in sorted(generator.sample(range(len(words_)), samples))]
    starts = [(d, at) for d, at, _ in words_ if len(documents[d]) - at >= _PASSAGE] or [words_[0][:2]]
    chosen_ = generator.sample(starts, min(len(starts), -(-keys // _PASSAGE)))
    passages = [Place(d, at, documents[d][at : at + min(_PASSAGE, keys)]) for d, at in sorted(chosen_)]
    return Plan(documents, incomplete, complete, passages, context, words)


def play(plan: Plan, suggest: Suggest, step: Step) -> dict[str, Any]:
    """Type all of a plan with a model's suggestions.

    Returns:
        The metrics by name, `scores` for the curves, and `milliseconds` of the keystrokes, with the `first` of passages apart.
    """
    tests = {"incomplete": (plan.incomplete, 0), "complete": (plan.complete, 1)}
    metrics, scores = dict[str, Metric](), dict[str, list[float]]()
    for name, (places, further) in tests.items():
        right, likely = [], []
        for place in places:
            done = suggest(plan.before(place), further)
            right.append(float("".join(done.words[: further + 1]) == place.right))
            likely.append(done.probability if done.text else 0.0)
            step()
        ones = np.ones(len(right))
        metrics[name], scores[name] = Metric(name, "higher", np.array(right), ones), likely
    saved, first, later = [], list[float](), list[float]()
    for place in plan.passages:
        keys, times = _type(plan, place, suggest)
        saved.append(len(place.right) - keys)
        first += times[:1]
        later += times[1:]
        step()
    lengths: Floats = np.array([len(place.right) for place in plan.passages], np.float64)
    metrics["savings"] = Metric("savings", "higher", np.array(saved, np.float64), lengths)
    return {"metrics": metrics, "scores": scores, "milliseconds": later, "first": first}


def _type(plan: Plan, place: Place, suggest: Suggest) -> tuple[int, list[float]]:
    """How many keys a passage takes someone who accepts word by word whatever is right, and the milliseconds of each.

    A key is a character, or accepts all of a suggestion or its next word. What saves no key is typed.
    """
    at, keys, times = 0, 0, list[float]()
    while at < len(place.right):
        begin = time.perf_counter()
        done = suggest(plan.before(place, at), plan.words)
        times.append(1e3 * (time.perf_counter() - begin))
        taken, accepts, rest = 0, 0, place.right[at:]
        if done.text and _fits(done.text, rest):
            taken, accepts = len(done.text), 1
        else:
            for count, end in enumerate(accumulate(map(len, done.words)), 1):
                if not _fits("".join(done.words)[:end], rest):
                    break
                taken, accepts = end, count - (not done.words[0])
        if taken <= accepts:
            taken = accepts = 1
        at, keys = at + taken, keys + accepts
    return keys, times


def _fits(text: str, rest: str) -> bool:
    """True if what is to be typed begins with a text that ends where a word does."""
    return rest.startswith(text) and (len(rest) == len(text) or not in_word(rest[len(text)]))


def curve(right: Floats, likely: Sequence[float]) -> list[tuple[float, float]]:
    """The share that is right of what is shown, against the share of places where something is: the likeliest first."""
    order = np.argsort(-np.asarray(likely), kind="stable")
    shown = sum(value > 0 for value in likely)
    hits = np.cumsum(right[order])
    counts = sorted({max(1, round(len(order) * number / _STEPS)) for number in range(1, _STEPS + 1)})
    return [(count / len(order), float(hits[count - 1] / count)) for count in counts if count <= shown]


def summary(played: dict[str, Any], baseline: dict[str, Any] | None) -> dict[str, Any]:
    """What was played, as plain values; with `baseline`, the differences to it on the same places."""
    metrics: dict[str, Metric] = played["metrics"]
    found: dict[str, Any] = {name: metric.as_dict() for name, metric in metrics.items()}
    found["curves"] = {name: curve(metrics[name].numerators, likely) for name, likely in played["scores"].items()}
    times = played["milliseconds"] or played["first"]
    if times:
        p50, p95 = np.percentile(times, [50, 95])
        about = {"p50": float(p50), "p95": float(p95), "keystrokes": len(times)}
        found["milliseconds"] = about | {"first": float(np.median(played["first"]))}
    if baseline:
        found["difference"] = {name: _difference(metrics[name], baseline["metrics"][name]) for name in metrics}
    return found


def _difference(mine: Metric, other: Metric) -> dict[str, Any]:
    paired = Metric(mine.name, "higher", mine.numerators - other.numerators, mine.denominators)
    return {"value": paired.value(), "interval_95": paired.interval(), "p": mine.against(other).p}


def suggestions(completer: Completer, beams: int, constrained: bool) -> Suggest:
    """What a completer suggests."""
    return lambda text, words: completer.complete(text, words=words, beams=beams, constrained=constrained)


def variants(
    names: Sequence[str], load: Callable[[str], Any], partial: str | None, unconstrained: bool
) -> Iterator[tuple[str, Completer, bool]]:
    """Each model, loaded when it is its turn; as a control without constraints; and with another one for partial words."""
    letters = None if partial is None else load(partial)

    def anew(model: Any, other: Any = None) -> Completer:
        for each in filter(None, (model, other)):
            vars(each).pop("reader", None)  # what one variant has read is not known to the next
        return Completer(model, other)

    for name in names:
        model = load(name)
        yield name, anew(model), True
        if unconstrained:
            yield f"{name}, unconstrained", anew(model), False
        if letters is not None:
            yield f"{name} + {partial}", anew(model, letters), True
