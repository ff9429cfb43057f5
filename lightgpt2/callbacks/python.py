"""The callbacks of a run, for a plain `Trainer`."""

import inspect

from lightning import Callback

from lightgpt2.callbacks.artefact import Artefact
from lightgpt2.callbacks.checkpointing import Checkpointing
from lightgpt2.callbacks.monitor import Monitor
from lightgpt2.data.base import TaskData
from lightgpt2.methods.method import Method
from lightgpt2.runs.run import Run, identity


def run_callbacks(name: str, method: Method, data: TaskData, every_n_steps: int = 100) -> list[Callback]:
    """What `lightgpt2 fit` adds to a trainer: artefact, ledger, table, checkpoints, speed and samples.

    ```python
    method, data = FineTune("gpt2"), LanguageModelingData(source="my.txt")
    trainer = Trainer(max_steps=100, callbacks=run_callbacks("mine", method, data))
    trainer.fit(method, datamodule=data)  # checkpoints/mine/model
    ```

    Args:
        name: The run's name: its folder is `checkpoints/NAME`; what another run has left there is replaced.
        method: The method.
        data: The data.
        every_n_steps: Optimizer steps between two checkpoints.
    """
    presets = [kind for kind in type(method).__mro__ if issubclass(kind, Method)]
    taken = {name for kind in presets for name in inspect.signature(kind.__init__).parameters}
    source = method.start.source
    cut_from = None if "model" in taken else source  # `Distill` may cut its student from its teacher
    sources = {"model": source, "teacher": method.objective.teacher_source or cut_from}
    arguments = {name: value for name, value in sources.items() if name in taken and isinstance(value, str)}
    config = {
        "model": {"class_path": _path(method), "init_args": arguments},
        "data": {"class_path": _path(data), "init_args": {"source": data.source}},
    }
    run, checkpointing = Run(name), Checkpointing(every_n_steps)
    checkpointing.attach(run, identity(config))
    return [Monitor(), Artefact(run, config, resuming=False), checkpointing]


def _path(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
