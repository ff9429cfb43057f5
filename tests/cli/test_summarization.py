"""The real command on summarization: killed and resumed, predictions, baselines beside each model, and the report."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lightgpt2.data.tokenizer import train_text_to_text
from tests.cli.test_resume import assert_same_run, fit, fit_killed
from tests.support.cli import run_cli, succeed, write_config
from tests.support.models import ENCODER_DECODERS, make_model, make_seq2seq

pytestmark = pytest.mark.slow

ROWS = [
    {"text": f"Unit {i} sends {i % 7} values. It may stop. Nobody knows.", "summary": f"Unit {i} sends."}
    for i in range(80)
]


def write_run(folder: Path, model: dict[str, Any], **data: Any) -> dict[str, Any]:
    """Writes texts, an encoder-decoder and a decoder with one tokenizer, and `config.yaml`, whose content it returns."""
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    train_text_to_text([" ".join(row.values()) for row in ROWS], 300, folder / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    size = len(tokenizer)
    shape = ENCODER_DECODERS["bart"] | {"vocab_size": size, "max_position_embeddings": 64}
    wide = {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}  # as bitsandbytes wants them
    made = {
        "teacher": make_seq2seq("bart", **shape),
        "wide": make_seq2seq("bart", **shape | wide),
        "decoder": make_model("gpt2", vocab_size=size, bos_token_id=0, eos_token_id=2, pad_token_id=1),
    }
    for name, each in made.items():
        each.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    task = {"class_path": "lightgpt2.tasks.Summarization", "init_args": {"samples": 1, "max_new_tokens": 5}}
    optimizer = {"lr": 3.0e-3, "warmup_steps": 2}
    config = {
        "seed_everything": 7,
        "model": {**model, "init_args": {"optimizer": optimizer, "task": task, **model["init_args"]}},
        "data": {
            "class_path": "lightgpt2.data.TextToTextData",
            "init_args": {
                "source": "t.jsonl", "max_source_length": 40, "max_target_length": 16, "batch_size": 4, **data,
            },
        },
        "checkpoint": {"every_n_steps": 4},
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_steps": 14, "enable_progress_bar": False,
            "check_val_every_n_epoch": None, "val_check_interval": 12, "gradient_clip_val": 1.0,
            "accumulate_grad_batches": 2,
        },
    }  # fmt: skip
    write_config(folder / "config.yaml", config)
    return config


DISTILL = {"class_path": "lightgpt2.methods.Distill", "init_args": {"teacher": "teacher", "layers": 2}}
TRIM = {
    "class_path": "lightgpt2.methods.Trim",
    "init_args": {"model": "teacher", "layers": {"decoder": 2}, "ffn": 20, "vocabulary": "corpus"},
}
QLORA = {"class_path": "lightgpt2.methods.QLoRA", "init_args": {"model": "wide"}}
DECODER = {"class_path": "lightgpt2.methods.LoRA", "init_args": {"model": "decoder"}}


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (DISTILL, {"generated_by": "teacher", "generation": {"num_beams": 2, "max_new_tokens": 6}}),
        (TRIM, {}),
        (QLORA, {}),
        (DECODER, {"template": "{source} So: "}),
    ],
    ids=["Distill with generated targets", "Trim", "QLoRA", "LoRA on a decoder"],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, model: dict[str, Any], data: dict[str, Any]) -> None:
    write_run(tmp_path, model, **data)
    succeed(tmp_path, "check", "--config", "config.yaml")
    assert not [*tmp_path.glob("checkpoints/.data/targets-*")], "a check generates nothing"
    fit(tmp_path, "whole")
    fit_killed(tmp_path, "killed", [11, 9])
    assert_same_run(tmp_path, "whole", "killed")
    succeed(tmp_path, "check", "--config", "config.yaml", "--run", "whole", "--ckpt_path", "last")


def test_a_run_from_its_fit_to_its_report(tmp_path: Path) -> None:
    write_run(tmp_path, DISTILL)
    printed = fit(tmp_path, "short", "--trainer.max_steps", "2")
    for label in ("teacher", "student before", "student after", "lead-3", "oracle"):
        assert f"\n{label} " in printed
    folder = tmp_path / "checkpoints/short"
    entry = json.loads((folder / "model/ledger.json").read_text())[-1]
    assert entry["quality"]["after"]["primary"] == "rouge1"
    assert entry["quality"]["oracle"]["baseline"] is True
    assert entry["quality"]["oracle"]["rouge1"]["value"] > entry["quality"]["lead-3"]["rouge1"]["value"]
    assert entry["config"]["model"]["init_args"]["task"]["init_args"]["max_new_tokens"] == 5  # the decoding is kept
    (sample,) = entry["samples"]
    assert {row["text"]: row["summary"] for row in ROWS}[sample["prompt"]] == sample["reference"]

    succeed(tmp_path, "report", "checkpoints/short")
    report = (tmp_path / "report.md").read_text()
    assert "| lead-3 |" in report
    assert "| oracle |" in report
    assert sample["reference"] in report

    printed = succeed(tmp_path, "validate", "--config", "config.yaml", "--run", "short")
    assert "rouge1 " in printed
    assert "oracle: rouge1 " in printed
    succeed(tmp_path, "predict", "--config", "config.yaml", "--run", "short", "--data.predict_split", "valid")
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert all({*line} >= {"example", "source", "summary", "reference", "rouge1"} for line in lines)
    assert [line["example"] for line in lines] == [*range(len(lines))]


def test_mistakes_are_one_message_each(tmp_path: Path) -> None:
    write_run(tmp_path, DISTILL)
    wrong = {
        (
            "--model.task.init_args.max_new_tokens",
            "500",
        ): "model.task.max_new_tokens: 500 is more than the model's 64 positions",
        ("--data.generated_by", "./nowhere"): "data.generated_by: ./nowhere does not exist",
        ("--data.target_field", "gist"): "data.target_field: t.jsonl has no field gist",
        ("--data.max_source_length", "100"): "data.max_source_length: 100 is longer than the 64 positions",
        ("--model.layers", "[0, 9]"): "model.layers: ",
        ("--model.student", "decoder"): "it is an encoder-decoder, and the model a decoder; choose two of one kind",
    }
    for options, message in wrong.items():
        extra = ["--model.layers", "null", "--model.loss.hidden", "0"] if options[0] == "--model.student" else []
        done = run_cli(tmp_path, "check", "--config", "config.yaml", *options, *extra)
        assert done.returncode == 2, options
        assert message in done.stderr, (options, done.stderr)
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "checkpoints/config").exists()
