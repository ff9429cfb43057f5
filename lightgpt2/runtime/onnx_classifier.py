"""An exported ONNX classifier as an engine: onnxruntime and numpy only."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lightgpt2.errors import UserError
from lightgpt2.runtime.engines import CONTEXT, Floats, Ints, physical_cores
from lightgpt2.runtime.ort import load_session, runtime


class OnnxClassifier:
    """Runs an ONNX classifier. See `Classifier`.

    Args:
        model: The `.onnx` file.
        threads: Threads that compute; default: the physical cores that this process may use.
        name: The model's name in errors, which are `UserError`s.
        profile: Prefix of the file of its profile; None: no profile.
    """

    def __init__(
        self, model: Path, threads: int | None = None, name: str = "MODEL", profile: str | None = None
    ) -> None:
        self._session = load_session(model, threads or physical_cores(), name, profile)
        self._inputs = [each.name for each in self._session.get_inputs()]
        context = self._session.get_modelmeta().custom_metadata_map.get(CONTEXT)
        if "logits" not in {each.name for each in self._session.get_outputs()} or context is None:
            raise UserError(f"{name}: {model} must be a classifier (logits) that lightgpt2 exported")
        self.context: int | None = int(context)

    @property
    def sessions(self) -> list[runtime.InferenceSession]:
        """What computes."""
        return [self._session]

    def logits(self, batch: Mapping[str, Ints]) -> Floats:
        none = np.zeros_like(batch["input_ids"])  # segments, where a tokenizer gives none
        found: Floats
        (found,) = self._session.run(["logits"], {name: batch.get(name, none) for name in self._inputs})
        return found
