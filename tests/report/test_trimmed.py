"""What the report says of a model that was cut down, and of what it writes."""

from pathlib import Path
from typing import Any

import pytest

from lightgpt2.report.chain import Model, models
from lightgpt2.report.pages import write_report
from lightgpt2.report.tables import operations_table
from lightgpt2.report.verdicts import compare
from lightgpt2.report.words import collapse_note, did
from tests.report.chains import Entry, entry, quantized, score, write

HEALTHY = {"repeated": 0.21, "repeated_text": 0.18, "distinct_2": 0.73, "distinct_2_text": 0.77, "well_formed": 0.935}


def trimmed(generation: dict[str, float] | None = None) -> Entry:
    """A stage that cut a model of the hub, and was looked at."""
    cut = {
        "op": "trim",
        "width": 384,
        "heads": 6,
        "groups": 1,
        "head": 64,
        "ffn": 1536,
        "importance": "norm",
        "kept": {},
    }
    made = entry("cut", "Trim", 30, 30_339_456, parent={"source": "gpt2", "sha256": ""}, operations=[cut])
    made["quality"] |= {"before": score(9000.0), "source": score(25.0)}
    return made | ({"generation": generation} if generation else {})


def rows(*histories: tuple[str, list[Entry]]) -> dict[str, Model]:
    return {row.name: row for row in models(dict(histories))}


def test_a_cut_is_compared_with_the_model_that_was_cut_and_not_with_what_was_left_of_it() -> None:
    found = rows(("checkpoints/cut/model", [trimmed()]))
    assert found["gpt2 (untouched)"].figures["perplexity"] == 25.0
    comparison = compare(found["cut"], 1.0, 10.0)
    assert (comparison.before, comparison.source) == (25.0, 25.0)
    assert did(trimmed()) == "trained after the cut, cut down to 384 wide, 6 heads, 1,536 neurons a layer (by norm)"


def test_a_smaller_vocabulary_is_told() -> None:
    stage = trimmed()
    stage["operations"] = [{"op": "trim_vocabulary", "before": 49_152, "after": 3_120, "kept": "ff"}]
    assert (
        did(stage)
        == "trained after the cut, with the 3,120 of 49,152 tokens that its text needs (over which its source is scored too)"
    )


def test_what_a_model_and_its_quantized_copy_write_is_in_the_table(tmp_path: Path) -> None:
    stage = trimmed(HEALTHY)
    int8 = quantized(stage, "int8", 30.5, 40.0) | {"generation": HEALTHY | {"well_formed": 0.874}}
    write(tmp_path, {"checkpoints/cut/model": [stage], "checkpoints/cut/model-int8": [stage, int8]})
    write_report([str(tmp_path / "checkpoints/cut")], str(tmp_path / "out"), 1.0, 10.0)
    lines = (tmp_path / "out/report.md").read_text().splitlines()
    header = next(line for line in lines if line.startswith("| model "))
    places = [[cell.strip() for cell in header.split("|")].index(name) for name in (
        "well-formed, %", "tokens repeated, %", "the text's own, %"
    )]  # fmt: skip
    for name, well_formed in (("cut", "93.50"), ("cut int8", "87.40")):
        cells = [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {name} |")).split("|")]
        assert [cells[place] for place in places] == [well_formed, "21.00", "18.00"]


def test_columns_of_what_was_not_looked_at_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, {"checkpoints/cut/model": [trimmed()]})
    write_report([str(tmp_path / "checkpoints/cut")], str(tmp_path / "out"), 1.0, 10.0)
    assert "well-formed" not in (tmp_path / "out/report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "collapsed"),
    [
        ({}, False),
        ({"repeated": 0.37}, False),  # twice the text's, but little
        ({"repeated": 0.39}, True),
        ({"repeated_text": 0.01, "repeated": 0.2}, False),
        ({"repeated_text": 0.01, "repeated": 0.22}, True),
        ({"distinct_2": 0.38}, True),
        ({"distinct_2": 0.39}, False),
    ],
)
def test_a_collapse_is_called_one_by_the_rule(changes: dict[str, Any], collapsed: bool) -> None:
    note = collapse_note(trimmed(HEALTHY | changes))
    assert ("*collapsed*" in note) is collapsed
    assert collapse_note(trimmed()) == "", "nobody has looked"


def test_heads_and_neurons_that_were_removed_are_counted_and_the_start_is_the_model_that_was_given() -> None:
    gone = {
        "op": "remove",
        "criterion": "movement",
        "heads": {"removed": 43, "of": 144},
        "ffn": {"removed": 22118, "of": 36864},
    }
    stage = entry(
        "light", "MovementPruning", 30, 60_000_000, parent={"source": "gpt2", "sha256": ""}, operations=[gone]
    )
    stage["quality"] |= {"before": score(25.0)}
    assert did(stage) == (
        "trained while it was pruned, 43 of 144 heads (29.86 %) and 22,118 of 36,864 neurons (60.00 %) removed (movement)"
    )
    found = rows(("checkpoints/light/model", [stage]))
    assert found["gpt2 (untouched)"].figures["perplexity"] == 25.0
    only = entry("light", "MovementPruning", 30, 60_000_000, operations=[{**gone, "heads": {"removed": 0, "of": 144}}])
    assert did(only).endswith("trained while it was pruned, 22,118 of 36,864 neurons (60.00 %) removed (movement)")


def test_masks_stay_in_the_ledger_and_counts_are_in_the_report() -> None:
    heads = {"removed": 3, "of": 8, "left": [4, 1], "kept": ["f", "8"]}
    removed = {"op": "remove", "criterion": "movement", "heads": heads, "ffn": heads}
    stage = entry(
        "light", "MovementPruning", 30, 60, operations=[removed, {"op": "trim", "width": 8, "kept": {"width": "ff"}}]
    )
    found = operations_table(rows(("checkpoints/light/model", [stage]))["light"])
    assert "heads: 3 of 8 removed, left in each layer 4, 1" in found
    assert "ff" not in found.replace("ffn", "")
