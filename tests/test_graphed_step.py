"""Steps that cannot be CUDA graphs. That graphs compute the same is checked by `benchmarks.gpu`."""

import pytest
import torch
from torch import Tensor

from face_attributes.training.graphed_step import GraphedStep

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_a_step_that_cannot_be_recorded_goes_on_as_usual(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a GPU nothing can be; on one, nothing that looks at numbers."""
    calls = list[str]()

    def eager(batch: Tensor) -> tuple[Tensor]:
        calls.append("eager")
        return (batch + 1,)

    def recorded(batch: Tensor) -> tuple[Tensor]:
        assert batch.sum().item() == 3
        return (batch + 1,)

    step = GraphedStep(eager, recorded, lambda: calls.append("discard"))
    for size in (3, 3, 2, 3):
        (result,) = step(torch.ones(size, device=DEVICE))
        assert result.tolist() == [2] * size
    assert calls == ["eager", "discard", "eager", "eager", "eager"]
    assert capsys.readouterr().out.startswith(
        "note: training without CUDA graphs, which may be slower: "
    )
    assert step.recordings == {}
