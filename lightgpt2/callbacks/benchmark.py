"""What the model that a run has made costs to use: measured at fit end, in fresh processes."""

from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightgpt2.errors import UserError
from lightgpt2.measure.arms import EXPORTED, GRAPH, Arm, Settings, own_precision
from lightgpt2.measure.benchmark import measure
from lightgpt2.methods.method import Method
from lightgpt2.models import ledger
from lightgpt2.models.files import write_json
from lightgpt2.report.benchmark_table import benchmark_markdown, benchmark_table, operators_markdown
from lightgpt2.runs.run import Run

_OTHERS = ("nf4", "int8", *EXPORTED)


class InferenceBenchmark(Callback):
    """Measures speed and memory of the run's model: in FP32, in half precision, and of its quantized and exported siblings.

    (Not of GGUF, which would be dequantized for it.) The figures go to the terminal, TensorBoard,
    `checkpoints/<run>/benchmark.json` and the model's ledger, the profiler's traces to `tb-logs/<run>/profile/`.

    Args:
        rounds: How often every form of the model is measured, in turn with the others.
        new_tokens: Numbers of new tokens to generate.
        prompt_tokens: Length of the random prompt that generation starts from.
        batches: Batch sizes of the forward pass.
        forward_tokens: Length of the sequences of the forward pass.
        half: Half precision to measure beside FP32; null for none.
        attention: sdpa, eager, or flash, which is sdpa held to its flash kernel. The model in FP32 is measured with each,
            its other forms with the first.
    """

    order = 2  # after the model was written, scored, quantized and exported

    def __init__(
        self,
        rounds: PositiveInt = 3,
        new_tokens: list[PositiveInt] = [128, 256],  # noqa: B006 - it is copied
        prompt_tokens: PositiveInt = 32,
        batches: list[PositiveInt] = [1, 16],  # noqa: B006 - it is copied
        forward_tokens: PositiveInt = 128,
        half: Literal["bf16", "fp16"] | None = "bf16",
        attention: list[Literal["sdpa", "eager", "flash"]] = ["sdpa"],  # noqa: B006 - it is copied
    ) -> None:
        self.settings = Settings(prompt_tokens, [*new_tokens], forward_tokens, [*batches], rounds)
        self.half, self.attention = half, [*attention]
        self.run: Run

    def attach(self, run: Run) -> None:
        """Says whose model it is."""
        self.run = run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what the model has no positions for, before weights are loaded.

        Raises:
            UserError: With every such setting.
        """
        assert isinstance(pl_module, Method)
        if stage != "fit":
            return
        trained = next(iter(pl_module.configs().values()))
        positions = trained.max_position_embeddings
        name = f"trainer.callbacks.{type(self).__name__}"
        if not self.attention or len(set(self.attention)) < len(self.attention):
            raise UserError(f"{name}.attention: give sdpa, eager or flash, each once at most")
        if problems := self.settings.problems(positions, "the model's", lambda key: f"{name}.{key}"):
            raise UserError(problems)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures."""
        assert isinstance(pl_module, Method)
        if not trainer.is_global_zero:
            return
        torch.cuda.empty_cache()  # nothing without CUDA
        device = str(trainer.strategy.root_device)
        result = measure(
            self._arms(pl_module.trust_remote_code),
            self.settings,
            device if device.startswith("cuda") else "cpu",
            self.run.logs / "profile",
            bar=trainer.progress_bar_callback is not None,
        )
        self._write_ledger(result)
        print(benchmark_table(result), flush=True)
        write_json(self.run.folder / "benchmark.json", result)
        if isinstance(trainer.logger, TensorBoardLogger):
            self._write_logs(trainer.logger, trainer.global_step, result)

    def _arms(self, trust_remote_code: bool) -> list[Arm]:
        model = self.run.model
        first, *others = self.attention
        chosen: list[tuple[Path, str, str]] = [(model, "fp32", first), *((model, "fp32", other) for other in others)]
        if self.half:
            chosen.append((model, self.half, first))
        for precision in _OTHERS:
            sibling = self.run.sibling(precision)
            if (sibling / "config.json").is_file() and own_precision(str(sibling), "model", trust_remote_code):
                chosen.append((sibling, precision, GRAPH if precision in EXPORTED else first))
        return [
            Arm(
                " ".join([folder.name, precision, *([attention] if attention not in (first, GRAPH) else [])]),
                str(folder), precision, attention, trust_remote_code,
            )
            for folder, precision, attention in chosen
        ]  # fmt: skip

    def _write_ledger(self, result: dict[str, Any]) -> None:
        entries = ledger.read(str(self.run.model))
        for arm in result["arms"]:  # quantization scores half precision too, for comparison
            if arm["precision"] == self.half and self.half in entries[-1]["quality"]:
                arm["quality"] = entries[-1]["quality"][self.half]
        entries[-1]["benchmark"] = result
        write_json(self.run.model / ledger.FILE, entries)

    def _write_logs(self, logger: TensorBoardLogger, step: int, result: dict[str, Any]) -> None:
        board = logger.experiment
        board.add_text("inference", benchmark_markdown(result), step)
        for arm in result["arms"]:
            if "error" in arm:
                continue
            name = Path(arm["trace"]).stem
            board.add_text(f"operators/{name}", operators_markdown(arm), step)
            for key, value in _scalars(arm).items():
                board.add_scalar(f"inference/{name}/{key}", value, step)
        logger.save()


def _scalars(arm: dict[str, Any]) -> dict[str, float]:
    """An arm's figures under flat names that TensorBoard leaves as they are."""
    plain = {
        key: arm[key] for key in ("weights_mb", "load_mb", "peak_memory_mb", "peak_above_start_mb", "load_seconds")
    }
    timed = {
        f"{kind}_{key}_{name}": value
        for kind in ("forward", "generate")
        for key, figures in arm[kind].items()
        for name, value in figures.items()
    }
    faster = {f"{name.replace(' ', '_')}_ratio": ratio["median"] for name, ratio in arm["ratio"].items()}
    return plain | timed | faster
