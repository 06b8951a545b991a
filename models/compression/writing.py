"""A compressed model as a file: constants in the form that takes the fewest bytes.

dense     every element
bits      the elements that are not zero, and a bit for each place, from which ONNX's own operators make the weight:
          Gather([0, *values], mask * CumSum(mask)); operator set 18

Runtimes compute the second form once, when they load the file. ONNX's ``sparse_initializer`` is not used: ONNX's own shape
inference refuses it as the weight of an operator, and its places take 8 bytes each.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from quatrefoil.models.compression.network import Network
from quatrefoil.models.compression.sharing import codes_of

DENSE, BITS = "dense", "bits"
OPSET: Final = 18
NODES: Final = 900
"""Bytes that the nodes of BITS take, about."""
DTYPES: Final = (np.float32, np.float64, np.int8, np.uint8)
LEAST: Final = 64
"""Elements of a constant that is worth the trouble."""


def written(network: Network) -> tuple[ModelProto, dict[str, str]]:
    """The model to save, and the form of each constant that has zeros enough."""
    made = network.copy()
    forms: dict[str, str] = {}
    small = {item.name for item in made.proto.graph.initializer if item.data_type == TensorProto.UINT4}
    for name, array in made.constants.items():
        if array.dtype not in DTYPES or array.size < LEAST or array.ndim < 2:
            continue
        packed = name in small
        bits = 4 if packed else 8 * array.itemsize
        size = (int(np.count_nonzero(array)) * bits + array.size) // 8 + NODES
        if size < array.size * bits // 8 and made.reach(OPSET):
            forms[name] = BITS
    nodes = [node for name in forms for node in _bits(made, name, made.constants[name], name in small)]
    if nodes:
        made.drop(forms)
        made.set_nodes([*nodes, *made.nodes])
    return made.proto, forms


def _bits(network: Network, name: str, array: np.ndarray, packed: bool) -> list[NodeProto]:
    """The nodes that make a weight of its bits; the eighth bit of a byte is the first place. packed: its values are codes of four
    bits."""
    flat = array.reshape(-1)
    values = np.concatenate([np.zeros(1, array.dtype), flat[flat != 0]])
    own = f"{name}."
    network.put(
        {
            f"{own}values": values,
            f"{own}mask": np.packbits(flat != 0),
            "bits.powers": np.array([[128, 64, 32, 16, 8, 4, 2, 1]], np.uint8),
            "bits.column": np.array([-1, 1], np.int64),
            "bits.axis": np.array(0, np.int64),
            "bits.first": np.array([0], np.int64),
            "bits.all": np.array([-1], np.int64),
            f"{own}count": np.array([flat.size], np.int64),
            f"{own}shape": np.array(array.shape, np.int64),
        }
    )
    steps: tuple[tuple[str, tuple[str, ...], str, dict[str, Any]], ...] = (
        ("Reshape", (f"{own}mask", "bits.column"), "bytes", {}),
        ("BitwiseAnd", (f"{own}bytes", "bits.powers"), "taken", {}),
        ("Cast", (f"{own}taken",), "true", {"to": TensorProto.BOOL}),
        ("Cast", (f"{own}true",), "ones", {"to": TensorProto.INT32}),
        ("Reshape", (f"{own}ones", "bits.all"), "long", {}),
        ("Slice", (f"{own}long", "bits.first", f"{own}count"), "flat", {}),
        ("CumSum", (f"{own}flat", "bits.axis"), "number", {}),
        ("Mul", (f"{own}flat", f"{own}number"), "place", {}),
        ("Gather", (f"{own}values", f"{own}place"), "elements", {}),
    )
    nodes = [
        helper.make_node(kind, list(inputs), [own + output], own + output, **settings)
        for kind, inputs, output, settings in steps
    ]
    if packed:
        network.drop([f"{own}values"])
        network.proto.graph.initializer.append(codes_of(f"{own}codes", values, True))
        network.constants[f"{own}codes"] = values
        nodes.append(helper.make_node("Cast", [f"{own}codes"], [f"{own}values"], f"{own}values", to=TensorProto.UINT8))
        nodes.insert(0, nodes.pop())
    return [*nodes, helper.make_node("Reshape", [f"{own}elements", f"{own}shape"], [name], f"{own}weight")]
