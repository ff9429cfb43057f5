"""How much of a partial word's probability is dropped with its unlikely spellings, and what the others cost.

    python -m benchmarks.spellings MODEL TEXT.jsonl [--samples 100] [--context 300]

At positions inside words (those of `lightgpt2 type`) the probability of the text's last word, with the space before it, is
summed over its spellings for several shares below which spellings are dropped, and compared with the sum over all of them; and
that with the sum that begins two words earlier, where the tokens before the word need not be the tokenizer's. Prints the mean
and the largest error of the log probability in nats, and the mean of the forward passes.
"""

import argparse
import re
from pathlib import Path

import numpy as np

import lightgpt2
from lightgpt2.measure import keystrokes
from lightgpt2.runtime.completion import Completer, _rest
from lightgpt2.runtime.language_model import LanguageModel
from lightgpt2.runtime.paths import Paths

SHARES = (0.0, 0.001, 0.01, 0.05, 0.2, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--context", type=int, default=300)
    given = parser.parse_args()
    model = lightgpt2.load(given.model, threads=1)
    completer = Completer(model)
    documents = keystrokes.read_documents(given.text, "text")
    plan = keystrokes.plan(documents, str(given.text), given.samples, 200, given.context, 0, seed=0)
    found: dict[str, list[tuple[float, int]]] = {}
    for place in plan.incomplete:
        start, rest = completer._whole._split(plan.before(place), _rest(plan.before(place)))
        exact = 0.0
        for share in SHARES:
            # All is read anew: what is read at once is rounded otherwise than token by token.
            vars(model).pop("reader", None)
            reader = model.reader
            mass = Paths(reader, share, 200).spell(start, rest)[1]
            exact = exact or mass
            found.setdefault(f"share {share}", []).append((abs(np.log(mass) - np.log(exact)), reader.passes))
        found.setdefault("two words earlier", []).append(earlier(model, plan.before(place), rest, exact))
    for name, rows in found.items():
        errors, passes = np.array(rows).T
        print(
            f"{name}: mean {np.nanmean(errors):.4f}, largest {np.nanmax(errors):.4f} nats; {passes.mean():.1f} passes",
            flush=True,
        )


def earlier(model: LanguageModel, text: str, rest: bytes, exact: float) -> tuple[float, int]:
    """The error against sums that begin two words before the last one."""
    paths, before = Paths(model.reader, 1e-4, 200), model.reader.passes
    head = text[: len(text) - len(rest.decode())]
    cut = re.search(r"\s\S+\s\S+\Z", head)
    if cut is None:
        return 0.0, 0
    start = tuple(model.tokenizer.encode(head[: cut.start()]).ids) or (model.first,)
    words = head[cut.start() :].encode()
    whole = paths.spell(start, words)[1]
    if not whole:  # not found in so many passes
        return float("nan"), model.reader.passes - before
    conditional = paths.spell(start, words + rest)[1] / whole
    return abs(float(np.log(conditional) - np.log(exact))), model.reader.passes - before


if __name__ == "__main__":
    main()
