"""What the artefact of a run costs to use: measured at fit end, in fresh processes."""

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from lightning import Trainer

from lightgpt2.callbacks.base import RunCallback
from lightgpt2.callbacks.board import Board
from lightgpt2.errors import Problem, UserError, refuse
from lightgpt2.measure.arms import GRAPH, Arm, is_graph, own_precision
from lightgpt2.measure.benchmark import measure
from lightgpt2.measure.plan import workloads_of
from lightgpt2.methods.method import Method
from lightgpt2.models.adapters import ADAPTER, is_adapter
from lightgpt2.models.families import family_of
from lightgpt2.models.files import write_json
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.quality import add_scores
from lightgpt2.models.quantization import DYNAMIC, load_for_inference
from lightgpt2.models.saving import positions_of
from lightgpt2.models.workloads import Positions
from lightgpt2.report.figures import workloads
from lightgpt2.report.table import benchmark_table, operators_markdown
from lightgpt2.runs.run import Run
from lightgpt2.runtime.folder import is_exported


class InferenceBenchmark(RunCallback):
    """Measures speed and memory of the artefact in FP32 and half precision, and of its quantized and exported copies beside it.

    Adapters are also measured as they were trained, beside their base and not merged. Not of GGUF, which would be dequantized
    for it, nor of packed copies, which compute as the artefact does. The figures go to the terminal, the loggers,
    `checkpoints/<run>/benchmark.json` and the ledger; traces to `tb-logs/<run>/profile/`.
    What is run is what the task's models are for: decoders generate, classifiers read texts. Settings that a task does not
    have are refused.

    Args:
        rounds: How often every copy is measured, in turn with the others.
        new_tokens: Numbers of new tokens to generate; null: those of 128 and 256 that fit.
        prompt_tokens: Length of the random prompt that generation starts from; null: 32.
        batches: Batch sizes of the forward pass; of a classifier, in which validation texts are read. null: 1 and 16; 16.
        forward_tokens: Lengths of the texts of the forward pass; null: 128; of a classifier 8, 32, 128, 256 and 512.
        concurrency: Numbers of threads from which a classifier is called; null: 1, 2, 4 and 8.
        half: Half precision to measure beside FP32; null for none.
        attention: sdpa, eager, or flash, which is sdpa held to its flash kernel. The artefact in FP32 is measured with each,
            its other forms with the first.
        dynamic_int8: True to measure and score PyTorch's own dynamic INT8 too, on processors.
        source: True to measure, in turn with them, the model that the run was given: the ratios are against it.
    """

    phase = 2

    def __init__(
        self,
        rounds: PositiveInt = 3,
        new_tokens: list[PositiveInt] | None = None,
        prompt_tokens: PositiveInt | None = None,
        batches: list[PositiveInt] | None = None,
        forward_tokens: list[PositiveInt] | None = None,
        concurrency: list[PositiveInt] | None = None,
        half: Literal["bf16", "fp16"] | None = "bf16",
        attention: list[Literal["sdpa", "eager", "flash"]] = ["sdpa"],  # noqa: B006 - it is copied
        dynamic_int8: bool = False,
        source: bool = False,
    ) -> None:
        self.settings = {
            "new_tokens": new_tokens, "prompt_tokens": prompt_tokens, "batches": batches,
            "forward_tokens": forward_tokens, "concurrency": concurrency,
        }  # fmt: skip
        self.rounds, self.half, self.attention = rounds, half, [*attention]
        self.dynamic_int8, self.source = dynamic_int8, source

    def attach(self, run: Run) -> list[Problem]:
        if self.attention and len(set(self.attention)) == len(self.attention):
            return super().attach(run)
        what = f"must name each kind once, got {self.attention}"
        return [*super().attach(run), Problem("attention", what, "give one or more of sdpa, eager and flash")]

    def setup(self, trainer: Trainer, pl_module: Method, stage: str) -> None:
        """Refuse what cannot be measured of the model, before weights are loaded."""
        if stage != "fit":
            return
        trained, problems = next(iter(pl_module.configs().values())), list[Problem]()
        device = trainer.strategy.root_device.type
        if self.dynamic_int8 and (family_of(trained).conv1d or pl_module.precision or device != "cpu"):
            what = "PyTorch quantizes linear layers in full precision, on processors, and no Conv1D"
            problems.append(Problem("dynamic_int8", what, "remove it"))
        try:
            positions = Positions(positions_of(trained) or sys.maxsize)
            self._workloads = workloads_of(pl_module.task, self.settings, positions, pl_module.data)
        except UserError as error:
            problems += error.problems
        refuse(problem.under(f"trainer.callbacks.{type(self).__name__}") for problem in problems)

    def on_fit_end(self, trainer: Trainer, pl_module: Method) -> None:
        if not trainer.is_global_zero:
            return
        torch.cuda.empty_cache()  # does nothing without CUDA
        root = trainer.strategy.root_device
        device = str(root) if root.type == "cuda" else "cpu"
        ledger, trusted = Ledger.read(self.run.model), pl_module.trust_remote_code
        given = str(ledger.last["parent"]["source"])
        arms = self._source(given, trusted) if self.source and given != "config" else []  # `config`: random weights
        bar = trainer.progress_bar_callback is not None
        traces = self.run.logs / "profile"
        arms += [*self._arms(trusted), *self._unmerged(pl_module.start.precision, trusted)]
        result = measure(arms, self._workloads, self.rounds, device, traces, bar)
        if self.dynamic_int8:
            ledger = self._score_dynamic(ledger, pl_module)
        for arm in result["arms"]:  # quantization scores half precision too, for comparison
            if arm["precision"] in ledger.last["quality"] and not is_adapter(arm["source"]):
                arm["quality"] = ledger.last["quality"][arm["precision"]]
        ledger.amended(benchmark=result).write(self.run.model)
        print(benchmark_table(result), flush=True)
        write_json(self.run.folder / "benchmark.json", result)
        _show(Board(trainer), result)

    def _score_dynamic(self, ledger: Ledger, method: Method) -> Ledger:
        folder, task = self.run.model, method.task
        model = load_for_inference(str(folder), "model", DYNAMIC, "sdpa", "cpu", method.trust_remote_code)
        metrics = task.evaluate(model, method.data, "valid", f"Scoring {DYNAMIC}")
        add_scores(folder, ledger.last["quality"], DYNAMIC, metrics)
        return ledger.amended(quality={DYNAMIC: task.quality(metrics)})

    def _source(self, given: str, trusted: bool) -> list[Arm]:
        precision = own_precision(given, "model", trusted) or "fp32"
        kind = GRAPH if is_graph(given) else self.attention[0]
        return [Arm(f"source {precision}", given, precision, kind, trusted)]

    def _arms(self, trusted: bool) -> list[Arm]:
        model = self.run.model
        first, *others = self.attention
        own = own_precision(str(model), "model", trusted)
        chosen: list[tuple[Path, str, str]] = [(model, "fp32", attention) for attention in self.attention]
        chosen += [
            (model, precision, first) for precision in (self.half, DYNAMIC if self.dynamic_int8 else None) if precision
        ]
        for copy in sorted(model.parent.glob(f"{model.name}-*")):
            graph = is_graph(str(copy))
            if (copy / "config.json").is_file() and (graph or not is_exported(str(copy))):
                precision = own_precision(str(copy), copy.name, trusted)
                if precision not in (None, own):
                    chosen.append((copy, str(precision), GRAPH if graph else first))
        names = [" ".join([folder.name, precision, *({kind} & {*others})]) for folder, precision, kind in chosen]
        return [Arm(name, str(arm[0]), *arm[1:], trusted) for name, arm in zip(names, chosen, strict=True)]

    def _unmerged(self, precision: str, trusted: bool) -> list[Arm]:
        folder = str(self.run.folder / ADAPTER)
        name = f"{ADAPTER} {precision}"
        return [Arm(name, folder, precision, self.attention[0], trusted)] if is_adapter(folder) else []


def _show(board: Board, result: dict[str, Any]) -> None:
    board.text("inference", f"```\n{benchmark_table(result)}\n```")
    for arm in result["arms"]:
        if "error" in arm:
            continue
        name = Path(arm["trace"]).stem
        board.text(f"operators/{name}", operators_markdown(arm))
        board.figures({f"inference/{name}/{key}": value for key, value in _scalars(arm).items()})
    board.flush()


def _scalars(arm: dict[str, Any]) -> dict[str, float]:
    """An arm's figures under flat names that loggers leave as they are."""
    keys = ("weights_mb", "load_mb", "peak_memory_mb", "peak_above_start_mb", "load_seconds")
    timed = {f"{key} {name}": value for key, figures in workloads(arm).items() for name, value in figures.items()}
    faster = {f"{key} ratio": ratio["median"] for key, ratio in arm["ratio"].items()}
    named = {name.replace(" ", "_"): value for name, value in (timed | faster).items()}
    return {key: arm[key] for key in keys} | named
