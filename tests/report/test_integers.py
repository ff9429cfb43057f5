"""What the report says of a model that was saved as integers, and of its packed copy."""

from pathlib import Path
from typing import Any

from lightgpt2.report.chain import models
from lightgpt2.report.pages import write_report
from lightgpt2.report.verdicts import compare
from lightgpt2.report.words import did
from tests.report.chains import Entry, entry, score, write


def trained(**form: Any) -> Entry:
    """A stage that trained GPT-2 with rounded weights."""
    operation = {
        "op": "integers",
        "bits": 8,
        "group": None,
        "activations": False,
        "embeddings": True,
        "matched": 49,
        **form,
    }
    made = entry("small", "QAT", 25.5, 124_439_808, parent={"source": "gpt2", "sha256": ""}, operations=[operation])
    made["quality"] |= {"before": score(26.0), "source": score(25.0)}
    made["sizes"]["megabytes"] = 125.4
    return made


def packed(stage: Entry) -> Entry:
    sizes = {**stage["sizes"], "megabytes": 57.9, "dense_megabytes": 125.4, "memory": 497.76}
    operation = {"op": "packed", "tensors": 198, "sparse": 121}
    quality = {"after": stage["quality"]["after"]}
    made = {**stage, "method": "PackedArtefact", "operations": [operation], "sizes": sizes, "quality": quality}
    return {key: value for key, value in made.items() if key not in ("benchmark", "curve", "training")}


def test_what_was_done_is_told_with_its_scales() -> None:
    assert did(trained()) == (
        "trained with rounded weights, saved as INT8 with a scale for each output channel, embeddings included"
    )
    assert did(trained(bits=4, group=32, activations=True, embeddings=False)).endswith(
        "INT4 with a scale for each group of 32 inputs, embeddings in full precision, the layers' inputs rounded to INT8"
    )
    assert did(packed(trained())) == "packed"


def test_dense_packed_and_in_memory_bytes_are_told_apart(tmp_path: Path) -> None:
    stage = trained()
    folders = {"checkpoints/small/model": [stage], "checkpoints/small/model-packed": [stage, packed(stage)]}
    rows = {row.name: row for row in models(folders)}
    assert rows["small packed"].kind == "packed"
    assert rows["small packed"].stage is rows["small"]
    assert compare(rows["small"], 1.0, 10.0).before == 25.0, "of what was given, and not of that rounded"
    write(tmp_path, folders)
    write_report([str(tmp_path / "checkpoints/small")], str(tmp_path / "out"), 1.0, 10.0)
    text = (tmp_path / "out/report.md").read_text()
    assert "| small packed | 125.4 | 57.90 | 497.8 | -53.8 % |" in text
    assert (
        "Packed it takes 57.90 MB on disk, without that 125.4; in memory its weights are 497.8 MB either way." in text
    )
    assert "loaded, they are multiplied with their scales and are FP32 weights of 497.8 MB" in text
    assert "Where the quantized models' saving comes from" not in text
