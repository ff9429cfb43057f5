"""Publishing: a finished model goes to the hub as it was written, with its card."""

from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from lightgpt2.errors import Problem, UserError
from lightgpt2.models.files import atomic_file
from lightgpt2.models.ledger import Ledger
from lightgpt2.report.card import CARD, model_card
from lightgpt2.runs.overview import find_runs

_LEFT_AT_HOME = ["scores.npz"]  # of the validation split, text by text


def finished_model(source: str) -> Path:
    """The model folder that a run's name or a path means, whole.

    Raises:
        UserError: There is none, it has no ledger, or its files are not as they were written.
    """
    folder = Path(source).expanduser()
    if not (folder / "ledger.json").exists():
        (found, *more) = find_runs([source])
        if more or found.state != "finished":
            what = "is a group of runs" if more else f"is {found.state}"
            raise UserError([Problem(source, what, "name a finished run, or a folder with a ledger.json")])
        folder = found.run.model
    ledger = Ledger.read(folder)
    ledger.check(folder, source)
    return folder


def write_card(folder: Path, name: str, output: Path) -> None:
    """Write the card of a model."""
    with atomic_file(output) as temporary:
        temporary.write_text(model_card(folder, name), encoding="utf-8")


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a model folder, with a new card if it has none; returns the address.

    Raises:
        UserError: The hub cannot be reached, does not know who asks, or refuses.
    """
    try:
        validate_repo_id(name)
        if "/" not in name:
            raise HFValidationError("no owner")
    except HFValidationError as error:
        raise UserError([Problem("NAME", f"must be owner/name, got {name!r}", "correct it")]) from error
    if not (folder / CARD).exists():
        write_card(folder, name, folder / CARD)
    hub = HfApi()
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        done = hub.upload_folder(repo_id=name, folder_path=folder, ignore_patterns=_LEFT_AT_HOME)
    except LocalTokenNotFoundError as error:
        what = "the hub does not know who you are"
        raise UserError([Problem("NAME", what, "run hf auth login, or set HF_TOKEN")]) from error
    except HfHubHTTPError as error:
        what = f"the hub refused it ({' '.join(str(error.server_message or error).split())})"
        raise UserError([Problem("NAME", what, "see hf auth whoami and the owner's rights")]) from error
    except (OfflineModeIsEnabled, OSError, httpx2.HTTPError) as error:
        fix = f"go online, or upload {folder} later; its card is {folder / CARD}"
        raise UserError([Problem("NAME", f"the hub cannot be reached ({type(error).__name__})", fix)]) from error
    return str(done.commit_url)
