"""Random texts, in every format, in random folders: what is read is what was written, or a remark names what is not."""

import csv
import gzip
import io
import json
import string
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightgpt2.data.corpora import Corpus
from lightgpt2.data.remarks import Remarks
from lightgpt2.data.splits import SPLITS
from tests.support.text import split_documents

SEPARATOR = "\n<end>\n"
PLACES = ["{0}-{1:05}-of-00009.jsonl", "{0}/{1}.jsonl", "data/{0}_{1}.JSONL", "x.{0}{1}.json"]
QUICK = settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])

# Characters that formats treat in their own way come often.
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXT = st.text(st.sampled_from('",\t\n\r \\ab1{}[]\u2028\x85\ufeff\x1cé漢😀') | LETTERS, min_size=1, max_size=30)
TEXTS = st.lists(TEXT.filter(str.strip), min_size=1, max_size=8)
NAMES = st.text(string.ascii_letters + string.digits + "_- ", min_size=1, max_size=6).map(lambda name: f"x{name}x")
FOLDERS = st.lists(NAMES, max_size=2).map(lambda names: Path(*names))
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"])
OTHER = st.none() | st.booleans() | st.integers() | TEXT | st.lists(st.integers(), max_size=2)


def text_file(draw: Any, texts: list[str]) -> tuple[bytes, list[str]]:
    content = SEPARATOR.join(texts)
    encoding = "utf-8-sig" if content.startswith("\ufeff") else draw(ENCODINGS)
    lines = content.replace("\r\n", "\n").replace("\r", "\n")  # all that is changed: how a line ends
    return content.encode(encoding), lines.split(SEPARATOR)


def separated(delimiter: str) -> Any:
    def write(draw: Any, texts: list[str]) -> tuple[bytes, list[str]]:
        header = draw(st.sampled_from([["text"], ["label", "text"], ["text", "label"], ["a", "text", "b"]]))
        rows = [[text if name == "text" else str(draw(st.integers(0, 9) | TEXT)) for name in header] for text in texts]
        encoding = draw(ENCODINGS)
        plain = not any(letter in value for row in rows for value in row for letter in "\t\n\r")
        if delimiter == "\t" and plain and draw(st.booleans()):  # as GLUE: nothing is quoted
            end = draw(st.sampled_from(["\n", "\r\n"]))
            return "".join("\t".join(row) + end for row in [header, *rows]).encode(encoding), texts
        out = io.StringIO()
        how = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        marked = any("\r" in value for row in rows for value in row)  # which Python quotes only if it ends lines, too
        end = "\r\n" if marked else draw(st.sampled_from(["\n", "\r\n"]))
        csv.writer(out, delimiter=delimiter, quoting=how, lineterminator=end).writerows([header, *rows])
        return out.getvalue().encode(encoding), texts

    return write


def objects(draw: Any, texts: list[str]) -> list[dict[str, Any]]:
    return [{**draw(st.dictionaries(NAMES, OTHER, max_size=2)), "text": text} for text in texts]


def json_lines(draw: Any, texts: list[str]) -> tuple[bytes, list[str]]:
    end, plain = draw(st.sampled_from(["\n", "\r\n", "\n\n"])), draw(st.booleans())
    lines = [json.dumps(row, ensure_ascii=plain) for row in objects(draw, texts)]
    return end.join(lines).encode(draw(ENCODINGS)), texts


def json_list(draw: Any, texts: list[str]) -> tuple[bytes, list[str]]:
    return json.dumps(objects(draw, texts), indent=draw(st.sampled_from([None, 1]))).encode(draw(ENCODINGS)), texts


def parquet(draw: Any, texts: list[str]) -> tuple[bytes, list[str]]:
    kind = draw(st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]))
    table = pa.table({"a.b": [[i] for i in range(len(texts))], "text": pa.array(texts, kind)})
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=draw(st.integers(1, 5)))
    return out.getvalue(), texts


FORMATS = {
    "txt": text_file, "md": text_file, "csv": separated(","), "tsv": separated("\t"), "jsonl": json_lines, "json": json_list,
    "parquet": parquet,
}  # fmt: skip


@st.composite
def files(draw: Any) -> dict[Path, tuple[bytes, list[str]]]:
    """Files by their path in the folder: the content, and the texts in it."""
    found = {}
    for number in range(draw(st.integers(1, 4))):
        suffix = draw(st.sampled_from([*FORMATS]))
        content, texts = FORMATS[suffix](draw, draw(TEXTS))
        zipped = draw(st.booleans())
        name = f"{draw(NAMES)}{number}.{suffix}{'.gz' if zipped else ''}"
        path = draw(FOLDERS) / (name.upper() if draw(st.booleans()) else name)
        found[path] = (gzip.compress(content) if zipped else content, texts)
    return found


def write(folder: str, content: dict[Path, tuple[bytes, list[str]]]) -> Corpus:
    for path, (data, _) in content.items():
        (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
        (Path(folder) / path).write_bytes(data)
    return Corpus(folder, "text", SEPARATOR)


@QUICK
@given(files())
def test_what_is_read_is_what_was_written(content: dict[Path, tuple[bytes, list[str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        remarks = Remarks()
        found = [text for _, text in write(folder, content).documents(remarks) if text.strip()]
        said = "\n".join(remarks.lines())
    # Marks of a TSV file whose lines can be read in two ways are text, and that is said.
    doubtful = {path for path in content if str(path) in said}
    assert all(".tsv" in path.name.lower() for path in doubtful)
    written = [text for path in sorted(content) for text in content[path][1]]
    if not doubtful:
        assert found == written


@QUICK
@given(st.lists(st.tuples(st.sampled_from(["train", "dev", "test"]), TEXTS), min_size=1, max_size=5), st.data())
def test_no_text_that_a_name_holds_out_is_trained_on(parts: list[tuple[str, list[str]]], data: st.DataObject) -> None:
    content = {}
    for number, (split, texts) in enumerate(parts):
        place = data.draw(st.sampled_from(PLACES))
        content[Path(place.format(split, number))] = json_lines(data.draw, texts)
    with tempfile.TemporaryDirectory() as folder:
        remarks = Remarks()
        found = [*split_documents(write(folder, content), 0.0, 0.0, remarks)]
    texts: dict[str, set[str]] = {"train": set(), "dev": set(), "test": set()}
    for split, written in parts:
        texts[split] |= {text.strip("\n") for text in written}
    read = {split: {text for name, text in found if name == split} for split in SPLITS}
    assert read["train"] == texts["train"] - texts["dev"] - texts["test"]
    assert read["valid"] | read["test"] == texts["dev"] | texts["test"]
    assert len(found) == len({text for _, text in found})
    again = sum(len(texts) for _, texts in parts) - len(found)
    counted = Counter(line.partition(":")[0] for line in remarks.lines())
    assert bool(again) == bool(counted["documents that occur again, left out"])
