"""quatrefoil as an ``onnx.backend.base.Backend``, so that ONNX's own backend tests, and tools written for that
interface, drive it.

Devices: "CPU", "CUDA", "FPGA" and "ASIC", with an optional ":0". The module itself has the class's functions
(``prepare``, ``run_model``, ``run_node``, ``supports_device``, ``is_compatible``), as ONNX asks of a backend module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper
from onnx.backend.base import Backend, BackendRep, namedtupledict

from quatrefoil import backends
from quatrefoil.models.graph import ModelError
from quatrefoil.models.model import Model, load

DEVICES: Final = {"CPU": "cpu", "CUDA": "gpu", "FPGA": "fpga", "ASIC": "asic"}
"""ONNX's device names and, for those that ONNX has no name for, ours; and the backend of each."""


def backend_of(device: str) -> str:
    """The backend of a device string. Raises ModelError for an unknown one."""
    name, _, index = device.partition(":")
    if name not in DEVICES or index not in ("", "0"):
        raise ModelError(f"there is no device {device!r}; known are {', '.join(DEVICES)}")
    return DEVICES[name]


class PreparedModel(BackendRep):
    """A model on a device."""

    def __init__(self, model: Model, backend: str) -> None:
        self.model = model
        self.backend = backend

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """inputs: a list in the order of the model's inputs, a dict by name, or the array alone where there is one."""
        if not isinstance(inputs, (Mapping, list, tuple)):
            inputs = [inputs]
        named = inputs if isinstance(inputs, Mapping) else self._by_name(inputs)
        outputs = self.model.run(named, backend=self.backend)
        return namedtupledict("Outputs", list(outputs))(*outputs.values())

    def _by_name(self, inputs: Sequence[Any]) -> dict[str, Any]:
        # models before IR version 4 list their weights as inputs, too: a caller may give those or leave them out
        values = self.model.inputs if len(inputs) <= len(self.model.inputs) else self.model.all_inputs
        if len(inputs) > len(values):
            raise ModelError(f"{len(inputs)} inputs were given; the model has {len(values)}")
        return {value.name: array for value, array in zip(values, inputs)}


class QuatrefoilBackend(Backend):
    """See the module."""

    @classmethod
    def is_compatible(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether the model can be loaded."""
        try:
            load(model)
        except ModelError:
            return False
        return True

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> PreparedModel:
        """A model made ready for a device. ``strict=True`` refuses operators that would run on the host."""
        backend = backend_of(device)
        return PreparedModel(load(model, strict=bool(kwargs.get("strict", False))), backend)

    @classmethod
    def run_model(cls, model: ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one node; ``opset_version`` chooses the operator set, the newest by default."""
        super().run_node(node, inputs, device, outputs_info, **kwargs)
        arrays = [inputs[name] for name in node.input if name] if isinstance(inputs, Mapping) else list(inputs)
        names = list(dict.fromkeys(name for name in node.input if name))
        graph = helper.make_graph(
            [node],
            node.op_type,
            [onnx.ValueInfoProto(name=name) for name in names],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
        )
        version = int(kwargs.get("opset_version", onnx.defs.onnx_opset_version()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, version)])
        return cls.prepare(model, device).run(arrays)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether this machine can run the device's backend."""
        try:
            backend = backend_of(device)
        except ModelError:
            return False
        return backends.get(backend).probe().ready


is_compatible = QuatrefoilBackend.is_compatible
prepare = QuatrefoilBackend.prepare
run_model = QuatrefoilBackend.run_model
run_node = QuatrefoilBackend.run_node
supports_device = QuatrefoilBackend.supports_device
