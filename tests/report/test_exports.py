"""What the report says of exported folders: quantized ones beside other quantized ones, the others by themselves."""

from pathlib import Path
from typing import Any

from lightgpt2.report.chain import models
from lightgpt2.report.pages import write_report
from lightgpt2.report.words import did
from tests.report.chains import Entry, arm, benchmark, entry, score, write


def trained() -> Entry:
    """A stage that fine-tuned GPT-2, measured beside what was exported of it."""
    made = entry("small", "FineTune", 25.0, 124_439_808, parent={"source": "gpt2", "sha256": ""})
    made["quality"]["before"] = score(30.0)
    made["benchmark"] = benchmark(
        arm("small", "model", "fp32", 497.8, 60.0, 20.0),
        arm("small", "model-onnx-int8", "onnx-int8", 124.4, 24.0, 130.0, embedding_mb=None, attention="graph"),
        arm("small", "model-onnx", "onnx", 498.0, 40.0, 42.0, embedding_mb=None, attention="graph"),
    )
    return made


def exported(stage: Entry, perplexity: float, megabytes: float, **operation: Any) -> Entry:
    parent = {"source": f"checkpoints/{stage['stage']}/model", "sha256": "x"}
    done = {"op": "export", "agreement": {"cache": 0.9912, "source": 0.875, "tokens": 1280}, **operation}
    made = entry("export", "Export", perplexity, 124_439_808, parent=parent, operations=[done], steps=0, seconds=0.0)
    made["quality"]["before"] = stage["quality"]["after"]
    made["sizes"] |= {"megabytes": megabytes}
    return made


def ledgers(stage: Entry) -> dict[str, list[Entry]]:
    folder = "checkpoints/small/model"
    onnx = {"format": "onnx", "layers": "fp32", "embeddings": "fp32"}
    int8 = {"format": "onnx-int8", "layers": "int8", "embeddings": "int8", "scales": "rounded"}
    gguf = {"format": "gguf", "type": "F16"}
    return {
        folder: [stage],
        f"{folder}-onnx": [stage, exported(stage, 25.0, 498.0, **onnx)],
        f"{folder}-onnx-int8": [stage, exported(stage, 25.25, 124.4, **int8)],
        f"{folder}-gguf": [stage, exported(stage, 25.0, 249.0, **gguf)],
    }


def test_what_an_export_did_is_told_with_its_formats() -> None:
    stage = trained()
    int4 = exported(stage, 26.0, 90.0, format="onnx-int4", layers="int4", embeddings="int8-blocks", scales="rounded")
    assert did(int4) == "exported as ONNX INT4 (embeddings in INT8)"
    own = exported(stage, 26.0, 90.0, format="onnx-int8", layers="int8", embeddings="int8", scales="trained")
    assert did(own) == "exported as ONNX INT8 (with the scales that were trained)"
    assert did(exported(stage, 26.0, 90.0, format="gguf", type="Q4_0")) == r"exported as GGUF Q4\_0"


def test_exports_are_rows_with_what_was_measured_of_their_folders() -> None:
    rows = {row.name: row for row in models(ledgers(trained()))}
    assert [*rows] == ["gpt2 (untouched)", "small", "small gguf", "small onnx", "small onnx-int8"]
    assert {name: row.kind for name, row in rows.items()} == {
        "gpt2 (untouched)": "source",
        "small": "stage",
        "small gguf": "exported",
        "small onnx": "exported",
        "small onnx-int8": "quantized",
    }
    int8 = rows["small onnx-int8"]
    assert int8.stage is int8.parent is rows["small"]
    assert (int8.figures["disk"], int8.figures["tokens 128"], int8.figures["weights"]) == (124.4, 130.0, 124.4)
    assert "tokens 128" not in rows["small gguf"].figures


def test_scales_that_were_trained_are_no_quantization_of_what_is_quantized_already() -> None:
    stage = trained()
    own = exported(stage, 25.0, 125.0, format="onnx-int8", layers="int8", embeddings="int8", scales="trained")
    (_, _, row) = models({"checkpoints/small/model": [stage], "checkpoints/small/model-onnx-int8": [stage, own]})
    assert row.kind == "exported"


def test_the_report_says_what_exports_bought(tmp_path: Path) -> None:
    write(tmp_path, ledgers(trained()))
    write_report([str(tmp_path / "checkpoints/small")], str(tmp_path / "out"), 1.0, 10.0)
    text = (tmp_path / "out/report.md").read_text()
    assert "**small onnx-int8** (exported as ONNX INT8, from small): **pays**" in text
    assert "On this machine ONNX INT8 is 6.5 times faster than FP32 (tokens/s at 128: 20.00 to 130.0)." in text
    assert "ONNX INT8 saves 75.0 % of the space on disk against FP32 (497.8 to 124.4 MB)" in text
    assert "**small onnx** (exported as ONNX FP32, from small): **pays**" in text
    assert "Of 1,280 greedy tokens 87.50 % are those of PyTorch, and 99.12 % those that come without the cache." in text
    assert "| small onnx-int8 | disk |" in text
    assert "| small onnx | disk |" not in text, "it was not quantized"
    assert "### small gguf" in text


def test_an_export_of_a_model_without_a_ledger_stands_beside_its_source(tmp_path: Path) -> None:
    alone = exported(trained(), 31.0, 124.4, format="onnx-int8", layers="int8", embeddings="int8", scales="rounded")
    alone |= {"parent": {"source": "gpt2", "sha256": ""}, "quality": {"before": score(30.0), "after": score(31.0)}}
    source, row = models({"gpt2-onnx-int8": [alone]})
    assert (source.kind, source.figures["perplexity"], row.figures["perplexity"]) == ("source", 30.0, 31.0)
    write(tmp_path, {"gpt2-onnx-int8": [alone]})
    write_report([str(tmp_path / "gpt2-onnx-int8")], str(tmp_path / "out"), 1.0, 10.0)
    assert "Perplexity 30.00 to 31.00 (+3.3 %)" in (tmp_path / "out/report.md").read_text()
