// Custom operators of ONNX Runtime whose values come from a function of __init__.py.
//
// ONNX Runtime's C interface promises that its table of functions only grows and that structures keep what they have, and its
// wheels bring no header; so the few functions that are needed are taken by their places in the table, and the operator's
// structure is written down as far as version 16 has it.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr uint32_t VERSION = 16;  // of the interface
constexpr int MOST_ARRAYS = 16, MOST_AXES = 16;
constexpr size_t MESSAGE = 4096;

struct Status;
struct Value;
struct Shape;
struct Context;
struct Domain;
struct SessionOptions;

// The table of functions, and the places of those that are called.
struct Api {
  void* functions[512];
};
template <int PLACE, class Result, class... Arguments>
Result call(const Api* api, Arguments... arguments) {
  return reinterpret_cast<Result (*)(Arguments...)>(api->functions[PLACE])(arguments...);
}
Status* create_status(const Api* api, const char* message) { return call<0, Status*>(api, 1, message); }  // 1: failed
Status* create_domain(const Api* api, const char* name, Domain** domain) {
  return call<26, Status*>(api, name, domain);
}
Status* add_operator(const Api* api, Domain* domain, const void* op) { return call<27, Status*>(api, domain, op); }
Status* add_domain(const Api* api, SessionOptions* options, Domain* domain) {
  return call<28, Status*>(api, options, domain);
}
Status* data_of(const Api* api, Value* value, void** data) { return call<51, Status*>(api, value, data); }
Status* rank_of(const Api* api, const Shape* shape, size_t* rank) { return call<61, Status*>(api, shape, rank); }
Status* extents_of(const Api* api, const Shape* shape, int64_t* extents, size_t rank) {
  return call<62, Status*>(api, shape, extents, rank);
}
Status* shape_of(const Api* api, const Value* value, Shape** shape) { return call<65, Status*>(api, value, shape); }
Status* input_of(const Api* api, const Context* context, size_t place, const Value** value) {
  return call<90, Status*>(api, context, place, value);
}
Status* output_of(const Api* api, Context* context, size_t place, const int64_t* extents, size_t rank, Value** value) {
  return call<91, Status*>(api, context, place, extents, rank, value);
}
void release_shape(const Api* api, Shape* shape) { call<99, void>(api, shape); }

struct ApiBase {
  const Api* (*get)(uint32_t version);
  const char* (*version)();
};

struct Operator;

// What ONNX Runtime calls, in its order.
struct CustomOperator {
  uint32_t version;
  void* (*create)(const Operator*, const Api*, const void* info);
  const char* (*name)(const Operator*);
  const char* (*provider)(const Operator*);
  int (*input_type)(const Operator*, size_t);
  size_t (*inputs)(const Operator*);
  int (*output_type)(const Operator*, size_t);
  size_t (*outputs)(const Operator*);
  void (*compute_before_16)(void* kernel, Context*);
  void (*destroy)(void* kernel);
  int (*input_characteristic)(const Operator*, size_t);
  int (*output_characteristic)(const Operator*, size_t);
  int (*input_memory)(const Operator*, size_t);
  int (*least_inputs)(const Operator*);
  int (*inputs_alike)(const Operator*);
  int (*least_outputs)(const Operator*);
  int (*outputs_alike)(const Operator*);
  Status* (*create_or_fail)(const Operator*, const Api*, const void* info, void** kernel);
  Status* (*compute)(void* kernel, Context*);
  void* later[8];  // versions that come after, which ask for more only of those who say that they have it
};

struct Operator {
  CustomOperator functions;
  const Api* api;
  int64_t number;
  char name[32];
  int inputs, outputs, types[MOST_ARRAYS];  // types of the inputs, then of the outputs
};

struct Array {
  void* data;
  int64_t rank;
  const int64_t* shape;
};

struct Call {
  int64_t number, inputs;
  Array arrays[MOST_ARRAYS];
  Operator* op;
  Context* context;
};

// Gives 0, or writes why not.
typedef int (*Run)(Call*, char* message, uint64_t size);
Run run;

std::vector<Operator*> defined;  // and not yet registered. Operators outlive every session that may still run them.

Status* compute(void* kernel, Context* context) {
  Operator* op = static_cast<Operator*>(kernel);
  const Api* api = op->api;
  int64_t extents[MOST_ARRAYS][MOST_AXES];
  Call call = {op->number, op->inputs, {}, op, context};
  for (int i = 0; i < op->inputs; i++) {
    const Value* value = nullptr;
    Shape* shape = nullptr;
    size_t rank = 0;
    if (Status* failed = input_of(api, context, i, &value)) return failed;
    if (Status* failed = shape_of(api, value, &shape)) return failed;
    Status* failed = rank_of(api, shape, &rank);
    if (!failed && rank > MOST_AXES) failed = create_status(api, "an array has more axes than any operator takes");
    if (!failed) failed = extents_of(api, shape, extents[i], rank);
    release_shape(api, shape);
    if (!failed) failed = data_of(api, const_cast<Value*>(value), &call.arrays[i].data);
    if (failed) return failed;
    call.arrays[i].rank = int64_t(rank);
    call.arrays[i].shape = extents[i];
  }
  char message[MESSAGE];
  return run(&call, message, MESSAGE) == 0 ? nullptr : create_status(api, message);
}

const CustomOperator FUNCTIONS = {
    VERSION,
    nullptr,
    [](const Operator* op) -> const char* { return op->name; },
    [](const Operator*) -> const char* { return nullptr; },  // the processor
    [](const Operator* op, size_t place) { return op->types[place]; },
    [](const Operator* op) { return size_t(op->inputs); },
    [](const Operator* op, size_t place) { return op->types[op->inputs + place]; },
    [](const Operator* op) { return size_t(op->outputs); },
    nullptr,
    [](void*) {},
    [](const Operator*, size_t) { return 0; },  // each is there
    [](const Operator*, size_t) { return 0; },
    [](const Operator*, size_t) { return 0; },  // in the usual memory
    [](const Operator*) { return 0; },
    [](const Operator*) { return 0; },
    [](const Operator*) { return 0; },
    [](const Operator*) { return 0; },
    [](const Operator* op, const Api* api, const void*, void** kernel) -> Status* {
      const_cast<Operator*>(op)->api = api;
      *kernel = const_cast<Operator*>(op);
      return nullptr;
    },
    compute,
    {},
};

}  // namespace

extern "C" {

void set_run(Run given) { run = given; }

// An operator for the next session: types are ONNX's numbers, of the inputs and then of the outputs.
void define(int64_t number, const char* name, int inputs, int outputs, const int* types) {
  Operator* op = new Operator{FUNCTIONS, nullptr, number, {}, inputs, outputs, {}};
  strncpy(op->name, name, sizeof op->name - 1);
  for (int i = 0; i < inputs + outputs; i++) op->types[i] = types[i];
  defined.push_back(op);
}

// Memory for an output of a call, or null.
void* output(Call* call, int place, const int64_t* extents, int rank) {
  Value* value = nullptr;
  void* data = nullptr;
  if (output_of(call->op->api, call->context, size_t(place), extents, size_t(rank), &value)) return nullptr;
  return data_of(call->op->api, value, &data) ? nullptr : data;
}

// ONNX Runtime calls this for the session options that the library is registered with.
Status* RegisterCustomOps(SessionOptions* options, const ApiBase* base) {
  const Api* api = base->get(VERSION);
  if (!api) return nullptr;  // the session will miss its operators and say so
  Domain* domain = nullptr;
  if (Status* failed = create_domain(api, "quatrefoil", &domain)) return failed;
  for (Operator* op : defined)
    if (Status* failed = add_operator(api, domain, op)) return failed;
  defined.clear();
  return add_domain(api, options, domain);
}
}
