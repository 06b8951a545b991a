"""Layers of our own for hls4ml (its extension API): recurrent layers that ONNX has and hls4ml has not, and moves.

quatrefoil_recurrent.h and quatrefoil_move.h are the C++; here are the layers, their templates and their registration.
hls4ml is imported when this module is.
"""

from __future__ import annotations

from functools import cache
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Final

from hls4ml.backends import get_backend
from hls4ml.backends.template import FunctionCallTemplate, LayerConfigTemplate
from hls4ml.model.attributes import Attribute, ConfigurableAttribute, TypeAttribute, WeightAttribute
from hls4ml.model.layers import Layer, layer_map, register_layer

HEADER: Final = Path(__file__).with_name("quatrefoil_recurrent.h")
MOVE_HEADER: Final = Path(__file__).with_name("quatrefoil_move.h")
WEIGHTS: Final = (
    ("weight", "w"), ("recurrent_weight", "wr"), ("bias", "b"), ("recurrent_bias", "br"), ("initial_h", "h"),
    ("initial_c", "c"),
)  # fmt: skip
"""hls4ml's names of the constants, and how their variables begin."""

GATES: Final = {"rnn": 1, "lstm": 4, "gru": 3, "gru_after": 3}


class QuatrefoilRecurrent(Layer):  # type: ignore[misc]
    _expected_attributes: ClassVar[list[Attribute]] = [
        Attribute("n_timesteps"),
        Attribute("n_in"),
        Attribute("n_out"),
        Attribute("cell", value_type=str),
        Attribute("functions", value_type=list),
        Attribute("backward", value_type=bool),
        Attribute("output", value_type=str),
        ConfigurableAttribute("table_size"),
        ConfigurableAttribute("reuse_factor", default=1),
        TypeAttribute("accum"),
        TypeAttribute("table"),
        *(WeightAttribute(name) for name, _ in WEIGHTS),
        *(TypeAttribute(name) for name, _ in WEIGHTS),
    ]

    def initialize(self) -> None:
        state = [self.get_attr("n_out")]
        self.add_output_variable(
            [self.get_attr("n_timesteps"), *state] if self.get_attr("output") == "sequence" else state
        )
        for name, start in WEIGHTS:
            self.add_weights_variable(name=name, var_name=f"{start}{{index}}")


CONFIG: Final = """struct {kind}_config{index} : nnet::activ_config {{
    static const unsigned n_in = {count};
    static const unsigned table_size = {table_size};
    static const unsigned io_type = nnet::{iotype};
    static const unsigned reuse_factor = {reuse};
    typedef {table_t.name} table_t;
}};
"""

LAYER: Final = """struct config{index} {{
    typedef {accum_t.name} accum_t;
    typedef {weight_t.name} weight_t;
    typedef {recurrent_weight_t.name} recurrent_weight_t;
    typedef {bias_t.name} bias_t;
    typedef {recurrent_bias_t.name} recurrent_bias_t;
    typedef {initial_h_t.name} initial_h_t;
    typedef {initial_c_t.name} initial_c_t;
    typedef first_config{index} first_config;
    typedef state_config{index} state_config;
    template<class x_T, class y_T, class config_T>
    using first = nnet::activation::{first}<x_T, y_T, config_T>;
    template<class x_T, class y_T, class config_T>
    using second = nnet::activation::{second}<x_T, y_T, config_T>;
    template<class x_T, class y_T, class config_T>
    using third = nnet::activation::{third}<x_T, y_T, config_T>;
    static const unsigned n_in = {n_in};
    static const unsigned n_state = {n_out};
    static const unsigned n_gates = {gates};
    static const unsigned n_sequence = {n_timesteps};
    static const unsigned n_sequence_out = {steps_out};
    static const unsigned reuse_factor = {reuse};
    static const bool backward = {is_backward};
    static const nnet::quatrefoil_cell cell = nnet::quatrefoil_cell::{cell};
    static const nnet::quatrefoil_output output = nnet::quatrefoil_output::{output};
}};
"""

CALL: Final = (
    "nnet::quatrefoil_recurrent<{input_t}, {output_t}, {config}>({input}, {output}, {w}, {wr}, {b}, {br}, {h}, {c});"
)


class QuatrefoilRecurrentConfig(LayerConfigTemplate):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(QuatrefoilRecurrent)

    def format(self, node: Any) -> str:
        parameters = self._default_config_params(node)
        functions, gates = node.get_attr("functions"), GATES[node.get_attr("cell")]
        hidden = node.get_attr("n_out")
        first, second, third = (*functions, *functions[-1:] * 2)[:3]
        parameters |= {"first": first, "second": second, "third": third, "gates": gates}
        parameters["steps_out"] = node.get_attr("n_timesteps") if node.get_attr("output") == "sequence" else 1
        parameters["is_backward"] = str(node.get_attr("backward")).lower()
        if node.model.config.get_strategy(node).lower() != "resource":
            parameters["reuse"] = 1  # products are added in order; the pipeline shares nothing then
        kinds = (("first", max(gates - 1, 1) * hidden), ("state", hidden))
        configs = [CONFIG.format(kind=kind, count=count, **parameters) for kind, count in kinds]
        return "\n".join([*configs, LAYER.format(**parameters)])


class QuatrefoilRecurrentFunction(FunctionCallTemplate):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(QuatrefoilRecurrent, include_header=[f"nnet_utils/{HEADER.name}"])

    def format(self, node: Any) -> str:
        parameters = self._default_function_params(node)
        parameters |= {start: node.get_weights(name).name for name, start in WEIGHTS}
        return CALL.format(**parameters)


class QuatrefoilMove(Layer):  # type: ignore[misc]
    _expected_attributes: ClassVar[list[Attribute]] = [
        Attribute("places", value_type=list),
        Attribute("target_shape", value_type=list),
    ]

    def initialize(self) -> None:
        self.add_output_variable(self.get_attr("target_shape"))


MOVE: Final = """struct config{index} {{
    static const unsigned n_in = {n_in};
    static const unsigned n_out = {n_out};
    static int place(unsigned i) {{
        static const int places[n_out] = {{{listed}}};
        return places[i];
    }}
}};
"""


class QuatrefoilMoveConfig(LayerConfigTemplate):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(QuatrefoilMove)

    def format(self, node: Any) -> str:
        places = node.get_attr("places")
        parameters = self._default_config_params(node) | {"listed": ", ".join(map(str, places)), "n_out": len(places)}
        return MOVE.format(**(parameters | {"n_in": prod(node.get_input_variable().shape)}))


class QuatrefoilMoveFunction(FunctionCallTemplate):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(QuatrefoilMove, include_header=[f"nnet_utils/{MOVE_HEADER.name}"])

    def format(self, node: Any) -> str:
        parameters = self._default_function_params(node)
        return "nnet::quatrefoil_move<{input_t}, {output_t}, {config}>({input}, {output});".format(**parameters)


@cache
def register(backend: str) -> None:
    """Make the layers known to hls4ml and to one of its backends, once."""
    found = get_backend(backend)
    for layer in (QuatrefoilRecurrent, QuatrefoilMove):
        if layer.__name__ not in layer_map:
            register_layer(layer.__name__, layer)
    for template in (
        QuatrefoilRecurrentConfig, QuatrefoilRecurrentFunction, QuatrefoilMoveConfig, QuatrefoilMoveFunction,
    ):  # fmt: skip
        found.register_template(template)
    for header in (HEADER, MOVE_HEADER):
        found.register_source(header)
