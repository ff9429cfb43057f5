"""Does a specialised model resist compression as a general one does? Both pruned to the same levels, without training.

    python -m benchmarks.resistance --general MODEL --specialised MODEL --source requirements --folder FOLDER

Runs `lightgpt2 sweep` in FOLDER: global magnitude pruning of the linear layers, with random pruning beside it, each level
scored from disk on the whole validation split. The specialised model on the text of its domain; the general one on that, and on
general text. What a level costs is how many times the model's own perplexity at 0 % it has; the interval is a bootstrap over
documents, the two levels in pairs.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lightgpt2.report.plots import sweep_plot

Sweeps = dict[str, dict[str, Any]]


def place(name: str) -> str:
    """A path as another folder sees it; other names as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def sweep(folder: Path, run: str, model: str, source: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the command finds of a model on a text; what it found before, if it did."""
    found = folder / "checkpoints" / run / "sweep.json"
    if not found.exists():
        changes = [f"model.model={place(model)}", f"data.source={place(source)}", "trainer.max_steps=0", *options.set]
        levels = [str(level) for level in options.levels]
        command = [sys.executable, "-m", "lightgpt2", "sweep", "--config", "finetune.yaml", "--run", run]
        subprocess.run([*command, "--values", *levels, "--set", *changes], cwd=folder, check=True)
    return json.loads(found.read_text(encoding="utf-8"))


def table(sweeps: Sweeps) -> str:
    """One row for each model, text and level."""
    lines = ["| model | sparsity | perplexity | 95 % interval | times its own at 0 % | pruned at random |"]
    lines.append("| --- |" + " ---: |" * 5)
    for name, found in sweeps.items():
        for level, mine, control in zip(found["values"], found["arms"]["l1"], found["arms"]["random"], strict=True):
            interval = " to ".join(f"{bound:.2f}" for bound in mine["interval_95"] or ())
            lines.append(
                f"| {name} | {100 * level:g} % | {mine['perplexity']:.2f} | {interval} | {_ratio(mine)} | {_ratio(control)} |"
            )
    return "\n".join(lines)


def _ratio(row: dict[str, Any]) -> str:
    interval = " to ".join(f"{bound:.3f}" for bound in row["ratio_95"] or ())
    return f"{row['ratio']:.3f} ({interval})"


def main() -> None:
    """Sweeps what is not swept yet, prints the table and draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--general", required=True, metavar="MODEL", help="hub id, model folder or GGUF file")
    parser.add_argument("--specialised", required=True, metavar="MODEL", help="the same model, trained on the domain")
    parser.add_argument("--source", default="requirements", help="text of the domain, as data.source")
    parser.add_argument("--general-source", default="pydoc", metavar="SOURCE", help="general text, as data.source")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.0, 0.2, 0.4, 0.6, 0.8])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further settings, as for sweep")
    parser.add_argument("--folder", type=Path, required=True, help="working folder; what was swept in it is kept")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    arms = {
        "general, general text": ("general", options.general, options.general_source),
        "general, domain": ("general-domain", options.general, options.source),
        "specialised, domain": ("specialised", options.specialised, options.source),
    }
    sweeps = {name: sweep(options.folder, *arm, options) for name, arm in arms.items()}
    print(f"\n{table(sweeps)}")
    lines = {name: found["arms"]["l1"] for name, found in sweeps.items()}
    both = {"values": sweeps["specialised, domain"]["values"], "arms": lines}
    if plot := sweep_plot(both, "sparsity", "general and specialised", "resistance"):
        (options.folder / "resistance.svg").write_text(plot.file(), encoding="utf-8")


if __name__ == "__main__":
    main()
