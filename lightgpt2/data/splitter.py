"""Which split each document of a corpus goes to, and which documents are left out as those that occur again."""

from collections.abc import Iterator, Sequence

from lightgpt2.data.corpora import Corpus
from lightgpt2.data.documents import Conversation, Document, content, plain_text, question
from lightgpt2.data.remarks import Remarks
from lightgpt2.data.seen import Digests, NearDuplicates
from lightgpt2.data.splits import Split, split_of


class Splitter:
    """Puts documents into splits, one after the other; the documents before decide which one occurs again.

    Splits that a source names are kept, and a validation or test split that it lacks is taken from its training split by the
    hash of the text, of a conversation what is asked in it; where it names none, the hash decides alone.

    Args:
        corpora: The sources.
        valid_fraction: Share of documents for validation, where a source names no such split.
        test_fraction: Share of documents for testing, likewise.
        near_duplicates: The similarity from which on a document is like one before and left out.
        remarks: Gets what is left out.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        valid_fraction: float,
        test_fraction: float,
        near_duplicates: float | None = None,
        remarks: Remarks | None = None,
    ) -> None:
        self.corpora, self.remarks = corpora, Remarks() if remarks is None else remarks
        self._fractions = valid_fraction, test_fraction
        self._given = [corpus.splits() for corpus in corpora]
        self._seen, self._similar = Digests(), NearDuplicates(near_duplicates) if near_duplicates else None
        self._held_out = Digests()  # questions

    def passes(self) -> Iterator[tuple[int, Iterator[tuple[Split | None, Document]]]]:
        """Each source with its documents and the splits that they are named; first what all of them hold out, then the rest."""
        for held_out in (True, False):
            for source, corpus in enumerate(self.corpora):
                found = corpus.documents(self.remarks, held_out)
                # Line feeds around a text are of the file that it stood in.
                yield source, ((named, text.strip("\n") if isinstance(text, str) else text) for named, text in found)

    def place(self, source: int, named: Split | None, document: Document) -> Split | None:
        """The split of the next document; None if it is empty or occurred before."""
        text = content(document)
        if not text.strip():
            return None
        where = named or self.corpora[source].label
        if not self._seen.add(text):
            self.remarks.add("documents that occur again, left out", where)
            return None
        if self._similar and not self._similar.add(plain_text(document, system=False)):
            self.remarks.add("near duplicates, left out", where)
            return None
        asked, given = question(document), self._given[source]
        hashed = split_of(asked, *self._fractions)
        named = named or ("train" if given else None)
        split = hashed if named in (None, "train") and hashed not in given else named or hashed
        if isinstance(document, Conversation):
            if split != "train":
                self._held_out.add(asked)
            elif asked in self._held_out:
                self.remarks.add("conversations whose question is held out, left out", where)
                return None
        return split

    def documents(self) -> Iterator[tuple[Split, Document]]:
        """Every document that is kept, with its split."""
        for source, found in self.passes():
            for named, document in found:
                if split := self.place(source, named, document):
                    yield split, document
