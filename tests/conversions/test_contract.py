"""What holds for every conversion, shipped or the user's own: the copy computes what was written, and its ledger says so."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from lightgpt2.callbacks import Convert, Export, PackedArtefact, PostTrainingQuantization
from lightgpt2.conversions.base import Conversion
from lightgpt2.conversions.bitsandbytes import BitsAndBytes
from lightgpt2.conversions.convert import Converter
from lightgpt2.conversions.export import conversion_of
from lightgpt2.conversions.packing import Packed
from lightgpt2.conversions.target import Target
from lightgpt2.data.validation import validation_data
from lightgpt2.errors import Problem, UserError
from lightgpt2.methods import QAT, FineTune
from lightgpt2.models.integers import Integers
from lightgpt2.models.ledger import Entry, Ledger, Parent
from lightgpt2.models.loading import load_model
from lightgpt2.models.operations import OperationKind, kind_of
from lightgpt2.models.quality import read_scores, value_of, write_scores
from lightgpt2.models.standalone import stored_weights
from lightgpt2.runs.run import Run
from lightgpt2.runtime.transformers_engine import TransformersEngine
from lightgpt2.tasks.language_modeling import LanguageModeling
from tests.support.models import make_restless_model, write_corpus, write_tokenizer

TASK: Any = LanguageModeling()
RUN = Run("r")
IDS = np.arange(5, 45)[None]


class Halved(Conversion):
    """The user's own: weights in half precision."""

    name = "halved"

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def problems(self, config: Any, data: Any) -> list[Problem]:
        return [Problem("fails", "must be false, got true", "remove it")] if self.fails else []

    def write(self, source: Path, target: Path, data: Any) -> dict[str, Any]:
        model = load_model(str(source), "model").half()
        model.save_pretrained(target)
        kind = OperationKind("halved", conversion="quantized", describe=lambda _: "stored in half precision")
        return kind.record(matched=len([*model.parameters()]))


class Spoiled(Halved):
    """The user's own, run by an engine, and nothing like its source."""

    name = "spoiled"

    def runner(self, folder: Path) -> Any:
        model = load_model(str(folder), "model")
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(-3)
        return TransformersEngine(model.eval())


CONVERSIONS: dict[str, tuple[Conversion, float]] = {  # and how far logits may be off
    "nf4": (BitsAndBytes("nf4"), 0.5),
    "int8": (BitsAndBytes("int8"), 0.1),
    "onnx": (conversion_of(Target("onnx")), 1e-4),
    "onnx-int8": (conversion_of(Target("onnx-int8")), 0.1),
    "onnx-int4": (conversion_of(Target("onnx-int4", "int4", 16)), 0.5),
    "gguf": (conversion_of(Target("gguf", gguf_type="F16")), 0.01),
    "packed": (Packed(), 0),
    "halved": (Halved(), 0.01),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an artefact that was scored, and its text."""
    home = tmp_path_factory.mktemp("contract")
    write_corpus(home / "corpus", 24)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        model = make_restless_model("gpt2", n_layer=2, n_embd=128)
        write_tokenizer(RUN.model)
        model.save_pretrained(RUN.model)
        data = text()
        scores = {"after": TASK.evaluate(model, data, "valid", "m")}
        quality = {"after": TASK.quality(scores["after"])}
        entry = Entry("r", "FineTune", {}, Parent("t"), [], data.describe(), 0, 3, 1.0, quality)
        Ledger().extended(entry).amended(curve=[[1, 2.0]]).write(RUN.model)
        write_scores(RUN.model, scores)
    return home


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    for path in RUN.folder.glob("model-*"):
        shutil.rmtree(path)


def text() -> Any:
    return validation_data(str(RUN.model), "corpus")


def logits(runner: Any) -> Any:
    engine = TransformersEngine(runner.eval()) if isinstance(runner, PreTrainedModel) else runner
    return engine.logits(IDS, np.ones_like(IDS)).copy()


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_copy_computes_what_was_written_and_its_ledger_says_how_well(name: str) -> None:
    conversion, bound = CONVERSIONS[name]
    folder, before = RUN.sibling(name), {path: path.read_bytes() for path in RUN.model.iterdir()}
    made = Converter(text(), TASK, "Convert", scored=True).convert(conversion, str(RUN.model), folder)
    exact, found = logits(load_model(str(RUN.model), "m")), logits(conversion.runner(folder))
    assert np.linalg.norm(found - exact) <= bound * np.linalg.norm(exact)
    assert (name == "packed") == np.array_equal(found, exact)
    source, (*history, entry) = Ledger.read(RUN.model), Ledger.read(folder)
    assert history == source
    assert (entry["method"], entry["steps"]) == ("Convert", 3)
    assert entry["operations"] == [json.loads(json.dumps(made.operation))]
    assert kind_of(made.operation).name == {"onnx": "export", "gguf": "export"}.get(name.partition("-")[0], name)
    assert entry["parent"] == vars(Parent.of(str(RUN.model)))
    assert "curve" not in entry
    assert entry["sizes"]["parameters"] == load_model(str(RUN.model), "m").num_parameters()
    assert entry["sizes"]["megabytes"] > 0
    known, scored = source.last["quality"]["after"], entry["quality"]["after"]
    assert value_of(scored) == pytest.approx(value_of(known), rel=max(bound, 1e-6))
    assert (scored["tokens"], scored["documents"]) == (known["tokens"], known["documents"])
    assert entry["quality"].get("before", known) == known, "the source is not scored again"
    metric = read_scores(folder, "after", scored)["perplexity"]
    assert metric.value() == pytest.approx(value_of(scored))
    assert metric.against(read_scores(RUN.model, "after", known)["perplexity"]).ratio > 0
    assert before == {path: path.read_bytes() for path in RUN.model.iterdir()}
    assert not [path for path in RUN.folder.iterdir() if path.suffix in (".tmp", ".old")]


def callback_run(callback: Convert, *others: Convert, method: Any = None) -> tuple[Any, Any]:
    """A trainer and a method for a callback, at their fit's start; what the callback says of its settings is raised."""
    trainer = SimpleNamespace(
        callbacks=[callback, *others], datamodule=text(), is_global_zero=True,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    method = method or FineTune(model=str(RUN.model))
    method._trainer = trainer
    method.model = load_model(str(RUN.model), "model")
    for each in trainer.callbacks:
        each.attach(RUN)
    callback.setup(trainer, method, "fit")  # type: ignore[arg-type]
    callback.on_fit_start(trainer, method)  # type: ignore[arg-type]
    return trainer, method


def refused(callback: Convert, *others: Convert, method: Any = None) -> list[str]:
    with pytest.raises(UserError) as error:
        callback_run(callback, *others, method=method)
    assert not [*RUN.folder.glob("model-*")]
    return [*error.value.problems]


def test_two_callbacks_do_not_write_one_folder() -> None:
    quantization = PostTrainingQuantization(["nf4", "onnx-int8"])
    assert refused(quantization, Export(["onnx", "onnx-int8"])) == [
        "trainer.callbacks.PostTrainingQuantization.formats: onnx-int8 is among those of Export too; remove one of the two"
    ]
    (problem,) = refused(Convert([Halved(), Packed()]), PackedArtefact())
    assert problem.startswith("trainer.callbacks.Convert.conversions: packed is among those of PackedArtefact too")


NOT_ONCE = "must be one or more, each once, got"
CONTRADICTIONS: list[tuple[Convert, list[str]]] = [
    (Export([]), [f"formats: {NOT_ONCE} none"]),
    (Export(["onnx", "onnx"]), [f"formats: {NOT_ONCE} onnx, onnx"]),
    (PostTrainingQuantization([]), [f"formats: {NOT_ONCE} none"]),
    (Convert([Packed(), Packed()]), [f"conversions: {NOT_ONCE} packed, packed"]),
    (Export(["onnx"], embeddings="int4", group=32, gguf_type="F16", prefill="int8"), [
        "embeddings: only onnx-int8 and onnx-int4 can have it, got onnx; remove it",
        "group: only onnx-int4 can have it, got onnx; remove it",
        "prefill: only onnx-int4 can have it, got onnx; remove it",
        "gguf_type: only gguf can have it, got onnx; remove it",
    ]),
    (Export(["onnx-int8", "onnx-int4"], group=48), ["group: must be 16, 32, 64, 128 or 256, got 48"]),
]  # fmt: skip


@pytest.mark.parametrize(("callback", "messages"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused(callback: Convert, messages: list[str]) -> None:
    assert callback.attach(RUN) == messages


def test_each_format_is_given_what_it_has() -> None:
    callback = Export(["onnx", "onnx-int8", "onnx-int4", "gguf"], "int4", group=64, gguf_type="Q8_0", prefill="int8")
    assert callback.targets == [
        Target("onnx"),
        Target("onnx-int8", embeddings="int4"),
        Target("onnx-int4", embeddings="int4", group=64, prefill="int8"),
        Target("gguf", gguf_type="Q8_0"),
    ]
    assert PostTrainingQuantization().names == ["nf4", "int8"]


@pytest.mark.parametrize(
    ("callback", "beginnings"),
    [
        (Export(["onnx", "onnx-int8", "onnx-int4", "gguf"], group=32, gguf_type="Q8_0"), [
            "trainer.callbacks.Export.formats: onnx: the weights are int8 with scales that were trained; give onnx-int8",
            "trainer.callbacks.Export.group: the weights have groups already, with scales that were trained; remove it",
            "trainer.callbacks.Export.formats: gguf: the weights are int8 with scales that were trained, and Q8_0 would choose",
            "trainer.callbacks.Export.formats: gguf: the layers' inputs are rounded to INT8, which llama.cpp does not do; use",
        ]),
        (PostTrainingQuantization(), ["trainer.callbacks.PostTrainingQuantization: QAT leaves the weights in INT8, and"]),
        (Convert([BitsAndBytes("nf4")]), ["trainer.callbacks.Convert.conversions: nf4: the weights are int8 already, and"]),
        (Convert([Halved(fails=True)]), ["trainer.callbacks.Convert.conversions.fails: halved: must be false, got true"]),
    ],
)  # fmt: skip
def test_nothing_is_converted_twice_and_that_is_said_before_training(callback: Convert, beginnings: list[str]) -> None:
    method: Any = QAT(model=str(RUN.model), quantization=Integers(8, activations=True))
    method.operations = [{"op": "integers", "activations": True}]
    problems = refused(callback, method=method)
    assert [problem[: len(start)] for problem, start in zip(problems, beginnings, strict=True)] == beginnings
    assert "--" not in "".join(problems)


def test_rows_that_are_not_whole_blocks_of_nf4_are_refused() -> None:
    config = make_restless_model("gpt2", n_embd=32).config
    (problem,) = BitsAndBytes("nf4").problems(config, None)
    assert problem.startswith("layers with 32 inputs are computed wrongly by bitsandbytes on some processors; choose")
    assert BitsAndBytes("int8").problems(config, None) == []
    assert BitsAndBytes("nf4").problems(make_restless_model("gpt2", n_embd=64).config, None) == []


def test_what_is_not_good_enough_is_not_written_and_the_others_are(capsys: pytest.CaptureFixture[str]) -> None:
    callback = Convert([Spoiled(), Halved()])
    trainer, method = callback_run(callback)
    with pytest.raises(UserError) as error:
        callback.on_fit_end(trainer, method)
    for problem in error.value.problems:
        assert problem.startswith("trainer.callbacks.Convert.conversions: spoiled: ")
        assert problem.endswith("; nothing was written")
    assert sorted(path.name for path in RUN.folder.iterdir()) == ["model", "model-halved"]
    assert "halved" in capsys.readouterr().out
    assert "spoiled" not in callback.rows


def test_packing_says_what_it_saved(capsys: pytest.CaptureFixture[str]) -> None:
    callback = PackedArtefact()
    callback.on_fit_end(*callback_run(callback))
    sizes, said = Ledger.read(RUN.sibling("packed")).last["sizes"], capsys.readouterr().out
    assert f": {sizes['megabytes']:.2f} MB packed, {sizes['dense_megabytes']:.2f} MB dense, " in said
    assert said.endswith(" tensors sparse, equal to the last bit\n")


def test_what_is_packed_and_lost_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    write = stored_weights.write

    def losing(file: Path, tensors: dict[str, torch.Tensor], *more: Any, **options: Any) -> Any:
        return write(file, {name: tensor + 1 for name, tensor in tensors.items()}, *more, **options)

    monkeypatch.setattr(stored_weights, "write", losing)
    with pytest.raises(RuntimeError, match="what was packed is not what comes out"):
        Converter(text(), TASK, "m", scored=True).convert(Packed(), str(RUN.model), RUN.sibling("packed"))
    assert not RUN.sibling("packed").exists()
