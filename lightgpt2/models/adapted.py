"""Models whose adapters are not merged: the base that an adapter folder names, with what PEFT puts on it."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.errors import Problem, UserError
from lightgpt2.models.adapters import CONFIG, base_of
from lightgpt2.models.architectures import CLASSIFICATION, PEFT_TYPES
from lightgpt2.models.families import family_of
from lightgpt2.models.loading import has_head, load_config, load_model, new_model
from lightgpt2.models.sources import explained

_TASKS = {theirs: auto_class for auto_class, theirs in PEFT_TYPES.items()}


def adapted_config(source: str, key: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of the model that an adapter folder makes of its base.

    The classes of a head that came with the adapters have no names there; their number is that of its weight's rows.
    """
    base, task = base_of(source, key), _task(source, key)
    config = load_config(base, key, trust_remote_code, (task,), new_head=True)
    if not _lacks_head(base, key, task, trust_remote_code):
        return config
    with torch.device("meta"):
        model = new_model(config, key)
    layer = family_of(model).head_module(model)
    name = next(name for name, module in model.named_modules() if module is layer)
    weight = _weights(source, key).get(f"base_model.model.{name}.weight")
    if weight is None:
        raise UserError([Problem(key, f"{source} and {base} have no {name}", "give adapters with a head")])
    config.num_labels = len(weight)
    return config


def load_adapted(source: str, key: str, trust_remote_code: bool = False, **options: Any) -> PreTrainedModel:
    """The base of an adapter folder with the adapters on it, not merged; options as for `load_model`."""
    from peft import PeftModel  # slow to import, and needed for this only

    base, task = base_of(source, key), _task(source, key)
    config = adapted_config(source, key, trust_remote_code)
    head = {"num_labels": config.num_labels} if _lacks_head(base, key, task, trust_remote_code) else None
    model = load_model(base, key, trust_remote_code, (task,), head, **options)
    folder = str(Path(source).expanduser())
    with explained(source, key):
        adapted: Any = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    plain: PreTrainedModel = adapted.get_base_model()
    return plain if "device_map" in options else plain.to(options.get("dtype", torch.float32))


def _task(source: str, key: str) -> str:
    named = json.loads((Path(source).expanduser() / CONFIG).read_text(encoding="utf-8")).get("task_type")
    if named not in _TASKS:
        what = f"task_type in its {CONFIG} must be {' or '.join(_TASKS)}, got {named}"
        raise UserError([Problem(key, f"{source}: {what}", "merge the adapters, and give the result")])
    return _TASKS[named]


def _lacks_head(base: str, key: str, task: str, trust_remote_code: bool) -> bool:
    return task == CLASSIFICATION and not has_head(load_config(base, key, trust_remote_code), task)


def _weights(source: str, key: str) -> dict[str, torch.Tensor]:
    from peft import load_peft_weights

    with explained(source, key):
        found: dict[str, torch.Tensor] = load_peft_weights(str(Path(source).expanduser()), device="cpu")
    return found
