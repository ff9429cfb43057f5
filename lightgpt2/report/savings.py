"""Where a quantized model's saving comes from: half precision alone, and the rest; embeddings apart."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightgpt2.report.chain import Model, operations
from lightgpt2.report.figures import change, escape, listing, phrase, write, write_change
from lightgpt2.report.verdicts import comparable, resources
from lightgpt2.report.words import quantizer, speed


@dataclass(frozen=True)
class Saving:
    """One resource of a quantized model.

    Attributes:
        model: The quantized model.
        key: The resource.
        full: MB of the model that was quantized, in FP32.
        half: MB of that in half precision; None where it was not measured.
        quantized: MB of the quantized model.
        half_name: How `half` is known.
    """

    model: Model
    key: str
    full: float
    half: float | None
    quantized: float
    half_name: str

    @property
    def total(self) -> float | None:
        """Per cent saved against FP32."""
        return _saved(self.full, self.quantized)

    @property
    def by_half(self) -> float | None:
        """Per cent of FP32 that half precision alone saves."""
        return _saved(self.full, self.half)

    @property
    def rest(self) -> float | None:
        """Per cent of FP32 that quantization saves beyond that."""
        return None if self.total is None or self.by_half is None else self.total - self.by_half

    @property
    def against_half(self) -> float | None:
        """Per cent saved against half precision."""
        return _saved(self.half, self.quantized)


def _saved(before: float | None, after: float | None) -> float | None:
    difference = change(before, after)
    return None if difference is None else -difference


def half_of(model: Model, rows: Sequence[Model]) -> Model | None:
    """The half-precision row of the stage that a model is a quantized copy of."""
    return next((row for row in rows if row.kind == "half precision" and row.parent is model.parent), None)


def savings(model: Model, rows: Sequence[Model]) -> list[Saving]:
    """What a quantized model saves on disk and of the weights' memory, where both were measured."""
    full, half = model.parent, half_of(model, rows)
    if full is None:
        return []
    found = []
    parameters = full.figures.get("parameters")
    known = {
        "disk": (None if parameters is None else 2 * parameters / 1e6, "2 bytes a parameter"),
        "weights": (half.figures.get("weights") if half else None, half.name if half else "half precision"),
    }
    for key, (by_half, name) in known.items():
        before, after = full.figures.get(key), model.figures.get(key)
        if before is not None and after is not None and comparable(key, model, full):
            found.append(Saving(model, key, before, by_half, after, name))
    return found


def sentences(model: Model, rows: Sequence[Model]) -> str:
    """How a quantized model does against half precision and FP32, in plain words."""
    name = ", ".join(quantizer(operation) for operation in operations(model.entry)) or escape(model.name)
    text = [_speed(name, model, half_of(model, rows)), *(_of(name, saving) for saving in savings(model, rows))]
    return " ".join(filter(None, [*text, _embedding(model)]))


def _of(name: str, saving: Saving) -> str:
    what = "the space on disk" if saving.key == "disk" else "the weights' memory"
    sizes = f"{write('disk', saving.full)} to {write('disk', saving.quantized)} MB"
    text = f"{name} {_amount(saving.total)} of {what} against FP32 ({sizes})"
    if saving.against_half is None:
        return f"{text}; what half precision alone would save was not measured."
    half = f"{escape(saving.half_name)}, {write('disk', saving.half)} MB"
    if saving.against_half <= 0:
        return f"{text}; half precision alone ({half}) does as well or better: it {_amount(saving.by_half)}."
    but = "but only" if saving.total is not None and saving.against_half < saving.total else "and"
    return f"{text}, {but} {saving.against_half:.1f} % against half precision ({half})."


def _amount(saved: float | None) -> str:
    if saved is None:
        return "saves an unknown share"
    return f"saves {saved:.1f} %" if saved >= 0 else f"takes {-saved:.1f} % more"


def _embedding(model: Model) -> str:
    """The share of the embedding, which quantization leaves as it is where it is tied to the head."""
    full = model.parent
    if full is None or not comparable("weights", model, full):
        return ""
    pairs = [(m.figures.get("weights"), m.figures.get("embedding_memory")) for m in (full, model)]
    (all_full, kept_full), (all_now, kept_now) = pairs
    if all_full is None or kept_full is None or all_now is None or kept_now is None:
        return ""
    rest_full, rest_now = all_full - kept_full, all_now - kept_now
    rest = f"{write('disk', rest_full)} MB became {write('disk', rest_now)} MB"
    return (
        f"The embedding is {write('disk', kept_full)} MB of the FP32 weights and {write('disk', kept_now)} MB of these; "
        f"without it {rest} ({write_change(change(rest_full, rest_now))})."
    )


def _speed(name: str, model: Model, half: Model | None) -> str:
    """Its speed against FP32 and against half precision, which is what there is to beat; slower is called slower."""
    key = resources(model)[-1]
    text = []
    for other, called in ((model.parent, "FP32"), (half, escape(half.name) if half else "")):
        if other is None or not comparable(key, model, other):
            continue
        old, new = other.figures.get(key), model.figures.get(key)
        if old is not None and new is not None and old > 0:
            than = "as" if speed(key, old, new) == "as fast" else "than"
            text.append(f"{speed(key, old, new)} {than} {called} ({phrase(key, old, new)})")
    return f"On this machine {name} is {listing(text)}." if text else ""
