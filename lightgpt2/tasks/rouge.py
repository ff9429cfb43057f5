"""ROUGE as the `rouge-score` package computes it; and the summaries that need no model: Lead-3 and the extractive oracle."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
Scorer = Callable[[str, str], dict[str, float]]  # of a summary and its reference

_MOST = 40  # sentences of an article that the oracle chooses among
_WORD = re.compile(r"[a-z0-9]+")
_LINES = re.compile(r"[ \t]*[\r\n\u2028\u2029\x85]+\s*")
# Behind a mark and what closes with it, where white space and the beginning of a sentence follow; or where white space was lost
# between a small letter or a closing mark and a capital, as in the BBC summaries.
_SPACED = r"""(?<=[.!?])["'”’)\]]*\s+(?=["'“‘(\[]*[A-Z0-9])"""
_JOINED = r"""(?<=[a-z0-9)"'%][.!?])["'”’]?(?=["“]?[A-Z][a-z' ])"""
_ENDS = re.compile(f"{_SPACED}|{_JOINED}")
_SHORTENED = re.compile(
    r"(?:^|[\s(\"'“‘])(?:Mr|Mrs|Ms|Dr|Prof|Sir|St|Rev|Gen|Lt|Col|Sgt|Capt|Gov|Sen|Rep|vs|No|Inc|Ltd|Co|Jr|Sr|[A-Z])\.$"
)


def sentences(text: str) -> list[str]:
    """The sentences of a text, by its lines and its marks, without the white space between them."""
    found = []
    for line in _LINES.split(text.strip()):
        start = 0
        for end in _ENDS.finditer(line):
            closed = end.start() + len(end.group().rstrip())
            if not _SHORTENED.search(line[start : end.start()]):
                found.append(line[start:closed])
                start = end.end()
        found.append(line[start:])
    return [each.strip() for each in found if each.strip()]


def by_lines(text: str) -> str:
    """A text with one sentence a line, as ROUGE-Lsum reads it."""
    return "\n".join(sentences(text))


def scorer(stem: bool = False) -> Scorer:
    """What gives the F1 scores of a summary against its reference, by their names.

    Args:
        stem: Whether words of more than three letters are cut to their stems (Porter) before they are compared.
    """
    from rouge_score.rouge_scorer import RougeScorer  # here, since it takes seconds

    package = RougeScorer([*NAMES], use_stemmer=stem)

    def score(summary: str, reference: str) -> dict[str, float]:
        found = package.score(by_lines(reference), by_lines(summary))
        return {name: float(found[name].fmeasure) for name in NAMES}

    return score


def lead(text: str, count: int = 3) -> str:
    """The first sentences of a text, which of news say most."""
    return "\n".join(sentences(text)[:count])


def oracle(text: str, reference: str) -> str:
    """The sentences of a text that together are nearest to a reference: what no extractive summary exceeds by much.

    One sentence after the other is taken that raises ROUGE-1 plus ROUGE-2 most, until none does (Nallapati et al. 2017,
    arXiv:1611.04230).
    """
    candidates = sentences(text)[:_MOST]
    wanted = [_grams(_words(reference), n) for n in (1, 2)]
    chosen: list[int] = []
    best = 0.0
    while True:
        options = [sorted([*chosen, i]) for i in range(len(candidates)) if i not in chosen]
        scored = [(_closeness([candidates[i] for i in each], wanted), each) for each in options]
        score, option = max(scored, key=lambda pair: pair[0], default=(0.0, chosen))
        if score <= best:
            return "\n".join(candidates[i] for i in chosen)
        best, chosen = score, option


def copied(summary: str, source: str, size: int = 3) -> float:
    """The share of a summary's sequences of `size` words that its source has too; 0 where there are none."""
    mine, known = _grams(_words(summary), size), _grams(_words(source), size)
    return sum(count for gram, count in mine.items() if gram in known) / max(1, mine.total())


def words(text: str) -> int:
    """The number of words, as ROUGE counts them."""
    return len(_words(text))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(found: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(found[i:] for i in range(size)), strict=False))


def _closeness(chosen: Sequence[str], wanted: Sequence[Counter[tuple[str, ...]]]) -> float:
    """ROUGE-1 plus ROUGE-2 of sentences."""
    found = _words(" ".join(chosen))
    return sum(_f1(_grams(found, size), grams) for size, grams in enumerate(wanted, start=1))


def _f1(mine: Counter[tuple[str, ...]], wanted: Counter[tuple[str, ...]]) -> float:
    return 2 * (mine & wanted).total() / max(1, mine.total() + wanted.total())
