"""Does a specialised model resist compression as a general one does? Both pruned to the same levels, without training.

    python -m benchmarks.resistance --general MODEL --specialised MODEL --source requirements --folder FOLDER

Runs `lightgpt2 sweep` in FOLDER: global magnitude pruning of the linear layers, with random pruning beside it, each level
scored from disk on the whole validation split. The specialised model on the text of its domain; the general one on that, and on
general text (`--general-source`). What a level costs is how many times the model's own perplexity at 0 % it has; the interval
is a bootstrap over documents, the two levels in pairs. `--set` takes further settings, KEY=VALUE each, as sweep does.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.common import markdown, parser, place
from benchmarks.paired import lightgpt2
from lightgpt2.models.quality import value_of
from lightgpt2.report.plots import sweep_plot


def sweep(run: str, model: str, source: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the command finds of a model on a text; what it found before, if it did."""
    path = options.folder / "checkpoints" / run / "sweep.json"
    if not path.exists():
        changes = [f"model.model={place(model)}", f"data.source={place(source)}", "trainer.max_steps=0", *options.set]
        levels = [str(level) for level in options.levels]
        command = ["sweep", "--config", "finetune.yaml", "--run", run, "--values", *levels, "--set", *changes]
        lightgpt2(options.folder, run, command)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def rows(name: str, found: dict[str, Any]) -> list[list[str]]:
    """One row for each level."""
    return [
        [
            name, f"{100 * level:g} %", f"{value_of(mine):.2f}",
            " to ".join(f"{bound:.2f}" for bound in mine[mine["primary"]]["interval_95"] or ()),
            *(
                f"{row['ratio']:.3f} ({' to '.join(f'{bound:.3f}' for bound in row['ratio_95'] or ())})"
                for row in (mine, control)
            ),
        ]
        for level, mine, control in zip(found["values"], found["arms"]["l1"], found["arms"]["random"], strict=True)
    ]  # fmt: skip


def main() -> None:
    options = parser(
        __doc__, general=str, specialised=str, source="requirements", general_source="pydoc",
        levels=[0.0, 0.2, 0.4, 0.6, 0.8], set=[], folder=Path,
    ).parse_args()  # fmt: skip
    arms = {
        "general, general text": ("general", options.general, options.general_source),
        "general, domain": ("general-domain", options.general, options.source),
        "specialised, domain": ("specialised", options.specialised, options.source),
    }
    sweeps = {name: sweep(*arm, options) for name, arm in arms.items()}
    header = ["model", "sparsity", "perplexity", "95 % interval", "times its own at 0 %", "pruned at random"]
    print("\n" + markdown(header, [row for name, found in sweeps.items() for row in rows(name, found)]))
    lines = {name: found["arms"]["l1"] for name, found in sweeps.items()}
    both = {"values": sweeps["specialised, domain"]["values"], "arms": lines}
    if plot := sweep_plot(both, "sparsity", "general and specialised", "resistance"):
        (options.folder / "resistance.svg").write_text(plot.file(), encoding="utf-8")


if __name__ == "__main__":
    main()
