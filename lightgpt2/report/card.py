"""The model card of a finished model: what the hub shows of it, from its ledger."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from lightgpt2.models.architectures import CAUSAL_LM, CLASSIFICATION, SEQ2SEQ, predicts
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.sources import source_folder
from lightgpt2.report.document import did, model_table
from lightgpt2.report.figures import metrics, number, part, title
from lightgpt2.report.markup import escape, folded, items
from lightgpt2.report.rows import models

CARD = "README.md"
_TASKS = {CAUSAL_LM: "text-generation", CLASSIFICATION: "text-classification", SEQ2SEQ: "summarization"}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LONGEST = 2000  # characters of a setting


def model_card(folder: Path, name: str) -> str:
    """The card of a model folder or an exported folder that has a ledger.

    Args:
        folder: The folder.
        name: Its name for readers, on the hub `owner/name`.
    """
    ledger = Ledger.read(folder)
    rows = [row for row in models({str(folder): [*ledger]}) if row.kind != "baseline"]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    base = _base(ledger)
    done = items(f"{entry.get('stage')}: {did(entry)}" for entry in ledger)
    origin = f"Made from {escape(base)}" if base else "Trained from random weights"
    blocks = [
        f"---\n{_header(folder, name, ledger, config, base)}---",
        f"# {escape(name)}",
        f"{origin} with LightGPT2, which scored each model as it was loaded from disk.",
        f"## What was done\n\n{done}",
        f"## Quality and size\n\n{model_table(rows)}",
        "In brackets: 95 % bootstrap intervals over the examples of the validation split, in which nothing was trained on.",
        f"## Use\n\n{_use(folder, config, name)}",
        f"## Data and licences\n\n{items(_origins(ledger, base))}",
        folded("All settings of the last stage", f"```yaml\n{_settings(ledger)}```"),
    ]
    return "\n\n".join(blocks) + "\n"


def _base(ledger: Ledger) -> str:
    """The model that the first stage started from; empty for random weights. Of a path only the last name is shown."""
    return _shown(part(ledger[0], "parent").get("source") if ledger else "config")


def _shown(source: Any) -> str:
    """A source without the folders of the machine that read it."""
    text = "" if source in (None, "config") else str(source)
    return PurePath(text).name if Path(text).expanduser().exists() or not _HUB_ID.fullmatch(text) else text


def _header(folder: Path, name: str, ledger: Ledger, config: dict[str, Any], base: str) -> str:
    """The metadata that the hub reads, as YAML."""
    scored = part(ledger.last, "quality", "after")
    sources = [_shown(part(entry, "data").get("source")) for entry in ledger]
    data = sources[-1]
    kind = _TASKS[predicts(config.get("architectures"))]
    found = [
        EvalResult(
            task_type=kind, dataset_type=data, dataset_name=data, dataset_split="validation", metric_type=metric,
            metric_name=title(metric), metric_value=value,
        )
        for metric in metrics(scored)
        if (value := number(part(scored, metric).get("value"))) is not None
    ]  # fmt: skip
    about = ModelCardData(
        base_model=base if _HUB_ID.fullmatch(base) else None,
        library_name="transformers" if (folder / "model.safetensors").exists() else "lightgpt2",
        license=_licence(ledger),
        pipeline_tag=kind,
        tags=["lightgpt2", *dict.fromkeys(str(entry.get("method", "")).lower() for entry in ledger)],
        model_name=name,
        datasets=[*dict.fromkeys(source for source in sources if _HUB_ID.fullmatch(source))] or None,
        eval_results=found or None,
    )
    return about.to_yaml() + "\n"


def _licence(ledger: Ledger) -> str | None:
    """The licence that the card of the first model states, where that can be read; nobody is asked."""
    source = str(part(ledger[0], "parent").get("source") if ledger else "config")
    with suppress(Exception):
        text = (source_folder(source) / CARD).read_text(encoding="utf-8")
        stated = yaml.safe_load(text.split("---")[1]).get("license")
        return str(stated) if stated else None
    return None


def _use(folder: Path, config: dict[str, Any], name: str) -> str:
    """The code that loads the model."""
    if (folder / "model.safetensors").exists():
        auto = predicts(config.get("architectures"))
        trust = ", trust_remote_code=True" if config.get("auto_map") else ""
        code = (
            f"from transformers import AutoTokenizer, {auto}\n\n"
            f'model = {auto}.from_pretrained("{name}"{trust})\ntokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        )
        return f"```python\n{code}```"
    imports = "import lightgpt2\nfrom huggingface_hub import snapshot_download"
    return f'```python\n{imports}\n\nmodel = lightgpt2.load(snapshot_download("{name}"))\n```'


def _origins(ledger: Ledger, base: str) -> Iterator[str]:
    if base:
        yield f"The licence of {base}: {_licence(ledger) or 'not stated in its folder; ask its authors'}."
    for entry in ledger:
        data, stage = part(entry, "data"), entry.get("stage")
        known = f"its licence is {data['licence']}" if data.get("licence") else "its licence is not recorded"
        yield f"Data of {stage}: {_shown(data.get('source'))}, sha256 {data.get('sha256', 'unknown')}; {known}."


def _settings(ledger: Ledger) -> str:
    return str(yaml.safe_dump(_plain(part(ledger.last, "config")), sort_keys=False, allow_unicode=True))


def _plain(value: Any) -> Any:
    """Settings that were given, without the folders of the machine."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return PurePath(value).name
    return value[:_LONGEST] if isinstance(value, str) else value
