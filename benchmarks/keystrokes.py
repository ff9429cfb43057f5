"""`lightgpt2 type` for measurements of hours: what was typed at each place is kept, and the same command goes on from there.

    python -m benchmarks.keystrokes FOLDER MODEL ... --text TEXT [--samples 1000] [--keys 2000] [--unconstrained]
        [--partial CHARMODEL]

The places are those of `lightgpt2 type` with the same options, on one thread. All that is tested in a document comes in the
order of its text, where a model's forms (without constraints, with a character model beside it) share what they have read: the
milliseconds mean little. FOLDER gets `places.jsonl` and `typing.json`; Ctrl-C ends it with what all models have been through.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import lightgpt2
from lightgpt2.cli.typing import _test_split
from lightgpt2.measure import keystrokes
from lightgpt2.models.files import write_json
from lightgpt2.models.quality import Metric
from lightgpt2.report.table import typing_table
from lightgpt2.runtime.completion import Completer

TESTS = ("incomplete", "complete", "passages")
NONE: dict[str, Any] = dict.fromkeys(TESTS, ())
Key = tuple[str, str, int]  # row, test, index of the place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", required=True)
    for name, value in {"samples": 1000, "keys": 2000, "context": 1000, "words": 1, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--unconstrained", action="store_true")
    parser.add_argument("--partial")
    given = parser.parse_args()
    about = {name: getattr(given, name) for name in ("text", "samples", "keys", "context", "words", "seed")}
    documents = _test_split(given.text) or keystrokes.read_documents(Path(given.text), "text")
    plan = keystrokes.plan(documents, given.text, given.samples, given.keys, given.context, given.words, given.seed)
    given.folder.mkdir(parents=True, exist_ok=True)
    kept = given.folder / "places.jsonl"
    text = kept.read_text(encoding="utf-8") if kept.exists() else f"{json.dumps(about)}\n"
    lines = text[: text.rfind("\n")].split("\n")  # the last one may be cut
    if json.loads(lines[0]) != about:
        raise SystemExit(f"{kept} is of other settings ({lines[0]}); give another folder")
    found: dict[Key, dict[str, Any]] = {tuple(key): played for key, played in map(json.loads, lines[1:])}
    names = dict.fromkeys(row for model in given.models for row, _ in rows(model, given))
    total = len(names) * plan.steps
    with kept.open("w", encoding="utf-8") as file, tqdm(total=total, initial=len(found), unit="place") as bar:
        file.write("".join(f"{line}\n" for line in lines))
        with suppress(KeyboardInterrupt):
            for key in measure(plan, given, found):
                file.write(f"{json.dumps([key, found[key]])}\n")
                file.flush()
                bar.update(1)
    done = {
        test: [i for i, _ in enumerate(getattr(plan, test)) if all((n, test, i) in found for n in names)]
        for test in TESTS
    }
    played_ = {name: merged(name, done, found) for name in names}
    first = next(iter(names))
    result = {
        name: keystrokes.summary(each, played_[first] if name != first else None) for name, each in played_.items()
    }
    whole = {"settings": about | {"models": given.models, "partial": given.partial, "threads": 1}, "rows": result}
    write_json(given.folder / "typing.json", whole)
    print(typing_table(whole), f"\n\nplaces: {', '.join(f'{len(places)} {test}' for test, places in done.items())}")


def rows(model: str, given: argparse.Namespace) -> list[tuple[str, tuple[str | None, bool]]]:
    """The forms of a model: their names, each with a model for partial words, and whether it is constrained."""
    found: list[tuple[str, tuple[str | None, bool]]] = [(model, (None, True))]
    found += [(f"{model}, unconstrained", (None, False))] if given.unconstrained else []
    return found + (
        [(f"{model} + {given.partial}", (given.partial, True))] if given.partial not in (None, model) else []
    )


def measure(plan: keystrokes.Plan, given: argparse.Namespace, found: dict[Key, dict[str, Any]]) -> Iterator[Key]:
    """Type at all places that are not in `found` yet, put them there, and say which."""
    load = cache(lambda name: lightgpt2.load(name, threads=1, trust_remote_code=True))
    places = [(place, test, index) for test in TESTS for index, place in enumerate(getattr(plan, test))]
    forms = [(model, *form) for model in given.models for form in rows(model, given)]
    for place, test, index in sorted(places, key=lambda each: (each[0].document, each[0].at)):
        alone = replace(plan, **NONE | {test: [place]})
        for model, row, (partial, constrained) in forms:
            key = (row, test, index)
            if key in found:
                continue
            completer = Completer(load(model), partial and load(partial))
            suggest = keystrokes.suggestions(completer, 1, constrained)
            found[key] = plain(keystrokes.play(alone, suggest, lambda: None), test)
            yield key


def plain(played: dict[str, Any], test: str) -> dict[str, Any]:
    """What was played at one place, as JSON has it."""
    metric: Metric = played["metrics"]["savings" if test == "passages" else test]
    found = {"right": float(metric.numerators[0]), "of": float(metric.denominators[0])}
    return (
        found | {name: played[name] for name in ("milliseconds", "first")} | {"likely": played["scores"].get(test, [])}
    )


def merged(row: str, done: dict[str, list[int]], found: dict[Key, dict[str, Any]]) -> dict[str, Any]:
    """Places of a row as one, as `keystrokes.play` returns them."""
    places = {test: [found[row, test, index] for index in done[test]] for test in TESTS}
    metrics = {}
    for name, test in (("incomplete", "incomplete"), ("complete", "complete"), ("savings", "passages")):
        right, of = (np.array([each[part] for each in places[test]]) for part in ("right", "of"))
        metrics[name] = Metric(name, "higher", right, of)
    scores = {test: [value for each in places[test] for value in each["likely"]] for test in TESTS[:2]}
    times = {name: [*chain(*(each[name] for each in places["passages"]))] for name in ("milliseconds", "first")}
    return {"metrics": metrics, "scores": scores, **times}


if __name__ == "__main__":
    main()
