"""Networks as files that run without this project: torch.export programs and ONNX, fp32 and int8.

ONNX needs the packages of requirements-export.txt, which are imported only where they are used.
"""

import importlib.util
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from stages.errors import UserError
from stages.learning.ensemble import Ensemble, Probabilities
from stages.photos.packed import Pixels

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_BYTES = 2**31 - 2**24
"""Largest weights of an ONNX file: protobuf ends at 2 GiB, and the graph needs some room."""

INPUT, OUTPUT = "crops", "probabilities"
METADATA = "metadata.json"

QUANTISED = ["Conv", "MatMul"]
"""What is computed in int8: nearly all of the work. The last layer (a Gemm) and what follows stay
in float32, and so do sums and pooling, which int8 makes no faster and less exact."""
CALIBRATION_BATCH = 16

Classify = Callable[[Pixels], Probabilities]
"""From crops (B x size x size x 3, RGB, uint8) to probabilities (B x 18, float32)."""


def need_onnx_packages() -> None:
    """End here where ONNX cannot be written.

    Raises:
        UserError: naming what is not installed, and the command that installs it.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX needs {', '.join(missing)}: `pip install -r requirements-export.txt`, or take "
            "--format torch, which needs nothing more"
        )


def trace(ensemble: Ensemble, size: int) -> ExportedProgram:
    """The ensemble as a program for any number of crops of that size."""
    ensemble.eval().requires_grad_(False)
    ensemble.to(memory_format=torch.contiguous_format)  # saving channels_last weights warns
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)  # of one, the 1 would be fixed
    program = torch.export.export(ensemble, (example,), dynamic_shapes=({0: Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def to_torch(program: ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    """A file for `torch.export.load`, with the metadata in its `METADATA`."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata, indent=2)})
    return file.getvalue()


def run_torch(content: bytes) -> Classify:
    """What the file that `to_torch` made computes."""
    module = torch.export.load(io.BytesIO(content)).module()

    def classify(crops: Pixels) -> Probabilities:
        with torch.inference_mode():
            found: Probabilities = module(torch.from_numpy(crops)).numpy()
        return found

    return classify


def to_onnx(program: ExportedProgram) -> bytes:
    """An ONNX file with an input `INPUT` and an output `OUTPUT`.

    Raises:
        UserError: if it would be larger than an ONNX file can be.
    """
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > ONNX_BYTES:
        raise UserError(
            f"the networks are {size / 1e9:.1f} GB together, and an ONNX file ends at 2: export "
            "one with --fold, or take --format torch"
        )
    exported = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
    )
    assert exported is not None
    content: bytes = exported.model_proto.SerializeToString()
    return content


def describe_onnx(content: bytes, metadata: Mapping[str, Any]) -> bytes:
    """The ONNX file with the metadata as its `metadata_props`: texts, or JSON."""
    import onnx

    model = onnx.load_from_string(content)
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }
    onnx.helper.set_model_props(model, texts)
    described: bytes = model.SerializeToString()
    return described


def run_onnx(content: bytes) -> Classify:
    """What an ONNX file computes on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # no warnings of its optimiser, which nobody can act on
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def classify(crops: Pixels) -> Probabilities:
        found: Probabilities = session.run([OUTPUT], {INPUT: crops})[0]
        return found

    return classify


class Calibration:
    """Crops as onnxruntime's calibration asks for them: batch by batch, then None."""

    def __init__(self, crops: Pixels) -> None:
        self.batches = iter(np.array_split(crops, -(-len(crops) // CALIBRATION_BATCH)))

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}


def quantise(content: bytes, crops: Pixels) -> bytes:
    """An ONNX file in int8 (static, QDQ, weights by channel), its ranges those seen on `crops`."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        fp32, prepared, quantised = (
            Path(folder) / f"{name}.onnx" for name in ("fp32", "prepared", "int8")
        )
        fp32.write_bytes(content)
        # onnxruntime's own shape inference does not know ReduceLogSumExp; that of ONNX follows.
        quant_pre_process(fp32, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            Calibration(crops),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return quantised.read_bytes()
