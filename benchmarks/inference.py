"""Engines on a CPU, in one interleaved run: a new token, forward passes, file and memory.

    pip install -r benchmarks/requirements-inference.txt
    python -m benchmarks.inference [--model FOLDER] [--baseline FOLDER] [--exported FOLDER ...] [--arms NAME ...] [--rounds 5]

Without `--model`: GPT-2 124M with random weights from a fixed seed (what a token costs does not depend on their values) and the
tokenizer of the folder `gpt2-tokenizer` in `LIGHTGPT2_DATA`. `--baseline` is another model for the baseline alone; folders of
`lightgpt2 export` are run as they are. `--arms` takes only the arms whose name holds one of these, and the baseline. `--folder`
keeps the engines' files, and takes those that are there; `--json` is a file for all figures.

In each round every arm decodes one token at a time from a prompt, then does forward passes with all logits. The choice of the
next token (the likeliest) is part of its time. What other processes disturbed is measured again, `--tries` times at most. The
error is that of the logits of one forward pass: root of the mean squared difference from the baseline's over their own
deviation. Peak MB: the most that was resident up to the last token, without interpreter and libraries. An engine that isn't
installed is not measured, with a line that says so.
"""

import argparse
import contextlib
import json
import os
import tempfile
from pathlib import Path

from benchmarks import rounds
from benchmarks.common import parser
from benchmarks.rounds import Arm
from lightgpt2.measure.child import Child

BASELINE = "transformers eager"
_OURS = "onnx:decoder"
ARMS = [
    *(Arm(f"transformers {kind}", "pytorch:decoder", options={"attention": kind}) for kind in ("eager", "sdpa")),
    *(
        Arm(f"llama.cpp {kind.replace('-', ' ')}", "llamacpp:decoder", f"gguf-{kind}")
        for kind in ("F16", "Q8_0", "Q4_0", "Q4_0-pure")
    ),
    *(
        Arm(f"CTranslate2 {name}", "ct2:decoder", f"ctranslate2-{kind}", {"compute": kind})
        for name, kind in (("FP32", "float32"), ("INT8", "int8"))
    ),
    # As OpenVINO would run it, which is in bfloat16 on a CPU that has it; and held to float32.
    *(
        Arm(f"OpenVINO {kind}{more}", "openvino_engine:decoder", f"openvino-{kind.lower()}", options)
        for kind in ("FP32", "INT8", "INT4")
        for more, options in (("", {}), (", f32 hint", {"hint": "f32"}))
    ),
    *(Arm(f"lightgpt2 {kind}", _OURS, kind) for kind in ("onnx", "onnx-int8", "onnx-int4")),
    Arm("lightgpt2 onnx-int4, groups of 128, all", _OURS, "onnx-int4-128"),
    Arm("lightgpt2 onnx-int4, groups of 128, all, prefill int8", _OURS, "onnx-int4-128-prefill"),
]


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
    """The baseline, then what was asked for."""
    wanted = [BASELINE, *(options.arms or [""])]
    arms = [arm for arm in ARMS if any(part in arm.name for part in wanted)]
    if options.baseline and options.model:
        arms.insert(1, Arm(f"{BASELINE}, the model", "pytorch:decoder", options={"attention": "eager"}))
    return [*arms, *(Arm(folder.name, _OURS, str(folder.resolve())) for folder in options.exported)]


def converted(arm: Arm, model: Path, folder: Path) -> Path:
    """The folder that an arm runs, made if it isn't there yet; `ArmFailed` if it can't be."""
    if not arm.files:
        return model
    target = folder / arm.files  # an absolute path stays what it is
    if not target.exists():
        with contextlib.closing(Child("benchmarks.engines.convert")) as child:
            child.ask("convert", kind=arm.files, model=model, target=target)
    return target


def main(arguments: list[str] | None = None) -> None:
    settings = {"threads": 2, "prompt": 32, "new_tokens": 64, "length": 128, "tries": 6, "batches": [1, 16]}
    paths = {key: {"type": Path} for key in ("model", "baseline", "folder", "json")}
    exported = {"type": Path, "nargs": "*", "default": []}
    command = parser(__doc__, rounds=5, **settings, **paths, exported=exported, arms={"nargs": "*"})
    options = command.parse_args(arguments)
    for folder in filter(None, [options.model, options.baseline]):
        if not (folder / "config.json").is_file():
            command.error(f"{folder}: no model folder, there is no config.json")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = options.model or random_gpt2(folder / "gpt2")
        baseline = options.baseline or model
        configs = [json.loads((each / "config.json").read_text(encoding="utf-8")) for each in (model, baseline)]
        settings = {key: getattr(options, key) for key in settings}
        settings["vocabulary"] = min(config["vocab_size"] for config in configs)

        def files_of(arm: Arm) -> Path:
            return converted(arm, baseline if arm.name == BASELINE else model, folder)

        result = rounds.measure(chosen(options), files_of, settings, options.rounds)
    if options.json:
        named = {"model": model.name, "baseline": baseline.name}
        options.json.write_text(json.dumps(named | result, indent=1), encoding="utf-8")
    print(f"Model {model.name}, baseline {baseline.name}.\n\n{rounds.table(result)}")


if __name__ == "__main__":
    main()
