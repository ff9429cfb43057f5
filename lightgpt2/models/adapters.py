"""Adapter folders, as PEFT writes them."""

import json
from pathlib import Path
from typing import Any

from lightgpt2.errors import UserError

ADAPTER = "adapter"  # the folder of what PEFT loads, beside the artefact
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
# By PEFT's name of a task: the tag on the hub, PEFT's class, and its further arguments: a base may say nothing of classes.
_LOADED = {
    "CAUSAL_LM": ("text-generation", "AutoPeftModelForCausalLM", ""),
    "SEQ_CLS": ("text-classification", "AutoPeftModelForSequenceClassification", ", num_labels=classes"),
    "SEQ_2_SEQ_LM": ("text2text-generation", "AutoPeftModelForSeq2SeqLM", ""),
}

# Settings of PEFT that no plain weights hold.
_ELSEWHERE = ("layer_replication", "alora_invocation_tokens", "lora_bias", "ensure_weight_tying")


def is_adapter(source: str) -> bool:
    """True for a folder of adapters."""
    return (Path(source).expanduser() / CONFIG).is_file()


def base_of(source: str, key: str) -> str:
    """The model that adapters belong to; the source itself if it is a model."""
    if not is_adapter(source):
        return source
    folder = Path(source).expanduser()
    try:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        base = about.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{key}: {folder / CONFIG} is damaged ({error}); write it again") from error
    if not base:
        raise UserError(f"{key}: {folder / CONFIG} names no base_model_name_or_path; add the model that it belongs to")
    if not any((folder / name).is_file() for name in (WEIGHTS, _PICKLED)):
        raise UserError(f"{key}: {source} has no {WEIGHTS}; give a complete adapter folder")
    if other := _other_kind(about):
        what = f"{source} holds {other}, which are not trained on here"
        raise UserError(f"{key}: {what}; merge them into {base} with PEFT, and give the result")
    return str(base)


def _other_kind(about: dict[str, Any]) -> str | None:
    """What adapters are if they are not LoRA's own, which are added to the weights of one model's own layers."""
    if (kind := about.get("peft_type", "LORA")) != "LORA":
        return f"adapters of kind {kind}"
    if (revision := about.get("revision")) not in (None, "main"):
        return f"adapters of revision {revision} of their base"
    return next((f"adapters with {name}" for name in _ELSEWHERE if about.get(name)), None)


def has_tokenizer(source: str) -> bool:
    """True for an adapter folder that brings a tokenizer."""
    return (Path(source).expanduser() / "tokenizer_config.json").is_file()


_README = """---
base_model: {base}
library_name: peft
pipeline_tag: {tag}
---

# LoRA adapters of {name}

Trained by LightGPT2 on `{base}`: rank {r}, alpha {lora_alpha}, on {modules}. `../model` is that model with them merged into its
weights. They load with their base, from any working folder:

```python
from peft import {loader}
from transformers import AutoTokenizer

model = {loader}.from_pretrained(folder{classes})  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
```

If the base has moved, correct `base_model_name_or_path` in `adapter_config.json`.
"""


def name_base(folder: Path) -> None:
    """Let an adapter folder name its base so that it loads from any working folder, and say in its README what it is."""
    about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    base = Path(about["base_model_name_or_path"] or "").expanduser()
    if about["base_model_name_or_path"] and base.exists():
        about["base_model_name_or_path"] = str(base.absolute())
        (folder / CONFIG).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    targets = about["target_modules"]
    modules = targets if isinstance(targets, str) else ", ".join(sorted(targets or []))
    values = {**about, "base": about["base_model_name_or_path"], "name": base.name, "modules": modules}
    values |= zip(("tag", "loader", "classes"), _LOADED.get(about["task_type"], _LOADED["CAUSAL_LM"]), strict=True)
    (folder / "README.md").write_text(_README.format(**values), encoding="utf-8")
