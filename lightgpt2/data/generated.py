"""Targets that a teacher writes: generated once, kept under `checkpoints/.data/`, and gone on with where they were stopped."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from tqdm import tqdm

from lightgpt2.data.pair_tokens import PairEncoder
from lightgpt2.data.pairs import Pair
from lightgpt2.errors import UserError
from lightgpt2.models.decoding import Decoding, check_tokens, generate, left_padded
from lightgpt2.models.files import atomic_file, digest, written
from lightgpt2.models.loading import load_config, load_model
from lightgpt2.models.sources import source_folder, verify
from lightgpt2.models.tokenizers import load_tokenizer

KEY = "data.generated_by"
_CACHE = Path("checkpoints/.data")
_BATCH = 16  # texts that are generated together
_FILES = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "*.jinja")  # of a model, that decide what it writes
_VERSION = 1  # of how it is generated


@dataclass(frozen=True)
class GeneratedTargets:
    """The targets of a training split, written by a model.

    They are generated in batches that do not depend on when it is stopped. A batch is kept once it is whole; the file that is
    read exists when all are.

    Args:
        teacher: Hub id or folder.
        decoding: How it generates.
        prefix: Text before each source.
        most_source: Tokens of a source that it reads.
        most_target: New tokens, unless `decoding` says.
        template: For a decoder, as of `TextToTextData`.
        trust_remote_code: Whether code in the model's folder may run.
    """

    teacher: str
    decoding: Decoding
    prefix: str
    most_source: int
    most_target: int
    template: str | None
    trust_remote_code: bool = False

    def complete(self, pairs: Sequence[Pair]) -> None:
        """Generates what is not there yet, with a progress bar.

        Raises:
            UserError: The teacher cannot be loaded, or cannot read such texts.
        """
        file = self._file(pairs)
        if _whole(file) is not None:
            return
        partial = file.with_suffix(".partial")
        with written(file), _owned(partial) as journal:
            if _whole(file) is None:  # else another process has written it meanwhile
                texts = self._go_on(pairs, journal)
                with atomic_file(file) as temporary:
                    temporary.write_text(json.dumps({"sha256": _sum(texts), "texts": texts}), encoding="utf-8")
            partial.unlink(missing_ok=True)

    def exist(self, pairs: Sequence[Pair]) -> bool:
        """True if all have been generated."""
        return _whole(self._file(pairs)) is not None

    def read(self, pairs: Sequence[Pair]) -> list[str]:
        """The target of each pair, which `complete` has generated."""
        found = _whole(self._file(pairs))
        if found is None:
            raise UserError(f"{KEY}: what {self.teacher} wrote is gone; run it again, which generates it anew")
        return found

    def _file(self, pairs: Sequence[Pair]) -> Path:
        """The file of what this teacher writes of these sources with these settings."""
        verify(self.teacher, KEY)
        load_config(self.teacher, KEY, self.trust_remote_code)  # of the hub, it is fetched
        folder = source_folder(self.teacher)
        files = sorted({path for pattern in _FILES for path in folder.glob(pattern)})
        settings = {key: value for key, value in asdict(self).items() if key not in ("teacher", "trust_remote_code")}
        sources = [[pair.source, pair.conversation and repr(pair.conversation)] for pair in pairs]
        parts = [
            _VERSION,
            [[path.name, digest(path)] for path in files if path.name != "ledger.json"],
            settings,
            sources,
        ]
        return _CACHE / f"targets-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}.json"

    def _go_on(self, pairs: Sequence[Pair], journal: IO[str]) -> list[str]:
        done, end = _journal(journal)
        journal.seek(end)
        journal.truncate()  # a batch that was not written whole
        order = sorted(range(len(pairs)), key=lambda row: (-len(pairs[row].source), row))
        batches = [order[i : i + _BATCH] for i in range(0, len(order), _BATCH)]
        write = self._writer(pairs) if len(done) < len(batches) else None
        label = f"{self.teacher} writes the targets"
        for rows in tqdm(batches[len(done) :], label, len(batches), initial=len(done), leave=False, disable=None):
            assert write is not None
            done.append(write(rows))
            journal.write(json.dumps(done[-1]) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        texts = [""] * len(pairs)
        for rows, written_ in zip(batches, done, strict=True):
            for row, text in zip(rows, written_, strict=True):
                texts[row] = text
        return texts

    def _writer(self, pairs: Sequence[Pair]) -> Callable[[Sequence[int]], list[str]]:
        """What generates the targets of some pairs, by their numbers."""
        model = load_model(self.teacher, KEY, self.trust_remote_code).eval()
        tokenizer = load_tokenizer(self.teacher, KEY, self.trust_remote_code, separates=False)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        check_tokens(model, KEY)
        if torch.cuda.is_available():
            model.to(device="cuda")
        encoder = PairEncoder(tokenizer, self.prefix, self.most_source, self.most_target)
        options = self.decoding.options(self.most_target)
        ends = tokenizer.eos_token_id, tokenizer.pad_token_id

        def write(rows: Sequence[int]) -> list[str]:
            those = [pairs[row] for row in rows]
            joined = not model.config.is_encoder_decoder
            found = encoder.joined(those, _quiet, self.template) if joined else encoder.separate(those, _quiet)
            ids, mask = left_padded([torch.from_numpy(each.astype(np.int64)) for each in found.sources], found.pad)
            new = generate(model, ids.to(model.device), mask.to(model.device), options, ends)
            return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]

        return write


def _quiet(what: str, count: int) -> None:
    """What is cut is said where the texts are read."""


def _sum(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _whole(file: Path) -> list[str] | None:
    """The texts of a file; None if it is not there, or not as it was written."""
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        texts: list[str] = found["texts"]
        return texts if _sum(texts) == found["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _journal(file: IO[str]) -> tuple[list[list[str]], int]:
    """The batches of a journal, and where the last whole one ends."""
    file.seek(0)
    found, end = list[list[str]](), 0
    while (line := file.readline()).endswith("\n"):
        try:
            found.append(json.loads(line))
        except ValueError:  # damaged: what follows is generated again
            break
        end = file.tell()
    return found, end


@contextmanager
def _owned(path: Path) -> Iterator[IO[str]]:
    """A journal that no other process writes meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
