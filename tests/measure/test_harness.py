"""`evaluate`: model folders and exported folders under lm-evaluation-harness, beside its own model `hf`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import yaml

from tests.support.cli import call, refused
from tests.support.models import write_classifier, write_model
from tests.support.onnx_decoder import write_decoder

CHOICES = [f" {word}" for word in ("an object", "a", "the name of a class", "nothing")]
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "text": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "written": {
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["the"], "max_gen_toks": 12}, "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip
NAMES = ",".join(f"{name}.yaml" for name in TASKS)


def test_without_the_extra_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lightgpt2.measure.harness", raising=False)
    (line,) = refused(["evaluate", "gone", "--tasks", "hellaswag"], capsys)
    assert line == "evaluate: the package lm_eval is not installed; install the extra: pip install 'lightgpt2[eval]'"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with task files and their data, models with a context of 64 positions, and a classifier."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("harness")
    pieces = [topics["class"][at : at + 70 + 9 * number] for number, at in enumerate(range(0, 1200, 100))]
    pieces[3] *= 4  # longer than the context
    rows = [{"question": text, "choices": CHOICES, "answer": number % 4} for number, text in enumerate(pieces)]
    for split, part in (("train", rows[8:]), ("test", rows[:8])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")}}
    for name, task in TASKS.items():
        splits = {"training_split": "train", "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **splits, **task}))
    for family in ("gpt2", "llama"):
        write_model(folder / family, family)
    write_decoder(folder / "exported")
    write_classifier(folder / "classifier")
    return folder


@pytest.fixture
def inside(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(prepared)
    return prepared


def own(model: str, **options: Any) -> dict[str, Any]:
    """What the harness says of a model folder itself."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    options["task_manager"] = TaskManager(include_defaults=False)
    found = simple_evaluate(
        "hf", {"pretrained": model, "dtype": "float32"}, tasks=NAMES.split(","), batch_size=3, device="cpu",
        bootstrap_iters=1000, random_seed=0, numpy_random_seed=0, torch_random_seed=0, fewshot_random_seed=0, **options,
    )  # fmt: skip
    return dict(found)


def figures(found: dict[str, Any]) -> dict[tuple[str, str], float]:
    """The values and standard errors of all tasks that have any."""
    results = found["results"].items()
    return {
        (task, key): value for task, each in results for key, value in each.items()
        if "," in key and isinstance(value, float | int)
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("model", "fewshot", "limit"), [("gpt2", 0, None), ("llama", 1, 6)])
def test_figures_are_those_of_the_harness_s_own_model(
    inside: Path, capsys: pytest.CaptureFixture[str], model: str, fewshot: int, limit: int | None
) -> None:
    options = ["--fewshot", str(fewshot), *([] if limit is None else ["--limit", str(limit)])]
    code, printed, error = call(capsys, "evaluate", model, "--tasks", NAMES, "--batch", "5", *options)
    assert code == 0, error
    found = json.loads(Path("evaluation.json").read_text())
    expected = own(model, num_fewshot=fewshot, limit=limit)
    assert figures(found) == pytest.approx(figures(expected), rel=1e-5, abs=1e-9)
    assert {("choice", "acc_norm_stderr,none"), ("text", "bits_per_byte,none")} <= figures(found).keys()
    assert found["n-shot"] == expected["n-shot"]
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in printed.splitlines() if line.split()}
    shown = [f"{found['results']['choice'][f'acc{kind},none']:.4f}" for kind in ("", "_stderr")]
    assert rows["choice", "acc"] == [*shown, "higher", str(limit or 8), str(fewshot)]
    assert rows["text", "word_perplexity"][-3] == "lower"


@pytest.mark.slow
def test_every_answer_is_that_of_the_harness_s_own_model(inside: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from lightgpt2.measure.harness import EngineLM
    from lightgpt2.models.tokenizers import load_tokenizer
    from lightgpt2.runtime.loading import load

    ours = EngineLM(load("gpt2"), load_tokenizer("gpt2", "MODEL"), batch=3)
    theirs = HFLM(pretrained="gpt2", device="cpu", batch_size=2)
    text = topics["class"]

    def requests(kind: str, *every: tuple[Any, ...]) -> list[Any]:
        return [Instance(kind, {}, arguments, number) for number, arguments in enumerate(every)]

    pairs = [
        ("", "The pump"),
        ("The pump", " shall"),
        ("The pump", " is"),
        ("The pump ", "opens"),
        (text[:400], " a class"),
    ]
    likely = [each.loglikelihood(requests("loglikelihood", *pairs)) for each in (ours, theirs)]
    assert [value for value, _ in likely[0]] == pytest.approx([value for value, _ in likely[1]], rel=1e-5)
    greedy = theirs.generate_until(requests("generate_until", ("The pump", {"until": [], "max_gen_toks": 1})))
    pair = requests("loglikelihood", ("The pump", greedy[0]), *pairs[:1])
    assert [flag for _, flag in ours.loglikelihood(pair)] == [flag for _, flag in theirs.loglikelihood(pair)]
    rolling = requests("loglikelihood_rolling", (text[:900],), ("a",), (text[:60],))
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(theirs.loglikelihood_rolling(rolling), rel=1e-5)
    settings = {"until": ["e", "\n"], "max_gen_toks": 20}
    prompts = requests("generate_until", ("The pump", settings), ("A class is", settings), (text[:60], {"until": []}))
    del prompts[2]  # whose 256 tokens have no room
    assert ours.generate_until(prompts) == theirs.generate_until(prompts)


@pytest.mark.slow
def test_an_exported_folder_has_the_figures_of_its_model(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lightgpt2.models.tokenizers import load_tokenizer
    from tests.support.onnx_decoder import tiny_model

    load_tokenizer("exported", "MODEL").save_pretrained("source")
    tiny_model().save_pretrained("source")
    found = []
    for model in ("exported", "source"):
        code, _, error = call(capsys, "evaluate", model, "--tasks", NAMES, "--output", f"{model}.json")
        assert code == 0, error
        found.append(figures(json.loads(Path(f"{model}.json").read_text())))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.slow
def test_bad_input_is_one_message_each(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(*args: str) -> str:
        (line,) = refused(["evaluate", *args], capsys)
        return line

    Path("evaluation.json").unlink(missing_ok=True)
    assert message("gpt2", "--tasks", " , ").startswith("--tasks: must name at least one task")
    assert message("gpt2", "--tasks", NAMES, "--output", "gpt2").startswith("--output: gpt2 is a folder")
    assert message("gone", "--tasks", NAMES).startswith("MODEL: ")
    assert message("classifier", "--tasks", NAMES).startswith(
        "MODEL: classifier does not continue texts; give a language"
    )
    told = message("gpt2", "--tasks", f"{NAMES},helaswag")
    assert told.startswith(
        "--tasks: there is no task 'helaswag' in lm_eval, and no file of that name; did you mean hellaswag?"
    )
    assert "hellaswag cannot be evaluated" in (told := message("gpt2", "--tasks", "hellaswag"))
    assert "its data are on the hub: fetch them where there is a network" in told
    Path("damaged.yaml").write_text("task: [")
    assert message("gpt2", "--tasks", "damaged.yaml").startswith("--tasks: damaged.yaml cannot be evaluated (")
    long = yaml.safe_load(Path("written.yaml").read_text()) | {"generation_kwargs": {"max_gen_toks": 64}}
    Path("long.yaml").write_text(yaml.safe_dump(long))
    told = message("gpt2", "--tasks", "long.yaml")
    assert told.startswith(
        "--tasks: a task asks for 64 new tokens, and the model has 64 positions; give a task file with"
    )
    beams = long | {"generation_kwargs": {"max_gen_toks": 8, "num_beams": 4}}
    Path("beams.yaml").write_text(yaml.safe_dump(beams))
    assert "the generation setting num_beams, which is not done" in message("gpt2", "--tasks", "beams.yaml")
    assert not Path("evaluation.json").exists()
