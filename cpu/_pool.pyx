# The thin door to cpu/src/pool*.cpp: a prepared pool is an object that holds its arguments; calling it allocates the
# outputs, gives the GIL away and runs the kernel.

include "door.pxi"

from libc.stdint cimport uint8_t
from libc.stdlib cimport malloc

import numpy as np

cdef extern from "pool.h" nogil:
    int POOL_MAX, POOL_AVERAGE, POOL_LP
    int POOL_FLOAT32, POOL_FLOAT64, POOL_UINT8, POOL_INT8

    ctypedef struct PoolArguments:
        const void* x
        void* y
        int64_t* indices
        float* workspace
        int64_t workspace_floats
        int64_t row_floats, batch_rows
        int64_t planes
        int64_t input[3]
        int64_t output[3]
        int64_t kernel[3]
        int64_t strides[3]
        int64_t dilations[3]
        int64_t pads[3]
        int64_t pads_end[3]
        const float* row_weights
        const float* column_weights
        const int32_t* first_columns
        int32_t kind, type, count_include_pad, p, storage_order, threads
        int64_t channels

    ctypedef struct UnpoolArguments:
        const void* x
        const int64_t* indices
        void* y
        int64_t planes, size
        int64_t indexed[3]
        int64_t output[3]
        int32_t element_bytes

cdef extern from "pool_gradient.h" nogil:
    ctypedef struct PoolGradientArguments:
        const void* x
        const void* y
        const void* dy
        void* dx
        float* workspace
        int64_t workspace_floats, row_floats
        int64_t planes
        int64_t input[3]
        int64_t output[3]
        int64_t kernel[3]
        int64_t strides[3]
        int64_t dilations[3]
        int64_t pads[3]
        int64_t pads_end[3]
        const float* row_weights
        const float* column_weights
        const int32_t* holders[2]
        int64_t slots, line_floats, lead
        int32_t kind, type, count_include_pad, p, threads

    ctypedef struct UnpoolGradientArguments:
        const void* dy
        const int64_t* indices
        void* dx
        uint8_t* taken
        int64_t planes, size
        int64_t indexed[3]
        int64_t output[3]
        int32_t element_bytes

ctypedef int (*PoolFunction)(const PoolArguments*) noexcept nogil
ctypedef int (*PoolGradientFunction)(const PoolGradientArguments*) noexcept nogil
ctypedef int (*UnpoolGradientFunction)(const UnpoolGradientArguments*) noexcept nogil
ctypedef int (*UnpoolFunction)(const UnpoolArguments*) noexcept nogil

cdef extern from "pool_gradient.h" nogil:
    PoolFunction pool_global_f32(int isa)
    PoolFunction pool_separable_f32(int isa)
    PoolFunction pool_indices_f32(int isa)
    PoolFunction pool_blocked_f32(int isa)
    PoolFunction pool_bytes(int isa)
    PoolFunction pool_general(int isa)
    UnpoolFunction pool_unpool(int isa)
    PoolGradientFunction pool_gradient_max_f32(int isa)
    PoolGradientFunction pool_gradient_sum_f32(int isa)
    PoolGradientFunction pool_gradient_global_f32(int isa)
    PoolGradientFunction pool_gradient_general(int isa)
    UnpoolGradientFunction pool_gradient_unpool(int isa)

    ctypedef struct PoolStep:
        PoolFunction run
        const PoolArguments* arguments
        bint worth_threads

    void run_pool_step(const void*, const void* const*, void* const*, char*, int) noexcept

KINDS = {"max_pool": POOL_MAX, "average_pool": POOL_AVERAGE, "lp_pool": POOL_LP}
TYPES = {"float32": POOL_FLOAT32, "float64": POOL_FLOAT64, "uint8": POOL_UINT8, "int8": POOL_INT8}

# Elements times taps below which a second thread costs more than it saves.
cdef int64_t WORTH_THREADS = 1 << 17

# The same up to which to give the GIL away takes as long as the pool.
cdef int64_t BRIEF = 1 << 12

cdef enum:
    NEAR_FLOATS = 1024  # of row buffers that are taken from the stack: a small pool is over before an allocation

cdef object zeros = np.zeros
cdef object int64 = np.dtype(np.int64)


cdef PoolFunction find(str algorithm, int isa) except NULL:
    if algorithm == "global":
        return pool_global_f32(isa)
    if algorithm == "separable":
        return pool_separable_f32(isa)
    if algorithm == "indices":
        return pool_indices_f32(isa)
    if algorithm == "blocked":
        return pool_blocked_f32(isa)
    if algorithm == "bytes":
        return pool_bytes(isa)
    if algorithm == "general":
        return pool_general(isa)
    raise KeyError(algorithm)


ctypedef fused Arguments:
    PoolArguments
    PoolGradientArguments


cdef bint describe(Arguments* a, geometry, str kind, dtype, int count_include_pad, int p, row_weights,
                   column_weights, int64_t channels) except -1:
    """The sizes and options of a pool, for itself or its gradient; whether it is worth threads. channels: that lie together."""
    window = geometry.window
    a.planes = geometry.planes
    for axis in range(3):
        a.input[axis] = window.input[axis]
        a.output[axis] = window.output[axis]
        a.kernel[axis] = window.kernel[axis]
        a.strides[axis] = window.strides[axis]
        a.dilations[axis] = window.dilations[axis]
        a.pads[axis] = window.pads[axis]
        a.pads_end[axis] = geometry.pads_end[axis]
    a.row_weights = <const float*>address(row_weights)
    a.column_weights = <const float*>address(column_weights)
    a.kind = KINDS[kind]
    a.type = TYPES[dtype.name]
    a.count_include_pad = count_include_pad
    a.p = p
    return geometry.planes * channels * window.output_size * min(window.taps, 64) > WORTH_THREADS


cdef class Pool:
    """A prepared max_pool, average_pool or lp_pool.

    algorithm: which kernel. isa: an instruction set's number. geometry: ops.pool's PoolGeometry. channels: of each of its
    planes, where they lie last. kind, dtype: names
    in KINDS and TYPES. row_weights, column_weights (float32), first_columns (int32): see pool.h. workspace: floats for
    each thread, those of a row buffer, and the rows of a batch.
    """

    cdef PoolFunction function
    cdef PoolArguments arguments
    cdef object shape, dtype, row_weights, column_weights, first_columns
    cdef bint with_indices, nothing, worth_threads, brief
    cdef SpareArrays spares
    cdef PoolStep context
    cdef NativeStep step

    def __init__(self, str algorithm, int isa, geometry, str kind, shape, dtype, *, bint with_indices=False,
                 int storage_order=0, int count_include_pad=0, int p=1, row_weights, column_weights,
                 first_columns, workspace, int64_t channels=1):
        self.function = find(algorithm, isa)
        self.shape, self.dtype = shape, dtype
        self.with_indices = with_indices
        self.nothing = 0 in shape
        self.row_weights, self.column_weights, self.first_columns = row_weights, column_weights, first_columns
        cdef PoolArguments* a = &self.arguments
        self.worth_threads = describe(a, geometry, kind, dtype, count_include_pad, p, row_weights, column_weights, channels)
        self.brief = geometry.planes * channels * geometry.window.output_size * geometry.window.taps <= BRIEF
        a.channels = channels
        a.first_columns = <const int32_t*>address(first_columns)
        a.indices = NULL
        a.workspace = NULL
        a.workspace_floats, a.row_floats, a.batch_rows = workspace
        a.storage_order = storage_order

    def __dealloc__(self):
        drop_spares(&self.spares)

    def __call__(self, inputs):
        cdef PoolArguments a = self.arguments
        cdef void* workspace = NULL
        cdef float[NEAR_FLOATS] near
        cdef int64_t floats
        cdef int failed
        y = output_array(&self.spares, self.shape, self.dtype)
        indices = new_array(self.shape, int64) if self.with_indices else None
        if not self.nothing:
            a.x = address(inputs[0])
            a.y = address(y)
            if self.with_indices:
                a.indices = <int64_t*>address(indices)
            a.threads = num_threads() if self.worth_threads else 1
            floats = a.workspace_floats * a.threads
            if floats <= NEAR_FLOATS:
                a.workspace = near
            elif posix_memalign(&workspace, 64, <size_t>floats * 4):
                raise MemoryError(f"{floats * 4} bytes for a pool's row buffers")
            else:
                a.workspace = <float*>workspace
            if self.brief:
                failed = self.function(&a)
                free(workspace)
            else:
                with nogil:
                    failed = self.function(&a)
                    free(workspace)
            if failed:
                raise NotImplementedError("this pooling kernel has no instance for the window")
        return (y, indices) if self.with_indices else (y,)

    def native_step(self):
        """A capsule of what native_step.h describes, for a pool without indices; this object has to outlive it."""
        self.context.run, self.context.arguments = self.function, &self.arguments
        self.context.worth_threads = self.worth_threads
        self.step.run, self.step.context = run_pool_step, &self.context
        self.step.workspace = <size_t>self.arguments.workspace_floats * 4
        return PyCapsule_New(&self.step, NATIVE_STEP, NULL)


cdef class Unpool:
    """A prepared max_unpool. isa: an instruction set's number. geometry: ops.pool's UnpoolGeometry."""

    cdef UnpoolFunction function
    cdef UnpoolArguments arguments
    cdef object shape, dtype

    def __init__(self, int isa, geometry, shape, dtype):
        self.function = pool_unpool(isa)
        self.shape, self.dtype = shape, dtype
        self.arguments.planes = geometry.planes
        self.arguments.size = geometry.planes * geometry.input_size
        self.arguments.element_bytes = dtype.itemsize
        for axis in range(3):
            self.arguments.indexed[axis] = geometry.indexed[axis]
            self.arguments.output[axis] = geometry.output[axis]

    def __call__(self, inputs):
        cdef UnpoolArguments a = self.arguments
        if a.size == 0:
            return (zeros(self.shape, self.dtype),)
        y = new_array(self.shape, self.dtype)
        a.x = address(inputs[0])
        a.indices = <const int64_t*>address(inputs[1])
        a.y = address(y)
        with nogil:
            self.function(&a)
        return (y,)


cdef PoolGradientFunction find_gradient(str algorithm, int isa) except NULL:
    if algorithm == "max":
        return pool_gradient_max_f32(isa)
    if algorithm == "sum":
        return pool_gradient_sum_f32(isa)
    if algorithm == "global":
        return pool_gradient_global_f32(isa)
    if algorithm == "general":
        return pool_gradient_general(isa)
    raise KeyError(algorithm)


cdef class PoolGradient:
    """A prepared max_pool_gradient, average_pool_gradient or lp_pool_gradient.

    algorithm: which kernel. geometry: of the pool. kind, dtype: names in KINDS and TYPES, of the pool. shape: of dx.
    row_weights, column_weights (float32), holders (int32, over depth and height): see pool.h and pool_gradient.h.
    workspace: floats for each thread, those of a staged line, lines, floats of a line of gradients, those in front of it.
    """

    cdef PoolGradientFunction function
    cdef PoolGradientArguments arguments
    cdef object shape, dtype, kept
    cdef bint nothing, worth_threads

    def __init__(self, str algorithm, int isa, geometry, str kind, shape, dtype, *, int count_include_pad=0, int p=1,
                 row_weights, column_weights, holders, workspace):
        self.function = find_gradient(algorithm, isa)
        self.shape, self.dtype = shape, dtype
        self.nothing = 0 in shape
        self.kept = (row_weights, column_weights, holders)
        cdef PoolGradientArguments* a = &self.arguments
        self.worth_threads = describe(a, geometry, kind, dtype, count_include_pad, p, row_weights, column_weights, 1)
        for axis in range(2):
            a.holders[axis] = <const int32_t*>address(holders[axis])
        a.workspace_floats, a.row_floats, a.slots, a.line_floats, a.lead = workspace

    def __call__(self, inputs):
        cdef PoolGradientArguments a = self.arguments
        cdef void* workspace = NULL
        cdef int64_t floats
        cdef int failed
        dx = new_array(self.shape, self.dtype)
        if not self.nothing:
            a.dy = address(inputs[0])
            a.x = address(inputs[1]) if len(inputs) > 1 else NULL
            a.y = address(inputs[2]) if len(inputs) > 2 else NULL
            a.dx = address(dx)
            a.threads = num_threads() if self.worth_threads else 1
            floats = a.workspace_floats * a.threads
            if floats and posix_memalign(&workspace, 64, <size_t>floats * 4):
                raise MemoryError(f"{floats * 4} bytes for the lines of a pool's gradient")
            a.workspace = <float*>workspace
            with nogil:
                failed = self.function(&a)
                free(workspace)
            if failed:
                raise NotImplementedError("this kernel of a pool's gradient has no instance for the window")
        return (dx,)


cdef class UnpoolGradient:
    """A prepared max_unpool_gradient. geometry: of the unpooling. places: elements of dy. shape: of dx."""

    cdef UnpoolGradientFunction function
    cdef UnpoolGradientArguments arguments
    cdef object shape, dtype
    cdef size_t places

    def __init__(self, int isa, geometry, int64_t places, shape, dtype):
        self.function = pool_gradient_unpool(isa)
        self.shape, self.dtype = shape, dtype
        self.places = places
        self.arguments.planes = geometry.planes
        self.arguments.size = geometry.planes * geometry.input_size
        self.arguments.element_bytes = dtype.itemsize
        for axis in range(3):
            self.arguments.indexed[axis] = geometry.indexed[axis]
            self.arguments.output[axis] = geometry.output[axis]

    def __call__(self, inputs):
        cdef UnpoolGradientArguments a = self.arguments
        dx = new_array(self.shape, self.dtype)
        if a.size:
            a.dy = address(inputs[0])
            a.indices = <const int64_t*>address(inputs[1])
            a.dx = address(dx)
            a.taken = <uint8_t*>malloc(self.places)
            if a.taken == NULL:
                raise MemoryError(f"{self.places} bytes to mark what was overwritten")
            with nogil:
                self.function(&a)
                free(a.taken)
        return (dx,)
