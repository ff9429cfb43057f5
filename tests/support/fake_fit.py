"""Stands in for `lightgpt2 fit` in tests of the pipeline: the same files in the same order, in a tenth of a second.

What it "trains" depends on its configuration, the weights of its input and the number of steps, and on nothing else. A
chain of hashes stands for the weights, so one step too many, too few, or from other weights shows in every later byte.
Called as `fake_fit.py -m lightgpt2 fit OPTIONS`, like the interpreter that it stands in for; as another module, that which
checks configurations, it finds nothing wrong.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml


def replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    temporary.write_text(text)
    temporary.replace(path)


def digest(*values: Any) -> str:
    """Hex digest of values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def note(file: str, text: str) -> None:
    """Adds a line for the test to read."""
    with Path(file).open("a") as stream:
        stream.write(f"{text}\n")


def main() -> None:
    """Trains, saves, scores."""
    if sys.argv[2] != "lightgpt2":
        print("[]")
        return
    options = dict(zip(sys.argv[4::2], sys.argv[5::2], strict=True))
    config = yaml.safe_load(Path(options["--config"]).read_text())
    model, trainer = config["model"]["init_args"], config["trainer"]
    folder = Path("checkpoints") / options["--run"]
    stopped: list[int] = []

    def stop(signum: int, _: Any) -> None:
        note("signals", signal.Signals(signum).name)
        if not trainer.get("deaf"):
            stopped.append(signum)

    for asking in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(asking, stop)
    note("started", f"{options['--run']} {options.get('--ckpt_path', 'new')}")

    for needed in config.get("needs", {}):
        if not Path(needed).exists():
            replace(Path(needed) / "model.safetensors", "made")

    last, step = folder / "last.ckpt", 0
    given = [(Path(p) / "model.safetensors").read_text() for p in model.values() if str(p).startswith("checkpoints/")]
    weights = digest({k: v for k, v in model.items() if not str(v).startswith("checkpoints/")}, given)
    if "--ckpt_path" in options:
        step, weights = json.loads(last.read_text())
    elif folder.exists() and any(folder.iterdir()):
        sys.exit("the folder of another run")
    replace(folder / "config.yaml", "")
    while step < trainer["max_steps"]:
        time.sleep(trainer.get("seconds", 0.002))
        if trainer.get("fail_at") == step:
            sys.exit(2)
        step, weights = step + 1, digest(weights)
        if step % 3 == 0 or stopped:
            replace(last, json.dumps([step, weights]))
        if stopped:
            sys.exit(130)
    if trainer.get("saves", True):
        replace(folder / "model/model.safetensors", weights)
        replace(folder / "model/ledger.json", json.dumps([{"quality": {}}]))
    if trainer["max_steps"]:
        replace(last, json.dumps([step, weights]))
    time.sleep(0.01)
    if trainer.get("saves", True) and trainer.get("scores", True):
        quality = {"error": {"value": 100 / (1 + step), "better": "lower"}, "primary": "error"}
        files = {"model.safetensors": hashlib.sha256(weights.encode()).hexdigest()}
        replace(folder / "model/ledger.json", json.dumps([{"quality": {"after": quality}, "files": files}]))
    if trainer.get("dies"):
        os.kill(os.getpid(), signal.SIGKILL)


main()
