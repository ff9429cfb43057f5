"""The whole of `lightgpt2 serve`: an address, a model, and a server."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightgpt2.errors import Problem, UserError, refuse, tell
from lightgpt2.runtime.language_model import LanguageModel
from lightgpt2.serve.app import make_app
from lightgpt2.serve.server import Server, bound, is_loopback, listen
from lightgpt2.serve.service import Service
from lightgpt2.serve.settings import LOCAL, Settings


def serve(
    model: str, partial: str | None, address: tuple[str, int], settings: Settings, load: Callable[[str, str], Any]
) -> None:
    """Serve a model until the process is asked to stop.

    Args:
        model: The model, as `load` takes it.
        partial: Another one for texts that end inside a word; None: the same.
        address: The host and the port to listen on.
        settings: The limits. Their `hosts` are set by the address.
        load: Loads a model, with its name in errors.

    Raises:
        UserError: The address or a model cannot be used.
    """
    host, port = address
    with bound(host, port) as socket:
        local = is_loopback(socket)
        if settings.key is None and not local:
            what = f"must be given to listen on {host}, where other machines can connect"
            raise UserError([Problem("--api-key", what, "give one, or remove --host")])
        hosts = LOCAL | {f"[{host}]" if ":" in host else host.lower()} if local else None
        loaded = load(model, "MODEL")
        completer = _completer(loaded, model, None if partial is None else load(partial, "--partial"))
        service = Service(_name(model), loaded, settings.on(hosts), completer)
        app = make_app(service)
        listen(socket)
        url = f"http://{f'[{host}]' if ':' in host else host}:{socket.getsockname()[1]}"
        tell(f"lightgpt2: {service.name} is served on {url}/v1{f'; the page is {url}/' if completer else ''}")
        Server(app, service.worker).run(sockets=[socket])
        service.worker.join(5)


def _completer(model: Any, name: str, partial: Any) -> Any:
    """What completes texts; None for a model that cannot."""
    if not isinstance(model, LanguageModel):
        wrong = [Problem("--partial", f"{name} completes no words that are being typed", "remove it")]
        refuse(wrong if partial is not None else [])
        return None
    from lightgpt2.runtime.completion import Completer

    try:
        return Completer(model, partial)
    except UserError as error:
        if partial is not None:
            raise
        tell(f"lightgpt2: there is no page: {error}", sys.stderr)
        return None


def _name(model: str) -> str:
    """What clients call a model: the name of its folder or file, of a run's the run's; of the hub as it is."""
    if not Path(model).expanduser().exists():
        return model
    path = Path(model).expanduser().resolve()
    return path.parent.name if path.name in ("model", "model.gguf") else path.name
