"""The command that serves a model to other programs: `serve`."""

import os
import re
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import PositiveFloat, PositiveInt, restricted_number_type

from lightgpt2.cli.inference import load_quietly
from lightgpt2.errors import Problem, UserError, refuse

if TYPE_CHECKING:
    Port = int
else:
    Port = restricted_number_type("Port", int, [(">=", 0), ("<=", 65535)], docstring="restricted to be from 0 to 65535")

_KEY = "LIGHTGPT2_API_KEY"
_ORIGIN = re.compile(r"https?://[^/\s]+")


def serve(
    model: str,
    *,
    partial: str | None = None,
    host: str = "127.0.0.1",
    port: Port = 8000,
    api_key: str | None = None,
    allow_origin: list[str] = [],  # noqa: B006 - nobody changes it
    waiting: PositiveInt = 64,
    timeout: PositiveFloat = 60.0,
    threads: PositiveInt | None = None,
    verify: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Serve a model: OpenAI's endpoints, and a page that completes what is typed.

    It needs starlette and uvicorn: pip install 'lightgpt2[serve]'.

    Args:
        model: An exported folder, a model folder, a GGUF file or a hub model.
        partial: A character model for texts that end inside a word (default: the same model).
        host: Address to listen on. Where other machines can connect, it needs --api-key.
        port: Port to listen on (0: any that is free).
        api_key: What clients must send as Authorization: Bearer KEY (default: that of LIGHTGPT2_API_KEY, which lists of
            processes do not show).
        allow_origin: Origins of other pages that may ask, https://example.org for example.
        waiting: Requests that may wait; more are answered with status 429.
        timeout: Seconds that a request may take, with the time that it waits. An answer ends there.
        threads: Threads to compute with (default: all cores).
        verify: Compare every file of the model's folder with its checksum first. (Exported folders always are.)
        trust_remote_code: Let code in the model's folder run.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        fix = "install the extra: pip install 'lightgpt2[serve]'"
        raise UserError([Problem("serve", f"the package {error.name} is not installed", fix)]) from None
    from lightgpt2.serve.run import serve as run
    from lightgpt2.serve.settings import Settings

    key = os.environ.get(_KEY) if api_key is None else api_key
    refuse(_problems(key, allow_origin))

    def loaded(source: str, name: str) -> Any:
        return load_quietly(source, threads, name, verify=verify, trust_remote_code=trust_remote_code)

    settings = Settings(key=key, origins=tuple(allow_origin), waiting=int(waiting), seconds=float(timeout))
    run(model, partial, (host, int(port)), settings, loaded)


def _problems(key: str | None, origins: list[str]) -> list[Problem]:
    """What is wrong with a key and with origins."""
    problems = []
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        problems.append(Problem("--api-key", "must be of visible ASCII characters", "give another one"))
    wrong = [each for each in origins if not _ORIGIN.fullmatch(each)]
    fix = "give its scheme and host, as https://example.org"
    return problems + [Problem("--allow-origin", f"must be an origin, got {each}", fix) for each in wrong]
