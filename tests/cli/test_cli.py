"""The real command, end to end, on tiny models of both families."""

import inspect
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightgpt2.cli.commands import VERBS
from lightgpt2.cli.trainer_settings import TRAINER_VERBS
from lightgpt2.models.ledger import config_hash
from lightgpt2.models.quality import value_of
from tests.support.cli import ENVIRONMENT, call, logged, run_alone, succeed, write_config
from tests.support.mistakes import spoilt
from tests.support.models import SHAPES, write_corpus, write_model


def config(method: str, **init: Any) -> dict[str, Any]:
    model = {"class_path": f"lightgpt2.methods.{method}", "init_args": {"optimizer": {"lr": 3.0e-3}, **init}}
    trainer = {"trainer.max_steps": 12, "trainer.val_check_interval": 6, "checkpoint.every_n_steps": 5}
    return spoilt({"seed_everything": 5, "model": model, **trainer})


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `distil` was fitted, with the teacher that it needs made on the way."""
    folder = tmp_path_factory.mktemp(request.param)
    write_corpus(folder / "corpus")
    teacher = config("FineTune", model={"model_type": request.param, **SHAPES[request.param]})
    teacher["data"]["init_args"]["vocab_size"] = 300
    write_config(folder / "maker.yaml", teacher)
    student = config("Distill", teacher="checkpoints/maker/model", layers=[0, 3])
    student["needs"] = {"checkpoints/maker/model": "maker.yaml", "checkpoints/other/model": "other.yaml"}
    write_config(folder / "distil.yaml", student)
    output = succeed(folder, "fit", "--config", "distil.yaml")
    (folder / "output.txt").write_text(output)
    return folder


def ledger(folder: Path) -> Any:
    return json.loads((folder / "checkpoints/distil/model/ledger.json").read_text())


def one(test: Callable[..., None]) -> Callable[..., None]:
    """A test on one of the families, whose fixture is slow."""
    return pytest.mark.slow(pytest.mark.parametrize("chain", ["gpt2"], indirect=True)(test))


@pytest.mark.slow
def test_fit_makes_what_it_needs_and_prints_the_table(chain: Path) -> None:
    lines = (chain / "output.txt").read_text().splitlines()
    assert any("checkpoints/maker/model is needed and not there" in line for line in lines)
    assert any(line.startswith("checkpoints/maker/model made in ") for line in lines)
    rows = {line.split("  ")[0]: line.split() for line in lines if line.startswith(("teacher", "student"))}
    assert set(rows) == {"teacher", "student before", "student after"}
    quality = ledger(chain)[-1]["quality"]
    for name, label in (("teacher", "teacher"), ("student before", "before"), ("student after", "after")):
        metric = quality[label]["perplexity"]
        assert f"{metric['value']:.2f}" in rows[name]
        assert metric["interval_95"][0] < metric["value"] < metric["interval_95"][1]
    assert value_of(quality["after"]) < value_of(quality["before"])


@one
def test_run_folder_holds_the_promised_files_and_ledger(chain: Path) -> None:
    run = chain / "checkpoints/distil"
    assert {"best.ckpt", "config.yaml", "last.ckpt", "model"} == {p.name for p in run.iterdir()}
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["model"]["init_args"]["loss"]["temperature"] == 2.0, "defaults are written out"
    maker, distil = ledger(chain)
    assert (maker["method"], distil["method"]) == ("FineTune", "Distill")
    assert distil["operations"] == [{"op": "extract_layers", "layers": [0, 3]}]
    assert len(distil["parent"]["sha256"]) == len(distil["data"]["sha256"]) == 64
    assert distil["parent"] == distil["teacher"]
    assert (distil["config"], distil["config_sha256"]) == (resolved, config_hash(resolved))
    assert (distil["steps"], distil["seed"]) == (12, 5)
    state = torch.load(run / "last.ckpt", weights_only=True)
    assert not any("teacher" in key for key in state["state_dict"])


@one
def test_tensorboard_has_curves_config_samples_and_final_metrics(chain: Path) -> None:
    curves = logged(chain, "distil")
    train = {"loss", "ce", "kd", "hidden", "grad_norm", "lr", "tokens_per_s", "memory_mb"}
    assert {f"train/{name}" for name in train} | {"val/loss", "val/perplexity", "final/perplexity"} <= curves.keys()
    assert list(curves["train/loss"]) == list(range(1, 13))
    assert list(curves["val/loss"]) == [6, 12]
    assert all(v > 0 for v in curves["train/tokens_per_s"].values())
    weights = {"ce": 0.1, "kd": 0.8, "hidden": 3.0}
    for step, total in curves["train/loss"].items():
        terms = sum(weight * curves[f"train/{name}"][step] for name, weight in weights.items())
        assert terms == pytest.approx(total, rel=1e-5)
    events = EventAccumulator(str(chain / "tb-logs/distil"))
    events.Reload()
    assert {"config/text_summary", "samples/text_summary"} <= set(events.Tags()["tensors"])
    assert "_hparams_/session_start_info" in events.summary_metadata


@one
def test_artefact_generates_where_there_is_only_torch_transformers_and_safetensors(chain: Path) -> None:
    script = """
import importlib.util
for name in ("lightgpt2", "lightning", "torchmetrics", "datasets", "jsonargparse", "tensorboard", "accelerate"):
    assert importlib.util.find_spec(name) is None, name
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("The object", return_tensors="pt")
out = model.generate(**ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)
assert model.config.num_hidden_layers == 2
print(out.shape[1] - ids["input_ids"].shape[1])
"""
    done = run_alone(script, str(chain / "checkpoints/distil/model"))
    assert done.stdout.strip() == "8", done.stderr


def perplexity(output: str) -> float:
    """What `validate` or `test` printed."""
    return float(output.split("perplexity ")[1].split()[0])


@one
def test_scoring_verbs_agree_with_the_table_on_artefact_and_checkpoint(chain: Path) -> None:
    quality = ledger(chain)[-1]["quality"]
    for label, given in (("after", []), ("after", ["last"]), ("teacher", ["checkpoints/maker/model"])):
        options = ["--ckpt_path", *given] if given else []
        shown = succeed(chain, "validate", "--config", "distil.yaml", *options)
        assert perplexity(shown) == pytest.approx(value_of(quality[label]), rel=1e-6)


@one
def test_predict_writes_scores_and_continuations(chain: Path) -> None:
    predictions = chain / "checkpoints/distil/predictions.jsonl"
    shown = succeed(chain, "test", "--config", "distil.yaml")
    succeed(chain, "predict", "--config", "distil.yaml")
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    nll, tokens = sum(row["nll"] for row in rows), sum(row["tokens"] for row in rows)
    assert math.exp(nll / tokens) == pytest.approx(perplexity(shown), rel=1e-4)
    assert [row["document"] for row in rows] == list(range(len(rows)))
    text = "\n".join(path.read_text() for path in (chain / "corpus").iterdir())
    assert all(row["text"] and row["text"] in text for row in rows)
    succeed(chain, "predict", "--config", "distil.yaml", "--model.task.predict", "continuations")
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert all(row["prompt"] and row["continuation"] for row in rows)


@pytest.mark.slow
def test_hub_names_load_from_the_local_cache(tmp_path: Path) -> None:
    """Folders that stand in for the hub's cache; the code that reads them is the hub's own."""
    for name, layers in (("gpt2-medium", 4), ("gpt2", 2)):
        repository = tmp_path / "hub" / f"models--{name}"
        write_model(repository / "snapshots" / "abc", n_layer=layers)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
    write_corpus(tmp_path / "corpus")
    settings = {
        "data.source": "corpus", "data.sequence_length": 32, "data.stride": 16, "data.batch_size": 2,
        "trainer.max_steps": 2, "trainer.max_epochs": "null", "trainer.val_check_interval": 2,
        "trainer.precision": "32-true", "trainer.accumulate_grad_batches": 1, "model.optimizer.warmup_steps": 1,
    }  # fmt: skip
    options = [f"--{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "lightgpt2", "fit", "--config", "distill-gpt2.yaml", *options]
    cache = {"HF_HUB_CACHE": str(tmp_path / "hub")}  # read at the import of the hub's library
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT | cache, capture_output=True, text=True, timeout=240)
    assert "student after" in done.stdout, done.stderr


@one
def test_check_counts_and_trains_nothing(chain: Path) -> None:
    before = sorted(p for p in chain.rglob("*") if p.is_file())
    output = succeed(chain, "check", "--config", "distil.yaml", "--run", "new")
    total = ledger(chain)[-1]["sizes"]["parameters"]
    assert f"trainable parameters: {total:,} of {total:,} (100.0000%)" in output
    assert "optimizer steps: 12" in output
    assert sorted(p for p in chain.rglob("*") if p.is_file()) == before


# -- in this process -------------------------------------------------------------------------------------------------


def test_each_verb_is_in_the_overview_and_has_a_page_with_all_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    code, overview, _ = call(capsys, "--help")
    assert code == 0
    for verb in (*TRAINER_VERBS, *VERBS):
        assert re.search(rf"^  {verb} +[A-Z].*\.$", overview, flags=re.MULTILINE)
        code, page, _ = call(capsys, verb, "--help")
        assert code == 0
        assert page.startswith(f"usage: lightgpt2 {verb} ")
    for verb, function in VERBS.items():
        _, page, _ = call(capsys, verb, "-h")
        for parameter in inspect.signature(function).parameters.values():
            positional = parameter.kind is not parameter.KEYWORD_ONLY
            name = parameter.name.upper() if positional else f"--{parameter.name.replace('_', '-')}"
            assert re.search(rf"^  {name}( .*)?$", page, flags=re.MULTILINE), name


CHOICES = f"give one of {', '.join([*TRAINER_VERBS, *VERBS])} (lightgpt2 --help)"
# A command line, and all messages that it gives.
MISTAKES: dict[str, list[str]] = {
    "benchmark m --precision fp32 int3 --rounds x --new-tokens 3 0": [
        "--precision: must be one of fp32, bf16, fp16, int8, nf4, dynamic-int8, got 'int3'; see lightgpt2 benchmark --help",
        "--rounds: must be a whole number >0, got 'x'; see lightgpt2 benchmark --help",
        "--new-tokens: must be a whole number >0, got '0'; see lightgpt2 benchmark --help",
    ],
    "export m --format gguf --group x": ["--group: must be a whole number >0, got 'x'; see lightgpt2 export --help"],
    "benchmark": ["the following arguments are required: MODELS; see lightgpt2 benchmark --help"],
    "report x --output": ["--output: expected one argument; see lightgpt2 report --help"],
    "sweep --config x --beams 4": ["unrecognized arguments: --beams 4; see lightgpt2 sweep --help"],
    "": [f"no verb; {CHOICES}"],
    "zzz": [f"zzz: no such verb; {CHOICES}"],
    "fti": [f"fti: no such verb; did you mean fit? Else {CHOICES}"],
}


@pytest.mark.parametrize("args", MISTAKES)
def test_mistakes_in_verbs_and_options_are_all_named(args: str, capsys: pytest.CaptureFixture[str]) -> None:
    messages = "".join(f"lightgpt2: error: {message}\n" for message in MISTAKES[args])
    assert call(capsys, *args.split()) == (2, "", messages)


@pytest.mark.slow
def test_completion_is_offered() -> None:
    command = [sys.executable, "-m", "lightgpt2", "--print_completion=shtab-bash"]
    found = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=True).stdout
    assert b"complete" in found
    assert len(found) < 4e6, "a class opens the way to all of transformers' configurations"
