"""What Lightning's trainer can be asked for and a run cannot do, said before anything is built."""

from typing import Any

from jsonargparse import Namespace

TRAINER_VERBS = {
    "fit": "Train, save the model, score it from disk, and print what changed.",
    "validate": "Score a model or checkpoint on the validation split.",
    "test": "Score a model or checkpoint on the test split.",
    "predict": "Write each document's score or continuation to checkpoints/<run>/predictions.jsonl.",
    "check": "Build everything and train nothing; report every mistake in the configuration.",
}


def problems(settings: Namespace, verb: str) -> list[str]:
    """Mistakes in the trainer's settings that show without a trainer, one line each.

    Args:
        settings: Settings of the verb.
        verb: `fit`, `validate`, `test`, `predict` or `check`.
    """
    trainer = settings.trainer
    found = _limits(trainer, settings.model.class_path) if verb in ("fit", "check") else []
    for key in ("limit_val_batches", "limit_test_batches", "limit_predict_batches"):
        if not _whole(trainer.get(key)):
            found.append(f"trainer.{key}: a part of a split has no score; remove it, and make the split smaller")
    for key in ("fast_dev_run", "barebones"):
        if trainer.get(key):
            found.append(f"trainer.{key}: not supported; lightgpt2 check builds everything and trains nothing")
    if trainer.enable_checkpointing is False:
        found.append("trainer.enable_checkpointing: a run always has checkpoints; remove it")
    task = settings.model.init_args.task
    return found + _strategy(trainer.strategy, verb == "predict" and "continuations" in str(task))


def size_problems(strategy: Any, processes: int) -> list[str]:
    """Whether a strategy spreads the model over other than all processes.

    Args:
        strategy: The `trainer.strategy` setting.
        processes: Number of processes of the run.
    """
    size = strategy.init_args.get("data_parallel_size", processes) if isinstance(strategy, Namespace) else processes
    if size == processes:
        return []
    return [f"trainer.strategy.data_parallel_size: {size} with {processes} processes; give {processes}"]


def _limits(trainer: Namespace, method: str) -> list[str]:
    none = [key for key in ("max_steps", "max_epochs", "limit_train_batches") if trainer.get(key) == 0]
    if "max_steps" in none and (trainer.callbacks or method.endswith(".QAT")):  # which work on the model as it is
        none.remove("max_steps")
    found = [f"trainer.{key}: 0 trains nothing; give at least 1" for key in none]
    if not (_whole(trainer.limit_train_batches) or trainer.limit_train_batches == 0) or trainer.overfit_batches:
        found.append("trainer.limit_train_batches: cuts optimizer steps apart; give trainer.max_steps instead")
    if trainer.max_steps in (None, -1) and trainer.max_epochs is None and trainer.max_time is None:
        found.append("trainer.max_steps: nothing ends the run; give trainer.max_steps or trainer.max_epochs")
    return found


def _strategy(strategy: Any, generating: bool) -> list[str]:
    name = (strategy.class_path if isinstance(strategy, Namespace) else str(strategy)).rpartition(".")[2]
    # FSDP's first version flattens parameters: their shapes are lost.
    if name.lower().startswith(("fsdp", "deepspeed")):
        return [f"trainer.strategy: {name} is not supported; use ddp, or ModelParallelStrategy (FSDP2; see README)"]
    if name != "ModelParallelStrategy" or not isinstance(strategy, Namespace):
        return []
    if generating:
        return ["trainer.strategy: continuations differ in length between processes; use auto, or ddp"]
    wanted = {"tensor_parallel_size": 1, "save_distributed_checkpoint": False}
    return [
        f"trainer.strategy.{key}: {strategy.init_args[key]} is not supported; give {value}"
        for key, value in wanted.items()
        if strategy.init_args[key] != value
    ]


def _whole(limit: Any) -> bool:
    """Whether a limit on batches is none; to Lightning 1.0 is all of them, and 1 is one."""
    return limit is None or (isinstance(limit, float) and limit == 1.0)
