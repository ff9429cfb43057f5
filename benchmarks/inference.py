"""Engines on a CPU, in one interleaved run: a new token, forward passes, file and memory.

    pip install -r benchmarks/requirements-inference.txt
    python -m benchmarks.inference [--model FOLDER] [--baseline FOLDER] [--exported FOLDER ...] [--arms NAME ...] [--rounds 5]

Without `--model`: GPT-2 124M with random weights from a fixed seed (what a token costs does not depend on their values) and the
tokenizer of the folder `gpt2-tokenizer` in `LIGHTGPT2_DATA`. Each engine has a process of its own that waits while the others
measure. In each round every arm decodes one token at a time from a prompt, then does forward passes with all logits; the ratio
to the baseline (transformers, eager attention, FP32) is taken inside the round. The choice of the next token (the likeliest)
is part of its time everywhere. What other processes disturbed is measured again. Engines that aren't installed are left out,
with a line that says so.

The logits of one forward pass are compared with the baseline's: root of the mean squared difference over the deviation of the
baseline's own. An engine that runs another model would show.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, ratios
from lightgpt2.measure.child import ArmFailed, Child

REQUIREMENTS = "benchmarks/requirements-inference.txt"
BASELINE = "transformers eager"
_DISTURBED = 0.1
_WEIGHTS = (".safetensors", ".gguf", ".onnx", ".onnx_data", ".data", ".bin", ".xml")


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
        name: What it is called.
        engine: A key of `benchmarks.engines.worker.ENGINES`.
        files: What `benchmarks.engines.convert` makes of the model; empty for the model's own folder.
        options: What the engine is told.
        needs: The modules that have to be installed.
    """

    name: str
    engine: str
    files: str = ""
    options: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


def _openvino(name: str, files: str) -> list[Arm]:
    """As OpenVINO would run it, which is in bfloat16 on a CPU that has it, and held to float32."""
    return [
        Arm(f"OpenVINO {name}", "openvino", files, {"hint": "default"}, ("openvino", "nncf")),
        Arm(f"OpenVINO {name}, f32 hint", "openvino", files, {"hint": "f32"}, ("openvino", "nncf")),
    ]


ARMS = [
    Arm(BASELINE, "transformers", options={"attention": "eager"}),
    Arm("transformers sdpa", "transformers", options={"attention": "sdpa"}),
    *(
        Arm(f"llama.cpp {kind.replace('-', ' ')}", "llama.cpp", f"gguf-{kind}", needs=("llama_cpp",))
        for kind in ("F16", "Q8_0", "Q4_0", "Q4_0-pure")
    ),
    Arm("CTranslate2 FP32", "ctranslate2", "ctranslate2-float32", {"compute": "float32"}, ("ctranslate2",)),
    Arm("CTranslate2 INT8", "ctranslate2", "ctranslate2-int8", {"compute": "int8"}, ("ctranslate2",)),
    *_openvino("FP32", "openvino-fp32"),
    *_openvino("INT8", "openvino-int8"),
    *_openvino("INT4", "openvino-int4"),
    *(Arm(f"lightgpt2 {kind}", "onnx", kind) for kind in ("onnx", "onnx-int8", "onnx-int4")),
    Arm("lightgpt2 onnx-int4, groups of 128, all", "onnx", "onnx-int4-128"),
    Arm("lightgpt2 onnx-int4, groups of 128, all, prefill int8", "onnx", "onnx-int4-128-prefill"),
]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, help="transformers folder to convert and run; default: GPT-2 124M, random"
    )
    parser.add_argument("--baseline", type=Path, help="another folder for the baseline alone")
    parser.add_argument(
        "--exported", type=Path, nargs="*", default=[], help="folders of `lightgpt2 export`, run as they are"
    )
    parser.add_argument(
        "--arms", nargs="*", help="only the arms whose name holds one of these; the baseline is always there"
    )
    parser.add_argument(
        "--folder", type=Path, help="keeps the engines' files here, and takes them from here; default: temporary"
    )
    parser.add_argument("--json", type=Path, help="all figures, in a file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument(
        "--tries", type=int, default=6, help="how often what other processes disturbed is measured at most"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    options = parser.parse_args(arguments)
    for folder in filter(None, [options.model, options.baseline]):
        if not (folder / "config.json").is_file():
            parser.error(f"{folder}: no model folder, there is no config.json")
    return options


def random_gpt2(folder: Path) -> Path:
    """GPT-2 124M, seeded, with its tokenizer where the data folder is there."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    if not folder.exists():
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
        data = Path(os.environ.get("LIGHTGPT2_DATA", ".")) / "gpt2-tokenizer"
        if data.exists():
            tokenizer = GPT2TokenizerFast(vocab=str(data / "vocab.json"), merges=str(data / "merges.txt"))
            tokenizer.save_pretrained(folder)
    return folder


def chosen(options: argparse.Namespace) -> list[Arm]:
    """The baseline, then what was asked for and is installed."""
    exported = [Arm(folder.name, "onnx", str(folder.resolve())) for folder in options.exported]
    arms = []
    for arm in [*ARMS, *exported]:
        wanted = arm in exported or not options.arms or any(part in arm.name for part in options.arms)
        missing = [module for module in arm.needs if importlib.util.find_spec(module) is None]
        if arm.name != BASELINE and not wanted:
            continue
        if missing:
            print(
                f"{arm.name}: left out, {' and '.join(missing)} not installed: pip install -r {REQUIREMENTS}",
                file=sys.stderr,
            )
        else:
            arms.append(arm)
    if options.baseline and options.model:
        arms.insert(1, Arm(f"{BASELINE}, the model", "transformers", options={"attention": "eager"}))
    return arms


def files_of(arm: Arm, model: Path, baseline: Path, folder: Path) -> Path:
    """The folder that an arm runs, made if it isn't there yet.

    Raises:
        ArmFailed: It can't be made; the last line that the conversion said.
    """
    if not arm.files:
        return baseline if arm.name == BASELINE else model
    target = folder / arm.files  # an absolute path stays what it is
    if not target.exists():
        command = [sys.executable, "-m", "benchmarks.engines.convert", arm.files, str(model), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ArmFailed((done.stderr.strip().splitlines() or ["?"])[-1][:300])
    return target


def vocabulary(folder: Path) -> int:
    """How many tokens a model has."""
    size: int = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return size


def megabytes(folder: Path) -> float:
    """Bytes of the weights and the graph, in 10^6."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in _WEIGHTS) / 1e6


class Run:
    """The processes and what they have answered."""

    def __init__(self, options: argparse.Namespace, model: Path, folder: Path) -> None:
        self._options, self._model, self._folder = options, model, folder
        self._baseline: Path = options.baseline or model
        self._scratch = tempfile.TemporaryDirectory()  # for logits
        names = ("threads", "prompt", "new_tokens", "length", "batches", "tries")
        self._settings = {name: getattr(options, name) for name in names}
        self._settings["vocabulary"] = min(vocabulary(model), vocabulary(self._baseline))
        self._children: dict[str, Child] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.rounds: dict[str, list[dict[str, tuple[float, float]]]] = {}
        self.errors: dict[str, str] = {}

    def load(self, arm: Arm) -> None:
        """Makes the files, starts the process; an arm that can't is told of and left out."""
        logits = Path(self._scratch.name) / f"{len(self.about)}.npy"
        try:
            files = files_of(arm, self._model, self._baseline, self._folder)
            child = self._children[arm.name] = Child("benchmarks.engines.worker")
            about = child.ask(
                "load",
                engine=arm.engine,
                folder=str(files),
                options=arm.options,
                settings=self._settings,
                logits=str(logits),
            )
        except ArmFailed as failure:
            self._fail(arm, failure)
            return
        self.about[arm.name] = about | {"file_mb": megabytes(files), "logits": logits}
        self.rounds[arm.name] = []

    def measure(self, arm: Arm) -> None:
        """One round of an arm that still runs."""
        if arm.name in self.errors:
            return
        try:
            self.rounds[arm.name].append(self._children[arm.name].ask("round"))
        except ArmFailed as failure:
            self._fail(arm, failure)

    def _fail(self, arm: Arm, failure: ArmFailed) -> None:
        self.errors[arm.name] = str(failure)
        self.about.pop(arm.name, None)
        if arm.name in self._children:
            self._children[arm.name].close()

    def close(self) -> None:
        """Ends the processes."""
        for child in self._children.values():
            child.close()
        self._scratch.cleanup()

    def result(self) -> dict[str, Any]:
        """All figures, for JSON."""
        if BASELINE in self.errors:
            raise SystemExit(f"{BASELINE}: {self.errors[BASELINE]}")
        names = [*self.about]
        measures = [*self.rounds[BASELINE][0]]
        times = {m: {name: [r[m][0] for r in self.rounds[name]] for name in names} for m in measures}
        disturbed = {m: {name: max(r[m][1] for r in self.rounds[name]) for name in names} for m in measures}
        speedups = {m: ratios(times[m], BASELINE) for m in measures}
        reference = np.load(self.about[BASELINE]["logits"])
        arms = {}
        for name in names:
            figures = {
                m: {
                    "ms": statistics.median(times[m][name]),
                    "rounds_ms": times[m][name],
                    "ratio": speedups[m][name],
                    "disturbed": disturbed[m][name],
                }
                for m in measures
            }
            about = {key: value for key, value in self.about[name].items() if key not in ("logits", "tokens")}
            arms[name] = about | {
                "error": difference(np.load(self.about[name]["logits"]), reference),
                "measures": figures,
            }
        return {
            "machine": machine(),
            "model": self._model.name,
            "baseline": self._baseline.name,
            "settings": self._settings,
            "rounds": self._options.rounds,
            "arms": arms,
            "failed": self.errors,
        }


def difference(logits: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> float:
    """Root mean squared difference over the reference's own deviation; not a number where the vocabularies differ."""
    if logits.shape != reference.shape:
        return float("nan")
    return float(np.sqrt(np.mean((logits - reference) ** 2)) / reference.std())


def table(result: dict[str, Any]) -> str:
    """Ratios to the baseline, median (lowest..highest of the rounds), and what an engine says of itself."""
    measures = [*result["arms"][BASELINE]["measures"]]
    head = ["engine", *(f"{m}, ms: ratio" for m in measures), "file MB", "peak MB", "logits' error"]
    lines = [_row(head), _row("---" for _ in head)]
    for name, arm in result["arms"].items():
        cells = [
            f"{arm['measures'][m]['ms']:.2f}: {middle:.2f}x ({low:.2f}..{high:.2f})"
            for m in measures
            for middle, low, high in [arm["measures"][m]["ratio"]]
        ]
        lines.append(_row([name, *cells, f"{arm['file_mb']:.0f}", f"{arm['peak_mb']:.0f}", f"{arm['error']:.4f}"]))
    settings = result["settings"]
    lines += [
        "",
        f"Model {result['model']}, baseline {result['baseline']}. {result['machine']}. Engines have {settings['threads']} "
        f"threads; {result['rounds']} rounds; decode: {settings['new_tokens']} tokens, one at a time, after a prompt of "
        f"{settings['prompt']}. Peak MB: the most that was resident up to the last token, without interpreter and libraries.",
        "",
        *(f"- {name}: {arm['about']}" for name, arm in result["arms"].items()),
        *(
            f"- {name}, {m}: other processes kept {figures['disturbed']:.2f} processors busy in the worst round"
            for name, arm in result["arms"].items()
            for m, figures in arm["measures"].items()
            if figures["disturbed"] > _DISTURBED
        ),
        *(f"- {name}: not measured: {reason}" for name, reason in result["failed"].items()),
    ]
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole run, with the engines' files in a folder."""
    model = options.model or random_gpt2(folder / "gpt2")
    arms = chosen(options)
    run = Run(options, model, folder)
    try:
        for arm in arms:
            run.load(arm)
        for number in range(options.rounds):
            # Every second round backwards: an arm does not always follow the same other one.
            for arm in arms[:: 1 if number % 2 == 0 else -1]:
                run.measure(arm)
        return run.result()
    finally:
        run.close()


def main() -> None:
    """Prints the table."""
    options = parse()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = measure(options, folder)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
