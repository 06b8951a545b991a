/* quatrefoil.asic_sim._native: the door from Python. Checks sizes, releases the interpreter's lock, computes. */
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>

#include "convolution.h"
#include "division.h"
#include "fixed_recurrent.h"
#include "pooling.h"
#include "quatrefoil/activation.h"
#include "recurrent.h"
#include "reference.h"
#include "timing.h"

namespace py = pybind11;
using namespace asic;

namespace {

template <typename Value>
using Array = py::array_t<Value, py::array::c_style>;
template <typename Value>
using Maybe = std::optional<Array<Value>>;

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("quatrefoil.asic_sim._native: ") + what);
}

template <typename Value>
const Value* read(const Array<Value>& array, int64_t size, const char* what) {
  require(array.size() == size, what);
  return array.data();
}

template <typename Value>
const Value* read(const Maybe<Value>& array, int64_t size, const char* what) {
  return array ? read(*array, size, what) : nullptr;
}

template <typename Value>
Value* write(Array<Value>& array, int64_t size, const char* what) {
  require(array.size() == size, what);
  return array.mutable_data();
}

py::dict as_dict(const Counters& c) {
  py::dict d;
  d["cycles"] = c.cycles;
  d["fill"] = c.fill;
  d["busy"] = c.busy;
  d["stall_weights"] = c.stall_weights;
  d["stall_activations"] = c.stall_activations;
  d["stall_outputs"] = c.stall_outputs;
  d["stall_steps"] = c.stall_steps;
  d["stall_memory"] = c.stall_memory;
  d["drain"] = c.drain;
  d["vector_busy"] = c.vector_busy;
  d["weight_bytes"] = c.weight_bytes;
  d["activation_bytes"] = c.activation_bytes;
  d["output_bytes"] = c.output_bytes;
  d["lookups"] = c.lookups;
  d["gated_macs"] = c.gated_macs;
  d["folds"] = c.folds;
  d["macs"] = c.macs;
  d["weight_reads"] = c.weight_reads;
  d["activation_reads"] = c.activation_reads;
  d["accumulator_accesses"] = c.accumulator_accesses;
  d["lane_operations"] = c.lane_operations;
  d["activation_writes"] = c.activation_writes;
  d["memory_conflicts"] = c.memory_conflicts;
  d["row_hits"] = c.row_hits;
  d["row_misses"] = c.row_misses;
  d["row_waits"] = c.row_waits;
  d["refresh_waits"] = c.refresh_waits;
  return d;
}

template <typename Compute>
py::dict unlocked(const Compute& compute) {
  Counters counters;
  {
    py::gil_scoped_release release;
    counters = compute();
  }
  return as_dict(counters);
}

/* Events as (part, begin, end, bytes, channel) in the order of their kind's. */
py::list as_list(const std::vector<Event>& events) {
  py::list told;
  for (const Event& event : events) {
    told.append(py::make_tuple(event.part, event.begin, event.end, event.bytes, event.channel));
  }
  return told;
}

/* Counters and events. */
template <typename Compute>
py::tuple traced(const Compute& compute) {
  std::vector<Event> events;
  const py::dict counters = unlocked([&] { return compute(events); });
  return py::make_tuple(counters, as_list(events));
}

/* The states of the reference, as (cycle, loading, fold, vector, port). */
template <typename Compute>
py::list watched(const Compute& compute) {
  std::vector<State> states;
  {
    const py::gil_scoped_release release;
    compute(&states);
  }
  py::list told;
  for (const State& s : states) told.append(py::make_tuple(s.cycle, s.loading, s.fold, s.vector, s.port));
  return told;
}

void check_cores(const std::vector<Chain>& chains) {
  require(!chains.empty(), "no cores");
  for (const Chain& chain : chains) {
    require(chain.parts().size() == chains.front().parts().size(), "cores with other numbers of parts");
  }
}

template <typename Compute>
py::list for_each_core(const Compute& compute) {
  std::vector<std::vector<Counters>> counters;
  {
    const py::gil_scoped_release release;
    counters = compute();
  }
  py::list told;
  for (const std::vector<Counters>& parts : counters) {
    py::list core;
    for (const Counters& part : parts) core.append(as_dict(part));
    told.append(core);
  }
  return told;
}

struct Sizes {
  int64_t x, y, channels, weights;
};

Sizes sizes_of(const Convolution& c) {
  return {c.batch * c.groups * c.channels * c.input_size(), c.batch * c.groups * c.columns * c.output_size(),
          c.groups * c.columns, c.groups * c.taps() * c.channels * c.columns};
}

void convolve_float(const Convolution& c, int64_t array_rows, const Array<float>& x, const Array<float>& w,
                    const Maybe<float>& bias, const Maybe<float>& residual, const Function& function, Array<float> y) {
  const Sizes sizes = sizes_of(c);
  const float* from = read(x, sizes.x, "the size of x");
  const float* weights = read(w, sizes.weights, "the size of w");
  const float* add = read(bias, sizes.channels, "the size of bias");
  const float* also = read(residual, sizes.y, "the size of residual");
  float* to = write(y, sizes.y, "the size of y");
  const py::gil_scoped_release release;
  convolve(c, array_rows, from, weights, [&](int64_t n, int64_t channel, int64_t place, float sum) {
    const int64_t at = (n * sizes.channels + channel) * c.output_size() + place;
    if (add) sum += add[channel];
    if (also) sum += also[at];
    to[at] = qf_activation(function.code, function.alpha, function.beta, sum);
  });
}

void convolve_integer(const Convolution& c, int64_t array_rows, const Array<int16_t>& x, const Array<int16_t>& w,
                      Array<int32_t> y) {
  const Sizes sizes = sizes_of(c);
  const int16_t* from = read(x, sizes.x, "the size of x");
  const int16_t* weights = read(w, sizes.weights, "the size of w");
  int32_t* to = write(y, sizes.y, "the size of y");
  const py::gil_scoped_release release;
  convolve(c, array_rows, from, weights, [&](int64_t n, int64_t channel, int64_t place, uint32_t sum) {
    to[(n * sizes.channels + channel) * c.output_size() + place] = static_cast<int32_t>(sum);
  });
}

/* saturate(round_half_even(float(sum + bias) * multiplier) + zero_point), as kernels/numerics.py defines it */
template <typename Value>
void convolve_requantized(const Convolution& c, int64_t array_rows, const Array<int16_t>& x, const Array<int16_t>& w,
                          const Maybe<int32_t>& bias, const Array<float>& multiplier, int64_t zero_point,
                          Array<Value> y) {
  const Sizes sizes = sizes_of(c);
  const int16_t* from = read(x, sizes.x, "the size of x");
  const int16_t* weights = read(w, sizes.weights, "the size of w");
  const int32_t* add = read(bias, sizes.channels, "the size of bias");
  const float* scale = read(multiplier, sizes.channels, "the size of multiplier");
  Value* to = write(y, sizes.y, "the size of y");
  const double low = std::numeric_limits<Value>::min(), high = std::numeric_limits<Value>::max();
  const py::gil_scoped_release release;
  convolve(c, array_rows, from, weights, [&](int64_t n, int64_t channel, int64_t place, uint32_t sum) {
    if (add) sum += static_cast<uint32_t>(add[channel]);
    const float scaled = static_cast<float>(static_cast<int32_t>(sum)) * scale[channel];
    double value = static_cast<double>(std::nearbyint(scaled)) + static_cast<double>(zero_point);
    value = value > low ? std::min(value, high) : low; /* NaN becomes the lowest value */
    to[(n * sizes.channels + channel) * c.output_size() + place] = static_cast<Value>(value);
  });
}

/* The bias in the accumulator's format; rectified: max(y, 0). */
void convolve_fixed(const Convolution& c, const FixedSums& numbers, const Fixed& format, bool rectified,
                    const Array<int32_t>& x, const Array<int32_t>& w, const Maybe<int64_t>& bias, Array<int32_t> y) {
  const Sizes sizes = sizes_of(c);
  const int32_t* from = read(x, sizes.x, "the size of x");
  const int32_t* weights = read(w, sizes.weights, "the size of w");
  const int64_t* start = read(bias, sizes.channels, "the size of bias");
  int32_t* to = write(y, sizes.y, "the size of y");
  const py::gil_scoped_release release;
  const auto multiply = [&](const int32_t* rows, const uint8_t* present, int64_t count, int64_t depth,
                            const int32_t* packed, int64_t channel, int64_t* sums) {
    numbers.multiply(rows, present, count, depth, packed, c.columns, c.columns, start ? start + channel : nullptr, sums,
                     c.columns);
  };
  convolve<int64_t>(c, from, weights, multiply, [&](int64_t n, int64_t channel, int64_t place, int64_t sum) {
    const int64_t value = format.cast(sum, numbers.accumulator.fraction);
    to[(n * sizes.channels + channel) * c.output_size() + place] =
        static_cast<int32_t>(rectified ? std::max<int64_t>(value, 0) : value);
  });
}

int64_t outputs_of(const Pool& pool) {
  return pool.planes * pool.axes[0].outputs * pool.axes[1].outputs * pool.axes[2].outputs;
}

template <typename Value>
void pool_max(const Pool& pool, bool column_major, const Array<Value>& x, Array<Value> y, Maybe<int64_t> indices) {
  const Value* from = read(x, pool.planes * pool.input_size(), "the size of x");
  Value* to = write(y, outputs_of(pool), "the size of y");
  int64_t* at = indices ? write(*indices, outputs_of(pool), "the size of indices") : nullptr;
  const py::gil_scoped_release release;
  max_pool(pool, column_major, from, to, at);
}

void pool_average(const Pool& pool, const Pool& divisor, const Array<float>& x, Array<float> y) {
  require(outputs_of(pool) == outputs_of(divisor), "the outputs of the divisor");
  const float* from = read(x, pool.planes * pool.input_size(), "the size of x");
  float* to = write(y, outputs_of(pool), "the size of y");
  const py::gil_scoped_release release;
  average_pool(pool, divisor, from, to);
}

void pool_fixed_max(const Pool& pool, const Fixed& format, int fraction, const Array<int32_t>& x, Array<int32_t> y) {
  const int32_t* from = read(x, pool.planes * pool.input_size(), "the size of x");
  int32_t* to = write(y, outputs_of(pool), "the size of y");
  const py::gil_scoped_release release;
  max_pool(pool, false, from, to, nullptr);
  cast_all(format, fraction, outputs_of(pool), to, to);
}

void pool_fixed_average(const Pool& pool, const Fixed& accumulator, const Fixed& format, int fraction,
                        const Array<int64_t>& divisors, const Array<int32_t>& x, Array<int32_t> y) {
  const int64_t places = pool.axes[0].outputs * pool.axes[1].outputs * pool.axes[2].outputs;
  const int64_t* by = read(divisors, places, "the size of divisors");
  for (int64_t i = 0; i < places; i++) require(by[i] > 0, "a divisor out of range");
  const int32_t* from = read(x, pool.planes * pool.input_size(), "the size of x");
  int32_t* to = write(y, outputs_of(pool), "the size of y");
  const py::gil_scoped_release release;
  fixed_average_pool(pool, accumulator, format, fraction, by, from, to);
}

void pool_lp(const Pool& pool, int64_t p, const Array<float>& x, Array<float> y) {
  const float* from = read(x, pool.planes * pool.input_size(), "the size of x");
  float* to = write(y, outputs_of(pool), "the size of y");
  const py::gil_scoped_release release;
  lp_pool(pool, p, from, to);
}

template <typename Value>
void unpool_max(int64_t planes, const std::array<int64_t, 3>& indexed, const std::array<int64_t, 3>& plane,
                const Array<Value>& x, const Array<int64_t>& indices, Array<Value> y) {
  const int64_t count = x.size(), size = indexed[0] * indexed[1] * indexed[2];
  const int64_t* at = read(indices, count, "the size of indices");
  Value* to = write(y, planes * plane[0] * plane[1] * plane[2], "the size of y");
  for (int axis = 0; axis < 3; axis++) require(indexed[axis] <= plane[axis], "the extents of y");
  const Value* from = x.data();
  const py::gil_scoped_release release;
  for (int64_t i = 0; i < count; i++) require(at[i] >= 0 && at[i] / size < planes, "an index outside y");
  max_unpool(count, indexed, plane, from, at, to);
}

void check_lengths(const Layer& layer, const int32_t* lengths) {
  for (int64_t n = 0; lengths && n < layer.batch; n++) {
    require(lengths[n] >= 0 && lengths[n] <= layer.steps, "a sequence length outside 0 to the number of steps");
  }
}

void recurrent(const Recurrent& layer, int64_t array_rows, const Array<float>& x, const Array<float>& w,
               const Array<float>& r, const Maybe<float>& bias, const Maybe<int32_t>& lengths,
               const Maybe<float>& peepholes, Array<float> h, std::optional<Array<float>> c, Array<float> y) {
  const auto directions = static_cast<int64_t>(layer.reverse.size());
  const int64_t width = layer.gates() * layer.hidden, state = directions * layer.batch * layer.hidden;
  require(layer.functions.size() == layer.reverse.size(), "the functions of each direction");
  require(c.has_value() == (layer.cell == Cell::lstm), "a cell state for lstm alone");
  const float* from = read(x, layer.steps * layer.batch * layer.inputs, "the size of x");
  const float* input_weights = read(w, directions * layer.inputs * width, "the size of w");
  const float* state_weights = read(r, directions * layer.hidden * width, "the size of r");
  const float* add = read(bias, directions * 2 * width, "the size of bias");
  const int32_t* lasting = read(lengths, layer.batch, "the size of lengths");
  const float* peep = read(peepholes, directions * 3 * layer.hidden, "the size of peepholes");
  float* hidden = write(h, state, "the size of h");
  float* cell = c ? write(*c, state, "the size of c") : nullptr;
  float* to = write(y, layer.steps * state, "the size of y");
  const py::gil_scoped_release release;
  check_lengths(layer, lasting);
  run_recurrent(layer, array_rows, from, input_weights, state_weights, add, lasting, peep, hidden, cell, to);
}

void fixed_recurrent(const FixedRecurrent& layer, const Array<int32_t>& x, const Array<int32_t>& w,
                     const Array<int32_t>& r, const Maybe<int64_t>& bias, const Maybe<int32_t>& lengths,
                     Array<int32_t> h, std::optional<Array<int32_t>> c, Array<int32_t> y) {
  const auto directions = static_cast<int64_t>(layer.reverse.size());
  const int64_t width = layer.gates() * layer.hidden, state = directions * layer.batch * layer.hidden;
  require(layer.functions.size() == layer.reverse.size(), "the functions of each direction");
  require(c.has_value() == (layer.cell == Cell::lstm), "a cell state for lstm alone");
  const int32_t* from = read(x, layer.steps * layer.batch * layer.inputs, "the size of x");
  const int32_t* input_weights = read(w, directions * layer.inputs * width, "the size of w");
  const int32_t* state_weights = read(r, directions * layer.hidden * width, "the size of r");
  const int64_t* start = read(bias, directions * 2 * width, "the size of bias");
  const int32_t* lasting = read(lengths, layer.batch, "the size of lengths");
  int32_t* hidden = write(h, state, "the size of h");
  int32_t* cell = c ? write(*c, state, "the size of c") : nullptr;
  int32_t* to = write(y, layer.steps * state, "the size of y");
  const py::gil_scoped_release release;
  check_lengths(layer, lasting);
  run_fixed_recurrent(layer, from, input_weights, state_weights, start, lasting, hidden, cell, to);
}

Cell cell_of(const std::string& name) {
  return name == "lstm" ? Cell::lstm : name == "gru" ? Cell::gru : Cell::rnn;
}

/* The reference, with the numbers of a plain product where a and w are given: of integers with 32-bit sums, or as
 * `numbers` says, each column's sums starting from `start`. */
py::tuple step(const Design& design, const Sections& sections, const Mapping& mapping, const Maybe<int32_t>& a,
               const Maybe<int32_t>& w, const std::optional<FixedSums>& numbers, const Maybe<int64_t>& start,
               const Maybe<int64_t>& kept) {
  const Program program = lower(design, sections, mapping);
  Product product;
  py::object out = py::none();
  if (a && w) {
    const Stage& stage = program.sections().at(0).stages.at(0);
    const int64_t rows = stage.axes[0].outputs;
    require(program.sections().size() == 1 && program.sections()[0].stages.size() == 1 && stage.groups == 1 &&
                stage.places() == rows && stage.depth() == stage.channels,
            "numbers go with one plain product");
    product.a = read(*a, rows * stage.channels, "the size of a");
    product.w = read(*w, stage.channels * stage.columns, "the size of w");
    Array<int64_t> sums(std::vector<py::ssize_t>{rows, stage.columns});
    const int64_t* first = read(start, stage.columns, "the size of start");
    if (kept) {
      require(stage.indexed(), "rows are kept of weights with an index");
      const Stored& stored = *stage.stored;
      product.kept = read(*kept, static_cast<int64_t>(stored.before.size()) - stored.strips(), "the size of kept");
      for (int64_t i = 0; i < kept->size(); i++) {
        require(product.kept[i] >= 0 && product.kept[i] < stage.channels, "a row that is kept");
      }
    }
    for (int64_t i = 0; i < sums.size(); i++) sums.mutable_data()[i] = first ? first[i % stage.columns] : 0;
    product.out = sums.mutable_data();
    product.chained = numbers.has_value();
    if (numbers) product.sums = *numbers;
    out = sums;
  }
  const py::dict counters = unlocked([&] { return step_program(program, product); });
  return py::make_tuple(counters, out);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "The systolic array's timing and numbers. Used through quatrefoil.asic_sim.";

  py::enum_<Dataflow>(m, "Dataflow")
      .value("weight", Dataflow::weight)
      .value("output", Dataflow::output)
      .value("input", Dataflow::input);
  py::enum_<WeightLoad>(m, "WeightLoad")
      .value("double_buffered", WeightLoad::double_buffered)
      .value("skewed", WeightLoad::skewed)
      .value("serial", WeightLoad::serial)
      .value("broadcast", WeightLoad::broadcast);

  py::class_<Sram>(m, "Sram").def(py::init([](int64_t banks, int64_t ports, int64_t bytes_per_cycle) {
                                    require(banks > 0 && ports > 0 && bytes_per_cycle >= 0, "a memory out of range");
                                    return Sram{banks, ports, bytes_per_cycle};
                                  }),
                                  py::kw_only(), py::arg("banks") = Sram{}.banks, py::arg("ports") = Sram{}.ports,
                                  py::arg("bytes_per_cycle") = Sram{}.bytes_per_cycle);

  py::class_<Dram>(m, "Dram")
      .def(py::init([](int64_t channels, int64_t banks, int64_t burst, int64_t row, int64_t miss, int64_t interval,
                       int64_t refresh) {
             require(channels > 0 && banks > 0 && burst > 0 && row >= burst, "a figure of DRAM out of range");
             require(miss >= 0 && refresh >= 0 && (refresh == 0 || refresh < interval), "a time of DRAM out of range");
             return Dram{channels, banks, burst, row, miss, interval, refresh};
           }),
           py::kw_only(), py::arg("channels") = 1, py::arg("banks") = 1, py::arg("burst_bytes") = 1,
           py::arg("row_bytes") = 1, py::arg("row_miss_cycles") = 0, py::arg("refresh_interval_cycles") = 0,
           py::arg("refresh_cycles") = 0);

  py::class_<Design>(m, "Design")
      .def(py::init([](int64_t rows, int64_t columns, int64_t accumulators, int64_t fifo, int64_t activation_sram,
                       int64_t weight_sram, int64_t bandwidth, int64_t latency, int64_t lanes, Dataflow dataflow,
                       WeightLoad load, bool whole_tiles, const Sram& weight_memory, const Sram& activation_memory,
                       const Dram& dram) {
             return Design{rows,      columns, accumulators, fifo,     activation_sram, weight_sram,
                           bandwidth, latency, lanes,        dataflow, load,            whole_tiles,
                           weight_memory, activation_memory, dram};
           }),
           py::kw_only(), py::arg("array_rows"), py::arg("array_columns"), py::arg("accumulator_entries"),
           py::arg("weight_fifo_tiles"), py::arg("activation_sram_bytes"), py::arg("weight_sram_bytes"),
           py::arg("dram_bytes_per_cycle"), py::arg("dram_latency_cycles"), py::arg("vector_lanes"),
           py::arg("dataflow") = Dataflow::weight, py::arg("weight_load") = WeightLoad::double_buffered,
           py::arg("whole_weight_tiles") = false, py::arg("weight_sram") = Sram{}, py::arg("activation_sram") = Sram{},
           py::arg("dram") = Dram{});

  py::class_<Mapping>(m, "Mapping")
      .def(py::init([](bool resident, int64_t most_places, bool strips_first) {
             require(most_places > 0, "most_places out of range");
             return Mapping{resident, most_places, strips_first};
           }),
           py::arg("resident") = true, py::arg("most_places") = Mapping{}.most_places,
           py::arg("strips_first") = false)
      .def_readonly("resident", &Mapping::resident)
      .def_readonly("most_places", &Mapping::most_places)
      .def_readonly("strips_first", &Mapping::strips_first);

  py::class_<Axis>(m, "Axis")
      .def(py::init([](int64_t input, int64_t outputs, int64_t taps, int64_t stride, int64_t offset, int64_t tap_step,
                       int64_t out_start, int64_t out_step) {
             require(input >= 0 && outputs >= 0 && taps > 0 && stride > 0, "an axis out of range");
             require(tap_step != 0 && out_start >= 0 && out_step > 0, "a step of an axis out of range");
             return Axis{input, outputs, taps, stride, offset, tap_step, out_start, out_step};
           }),
           py::arg("input") = 1, py::arg("outputs") = 1, py::arg("taps") = 1, py::arg("stride") = 1,
           py::arg("offset") = 0, py::arg("tap_step") = 1, py::arg("out_start") = 0, py::arg("out_step") = 1);

  py::class_<Stored, std::shared_ptr<Stored>>(m, "Stored")
      .def(py::init([](int64_t bits, int64_t table_bytes, int64_t decoded, int64_t multiplied,
                       std::vector<int64_t> first, std::vector<int64_t> before, std::vector<int64_t> taken) {
             return Stored{bits, table_bytes, decoded, multiplied, std::move(first), std::move(before), std::move(taken)};
           }),
           py::kw_only(), py::arg("bits"), py::arg("table_bytes") = 0, py::arg("decoded") = 0,
           py::arg("multiplied") = -1, py::arg("first") = std::vector<int64_t>{},
           py::arg("before") = std::vector<int64_t>{}, py::arg("taken") = std::vector<int64_t>{});

  py::class_<Stage>(m, "Stage")
      .def(py::init([](int64_t groups, int64_t channels, int64_t columns, const std::array<Axis, 4>& axes,
                       int64_t activation_bytes, int64_t weight_bytes, int64_t output_bytes, int64_t lane_cycles,
                       bool weights_kept, bool dependent, int64_t closing_elements, int64_t closing_lane_cycles,
                       int64_t closing_bytes, int64_t opening_bytes, int64_t operand_cycles, bool activations_here,
                       int64_t kept_bytes, int64_t closing_kept_bytes, const std::shared_ptr<Stored>& stored) {
             require(operand_cycles >= 1 && operand_cycles <= 16, "operand_cycles out of range");
             return Stage{groups,       channels,     columns,     axes,         activation_bytes,
                          weight_bytes, output_bytes, lane_cycles, weights_kept, dependent,
                          closing_elements, closing_lane_cycles, closing_bytes, opening_bytes,
                          operand_cycles, activations_here, kept_bytes, closing_kept_bytes, stored};
           }),
           py::kw_only(), py::arg("groups") = 1, py::arg("channels"), py::arg("columns"), py::arg("axes"),
           py::arg("activation_bytes") = 4, py::arg("weight_bytes") = 4, py::arg("output_bytes") = 4,
           py::arg("lane_cycles") = 1, py::arg("weights_kept") = false, py::arg("dependent") = false,
           py::arg("closing_elements") = 0, py::arg("closing_lane_cycles") = 0, py::arg("closing_bytes") = 0,
           py::arg("opening_bytes") = 0, py::arg("operand_cycles") = 1, py::arg("activations_here") = false,
           py::arg("kept_bytes") = 0, py::arg("closing_kept_bytes") = 0,
           py::arg("stored") = std::shared_ptr<Stored>())
      .def_property_readonly("places", &Stage::places);

  py::class_<VectorStage>(m, "VectorStage")
      .def(py::init([](const std::array<Axis, 4>& axes, int64_t input_bytes, int64_t output_bytes,
                       int64_t lane_cycles, int64_t kept_input_bytes, int64_t kept_output_bytes) {
             return VectorStage{axes, input_bytes, output_bytes, lane_cycles, kept_input_bytes, kept_output_bytes};
           }),
           py::kw_only(), py::arg("axes"), py::arg("input_bytes") = 4, py::arg("output_bytes") = 4,
           py::arg("lane_cycles") = 1, py::arg("kept_input_bytes") = 0, py::arg("kept_output_bytes") = 0);

  py::class_<Sections>(m, "Sections").def(py::init([](const std::vector<std::vector<Stage>>& stages,
                                                      const std::vector<int64_t>& repeats) {
    require(stages.size() == repeats.size(), "a count of repeats for each section");
    return Sections{stages, repeats};
  }))
      .def_readonly("stages", &Sections::stages)
      .def_readonly("repeats", &Sections::repeats);

  py::class_<Convolution>(m, "Convolution")
      .def(py::init([](int64_t batch, int64_t groups, int64_t channels, int64_t columns,
                       const std::array<Axis, 3>& axes, const std::array<int64_t, 3>& plane) {
             for (int i = 0; i < 3; i++) {
               require(axes[i].outputs == 0 || axes[i].place(axes[i].outputs - 1) < plane[i], "places outside y");
             }
             return Convolution{batch, groups, channels, columns, axes, plane};
           }),
           py::kw_only(), py::arg("batch"), py::arg("groups"), py::arg("channels"), py::arg("columns"), py::arg("axes"),
           py::arg("plane"));

  py::class_<Function>(m, "Function").def(py::init([](int code, float alpha, float beta) {
    return Function{code, alpha, beta};
  }));

  py::class_<Pool>(m, "Pool").def(
      py::init([](int64_t planes, const std::array<Axis, 3>& axes) { return Pool{planes, axes}; }));

  py::class_<Recurrent>(m, "Recurrent")
      .def(py::init([](const std::string& cell, int64_t steps, int64_t batch, int64_t inputs, int64_t hidden,
                       bool linear_before_reset, bool input_forget, float clip, const std::vector<bool>& reverse,
                       const std::vector<std::array<Function, 3>>& functions) {
             return Recurrent{{cell_of(cell), steps, batch, inputs, hidden, linear_before_reset, reverse},
                              input_forget, clip, functions};
           }),
           py::kw_only(), py::arg("cell"), py::arg("steps"), py::arg("batch"), py::arg("inputs"), py::arg("hidden"),
           py::arg("linear_before_reset"), py::arg("input_forget"), py::arg("clip"), py::arg("reverse"),
           py::arg("functions"));

  py::class_<Fixed>(m, "Fixed")
      .def(py::init([](int width, int fraction, bool is_signed, int64_t low, int64_t high, int rounding, int overflow) {
             require(width >= 1 && width <= 62, "the width of a format");
             return Fixed{{low, high, width, is_signed, rounding, overflow}, fraction};
           }),
           py::kw_only(), py::arg("width"), py::arg("fraction"), py::arg("is_signed"), py::arg("low"), py::arg("high"),
           py::arg("rounding"), py::arg("overflow"));
  py::class_<FixedSums>(m, "FixedSums")
      .def(py::init([](const Fixed& accumulator, int fraction, int64_t reuse) {
             require(reuse >= 1, "reuse out of range");
             return FixedSums{accumulator, fraction, reuse};
           }),
           py::arg("accumulator"), py::arg("fraction"), py::arg("reuse") = 1);
  py::class_<FixedFunction>(m, "FixedFunction")
      .def(py::init([](std::vector<int64_t> table, int bits) { return FixedFunction{std::move(table), bits}; }),
           py::arg("table") = std::vector<int64_t>{}, py::arg("bits") = 0);
  py::class_<FixedRecurrent>(m, "FixedRecurrent")
      .def(py::init([](const std::string& cell, int64_t steps, int64_t batch, int64_t inputs, int64_t hidden,
                       bool linear_before_reset, const std::vector<bool>& reverse, const FixedSums& input_sums,
                       const FixedSums& state_sums, const Fixed& state,
                       const std::vector<std::array<FixedFunction, 3>>& functions) {
             return FixedRecurrent{{cell_of(cell), steps, batch, inputs, hidden, linear_before_reset, reverse},
                                   input_sums, state_sums, state, functions};
           }),
           py::kw_only(), py::arg("cell"), py::arg("steps"), py::arg("batch"), py::arg("inputs"), py::arg("hidden"),
           py::arg("linear_before_reset"), py::arg("reverse"), py::arg("input_sums"), py::arg("state_sums"),
           py::arg("state"), py::arg("functions"));

  py::class_<Wish>(m, "Wish")
      .def(py::init([](std::optional<bool> resident, std::optional<int64_t> most_places,
                       std::optional<bool> strips_first) {
             require(most_places.value_or(1) > 0, "most_places out of range");
             return Wish{resident, most_places, strips_first};
           }),
           py::arg("resident") = py::none(), py::arg("most_places") = py::none(), py::arg("strips_first") = py::none());

  m.def("time_fastest", [](const Design& d, const Sections& s, const Wish& wish) {
    Found found;
    {
      const py::gil_scoped_release release;
      found = time_fastest(d, s, wish);
    }
    return py::make_tuple(as_dict(found.counters), found.mapping);
  }, py::arg("design"), py::arg("sections"), py::arg("wish") = Wish{});
  m.def("time_mappings", [](const Design& d, const Sections& s, const Wish& wish) {
    std::vector<Found> found;
    {
      const py::gil_scoped_release release;
      found = time_mappings(d, s, wish);
    }
    py::list told;
    for (const Found& each : found) told.append(py::make_tuple(each.mapping, each.counters.cycles));
    return told;
  }, py::arg("design"), py::arg("sections"), py::arg("wish") = Wish{});
  /* How a stage is cut for a mapping. */
  m.def("tile_stage", [](const Design& d, const Stage& s, const Mapping& mapping) {
    const Tiling tiling = tile_stage(d, s, mapping);
    return py::make_tuple(tiling.resident, tiling.strips_first, tiling.block, tiling.blocks, tiling.strips,
                          tiling.slices);
  });
  m.def("time_program", [](const Design& d, const Sections& s, const Mapping& mapping) {
    return unlocked([&] { return time_program(lower(d, s, mapping)); });
  });
  py::enum_<Event::Part>(m, "Part")
      .value("array", Event::ARRAY)
      .value("loading", Event::LOADING)
      .value("vector", Event::VECTOR)
      .value("dram_weights", Event::DRAM_WEIGHTS)
      .value("dram_activations", Event::DRAM_ACTIVATIONS)
      .value("dram_outputs", Event::DRAM_OUTPUTS);
  m.def("trace_program", [](const Design& d, const Sections& s, const Mapping& mapping, size_t most) {
    return traced([&](std::vector<Event>& events) { return trace_program(lower(d, s, mapping), most, events); });
  });
  m.def("trace_vector", [](const Design& d, const VectorStage& s, size_t most) {
    return traced([&](std::vector<Event>& events) { return trace_vector(d, s, most, events); });
  });
  m.def("time_vector",
        [](const Design& d, const VectorStage& s) { return unlocked([&] { return time_vector(d, s); }); });
  m.def("step_program", step, py::arg("design"), py::arg("sections"), py::arg("mapping"), py::arg("a") = py::none(),
        py::arg("w") = py::none(), py::arg("numbers") = py::none(), py::arg("start") = py::none(),
        py::arg("kept") = py::none());
  m.def("step_vector",
        [](const Design& d, const VectorStage& s) { return unlocked([&] { return step_vector(d, s); }); });

  /* Parts that follow each other on a chip that fetches weights ahead; of each its counters. */
  py::class_<Chain>(m, "Chain")
      .def(py::init<const Design&>())
      .def("add_program", [](Chain& chain, const Design& d, const Sections& s,
                             const Mapping& mapping) { chain.add(lower(d, s, mapping)); })
      .def("add_vector", [](Chain& chain, const Design& d, const VectorStage& s) { chain.add(VectorBlocks(d, s)); });
  /* Of each core, which has a chain of its own, of each part. */
  m.def("time_cores", [](const std::vector<Chain>& chains) {
    check_cores(chains);
    return for_each_core([&] { return time_cores(chains); });
  });
  m.def("step_cores", [](const std::vector<Chain>& chains) {
    check_cores(chains);
    return for_each_core([&] { return step_cores(chains); });
  });
  /* The events of the parts from one to another (exclusive), seen from the beginning of the first, with their cores. */
  m.def("trace_cores", [](const std::vector<Chain>& chains, int64_t first, int64_t last, size_t most) {
    check_cores(chains);
    std::vector<Event> events;
    {
      const py::gil_scoped_release release;
      trace_cores(chains, first, last, most, events);
    }
    py::list told;
    for (const Event& e : events) told.append(py::make_tuple(e.part, e.begin, e.end, e.bytes, e.channel, e.core));
    return told;
  });
  py::enum_<Division>(m, "Division")
      .value("channels", Division::channels)
      .value("rows", Division::rows)
      .value("batch", Division::batch);
  m.def("share_of", [](const Design& d, const Sections& s, Division division, int64_t core, int64_t cores) {
    require(core >= 0 && core < cores, "a core out of range");
    return share_of(d, s, Share{division, core, cores});
  });
  m.def("vector_share_of", [](const VectorStage& s, Division division, int64_t core, int64_t cores) {
    require(core >= 0 && core < cores, "a core out of range");
    return share_of(s, Share{division, core, cores});
  });
  m.def("watch_chain", [](const Chain& chain) {
    return watched([&](std::vector<State>* states) { step_chain(chain, states); });
  });

  m.def("watch_program", [](const Design& d, const Sections& s, const Mapping& mapping) {
    return watched([&](std::vector<State>* states) { step_program(lower(d, s, mapping), {}, states); });
  });
  m.def("watch_vector", [](const Design& d, const VectorStage& s) {
    return watched([&](std::vector<State>* states) { step_vector(d, s, states); });
  });

  m.def("convolve_float", convolve_float);
  m.def("convolve_integer", convolve_integer);
  m.def("convolve_requantized", convolve_requantized<uint8_t>);
  m.def("convolve_requantized", convolve_requantized<int8_t>);
  m.def("convolve_fixed", convolve_fixed);
  m.def("max_pool", pool_max<float>);
  m.def("max_pool", pool_max<uint8_t>);
  m.def("max_pool", pool_max<int8_t>);
  m.def("average_pool", pool_average);
  m.def("lp_pool", pool_lp);
  m.def("max_unpool", unpool_max<float>);
  m.def("max_unpool", unpool_max<uint8_t>);
  m.def("max_unpool", unpool_max<int8_t>);
  m.def("recurrent", recurrent);
  m.def("fixed_max_pool", pool_fixed_max);
  m.def("fixed_average_pool", pool_fixed_average);
  m.def("fixed_recurrent", fixed_recurrent);
}
