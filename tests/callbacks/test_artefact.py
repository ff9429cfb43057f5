"""The sizes in the table: of the files that a person has."""

from pathlib import Path

import pytest
import torch

from lightgpt2.models.files import folder_megabytes
from lightgpt2.models.quality import value_of
from tests.support.mistakes import Bench
from tests.support.models import make_model, write_model
from tests.support.stages import entries, stage

_LINE = "is stored in {}, and this model in FP32: its file is twice as large."


@pytest.mark.slow
@pytest.mark.parametrize(("method", "dtype"), [("FineTune", torch.bfloat16), ("LoRA", torch.float16)])
def test_a_source_in_half_precision_has_the_size_of_its_file(bench: Bench, method: str, dtype: torch.dtype) -> None:
    write_model(Path("half"))
    make_model("gpt2").to(dtype).save_pretrained("half")
    bench.configure(stage(method, "half"))
    shown = bench.succeed("fit")
    sizes = entries()[-1]["reference_sizes"]["before"], entries()[-1]["sizes"]
    assert sizes[0]["megabytes"] == folder_megabytes(Path("half"))
    assert sizes[1]["megabytes"] == pytest.approx(2 * sizes[0]["megabytes"], rel=0.1)
    assert f"half {_LINE.format('BF16' if dtype == torch.bfloat16 else 'F16')}" in shown
    for words in ("%) trained by LoRA", "adapter: checkpoints/r/adapter"):
        assert (words in shown) == (method == "LoRA")


@pytest.mark.slow
def test_a_teacher_in_half_precision_has_the_size_of_its_file_and_its_student_its_own(bench: Bench) -> None:
    make_model("gpt2").to(torch.bfloat16).save_pretrained("teacher")
    bench.configure()
    shown = bench.succeed("fit")
    assert "twice as large" not in shown
    sizes = entries()[-1]["reference_sizes"]
    assert sizes["teacher"]["megabytes"] == folder_megabytes(Path("teacher"))
    assert sizes["before"]["megabytes"] == entries()[-1]["sizes"]["megabytes"]
    values = {label: value_of(each) for label, each in entries()[-1]["quality"].items()}
    for label in ("before", "after"):
        said = (
            f"The teacher is worse on this text than the student {label} training (perplexity {values['teacher']:.4f}"
        )
        assert (said in shown) == (values["teacher"] > values[label])
