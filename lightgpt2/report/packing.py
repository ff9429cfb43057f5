"""What packing a model folder saves, and that it saves nothing in memory."""

from collections.abc import Sequence

from lightgpt2.report.chain import Model, part
from lightgpt2.report.figures import change, escape, number, write, write_change
from lightgpt2.report.tables import table

# Of an entry's sizes: the same tensors without packing, packed, and as they are computed with.
_SIZES = ("dense_megabytes", "megabytes", "memory")


def _figures(model: Model) -> list[float | None]:
    return [number(part(model.entry, "sizes").get(key)) for key in _SIZES]


def packed_table(models: Sequence[Model]) -> str:
    """Dense, packed and in-memory megabytes of packed models, apart."""
    rows = []
    for model in models:
        dense, packed, memory = _figures(model)
        figures = [write("disk", value) for value in (dense, packed, memory)]
        rows.append([escape(model.name), *figures, write_change(change(dense, packed))])
    return table(["model", "dense on disk, MB", "packed on disk, MB", "in memory, MB", "packed against dense"], rows)


def packed_sentence(model: Model) -> str:
    """The same of one model, in plain words."""
    dense, packed, memory = (write("disk", value) for value in _figures(model))
    return (
        f"Packed it takes {packed} MB on disk, without that {dense}; in memory its weights are {memory} MB either way."
    )
