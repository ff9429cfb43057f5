"""Engines on a CPU, in one interleaved run: a new token, forward passes, file and memory.

    pip install -r benchmarks/requirements-inference.txt
    python -m benchmarks.inference [--model FOLDER] [--baseline FOLDER] [--exported FOLDER ...] [--arms NAME ...] [--rounds 5]

Without `--model`: GPT-2 124M with random weights from a fixed seed (what a token costs does not depend on their values) and the
tokenizer of the folder `gpt2-tokenizer` in `LIGHTGPT2_DATA`. `--baseline` is another model for the baseline alone; folders of
`lightgpt2 export` are run as they are. `--arms` takes only the arms whose name holds one of these, and the baseline. `--folder`
keeps the engines' files, and takes those that are there; `--json` is a file for all figures.

Each engine has its own process, which waits while the others measure. In each round every arm decodes one token at a time from
a prompt, then does forward passes with all logits; the ratio to the baseline (transformers, eager attention, FP32) is taken
inside the round. The choice of the next token (the likeliest) is part of its time everywhere. What other processes disturbed is
measured again, `--tries` times at most. Engines that aren't installed are left out, with a line that says so.

The logits of one forward pass are compared with the baseline's: root of the mean squared difference over the deviation of the
baseline's own. An engine that runs another model would show.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import rounds
from benchmarks.common import machine, markdown, parser
from benchmarks.rounds import Arm
from lightgpt2.measure.child import ArmFailed

REQUIREMENTS = "benchmarks/requirements-inference.txt"
BASELINE = "transformers eager"
_DISTURBED = 0.1
_WEIGHTS = (".safetensors", ".gguf", ".onnx", ".onnx_data", ".data", ".bin", ".xml")
_CT2, _OPENVINO, _OURS = "ct2:CTranslate2Engine", "openvino_engine:OpenVinoEngine", "onnx:OnnxEngine"
ARMS = [
    Arm(BASELINE, "pytorch:TransformersEngine", options={"attention": "eager"}),
    Arm("transformers sdpa", "pytorch:TransformersEngine", options={"attention": "sdpa"}),
    *(
        Arm(f"llama.cpp {kind.replace('-', ' ')}", "llamacpp:LlamaCppEngine", f"gguf-{kind}", needs=("llama_cpp",))
        for kind in ("F16", "Q8_0", "Q4_0", "Q4_0-pure")
    ),
    Arm("CTranslate2 FP32", _CT2, "ctranslate2-float32", {"compute": "float32"}, ("ctranslate2",)),
    Arm("CTranslate2 INT8", _CT2, "ctranslate2-int8", {"compute": "int8"}, ("ctranslate2",)),
    # As OpenVINO would run it, which is in bfloat16 on a CPU that has it; and held to float32.
    *(
        Arm(f"OpenVINO {kind}{more}", _OPENVINO, f"openvino-{kind.lower()}", {"hint": hint}, ("openvino", "nncf"))
        for kind in ("FP32", "INT8", "INT4")
        for more, hint in (("", "default"), (", f32 hint", "f32"))
    ),
    *(Arm(f"lightgpt2 {kind}", _OURS, kind) for kind in ("onnx", "onnx-int8", "onnx-int4")),
    Arm("lightgpt2 onnx-int4, groups of 128, all", _OURS, "onnx-int4-128"),
    Arm("lightgpt2 onnx-int4, groups of 128, all, prefill int8", _OURS, "onnx-int4-128-prefill"),
]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    command = parser(__doc__, rounds=5, threads=2, prompt=32, new_tokens=64, length=128, tries=6, batches=[1, 16])
    for name in ("model", "baseline", "folder", "json"):
        command.add_argument(f"--{name}", type=Path)
    command.add_argument("--exported", type=Path, nargs="*", default=[])
    command.add_argument("--arms", nargs="*")
    options = command.parse_args(arguments)
    for folder in filter(None, [options.model, options.baseline]):
        if not (folder / "config.json").is_file():
            command.error(f"{folder}: no model folder, there is no config.json")
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
    arms = []
    for arm in ARMS:
        missing = [module for module in arm.needs if importlib.util.find_spec(module) is None]
        if arm.name != BASELINE and options.arms and not any(part in arm.name for part in options.arms):
            continue
        if missing:
            reason = f"{' and '.join(missing)} not installed: pip install -r {REQUIREMENTS}"
            print(f"{arm.name}: left out, {reason}", file=sys.stderr)
        else:
            arms.append(arm)
    if options.baseline and options.model:
        arms.insert(1, Arm(f"{BASELINE}, the model", "pytorch:TransformersEngine", options={"attention": "eager"}))
    return [*arms, *(Arm(folder.name, _OURS, str(folder.resolve())) for folder in options.exported)]


def converted(arm: Arm, model: Path, folder: Path) -> Path:
    """The folder that an arm runs, made if it isn't there yet; `ArmFailed` with the conversion's last line if it can't be."""
    if not arm.files:
        return model
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


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole run, with the engines' files in a folder: all figures, for JSON."""
    model: Path = options.model or random_gpt2(folder / "gpt2")
    baseline: Path = options.baseline or model
    settings = {key: getattr(options, key) for key in ("threads", "prompt", "new_tokens", "length", "batches", "tries")}
    settings["vocabulary"] = min(vocabulary(model), vocabulary(baseline))
    files: dict[str, Path] = {}

    def files_of(arm: Arm) -> Path:
        files[arm.name] = converted(arm, baseline if arm.name == BASELINE else model, folder)
        return files[arm.name]

    arms, failed = rounds.measure(chosen(options), files_of, settings, options.rounds)
    for name, arm in arms.items():
        arm["file_mb"] = megabytes(files[name])
    return {
        "machine": machine(), "model": model.name, "baseline": baseline.name, "settings": settings, "rounds": options.rounds,
        "arms": arms, "failed": failed,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Ratios to the baseline, median (lowest..highest of the rounds), and what an engine says of itself."""
    measures = [*result["arms"][BASELINE]["measures"]]
    rows, notes, disturbed = [], [], []
    for name, arm in result["arms"].items():
        cells = []
        for what, found in arm["measures"].items():
            cells.append("{:.2f}: {:.2f}x ({:.2f}..{:.2f})".format(found["ms"], *found["ratio"]))
            if found["disturbed"] > _DISTURBED:
                busy = f"other processes kept {found['disturbed']:.2f} processors busy in the worst round"
                disturbed.append(f"- {name}, {what}: {busy}")
        rows.append([name, *cells, f"{arm['file_mb']:.0f}", f"{arm['peak_mb']:.0f}", f"{arm['error']:.4f}"])
        notes.append(f"- {name}: {arm['about']}")
    settings = result["settings"]
    return "\n".join([
        markdown(["engine", *(f"{m}, ms: ratio" for m in measures), "file MB", "peak MB", "logits' error"], rows), "",
        f"Model {result['model']}, baseline {result['baseline']}. {result['machine']}. Engines have {settings['threads']} "
        f"threads; {result['rounds']} rounds; decode: {settings['new_tokens']} tokens, one at a time, after a prompt of "
        f"{settings['prompt']}. Peak MB: the most that was resident up to the last token, without interpreter and libraries.",
        "", *notes, *disturbed, *(f"- {name}: not measured: {reason}" for name, reason in result["failed"].items()),
    ])  # fmt: skip


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
