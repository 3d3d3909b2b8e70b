"""What the protocol's routes take and answer, for the OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from .inference import parameter_schemas
from .signature import BY_NET, OUTPUTS, inputs
from .tensors import DATATYPES


class ServerMetadata(BaseModel):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """Whether the server lives."""

    live: bool


class Ready(BaseModel):
    """Whether the server takes work."""

    ready: bool


class ModelReady(BaseModel):
    """Whether a model takes work."""

    name: str
    ready: bool


class TensorMetadata(BaseModel):
    """An input or output. A side of -1 has any length."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model. All inputs but the prompt are optional."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorAnswer(TensorMetadata):
    """An output: its data, or the size of its binary data, which stands behind the JSON."""

    data: list[Any] | None = None
    parameters: dict[str, int] | None = None


class InferAnswer(BaseModel):
    """The outputs of a request."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[TensorAnswer]


class IndexEntry(BaseModel):
    """A model of the repository."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
    reason: str = Field(description="why it is not ready")


class TextError(BaseModel):
    """An error in the protocol's form."""

    error: str


def infer_schema() -> dict[str, Any]:
    """JSON schema of a request for inference."""
    names = [*inputs()]
    size = {"type": "integer", "minimum": 0, "description": "bytes of its binary data, which stands behind the JSON"}
    tensor = {
        "type": "object",
        "properties": {
            "name": {"anyOf": [{"enum": names}, {"type": "string", "pattern": BY_NET}]},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "datatype": {"enum": [*DATATYPES]},
            "data": {"type": "array", "description": "in row-major order, flat or nested"},
            "parameters": {"type": "object", "properties": {"binary_data_size": size}},
        },
        "required": ["name", "shape", "datatype"],
    }
    binary = {"type": "boolean", "description": "whether its data stands behind the JSON"}
    wanted = {
        "type": "object",
        "properties": {
            "name": {"enum": [*OUTPUTS]},
            "parameters": {"type": "object", "properties": {"binary_data": binary}},
        },
        "required": ["name"],
    }
    return {
        "type": "object",
        "properties": {
            "id": {"type": "string", "maxLength": 1000, "description": "repeated in the answer"},
            "parameters": {"type": "object", "properties": parameter_schemas(), "additionalProperties": False},
            "inputs": {"type": "array", "items": tensor, "minItems": 1},
            "outputs": {"type": "array", "items": wanted, "description": "default: image and seed"},
        },
        "required": ["inputs"],
        "additionalProperties": False,
    }
