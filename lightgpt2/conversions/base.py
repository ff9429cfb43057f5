"""The contract of what is done to a finished model folder."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.data.base import TaskData
from lightgpt2.errors import Problem
from lightgpt2.models.loading import load_model
from lightgpt2.models.operations import Operation
from lightgpt2.runtime.engines import Classifier, Engine
from lightgpt2.runtime.text_to_text import TextToText


class Conversion(ABC):
    """A way to write a finished model folder anew: quantized, packed, or for another program.

    A copy lies beside its source as `model-NAME`; it is scored from disk and checked before it exists (see `Converter`). A
    class of the user, named by its class path, works wherever the shipped ones do:

    ```python
    class Halved(Conversion):
        name = "halved"

        def write(self, source, target, data):
            load_model(str(source), "model").half().save_pretrained(target)
            return OperationKind("halved", conversion="quantized").record(matched=1)
    ```

    Attributes:
        name: The end of the folder's name, `model-NAME`.
        precision: `fp32`, `f16`, `int8` or `int4`: by it a task decides how far the quality of what an engine runs may be off.
        exact: True if the copy computes bit for bit what its source does, which `write` checks; it is not scored again.
        trust_remote_code: Whether code in the source's folder may run; the caller sets it.
    """

    name: str
    precision: str = "fp32"
    exact: bool = False
    trust_remote_code: bool = False

    def problems(self, config: PretrainedConfig, data: TaskData) -> list[Problem]:
        """Why a model of this configuration cannot be converted; asked before it is trained.

        The keys of the problems are names of this conversion's settings, or empty.
        """
        return []

    @abstractmethod
    def write(self, source: Path, target: Path, data: TaskData) -> Operation:
        """Write the copy into an empty folder, count what was converted, and return the ledger's record of it.

        Raises:
            UserError: The model does not fit, or the copy is larger than it should be.
        """

    def runner(self, folder: Path) -> PreTrainedModel | Engine | Classifier | TextToText:
        """The copy, loaded from disk, as it is scored; by default as transformers loads it."""
        return load_model(str(folder), "model", self.trust_remote_code)

    def finish(self, folder: Path, about: dict[str, Any]) -> None:  # noqa: B027 - most need nothing
        """Complete the folder when all else is in it; `about` has the record's values, `quality` and `agreement`."""
