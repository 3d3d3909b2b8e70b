"""The forms of quantized graphs: what each backend's kernels want, as numbers of one record."""

from dataclasses import dataclass

from latentrt.runtime.errors import InputError


@dataclass(frozen=True, slots=True)
class Form:
    """How layers are written with QuantizeLinear and DequantizeLinear.

    Attributes:
        weight: dtype of the weights, a name of onnx_ir's `DataType`.
        activation: dtype of the activations; None leaves them in float. UINT8 has a zero point, the others have none.
        outputs: whether outputs of convolutions are quantized, too, and their biases int32.
        channels_of_convolutions: whether convolutions have a scale for each output channel, or one.
        smooth: the share of the outliers that SmoothQuant moves from activations into weights; 0 is off.
    """

    weight: str
    activation: str | None
    outputs: bool = False
    channels_of_convolutions: bool = True
    smooth: float = 0.0


# Each was the fastest of its backend that keeps the quality: docs/decisions/0025-quantized-graphs.md.
FORMS = {
    ("int8", "openvino"): Form("INT8", "UINT8", smooth=0.8),
    # Without quantized outputs, ONNX Runtime computes convolutions in float.
    ("int8", "onnxruntime"): Form("INT8", "UINT8", outputs=True, smooth=0.8),
    # TensorRT refuses zero points other than 0.
    ("int8", "tensorrt"): Form("INT8", "INT8", smooth=0.8),
    # With scales by channel, TensorRT converts those of each convolution, with a warning.
    ("fp8", "tensorrt"): Form("FLOAT8E4M3FN", "FLOAT8E4M3FN", channels_of_convolutions=False),
    ("int8-weights", "openvino"): Form("INT8", None),
    ("int8-weights", "onnxruntime"): Form("INT8", None),
    ("int8-weights", "tensorrt"): Form("INT8", None),
}


def form_of(to: str, target: str) -> Form:
    """The form of a kind of quantization for a backend. Raises `InputError` if that backend has no such kernels."""
    if (to, target) not in FORMS:
        targets = ", ".join(name for kind, name in FORMS if kind == to)
        raise InputError(f"{to} for {target}: no such kernels; --to {to} is for {targets}")
    return FORMS[to, target]
