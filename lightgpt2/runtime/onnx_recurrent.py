"""An exported decoder that carries states, run by onnxruntime and numpy only; and the choice of a decoder's engine."""

from pathlib import Path

import numpy as np

from lightgpt2.runtime.engines import Engine, Floats, Ints, physical_cores
from lightgpt2.runtime.onnx_engine import OnnxEngine
from lightgpt2.runtime.ort import load_session, runtime
from lightgpt2.runtime.recurrent import RecurrentEngine, State

_PAST, _PRESENT = (["past_hidden", "past_cell"], ["present_hidden", "present_cell"])


class OnnxSteps:
    """Runs a graph with states as inputs and outputs. See `runtime.recurrent.Steps`."""

    def __init__(self, session: runtime.InferenceSession) -> None:
        self.sessions = [session]
        shapes = {each.name: each.shape for each in (*session.get_inputs(), *session.get_outputs())}
        self._layers, _, self._width = shapes[_PAST[0]]
        self.vocabulary = int(shapes["logits"][2])

    def run(self, ids: Ints, mask: Ints | None, state: State | None, whole: bool) -> tuple[Floats, State]:
        if state is None:
            state = [np.zeros((self._layers, len(ids), self._width), np.float32)] * len(_PAST)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else mask}
        feeds |= {"num_logits_to_keep": np.array(0 if whole else 1), **dict(zip(_PAST, state, strict=True))}
        logits, *states = self.sessions[0].run(["logits", *_PRESENT], feeds)
        return logits, states


def onnx_decoder(
    model: Path, context: int, threads: int | None = None, name: str = "MODEL", profile: str | None = None
) -> Engine:
    """The engine for what a decoder's graph carries from token to token; the arguments are those of `OnnxEngine`."""
    session = load_session(model, threads or physical_cores(), name, profile)
    if {*_PAST} <= {each.name for each in session.get_inputs()}:
        return RecurrentEngine(OnnxSteps(session), context)
    return OnnxEngine(model, context, threads, name, profile, session)
