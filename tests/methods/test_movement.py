"""Movement pruning as a stage: the real command, what it leaves on disk and in TensorBoard, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from lightgpt2.adaptations import MovementGates
from lightgpt2.adaptations.pruning_settings import Pruning, Threshold
from lightgpt2.errors import UserError
from lightgpt2.functional.schedules import Progress
from lightgpt2.methods import MovementPruning
from lightgpt2.models.loading import load_model
from lightgpt2.objectives import DistillLoss
from tests.support.cli import logged, run_alone
from tests.support.mistakes import Bench
from tests.support.models import make_model, write_model
from tests.support.refusals import assert_refused, context_of
from tests.support.stages import assert_replayed, entries, stage, validated

_SHARES = {"attention": 0.4, "ffn": 0.6}


def movement(model: str = "teacher", steps: int = 6, teacher: str | None = None, **pruning: Any) -> dict[str, Any]:
    return stage("MovementPruning", model, teacher=teacher, pruning=_SHARES | pruning) | {"trainer.max_steps": steps}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_has_gone_is_removed_reported_and_loads_without_this_project(
    bench: Bench, family: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write_model(Path("source"), family)
    bench.configure(movement("source", steps=8, teacher="source"))
    bench.succeed("fit")
    (entry,) = entries()
    operation = entry["operations"][-1]
    heads, neurons = (8, 512) if family == "gpt2" else (16, 192)
    units = 8  # of attention, all layers: a head of keys and values goes with its queries
    assert operation["heads"]["of"] == heads
    assert operation["heads"]["removed"] == round(0.4 * units) * heads // units
    assert operation["ffn"]["removed"] == round(0.6 * neurons)
    assert operation["asked"] == _SHARES
    model = load_model("checkpoints/r/model", "model")
    assert entry["sizes"]["parameters"] == model.num_parameters()
    assert_replayed(AutoModelForCausalLM.from_pretrained("source"), entry, model)
    after = entry["quality"]["after"]["perplexity"]["value"]
    assert validated(bench, "--ckpt_path", "last") == pytest.approx(after, rel=1e-4)
    assert set(entry["quality"]) == {"teacher", "before", "after"}

    with torch.no_grad():
        torch.save(model.eval()(torch.arange(40)[None]).logits, "logits.pt")
    folder = tmp_path_factory.mktemp("isolated")
    script = """
import importlib.util, os, torch
os.environ["HF_MODULES_CACHE"] = sys.argv[2]
from transformers import AutoModelForCausalLM
assert importlib.util.find_spec("lightgpt2") is None
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
with torch.no_grad():
    logits = model(torch.arange(40)[None]).logits
torch.testing.assert_close(logits, torch.load(sys.argv[3]), rtol=0, atol=1e-6)
print(model.generate(torch.arange(5)[None], max_new_tokens=5, do_sample=False, pad_token_id=0).shape)
"""
    done = run_alone(script, "checkpoints/r/model", str(folder / "modules"), "logits.pt")
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 10])" in done.stdout


@pytest.mark.slow
def test_the_schedule_the_flips_and_the_pictures_are_in_tensorboard(bench: Bench) -> None:
    bench.configure(movement(steps=10, warmup=0.2, cooldown=0.2) | {"trainer.val_check_interval": 5})
    bench.succeed("fit")
    curves = logged(Path(), "r")
    sparsity = [curves["pruning/ffn/sparsity"][step] for step in range(1, 11)]
    wanted = [0.0, 0.0, *(0.6 * (1 - (1 - i / 6) ** 3) for i in range(1, 6)), 0.6, 0.6, 0.6]
    assert sparsity == pytest.approx(wanted, abs=1 / 512)
    layers = [curves[f"pruning/ffn/sparsity/decoder.{i}"][10] for i in range(4)]
    assert sum(layers) / 4 == pytest.approx(sparsity[-1])
    assert curves["pruning/attention/flips"][1] == 0
    assert sum(curves["pruning/ffn/flips"].values()) >= 307
    assert curves["pruning/ffn/threshold"].keys() == curves["pruning/ffn/flips"].keys()
    events = EventAccumulator("tb-logs/r", size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    assert {"pruning/attention/layers", "pruning/ffn/layers"} <= set(events.Tags()["images"])
    assert {"pruning/attention/scores", "pruning/ffn/scores"} <= set(events.Tags()["histograms"])
    assert len(events.Images("pruning/ffn/layers")) == 2


def test_random_scores_are_those_of_their_seed() -> None:
    found = []
    for seed in (3, 3, 4):
        part = MovementGates(Pruning(**_SHARES, criterion="random", seed=seed))
        model = make_model("gpt2")
        part.apply_to(model, context_of(model))
        part.after_step(model, Progress(10, 10))
        found.append(torch.cat([part.units["ffn"].keep(f"decoder.{layer}") for layer in range(4)]))
        assert int((~found[-1]).sum()) == round(0.6 * 4 * 128)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["block", "weight"])
def test_blocks_and_weights_are_zero_on_disk_and_stay_so(bench: Bench, granularity: str) -> None:
    bench.configure(movement(granularity=granularity, block=8))
    bench.succeed("fit")
    operation = entries()[-1]["operations"][-1]
    weights = load_file("checkpoints/r/model/model.safetensors")
    pruned = {name: value for name, value in weights.items() if ".c_" in name and value.ndim == 2}
    zeros = sum(value.numel() - int(value.count_nonzero()) for value in pruned.values())
    total = sum(value.numel() for value in pruned.values())
    attention = 4 * (32 * 96 + 32 * 32)
    assert operation["achieved"] == zeros / total
    assert zeros / total == pytest.approx((0.4 * attention + 0.6 * (total - attention)) / total, abs=0.01)
    assert AutoModelForCausalLM.from_pretrained("checkpoints/r/model").config.model_type == "gpt2"
    Path("checkpoints/r").rename("checkpoints/pruned")
    bench.configure(stage("FineTune", "checkpoints/pruned/model"))
    bench.succeed("fit")
    later = load_file("checkpoints/r/model/model.safetensors")
    for name, value in pruned.items():
        assert torch.equal(later[name] == 0, value == 0)
        assert not torch.equal(later[name], value)


@pytest.mark.slow
def test_what_was_pruned_before_counts_among_what_goes(bench: Bench) -> None:
    blocks = {"granularity": "block", "block": 8}
    bench.configure(movement(**blocks))
    bench.succeed("fit")
    Path("checkpoints/r").rename("checkpoints/pruned")
    bench.configure(movement("checkpoints/pruned/model", **blocks, ffn=0.5))
    (message,) = bench.refuse("fit")
    assert message.startswith("model.pruning.ffn: 0.5 is less than the 0.")
    assert "an earlier stage pruned; give more" in message
    bench.configure(movement("checkpoints/pruned/model", **blocks, ffn=0.8))
    bench.succeed("fit")
    attention, ffn = 4 * (32 * 96 + 32 * 32), 4 * 2 * 32 * 128
    wanted = (0.4 * attention + 0.8 * ffn) / (attention + ffn)
    assert entries()[-1]["operations"][0]["achieved"] == pytest.approx(wanted, abs=0.01)


@pytest.mark.slow
def test_a_threshold_leaves_what_the_penalty_lets_stay(bench: Bench) -> None:
    left = {}
    for penalty in (0.0, 3000.0):
        threshold = {"at": 0.49, "penalty": penalty}
        bench.configure(movement(steps=10, attention=0, ffn=0, threshold=threshold, lr=0.05))
        bench.succeed("fit")
        left[penalty] = sum(entries()[-1]["operations"][-1]["ffn"]["left"])
    assert left[3000.0] < left[0.0] <= 512
    assert "train/penalty" in logged(Path(), "r")


@pytest.mark.slow
def test_a_model_without_some_units_goes_through_later_stages(bench: Bench) -> None:
    """Fine-tuned, distilled from, and pruned by movement again."""
    bench.configure(movement(attention=0.6, ffn=0.9))
    bench.succeed("fit")
    Path("checkpoints/r").rename("checkpoints/pruned")
    pruned = "checkpoints/pruned/model"
    bench.configure(movement(pruned, attention=0, ffn=0.5))
    bench.succeed("fit")
    first, second = entries()
    assert second["operations"][-1]["ffn"]["of"] == sum(first["operations"][-1]["ffn"]["left"])
    assert second["operations"][-1]["heads"]["removed"] == 0
    for method in ({"teacher": "teacher", "student": pruned}, {"teacher": pruned, "student": "teacher"}):
        Path("checkpoints/r").rename(f"checkpoints/{len(list(Path('checkpoints').iterdir()))}")
        bench.configure({"model.layers": None, **{f"model.{key}": value for key, value in method.items()}})
        bench.succeed("fit")


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({"pruning": Pruning()}, ["model.pruning.attention: nothing is to be pruned"]),
    "a schedule longer than the run": (
        {"pruning": Pruning(ffn=0.5, warmup=0.6, cooldown=0.5)},
        ["model.pruning.warmup: 0.6 and cooldown: 0.5 leave no step to prune at"],
    ),
    "less than a head": (
        {"pruning": Pruning(attention=0.2, scope="layer")},
        ["model.pruning.attention: 0.2 of the 2 heads of a layer (scope: layer) is none", "at least 0.5"],
    ),
    "shares and a threshold": (
        {"pruning": Pruning(ffn=0.5, threshold=Threshold())}, ["model.pruning.threshold: it decides how much goes"],
    ),
    "a threshold for magnitudes": (
        {"pruning": Pruning(criterion="magnitude", threshold=Threshold())},
        ["model.pruning.threshold: magnitude learns no scores"],
    ),
    "a loss without a teacher": ({"loss": DistillLoss()}, ["model.loss: means nothing without model.teacher"]),
    "blocks larger than the matrices": (
        {"pruning": Pruning(ffn=0.5, granularity="block", block=64)}, ["model.pruning.block: 64 is more than the 32"],
    ),
    "no end of a rate": (
        {"pruning": Pruning(ffn=0.5, lr=float("inf"))}, ["model.pruning.lr: must be finite, got inf"],
    ),
    "no end of a penalty": (
        {"pruning": Pruning(threshold=Threshold(penalty=float("inf")))},
        ["model.pruning.threshold.penalty: must be finite, got inf"],
    ),
}  # fmt: skip


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(("init", "words"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_be_pruned_is_refused(init: dict[str, Any], words: list[str]) -> None:
    assert_refused(MovementPruning(**{"model": "teacher", "pruning": Pruning(**_SHARES), **init}), *words, steps=100)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("steps", [0, 1])
def test_a_schedule_without_a_step_is_refused(steps: int) -> None:
    method = MovementPruning("teacher", pruning=Pruning(ffn=0.5, warmup=0.54, cooldown=0.45))
    assert_refused(
        method, f"trainer.max_steps: {steps} steps leave none for the schedule", "give more steps", steps=steps
    )


def test_less_than_a_weight_is_refused() -> None:
    method = MovementPruning("teacher", pruning=Pruning(ffn=1e-6, granularity="weight"))
    method.model = make_model("gpt2")
    method.assemble(total_steps=10)
    with pytest.raises(UserError, match=r"pruning\.ffn: 1e-06 of 32,768 is none"):
        method.adaptations[0].check(method.model)


@pytest.mark.slow
def test_whole_heads_of_a_model_with_single_weights_pruned_are_refused(bench: Bench) -> None:
    bench.configure(movement(granularity="weight"))
    bench.succeed("fit")
    Path("checkpoints/r").rename("checkpoints/pruned")
    bench.configure(movement("checkpoints/pruned/model"))
    (message,) = bench.refuse("fit")
    assert message.startswith("model.model: single weights of checkpoints/pruned/model are pruned")
    assert "pruning.granularity weight" in message
