"""What MLflow loads of a logged model: a run, whose model takes an array of inputs and returns one of logits."""

from typing import Any

import numpy as np
import torch

from research.contracts import contract
from research.load import load_run


class RunModel:
    """A trained run with MLflow's method `predict`."""

    def __init__(self, folder: str) -> None:
        self.run = load_run(folder)

    @contract
    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Return the logits of inputs as the data set gives them: tokens as int64, vectors and images as float32."""
        with torch.inference_mode():
            return self.run.model(torch.from_numpy(np.ascontiguousarray(model_input))).numpy()


def _load_pyfunc(data_path: str) -> RunModel:
    """Return the model of a folder; MLflow calls this by its name."""
    return RunModel(data_path)
