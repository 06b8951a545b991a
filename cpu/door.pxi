# What the doors to the native kernels begin with: arrays, memory, threads and the capsule of native_step.h.

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free
from posix.stdlib cimport posix_memalign

from quatrefoil.settings import num_threads

cdef extern from "arrays.h":
    int import_numpy() except -1
    int import_output_memory() except -1
    void* address "array_address"(object array) except? NULL
    object new_array(tuple shape, object dtype)

    ctypedef struct SpareArrays:
        pass

    object output_array(SpareArrays* spares, tuple shape, object dtype)
    void drop_spares(SpareArrays* spares)

cdef extern from "native_step.h" nogil:
    ctypedef void (*StepFunction)(const void*, const void* const*, void* const*, char*, int) noexcept nogil

    ctypedef struct NativeStep:
        StepFunction run
        const void* context
        size_t workspace

    ctypedef struct StepSources:
        const void* inputs[1]  # STEP_INPUTS of them

    const char* NATIVE_STEP
    int STEP_INPUTS

import_numpy()
import_output_memory()
