"""What Lightning's trainer can be asked for and a run cannot do, said before anything is built."""

from typing import Any, Literal

from jsonargparse import Namespace

TRAINER_VERBS = {
    "fit": "Train, save the model, score it from disk, and print what changed.",
    "validate": "Score a model or checkpoint on the validation split.",
    "test": "Score a model or checkpoint on the test split.",
    "predict": "Write each document's score or continuation to checkpoints/<run>/predictions.jsonl.",
    "check": "Build everything and train nothing; report every mistake in the configuration.",
}

LoggerName = Literal["tensorboard", "csv", "wandb", "mlflow"]

_MOST_DEVICES = 1024  # of one machine: Lightning lists them all, and would not come back


def problems(settings: Namespace, training: bool, generating: bool) -> list[str]:
    """Mistakes in the trainer's settings that show without a trainer: of a verb that trains, or that writes continuations."""
    trainer = settings.trainer
    found = _strategy(trainer.strategy, generating)
    if training:
        # Callbacks work on a model that is not trained, and so do rounding and cutting.
        untrained = trainer.callbacks or settings.model.class_path.endswith((".QAT", ".Trim"))
        for key in ("max_epochs", "limit_train_batches", *([] if untrained else ["max_steps"])):
            if trainer[key] == 0:
                found.append((key, "0 trains nothing; give at least 1"))
        if not (_whole(trainer.limit_train_batches) or trainer.limit_train_batches == 0) or trainer.overfit_batches:
            found.append(("limit_train_batches", "cuts optimizer steps apart; give trainer.max_steps instead"))
        if trainer.precision == "16-true":  # a weight with no gradient would be divided by zero
            found.append(("precision", "16-true has no numbers as small as AdamW needs; give bf16-mixed or 16-mixed"))
        if trainer.max_steps in (None, -1) and trainer.max_epochs is None and trainer.max_time is None:
            found.append(("max_steps", "nothing ends the run; give trainer.max_steps or trainer.max_epochs"))
    for key in ("val_check_interval", "check_val_every_n_epoch", "accumulate_grad_batches"):
        if isinstance(trainer[key], int | float) and not trainer[key] > 0:
            found.append((key, f"must be above 0, got {trainer[key]}; give at least 1, or leave it out"))
    if (trainer.gradient_clip_val or 0) < 0:
        found.append(
            ("gradient_clip_val", f"must be at least 0, got {trainer.gradient_clip_val}; it would climb the loss")
        )
    for key in ("limit_val_batches", "limit_test_batches", "limit_predict_batches"):
        if not _whole(trainer[key]):
            found.append((key, "a part of a split has no score; remove it, and make the split smaller"))
    for key in ("fast_dev_run", "barebones"):
        if trainer[key]:
            found.append((key, "not supported; lightgpt2 check builds everything and trains nothing"))
    if str(trainer.devices).isdecimal() and int(trainer.devices) > _MOST_DEVICES:
        found.append(("devices", f"must be at most {_MOST_DEVICES}, got {trainer.devices}; each is a process"))
    if trainer.enable_checkpointing is False:
        found.append(("enable_checkpointing", "a run always has checkpoints; remove it"))
    return [f"trainer.{key}: {what}" for key, what in found]


def size_problems(strategy: Any, processes: int) -> list[str]:
    """Whether the `trainer.strategy` setting spreads the model over other than all processes."""
    size = strategy.init_args.get("data_parallel_size", processes) if isinstance(strategy, Namespace) else processes
    what = f"trainer.strategy.data_parallel_size: {size} with {processes} processes; give {processes}"
    return [] if size == processes else [what]


def _strategy(strategy: Any, generating: bool) -> list[tuple[str, str]]:
    name = (strategy.class_path if isinstance(strategy, Namespace) else str(strategy)).rpartition(".")[2]
    # FSDP's first version flattens parameters: their shapes are lost.
    if name.lower().startswith(("fsdp", "deepspeed")):
        return [("strategy", f"{name} is not supported; use ddp, or ModelParallelStrategy (FSDP2; see docs/scale.md)")]
    if name != "ModelParallelStrategy" or not isinstance(strategy, Namespace):
        return []
    if generating:
        return [("strategy", "continuations differ in length between processes; use auto, or ddp")]
    given, supported = strategy.init_args, {"tensor_parallel_size": 1, "save_distributed_checkpoint": False}
    wrong = {key: value for key, value in supported.items() if given[key] != value}
    return [(f"strategy.{key}", f"{given[key]} is not supported; give {value}") for key, value in wrong.items()]


def _whole(limit: Any) -> bool:
    """True if a limit on batches is none; to Lightning 1.0 is all of them, and 1 is one."""
    return limit is None or (isinstance(limit, float) and limit == 1.0)
