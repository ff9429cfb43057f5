"""Ledgers and benchmarks to rows."""

import copy
import random
from typing import Any

import pytest

from lightgpt2.models.operations import KINDS, OperationKind, kind_of
from lightgpt2.report.document import compose, did
from lightgpt2.report.rows import Model, clause, models
from tests.report.chains import Entry, arm, benchmark, chain, copied, entry, foreign, score


def rows_of(*histories: list[Entry]) -> dict[str, Model]:
    """The rows by name of runs whose histories are given."""
    return {row.name: row for row in models({f"checkpoints/{h[-1].get('stage')}/model": h for h in histories})}


def test_rows_stand_in_the_order_of_the_chain_whatever_the_order_of_folders() -> None:
    expected = ["baseline", "distilled", "distilled bf16", "adapted", "pruned", "tuned", "tuned bf16", "tuned int8"]
    ledgers = list(chain().items())
    for seed in range(5):
        random.Random(seed).shuffle(ledgers)
        assert [row.name for row in models(dict(ledgers))] == [*expected, "tuned nf4"]


def test_stages_of_one_depth_stand_in_the_order_in_which_they_ended_each_with_its_own_parent() -> None:
    first = entry("first", 40)
    late = entry("a", 39, 100, first, finished="2025-01-02T00:00:00")
    early = entry("b", 38, 100, first, finished="2025-01-01T00:00:00")
    rows = rows_of([first], [first, late], [first, early])
    assert list(rows) == ["first", "b", "a"]
    assert rows["b"].parent is rows["a"].parent is rows["first"]


def test_figures_come_from_the_arm_of_the_model_and_precision() -> None:
    rows = {row.name: row.figures for row in models(chain()) if "tuned" in row.name}
    assert [figures["weights"] for figures in rows.values()] == [327.7, 204.8, 190.9, 180.2], "fp16 ran out of memory"
    assert rows["tuned nf4"]["forward 16x128"] == 14 * 52.0
    assert rows["tuned nf4"]["tokens/s 256"] == pytest.approx(22.1 * 0.95)


def test_ancestors_without_a_folder_are_rows_and_the_newest_copy_of_an_entry_counts() -> None:
    ledgers = {name: entries for name, entries in chain().items() if "tuned" in name}
    assert [row.name for row in models(ledgers)][:3] == ["baseline", "distilled", "distilled bf16"]
    ledgers = chain()
    for entries in ledgers.values():  # benchmarked after its descendants were there
        for old in entries[:-1]:
            old.pop("benchmark", None)
    assert {row.name: row for row in models(ledgers)}["distilled"].figures["weights"] == 327.7


def test_a_descendant_of_an_earlier_fit_is_not_tied_to_the_newer_one() -> None:
    first, again = entry("first", 40), entry("first", 30, seconds=99.0)
    rows = rows_of([again], [first, entry("next", 35, 100, first)])
    assert set(rows) == {"first", "first (an earlier fit)", "next"}
    assert rows["next"].parent is rows["first (an earlier fit)"]


def test_the_source_is_a_row_with_what_the_first_stage_measured_of_it() -> None:
    tuned = entry("tuned", 30, parent={"source": "gpt2", "sha256": ""})
    assert rows_of([tuned])["gpt2 (untouched)"].score.value is None
    tuned |= {"quality": tuned["quality"] | {"before": score(33.5)}, "reference_sizes": {"before": {"megabytes": 9.0}}}
    tuned["benchmark"] = benchmark(arm("x", "y", "fp32", 5, 6, 7, source="gpt2"))
    source = rows_of([tuned])["gpt2 (untouched)"]
    assert (source.score.value, source.figures["disk"], source.figures["weights"]) == (33.5, 9.0, 5)
    assert list(rows_of([entry("fresh", 30)])) == ["fresh"]


@pytest.mark.parametrize("op", ["extract_layers", "trim", "trim_vocabulary", "dequantize", "integers", "unheard of"])
def test_where_the_start_is_changed_the_source_is_the_teacher_or_scored_apart(op: str) -> None:
    hub = {"source": "gpt2", "sha256": ""}
    cut = entry("cut", 30, parent=hub, operations=[{"op": op}])
    cut["quality"] |= {"before": score(9000.0), "teacher": score(25.0)}
    assert rows_of([cut])["gpt2 (untouched)"].score.value is None, "nobody says that the teacher is the source"
    assert rows_of([cut | {"teacher": hub}])["gpt2 (untouched)"].score.value == 25.0
    cut["quality"]["source"] = score(24.0)
    assert rows_of([cut])["gpt2 (untouched)"].score.value == 24.0


EXPORTS: list[tuple[Entry, str, str]] = [
    ({"op": "nf4", "matched": 8, "linears": 9}, "quantized", "NF4 in 8 of 9 linear layers"),
    ({"op": "packed"}, "packed", "packed"),
    ({"op": "export", "layers": "fp32", "embeddings": "fp32"}, "exported", "exported as ONNX FP32"),
    ({"op": "export", "layers": "int4", "embeddings": "int8-blocks", "scales": "rounded"}, "quantized",
     "exported as ONNX INT4, embeddings in INT8"),
    ({"op": "export", "layers": "int8", "scales": "trained", "agreement": {"source": 0.875}}, "exported",
     "exported as ONNX INT8, with the trained scales, 87.5 % of outputs as in PyTorch"),
    ({"op": "export", "type": "F16"}, "exported", "exported as GGUF F16"),
    ({"op": "export", "type": "Q4_0"}, "quantized", "exported as GGUF Q4_0"),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "kind", "said"), EXPORTS)
def test_copies_are_of_the_kind_that_their_operation_says(operation: Entry, kind: str, said: str) -> None:
    stage = entry("small", 25.0)
    stage["benchmark"] = benchmark(arm("small", "model-x", "whatever", 1, 2, 3))
    made = copied(stage, operation, 25.0, 1.0)
    row = models({"checkpoints/small/model": [stage], "checkpoints/small/model-x": [stage, made]})[-1]
    assert (row.name, row.kind, did(made)) == ("small x", kind, said)
    assert row.figures["weights"] == 1
    assert row.parent is not None
    assert row.score is row.parent.score, "of equal quality, so of equal weights"
    alone = made | {"parent": {"source": "gpt2", "sha256": ""}}
    source, row = models({"gpt2-x": [alone]})
    assert (source.kind, row.kind, row.parent) == ("source", kind, source)


SAID: list[tuple[Entry, str]] = [
    ({"op": "extract_layers", "layers": [0, 3]}, "layers 0, 3 kept"),
    ({"op": "trim", "width": 384, "heads": 6, "ffn": 1536, "importance": "norm"},
     "cut to 384 wide, 6 heads, 1,536 neurons a layer (by norm)"),
    ({"op": "trim_vocabulary", "before": 49152, "after": 3120}, "vocabulary cut to 3,120 of 49,152 tokens"),
    ({"op": "remove", "criterion": "l1", "heads": {"removed": 0, "of": 4}, "ffn": {"removed": 5, "of": 9}},
     "5 of 9 neurons removed (l1)"),
    ({"op": "global_l1", "achieved": 0.5, "targets": "lora", "held": True}, "50.0 % of the lora weights held at zero"),
    ({"op": "movement", "achieved": 0.5, "targets": "linear", "criterion": "x"}, "50.0 % of the linear weights pruned (x)"),
    ({"op": "integers", "bits": 4, "group": 32, "activations": True},
     "stored as INT4, a scale for each group of 32 inputs, inputs in INT8"),
    ({"op": "dequantize", "from": "nf4"}, "base dequantized from NF4"),
    ({"op": "global_l1", "achieved": "much"}, "global_l1"),
    ({"op": "unheard of"}, "unheard of"),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "said"), SAID)
def test_operations_describe_themselves_and_a_damaged_record_is_named(operation: Entry, said: str) -> None:
    assert clause(operation) == said


def test_an_operation_of_another_package_is_understood_from_its_record() -> None:
    source, stage, shrunk = models(foreign())
    assert (source.score.value, stage.kind, shrunk.kind) == (0.91, "stage", "quantized")
    assert did(stage.entry) == "FineTune, 600 steps, 50% of the layers halved"
    assert did(shrunk.entry) == "shrunk to 3 bits"
    record = OperationKind("mine", zeros="hold", conversion=lambda o: "packed").record(share=0.5)
    assert (kind_of(record).zeros, kind_of(record).converted(record)) == ("hold", "packed")
    assert set(KINDS["nf4"].record(matched=1)) == {"op", "matched"}


def test_benchmark_files_give_figures_to_models_and_rows_to_those_without_a_ledger() -> None:
    first = entry("g/first", 40)
    own = benchmark(arm("g/first", "model", "fp32", 1, 2, 3))
    first["benchmark"] = own
    found = benchmark(
        arm("x", "y", "fp32", 4, 5, 6, source="../g/first/model"),
        arm("x", "y", "fp32", 7, 8, 9, source="gpt2", name="gpt2 fp32"),
    )
    found["settings"]["rounds"] = 9
    model, other = models({"checkpoints/g/first/model": [first]}, [copy.deepcopy(own), found])
    assert [speed["weights"] for speed in model.speeds.values()] == [4, 1]
    assert (other.name, other.kind, other.figures["tokens/s 128"]) == ("gpt2 fp32", "measured", 9)
    (alone,) = models({}, [benchmark(arm("x", "y", "fp32", 7, 8, 9, source="gpt2", name="gpt2 fp32"))])
    assert "gpt2 fp32" in compose([alone], 2, 10)[0]


def test_whatever_a_task_measures_a_second_is_a_throughput() -> None:
    first = entry("first", 40)
    first["benchmark"] = benchmark({"source": "checkpoints/first/model", "precision": "fp32", "classify": {
        "16x32": {"p50_ms": 3.5, "texts_per_s": 900.0}}, "ratio": {"classify 16x32": {"median": 1.0}}})  # fmt: skip
    assert rows_of([first])["first"].figures == {
        "parameters": 100, "nonzero": 100, "disk": 0.0004, "training": 412.5, "classify 16x32": 3.5, "texts/s 16x32": 900.0
    }  # fmt: skip


def test_entries_without_what_newer_ones_have() -> None:
    bare: Entry = {"stage": "bare", "method": "FineTune", "parent": {"source": "config"}}
    hollow: dict[str, Any] = {
        "benchmark": None, "quality": {"after": {"loss": {"value": None}, "primary": "loss"}}, "sizes": [],
        "operations": 3, "data": "x", "samples": [3, {}], "sweeps": {"a": {"values": 3, "arms": {"b": 4}}},
    }  # fmt: skip
    child = hollow | {"stage": "child", "teacher": 1, "curve": {}}
    old = entry("old", 4) | {"quality": {"after": {"perplexity": 78.5, "interval_95": [60, 100]}}}
    rows = rows_of([bare], [bare, child], [{}], [bare, {"benchmark": {"arms": [1, {}], "machine": 3}}], [old])
    assert len(rows) == 4
    text, _ = compose(list(rows.values()), 2, 10)
    assert "| child | " in text


def test_what_needs_no_model_has_rows_and_no_verdict() -> None:
    best = score(10.0) | {"baseline": True}
    first = entry("first", 40)
    first["quality"]["oracle"] = best
    second = entry("second", 39, 100, first)
    second["quality"]["oracle"] = best
    rows = models({"checkpoints/first/model": [first], "checkpoints/second/model": [first, second]})
    assert [(row.name, row.kind) for row in rows] == [("oracle", "baseline"), ("first", "stage"), ("second", "stage")]
    page, _ = compose(rows, 2, 10)
    table, verdicts = page.split("## Models")[1].split("## Verdicts")
    assert "| oracle |" in table
    assert "| oracle |" not in verdicts
