"""GlobalL1Pruning through the real command: exact on disk, held by later stages, refused where it would do harm."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lightgpt2.adaptations import Adaptation, Lora
from lightgpt2.adaptations.pruning_settings import Pruning
from lightgpt2.callbacks import GlobalL1Pruning
from lightgpt2.errors import UserError
from lightgpt2.methods import Method, MovementPruning
from lightgpt2.models.pruning import prunable
from lightgpt2.starts import Pretrained
from tests.support.cli import logged
from tests.support.mistakes import Bench
from tests.support.models import make_model
from tests.support.stages import callback, entries, stage

IDS = torch.arange(60).view(2, 30)


def finetune(model: str = "teacher", steps: int = 20, **settings: Any) -> dict[str, Any]:
    callbacks = (callback("GlobalL1Pruning", **settings),) if settings else ()
    return stage("FineTune", model, callbacks) | {"trainer.max_steps": steps}


def adapters(source: str, lora: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    callbacks = (callback("GlobalL1Pruning", **settings),) if settings else ()
    return stage("LoRA", source, callbacks, optimizer={"lr": 1e-2}, lora=lora)


def last_entry(run: str) -> dict[str, Any]:
    return entries(f"{run}/model")[-1]


def zeros(file: str, part: str) -> tuple[int, int]:
    chosen = [t for name, t in load_file(Path("checkpoints") / file).items() if part in name and t.ndim == 2]
    return sum(t.numel() - int(t.count_nonzero()) for t in chosen), sum(t.numel() for t in chosen)


@pytest.mark.slow
def test_scheduled_pruning_of_linear_layers_reaches_the_target_on_disk(bench: Bench) -> None:
    bench.configure(finetune(targets="linear", amount=0.6, schedule="cubic", warmup=0.2, hold=0.3, every=3))
    bench.succeed("fit")
    gone, total = zeros("r/model/model.safetensors", ".h.")
    assert gone == round(0.6 * total)
    (operation,) = last_entry("r")["operations"]
    assert operation == {
        "op": "global_l1", "criterion": "l1", "targets": "linear", "adapters": False, "amount": 0.6,
        "tensors": 16, "weights": total, "pruned": gone, "achieved": gone / total,
    }  # fmt: skip
    assert zeros("r/model/model.safetensors", "wte")[0] == 0
    curve = logged(Path(), "r")["train/sparsity"]
    values = list(curve.values())
    assert values == sorted(values)
    assert min(curve) > 4, "nothing goes in the warm-up"
    assert all(value == pytest.approx(0.6, abs=1e-4) for step, value in curve.items() if step > 14), "the hold phase"
    assert 0 < values[0] < 0.6


@pytest.mark.slow
def test_masks_hold_through_resumption_and_the_next_stage(bench: Bench) -> None:
    bench.configure(finetune(targets="linear", amount=0.5))
    bench.succeed("fit")
    before = load_file("checkpoints/r/model/model.safetensors")
    bench.succeed("fit", "--ckpt_path", "last", "--trainer.max_steps", "24")
    after = load_file("checkpoints/r/model/model.safetensors")
    linear = [name for name, t in before.items() if ".h." in name and t.ndim == 2]
    assert all(torch.equal(before[name] == 0, after[name] == 0) for name in linear)
    assert any(not torch.equal(before[name], after[name]) for name in linear), "nothing was trained"
    bench.configure(finetune("checkpoints/r/model"))
    bench.succeed("fit", "--run", "next")
    later = load_file("checkpoints/next/model/model.safetensors")
    assert all(torch.equal(before[name] == 0, later[name] == 0) for name in linear)
    assert any(not torch.equal(after[name], later[name]) for name in linear), "nothing was trained"
    (operation,) = last_entry("next")["operations"]
    assert operation["held"]
    assert operation["achieved"] == 0.5


@pytest.mark.slow
def test_chain_of_adapters_keeps_its_sparsity_to_the_end(bench: Bench) -> None:
    """Trained, pruned by 80 % without a step, tuned: three stages; PEFT's adapter and the merged model agree at each."""
    bench.configure(adapters("teacher", {"r": 4}))
    bench.succeed("fit", "--run", "trained")
    bench.configure(adapters("checkpoints/trained/adapter", targets="lora", amount=0.8) | {"trainer.max_steps": 0})
    bench.succeed("fit", "--run", "pruned")
    bench.configure(adapters("checkpoints/pruned/adapter"))
    bench.succeed("fit", "--run", "tuned")
    base = AutoModelForCausalLM.from_pretrained("teacher")
    files = {
        run: load_file(f"checkpoints/{run}/adapter/adapter_model.safetensors") for run in ("trained", "pruned", "tuned")
    }
    for run in ("pruned", "tuned"):
        gone, total = zeros(f"{run}/adapter/adapter_model.safetensors", "lora_")
        assert gone == round(0.8 * total)
        assert zeros(f"{run}/model/model.safetensors", "c_attn")[0] < 0.1 * total, "merged weights are dense"
        operations = {operation["op"]: operation for operation in last_entry(run)["operations"]}
        assert operations["global_l1"]["achieved"] == gone / total
        assert operations["merge"]["dense"]
        assert [*operations][-1] == "merge"  # which ends the pruning of adapters
        merged = AutoModelForCausalLM.from_pretrained(f"checkpoints/{run}/model")
        with torch.no_grad():
            adapted = PeftModel.from_pretrained(base, f"checkpoints/{run}/adapter").eval()(IDS).logits
            torch.testing.assert_close(merged(IDS).logits, adapted, rtol=1e-5, atol=1e-5)
        base = AutoModelForCausalLM.from_pretrained("teacher")
    kept = {name: files["pruned"][name] != 0 for name in files["pruned"]}
    assert all(torch.equal(files["pruned"][n], files["trained"][n] * kept[n]) for n in kept), (
        "pruning only sets to zero"
    )
    assert all(torch.equal(files["tuned"][n] != 0, kept[n]) for n in kept)
    assert any(not torch.equal(files["tuned"][n], files["pruned"][n]) for n in kept)
    qualities = {run: last_entry(run)["quality"] for run in files}
    assert qualities["pruned"]["before"]["perplexity"]["value"] == pytest.approx(
        qualities["trained"]["after"]["perplexity"]["value"]
    )
    assert len(entries("tuned/adapter")) == 3


@pytest.mark.slow
def test_random_pruning_removes_as_much_but_other_weights(bench: Bench) -> None:
    for criterion in ("l1", "random"):
        bench.configure(finetune(steps=0, targets="c_fc", amount=0.7, criterion=criterion))
        bench.succeed("fit", "--run", criterion)
    teacher = load_file("teacher/model.safetensors")
    files = {name: load_file(f"checkpoints/{name}/model/model.safetensors") for name in ("l1", "random")}
    chosen = [name for name in teacher if "c_fc.weight" in name]
    norms = {}
    for criterion, tensors in files.items():
        gone = {name: tensors[name] == 0 for name in chosen}
        assert sum(int(g.sum()) for g in gone.values()) == round(0.7 * 4 * 32 * 128)
        assert all(torch.equal(tensors[name], teacher[name]) for name in teacher if name not in chosen), "only those"
        norms[criterion] = sum(float(teacher[name][gone[name]].abs().sum()) for name in chosen)
    assert norms["l1"] < 0.7 * norms["random"]


_KEY = "trainer.callbacks.GlobalL1Pruning"
MISTAKES: dict[str, tuple[list[Adaptation], dict[str, Any], int, str]] = {
    "no such targets": (
        [], {"targets": "nowhere"}, 3,
        "targets: 'nowhere' matches no trainable matrix of this model; give lora, linear, or a regular expression",
    ),
    "no regular expression": ([], {"targets": "("}, 3, "targets: '(' is not a regular expression"),
    "adapters of a model without": ([], {"targets": "lora"}, 3, "targets: 'lora' matches no trainable matrix"),
    "frozen weights": ([Lora()], {"targets": "linear"}, 3, "targets: 'linear' matches no trainable matrix"),
    "untrained adapters": ([Lora()], {"targets": "lora"}, 0, "targets: the adapters are untrained (B is all zero"),
    "schedule without steps": ([], {"schedule": "cubic"}, 0, "schedule: cubic needs steps"),
    "less than an earlier stage": ([], {"amount": 0.3}, 3, "amount: 0.3 is less than the 0.5000 that an earlier stage"),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "settings", "steps", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_refused_before_anything_is_trained(
    parts: list[Adaptation], settings: dict[str, Any], steps: int, words: str
) -> None:
    method: Any = Method(Pretrained("unused"), adaptations=parts)
    method.model = make_model("gpt2")
    method.assemble(total_steps=steps)
    data = SimpleNamespace(steps_per_epoch=5)
    method._trainer = SimpleNamespace(max_steps=steps, max_epochs=None, ckpt_path=None, datamodule=data)
    if not parts:
        linear = prunable(method.model, "linear", "")
        method.held.masks.set({name: torch.arange(p.numel()).view_as(p) % 2 == 0 for name, p in linear.items()})
    with pytest.raises(UserError) as refused:
        GlobalL1Pruning(**settings).on_fit_start(method._trainer, method)
    assert str(refused.value).startswith(f"{_KEY}.{words}")


def test_what_contradicts_itself_or_the_method_is_refused(tmp_path: Path) -> None:
    run: Any = SimpleNamespace()
    (problem,) = GlobalL1Pruning(schedule="cubic", warmup=0.6, hold=0.4).attach(run)
    assert problem.startswith("warmup: 0.6 and hold: 0.4 leave no step to prune at")
    trainer: Any = None
    with pytest.raises(UserError, match=rf"^{_KEY}: MovementPruning removes heads and neurons.* in a stage after it"):
        GlobalL1Pruning().setup(trainer, MovementPruning("unused", pruning=Pruning(ffn=0.5)), "fit")


@pytest.mark.slow
def test_two_prunings_are_counted_and_held_apart(bench: Bench) -> None:
    """Other weights than an earlier stage's, by less; and a third stage keeps the zeros of both."""
    bench.configure(finetune(steps=0, targets="attn", amount=0.8))
    bench.succeed("fit", "--run", "first")
    for name, source, settings in (("second", "first", {"targets": "mlp", "amount": 0.5}), ("third", "second", {})):
        bench.configure(finetune(f"checkpoints/{source}/model", **settings))
        bench.succeed("fit", "--run", name)
        for part, amount in (("attn", 0.8), ("mlp", 0.5)):
            gone, total = zeros(f"{name}/model/model.safetensors", part)
            assert gone == round(amount * total)
        achieved = {done["targets"]: done["achieved"] for done in last_entry(name)["operations"]}
        assert achieved == {"attn": pytest.approx(0.8, abs=1e-4), "mlp": 0.5}


@pytest.mark.slow
def test_finished_run_is_not_said_to_be_pruned(bench: Bench) -> None:
    bench.configure(finetune())
    bench.succeed("fit")
    before = last_entry("r")
    for steps in (0, 20):
        bench.configure(finetune(steps=steps, targets="linear", amount=0.8))
        (message,) = bench.refuse("fit", "--ckpt_path", "last", touches=True)
        assert "the run has no step left, so nothing would be pruned" in message
    assert last_entry("r") == before


@pytest.mark.slow
def test_whole_modules_beside_adapters_are_counted_where_peft_saves_them_and_hold_when_merged(bench: Bench) -> None:
    bench.configure(adapters("teacher", {"r": 4, "modules_to_save": ["c_fc"]}, targets="modules_to_save", amount=0.5))
    bench.succeed("fit", "--run", "pruned")
    bench.configure(adapters("checkpoints/pruned/adapter"))
    bench.succeed("fit", "--run", "tuned")
    for run in ("pruned", "tuned"):
        gone, total = zeros(f"{run}/adapter/adapter_model.safetensors", "c_fc")
        assert gone == round(0.5 * total)
    bench.configure(finetune("checkpoints/pruned/model", steps=2))
    bench.succeed("fit", "--run", "whole")
    gone, total = zeros("whole/model/model.safetensors", "c_fc")
    (operation,) = last_entry("whole")["operations"]
    assert (gone, operation["pruned"], operation["weights"]) == (round(0.5 * total), gone, total)
    assert operation["held"]
