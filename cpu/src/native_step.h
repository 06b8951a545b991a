// What a prepared kernel offers besides being callable from Python: a function that runs it on bare addresses, so that
// a sequence of kernels (_sequence.pyx) needs no Python between them. Extensions hand it to each other in a capsule.
#pragma once

#include <cstddef>

// Pointers to inputs that a step may look at; those that are absent or packed beforehand are null.
enum { STEP_INPUTS = 12 };

struct StepSources {
  const void* inputs[STEP_INPUTS];
};

// inputs, outputs: C-contiguous arrays by their positions in the problem. workspace: aligned to 64.
typedef void (*StepFunction)(const void* context, const void* const* inputs, void* const* outputs, char* workspace,
                             int threads);

struct NativeStep {
  StepFunction run;
  const void* context;  // belongs to the object that made the step
  size_t workspace;     // bytes for each thread
};

static const char* const NATIVE_STEP = "quatrefoil.cpu.NativeStep";  // the capsules' name
