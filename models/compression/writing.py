"""A compressed model as a file: constants in the form that takes the fewest bytes.

dense     every element
bits      the elements that are not zero, and a bit for each place, from which ONNX's own operators make the weight:
          Gather([0, *values], mask * CumSum(mask)); operator set 18

Runtimes compute the second form once, when they load the file. ONNX's ``sparse_initializer`` is not used: ONNX's own shape inference
refuses it as the weight of an operator, and its places take 8 bytes each.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from quatrefoil.models.compression.network import Network

DENSE, BITS = "dense", "bits"
OPSET: Final = 18
NODES: Final = 900
"""Bytes that the nodes of BITS take, about."""
LEAST: Final = 64
"""Elements of a constant that is worth the trouble."""


def written(network: Network) -> tuple[ModelProto, dict[str, str]]:
    """The model to save, and the form of each constant that has zeros enough."""
    made = network.copy()
    forms: dict[str, str] = {}
    for name, array in made.constants.items():
        if array.dtype not in (np.float32, np.float64) or array.size < LEAST or array.ndim < 2:
            continue
        count = int(np.count_nonzero(array))
        size = count * array.itemsize + -(-array.size // 8) + NODES
        if size < array.nbytes and made.reach(OPSET):
            forms[name] = BITS
    nodes = [node for name in forms for node in _bits(made, name, made.constants[name])]
    if nodes:
        made.drop(forms)
        made.set_nodes([*nodes, *made.nodes])
    return made.proto, forms


def _bits(network: Network, name: str, array: np.ndarray) -> list[NodeProto]:
    """The nodes that make a weight of its bits; the eighth bit of a byte is the first place."""
    flat = array.reshape(-1)
    own = f"{name}."
    network.put(
        {
            f"{own}values": np.concatenate([np.zeros(1, array.dtype), flat[flat != 0]]),
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
    return [*nodes, helper.make_node("Reshape", [f"{own}elements", f"{own}shape"], [name], f"{own}weight")]
