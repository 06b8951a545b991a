// XLA's call of a target, handed on as plain addresses: the C ABI of XLA's foreign function interface on one side, a function of
// target.py on the other. Compiled by target.py against the headers that came with the installed jaxlib.
#include <cstdint>
#include <cstring>

#include "xla/ffi/api/c_api.h"

namespace {

constexpr int64_t MOST_ARRAYS = 64;
constexpr size_t MESSAGE = 4096;

struct Array {
  void* data;
  int64_t rank;
  const int64_t* shape;
};

struct Text {
  const char* data;
  uint64_t size;
};

struct Call {
  int64_t inputs, outputs, texts;
  Array arrays[MOST_ARRAYS];  // the inputs, then the outputs
  Text names[8], values[8];   // of attributes
};

// Gives 0, or writes why not.
typedef int (*Run)(const Call* call, char* message, uint64_t size);
Run run_forward, run_backward;

XLA_FFI_Error* failed(XLA_FFI_CallFrame* frame, const char* message, XLA_FFI_Error_Code code) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, message, code};
  return frame->api->XLA_FFI_Error_Create(&args);
}

XLA_FFI_Error* handle(XLA_FFI_CallFrame* frame, Run run) {
  for (XLA_FFI_Extension_Base* extension = frame->extension_start; extension; extension = extension->next)
    if (extension->type == XLA_FFI_Extension_Metadata) {  // XLA asks what this was built for
      XLA_FFI_Metadata* metadata = reinterpret_cast<XLA_FFI_Metadata_Extension*>(extension)->metadata;
      metadata->api_version.major_version = XLA_FFI_API_MAJOR;
      metadata->api_version.minor_version = XLA_FFI_API_MINOR;
      metadata->traits = 0;
      return nullptr;
    }
  if (frame->stage != XLA_FFI_ExecutionStage_EXECUTE) return nullptr;
  Call call = {frame->args.size, frame->rets.size, 0, {}, {}, {}};
  if (call.inputs + call.outputs > MOST_ARRAYS || frame->attrs.size > 8)
    return failed(frame, "more arrays than any operator has", XLA_FFI_Error_Code_INVALID_ARGUMENT);
  for (int64_t i = 0; i < call.inputs + call.outputs; i++) {
    void* each = i < call.inputs ? frame->args.args[i] : frame->rets.rets[i - call.inputs];
    const XLA_FFI_Buffer* buffer = static_cast<const XLA_FFI_Buffer*>(each);
    call.arrays[i] = {buffer->data, buffer->rank, buffer->dims};
  }
  for (int64_t i = 0; i < frame->attrs.size; i++) {
    if (frame->attrs.types[i] != XLA_FFI_AttrType_STRING) continue;
    const XLA_FFI_ByteSpan *name = frame->attrs.names[i], *value = static_cast<XLA_FFI_ByteSpan*>(frame->attrs.attrs[i]);
    call.names[call.texts] = {name->ptr, name->len};
    call.values[call.texts++] = {value->ptr, value->len};
  }
  char message[MESSAGE];
  if (run(&call, message, MESSAGE) == 0) return nullptr;
  return failed(frame, message, XLA_FFI_Error_Code_INVALID_ARGUMENT);
}

}  // namespace

extern "C" {

void set_runs(Run forward, Run backward) {
  run_forward = forward;
  run_backward = backward;
}

XLA_FFI_Error* forward(XLA_FFI_CallFrame* frame) { return handle(frame, run_forward); }
XLA_FFI_Error* backward(XLA_FFI_CallFrame* frame) { return handle(frame, run_backward); }
}
