"""Documents to tokens, in this process or in several; imports nothing that takes long, since every process does it."""

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from queue import Queue
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lightgpt2.data.documents import ANSWERS, Document, is_answer
from lightgpt2.errors import UserError
from lightgpt2.models.chat import ChatTemplate


@dataclass(frozen=True)
class Encoded:
    """The tokens of a document."""

    tokens: NDArray[Any]  # [n], the separator and what closes it included; empty if the text has none
    answers: NDArray[np.bool_] | None  # whether each token is learnt [n]; None: all are
    closed: int  # how many tokens at the end are learnt and not scored
    size: int  # UTF-8 bytes of the text
    answered: int  # those of the answers' contents; of a text all


@dataclass(frozen=True)
class Encoder:
    """How documents become tokens.

    A text stands between the separator and the end-of-text token, if that is another one. A conversation is what its chat
    template makes of it, up to the end of its last answer; without a template a prompt and its completion are one text.
    """

    tokenizer: str  # the JSON of a `tokenizers.Tokenizer`
    separator: int
    end: int | None  # the end-of-text token
    dtype: str
    template: ChatTemplate | None

    def __call__(self, documents: Sequence[Document]) -> list[Encoded | str]:
        """Encodes documents; a text instead of tokens says why a conversation has none.

        Raises:
            UserError: There is a conversation and no chat template.
        """
        backend = _loaded(self.tokenizer)
        laid_out = [self._lay_out(document) for document in documents]
        plain = [each.text for each in laid_out if isinstance(each, _Laid) and each.spans is None]
        placed = [each.text for each in laid_out if isinstance(each, _Laid) and each.spans is not None]
        quick = iter(backend.encode_batch_fast(plain, add_special_tokens=False))
        with_places = iter(backend.encode_batch(placed, add_special_tokens=False))
        found: list[Encoded | str] = []
        for each in laid_out:
            if isinstance(each, str):
                found.append(each)
            elif each.spans is None:
                found.append(self._text(next(quick).ids, each.text))
            else:
                found.append(self._conversation(next(with_places), each.text, each.spans))
        return found

    def _lay_out(self, document: Document) -> "_Laid | str":
        if isinstance(document, str):
            return _Laid(document, None)
        if self.template is None:
            if not document.is_pair:
                raise UserError(
                    "data.chat_template: the tokenizer has none, and the text holds conversations; name a Jinja file"
                )
            prompt, answer = (turn["content"] for turn in document.messages)
            return _Laid(prompt + answer, [(len(prompt), len(prompt) + len(answer))])
        try:
            text, spans = self.template.answers(document.messages, document.tools)
        except ValueError as error:
            return str(error)
        answers = [turn for turn in document.messages if turn["role"] == ANSWERS]
        learnt = [span for span, turn in zip(spans, answers, strict=True) if is_answer(turn)]
        return _Laid(text[: learnt[-1][1]], learnt)

    def _text(self, ids: list[int], text: str) -> Encoded:
        closing = [] if self.end in (None, self.separator) else [self.end]
        tokens = [self.separator, *ids, *closing] if ids else []
        size = len(text.encode())
        return Encoded(np.array(tokens, self.dtype), None, len(closing), size, size)

    def _conversation(self, encoding: Any, text: str, spans: list[tuple[int, int]]) -> Encoded:
        """The tokens up to the end of the last answer, which is added where the text has none."""
        learnt = np.zeros(len(encoding.ids), dtype=bool)
        places = np.array(encoding.offsets).reshape(-1, 2)
        for first, last in spans:  # white space before an answer may be part of its first token
            learnt[places[:, 1].searchsorted(first, "right") : places[:, 0].searchsorted(last)] = True
        answers = [text[first:last].removesuffix(self._turn_end) for first, last in spans]
        tokens = [*([] if self.template else [self.separator]), *encoding.ids]
        marks = [*([] if self.template else [False]), *learnt]
        if encoding.ids and not (self._turn_end and text.endswith(self._turn_end)):
            tokens.append(self.separator if self.end is None else self.end)
            marks.append(True)
        sizes = len(text.encode()), sum(len(answer.encode()) for answer in answers)
        if not encoding.ids:
            tokens = marks = []
        return Encoded(np.array(tokens, self.dtype), np.array(marks, dtype=bool), 1, *sizes)

    @cached_property
    def _turn_end(self) -> str:
        """What the template writes behind an answer; empty if it writes nothing there, or there is none."""
        try:
            return self.template.end_of_turn() if self.template else ""
        except ValueError:  # it refuses such a conversation, or marks answers otherwise
            return ""


@dataclass(frozen=True)
class _Laid:
    """A document as one text."""

    text: str
    spans: list[tuple[int, int]] | None  # of the answers, in characters; None: all is learnt


@cache
def _loaded(tokenizer: str) -> Tokenizer:
    loaded = Tokenizer.from_str(tokenizer)
    loaded.no_padding()
    loaded.no_truncation()
    return loaded


Batch = list[tuple[Any, Document]]
Encode = Callable[[Iterator[Batch]], Generator[tuple[Batch, list[Encoded | str]]]]


@contextmanager
def workers(encoder: Encoder, processes: int) -> Iterator[Encode]:
    """What gives batches with their tokens, in order and a few ahead, computed in as many processes; 1: in this one."""
    if processes == 1:
        yield lambda batches: ((batch, encoder([document for _, document in batch])) for batch in batches)
        return
    idle: Queue[subprocess.Popen[bytes]] = Queue()

    def encode(documents: list[Document]) -> list[Encoded | str]:
        worker = idle.get()
        try:
            _send(worker.stdin, documents)
            found = pickle.load(cast(IO[bytes], worker.stdout))
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            what = "a process that tokenizes was ended from outside (is the memory full?)"
            raise UserError(f"data.processes: {what}; run it again, which goes on from there, or give fewer") from error
        finally:
            idle.put(worker)
        if isinstance(found, Exception):
            raise found
        return cast("list[Encoded | str]", found)

    def ahead(batches: Iterator[Batch]) -> Generator[tuple[Batch, list[Encoded | str]]]:
        waiting: deque[tuple[Batch, Future[list[Encoded | str]]]] = deque()
        try:
            while True:
                for batch in islice(batches, 2 * processes - len(waiting)):
                    waiting.append((batch, pool.submit(encode, [document for _, document in batch])))
                if not waiting:
                    return
                batch, future = waiting.popleft()
                yield batch, future.result()
        finally:
            for _, future in waiting:
                future.cancel()

    with ExitStack() as stack:
        for _ in range(processes):
            worker = stack.enter_context(_worker())
            _send(worker.stdin, encoder)
            idle.put(worker)
        with ThreadPoolExecutor(processes) as pool:  # each thread waits for one process
            yield ahead


@contextmanager
def _worker() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that encodes batches. `multiprocessing` is not used: it would run the user's script again."""
    command = [sys.executable, "-P", "-c", f"from {__name__} import _answer; _answer()"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "TOKENIZERS_PARALLELISM": "false",
    }
    pipe = subprocess.PIPE
    # In a new session: Ctrl-C in a terminal must reach the main process alone, which then ends its workers.
    worker = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, start_new_session=True)
    try:
        yield worker
    finally:
        worker.kill()
        for stream in (worker.stdin, worker.stdout):
            with suppress(OSError):
                cast(IO[bytes], stream).close()
        worker.wait()


def _send(stream: IO[bytes] | None, value: object) -> None:
    assert stream is not None
    pickle.dump(value, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()


def _answer() -> None:
    """Encodes the batches that come in."""
    encoder: Encoder = pickle.load(sys.stdin.buffer)
    with suppress(EOFError, BrokenPipeError):
        while True:
            documents = pickle.load(sys.stdin.buffer)
            try:
                found: list[Encoded | str] | Exception = encoder(documents)
            except Exception as error:
                found = error
            _send(sys.stdout.buffer, found)
