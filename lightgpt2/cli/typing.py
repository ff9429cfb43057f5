"""The command that types a text with a model's suggestions: `type`."""

from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveInt

from lightgpt2.cli.inference import load_quietly, named_as_options, unwritable
from lightgpt2.errors import Interrupted, UserError, refuse

_SHARES = (0.1, 0.05)  # of the validation and the test split, as those of `LanguageModelingData`


def _test_split(source: str) -> list[str]:
    """The documents of a built-in corpus that training with the default shares leaves out; empty for any other source."""
    from lightgpt2.data.corpora import BUILT_IN, Corpus
    from lightgpt2.data.splits import split_of

    if source not in BUILT_IN or Path(source).exists():
        return []
    texts = ((split, text) for split, text in Corpus(source).documents() if isinstance(text, str))
    return [*dict.fromkeys(text for split, text in texts if (split or split_of(text, *_SHARES)) == "test")]


def type(
    models: list[str],
    *,
    text: str,
    partial: str | None = None,
    unconstrained: bool = False,
    samples: PositiveInt = 1000,
    keys: PositiveInt = 2000,
    context: PositiveInt = 1000,
    words: NonNegativeInt = 1,
    beams: PositiveInt = 1,
    seed: NonNegativeInt = 0,
    output: str = "typing.json",
    threads: PositiveInt | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Type a text with the suggestions of models, and count what they get right and save.

    Args:
        models: Exported folders, model folders, GGUF files or hub models, character models too. The first is the baseline.
        text: Text that no model was trained on: a text file, a JSONL file of texts, one {"text": "..."} a line; or pydoc, of
            which the test split is taken.
        partial: Character model: each model is measured with it for partial words as well.
        unconstrained: Measure each model without constrained decoding too, as a control.
        samples: Positions of the incomplete-word test, and words of the complete-word test.
        keys: Characters to type for keystroke savings and latency, in passages of 200.
        context: Characters before a position that are read.
        words: Further words that are suggested while passages are typed.
        beams: Beginnings of a word that are followed side by side; 1 is greedy.
        seed: Seed of the choice of positions.
        output: File for the figures; the plots are written beside it.
        threads: Threads to compute with (default: all cores).
        trust_remote_code: Let code in the models' folders run.
    """
    from tqdm import tqdm

    from lightgpt2.measure import keystrokes
    from lightgpt2.models.files import atomic_file, write_json
    from lightgpt2.report.plots import typing_plots
    from lightgpt2.report.table import typing_table
    from lightgpt2.runtime.language_model import LanguageModel

    path = Path(output)
    refuse(unwritable("--output", path, path.parent))
    every = [*models, *([] if partial is None else [partial])]

    def loaded(name: str) -> Any:
        key = "--partial" if name == partial else "MODEL"
        model = load_quietly(name, threads, key, trust_remote_code=trust_remote_code)
        if not isinstance(model, LanguageModel):
            raise UserError(f"{key}: {name} does not continue texts; give a model that does")
        return model

    with named_as_options(type, "sample"):
        documents = _test_split(text) or keystrokes.read_documents(Path(text), "text")
        chosen = keystrokes.plan(documents, text, samples, keys, context, words, seed)
        rows, baseline = dict[str, Any](), None
        rounds = len(models) * (1 + unconstrained + (partial is not None))
        try:
            with tqdm(total=rounds * chosen.steps, unit="place", disable=None) as bar:
                for name, completer, constrained in keystrokes.variants(models, loaded, partial, unconstrained):
                    bar.set_description(name[-40:])
                    suggest = keystrokes.suggestions(completer, beams, constrained)
                    played = keystrokes.play(chosen, suggest, bar.update)
                    rows[name] = keystrokes.summary(played, baseline)
                    baseline = baseline or played
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; {output} was not written") from None
    settings = {
        "text": text, "samples": samples, "keys": keys, "context": context, "words": words, "beams": beams, "seed": seed,
        "threads": threads, "models": every, "partial": partial,
    }  # fmt: skip
    result = {"settings": settings, "rows": rows}
    write_json(path, result)
    written = {path.with_name(f"{path.stem}-{plot.name}.svg"): plot for plot in typing_plots(result)}
    for file, plot in written.items():
        with atomic_file(file) as temporary:
            temporary.write_text(plot.file(), encoding="utf-8")
    print(f"{typing_table(result)}\n\nfigures: {output}   plots: {' '.join(map(str, written))}", flush=True)
