# The thin door to cpu/src/fixed*.cpp: a prepared fixed-point operator is an object that holds its sizes, formats and
# packed weights; calling it allocates the outputs, gives the GIL away and runs the kernel.

include "door.pxi"

import numpy as np

cdef extern from "fixed_kernels.h" nogil:
    ctypedef struct qf_format:
        long long low, high
        int width, is_signed, rounding, overflow

    ctypedef struct FixedCast:
        int32_t drop
        qf_format format

    ctypedef struct FixedProducts:
        int32_t kind, lanewise, exact, wide_finish
        int64_t groups, rows, channels, steps
        const int64_t* offsets
        const void* weights
        const void* start
        const void* late
        int32_t up
        FixedCast product, sum, y
        int32_t relu, y_bytes

    ctypedef struct FixedTiles:
        int32_t x_bytes

    ctypedef struct FixedConv:
        FixedTiles tiles
        FixedProducts products
        int64_t batch, in_channels, depth, each
        int64_t input[3]
        int64_t output[3]
        int64_t strides[3]
        int64_t pads[3]
        int64_t reach[3]
        int64_t chunk
        int32_t x_bytes

    ctypedef struct FixedPool:
        int64_t planes
        int64_t input[3]
        int64_t output[3]
        int64_t kernel[3]
        int64_t strides[3]
        int64_t dilations[3]
        int64_t pads[3]
        int32_t average, x_bytes, y_bytes, narrow, exact
        const int32_t* divisors
        FixedCast x, sum, y

    ctypedef struct FixedFunction:
        const int32_t* table
        int32_t reach_bits, size_bits

    ctypedef struct FixedRecurrent:
        int32_t cell, directions, x_bytes, y_bytes
        int32_t reverse[2]
        int64_t steps, batch, inputs, hidden
        FixedProducts from_x[2]
        FixedProducts from_h[2]
        FixedProducts from_kept[2]
        FixedTiles tiles_x[2]
        FixedTiles tiles_h[2]
        FixedTiles tiles_kept[2]
        FixedFunction functions[2][3]
        int32_t fraction, state_fraction
        qf_format accumulator, state

    ctypedef struct FixedRecurrentCall:
        pass

    int FIXED_PAIRS, FIXED_SHORT, FIXED_WIDE
    int FIXED_RNN, FIXED_LSTM, FIXED_GRU, FIXED_GRU_LINEAR

ctypedef void (*TilesFunction)(const FixedProducts*, FixedTiles*) noexcept nogil
ctypedef void (*ConvFunction)(const FixedConv*, const void*, void*, char*, int) noexcept nogil
ctypedef void (*PoolFunction)(const FixedPool*, const void*, void*, int) noexcept nogil
ctypedef void (*RecurrentFunction)(const FixedRecurrent*, const FixedRecurrentCall*) noexcept nogil
ctypedef int64_t (*WorkspaceFunction)(const FixedRecurrent*) noexcept nogil

cdef extern from "fixed_kernels.h" nogil:
    TilesFunction fixed_tiles(int isa)
    ConvFunction fixed_conv(int isa)
    PoolFunction fixed_pool(int isa)
    RecurrentFunction fixed_recurrent(int isa)
    WorkspaceFunction fixed_recurrent_workspace(int isa)

    ctypedef struct FixedConvStep:
        ConvFunction run
        FixedConv arguments
        double work

    ctypedef struct FixedPoolStep:
        PoolFunction run
        FixedPool arguments
        double work

    ctypedef struct FixedRecurrentStep:
        RecurrentFunction run
        FixedRecurrent arguments

    void run_fixed_conv_step(const void*, const void* const*, void* const*, char*, int) noexcept
    void run_fixed_pool_step(const void*, const void* const*, void* const*, char*, int) noexcept
    void run_fixed_recurrent_step(const void*, const void* const*, void* const*, char*, int) noexcept

KINDS = {"pairs": FIXED_PAIRS, "short": FIXED_SHORT, "wide": FIXED_WIDE}
CELLS = {"rnn": FIXED_RNN, "lstm": FIXED_LSTM, "gru": FIXED_GRU, "gru_linear": FIXED_GRU_LINEAR}

cdef object zeros = np.zeros


cdef int fill_format(qf_format* to, given) except -1:
    to.low, to.high, to.width, to.is_signed, to.rounding, to.overflow = given
    return 0


cdef int fill_cast(FixedCast* to, given) except -1:
    to.drop = given[0]
    return fill_format(&to.format, given[1])


cdef int fill_products(int isa, FixedProducts* to, FixedTiles* tiles, given) except -1:
    """given: cpu/fixed.py's Products, which has to outlive what is filled."""
    to.kind = KINDS[given.kind]
    to.lanewise, to.exact, to.wide_finish = given.lanewise, given.exact, given.wide_finish
    to.groups, to.rows, to.channels, to.steps = given.groups, given.rows, given.channels, len(given.offsets)
    to.offsets = <const int64_t*>address(given.offsets)
    to.weights = address(given.weights)
    to.start = address(given.start)
    to.late = address(given.late)
    to.up = given.up
    fill_cast(&to.product, given.product)
    fill_cast(&to.sum, given.sum)
    fill_cast(&to.y, given.y)
    to.relu, to.y_bytes = given.relu, given.y_bytes
    fixed_tiles(isa)(to, tiles)
    return 0


cdef class Workspace:
    """Memory that calls of one operator take in turn."""

    cdef size_t size
    cdef void* idle  # that no call is using, or NULL

    def __cinit__(self, size_t size):
        self.size = size

    def __dealloc__(self):
        free(self.idle)

    cdef char* take(self) except NULL:
        cdef void* data = self.idle
        self.idle = NULL
        if data == NULL and posix_memalign(&data, 64, self.size or 64):
            raise MemoryError(f"{self.size} bytes for a fixed-point operator's workspace")
        return <char*>data

    cdef void give(self, char* data) noexcept:
        free(self.idle)  # another call's, where two ran at once
        self.idle = data


cdef class Operator:
    """A prepared operator: the native step that it is, which a call runs on new outputs."""

    cdef NativeStep step
    cdef Workspace workspace

    cdef int be(self, StepFunction run, const void* context, size_t workspace) except -1:
        self.step.run, self.step.context, self.step.workspace = run, context, workspace
        self.workspace = Workspace(workspace)
        return 0

    cdef int run(self, tuple inputs, tuple outputs) except -1:
        cdef StepSources sources
        cdef void* targets[3]
        cdef int threads = num_threads()
        cdef char* workspace = self.workspace.take()
        for at in range(STEP_INPUTS):
            sources.inputs[at] = optional(inputs, at)
        for at in range(len(outputs)):
            targets[at] = address(outputs[at])
        with nogil:
            self.step.run(self.step.context, sources.inputs, targets, workspace, threads)
        self.workspace.give(workspace)
        return 0

    def native_step(self):
        """A capsule of what native_step.h describes; this object has to outlive it."""
        return PyCapsule_New(&self.step, NATIVE_STEP, NULL)


cdef void* optional(tuple arrays, Py_ssize_t position) except? NULL:
    """The address of an input, NULL where it is absent."""
    if position >= len(arrays):
        return NULL
    array = arrays[position]
    return NULL if array is None else address(array)


cdef class Conv(Operator):
    """A prepared fixed_conv.

    isa: an instruction set's number. products: cpu/fixed.py's Products. batch, in_channels, window: of the problem.
    depth, each, reach, chunk, row_bytes: see fixed_kernels.h; row_bytes of a place that is laid out. x_dtype, y_shape,
    y_dtype: of the arrays.
    """

    cdef FixedConvStep context
    cdef object products, y_shape, y_dtype
    cdef bint empty

    def __init__(self, int isa, products, int64_t batch, int64_t in_channels, window, int64_t depth, int64_t each,
                 reach, int64_t chunk, size_t workspace, x_dtype, y_shape, y_dtype):
        cdef FixedConv* a = &self.context.arguments
        self.context.run = fixed_conv(isa)
        self.products, self.y_shape, self.y_dtype = products, y_shape, y_dtype
        fill_products(isa, &a.products, &a.tiles, products)
        a.batch, a.in_channels, a.depth, a.each, a.chunk = batch, in_channels, depth, each, chunk
        for axis in range(3):
            a.input[axis], a.output[axis] = window.input[axis], window.output[axis]
            a.strides[axis], a.pads[axis] = window.strides[axis], window.pads[axis]
            a.reach[axis] = reach[axis]
        a.x_bytes = x_dtype.itemsize
        self.empty = 0 in y_shape
        self.context.work = <double>batch * window.output_size * a.products.channels * a.products.steps
        self.be(run_fixed_conv_step, &self.context, workspace)

    def __call__(self, inputs):
        y = new_array(self.y_shape, self.y_dtype)
        if not self.empty:
            self.run((inputs[0],), (y,))
        return (y,)


cdef class Pool(Operator):
    """A prepared fixed_max_pool, or fixed_average_pool where divisors (int32, one for each output place) are given.

    isa: an instruction set's number. planes, window: of the problem. narrow, exact: see fixed_kernels.h. casts: of a
    tap, a sum and y. x_dtype, y_shape, y_dtype: of the arrays.
    """

    cdef FixedPoolStep context
    cdef object divisors, y_shape, y_dtype
    cdef bint empty

    def __init__(self, int isa, int64_t planes, window, divisors, bint narrow, bint exact, casts, x_dtype, y_shape,
                 y_dtype):
        cdef FixedPool* a = &self.context.arguments
        self.context.run = fixed_pool(isa)
        self.divisors, self.y_shape, self.y_dtype = divisors, y_shape, y_dtype
        a.planes = planes
        for axis in range(3):
            a.input[axis], a.output[axis], a.kernel[axis] = window.input[axis], window.output[axis], window.kernel[axis]
            a.strides[axis], a.dilations[axis] = window.strides[axis], window.dilations[axis]
            a.pads[axis] = window.pads[axis]
        a.average = divisors is not None
        if divisors is not None:
            a.divisors = <const int32_t*>address(divisors)
        a.narrow, a.exact = narrow, exact
        a.x_bytes, a.y_bytes = x_dtype.itemsize, y_dtype.itemsize
        fill_cast(&a.x, casts[0])
        fill_cast(&a.sum, casts[1])
        fill_cast(&a.y, casts[2])
        self.empty = 0 in y_shape
        self.context.work = <double>planes * window.output_size * window.taps
        self.be(run_fixed_pool_step, &self.context, 0)

    def __call__(self, inputs):
        y = new_array(self.y_shape, self.y_dtype)
        if not self.empty:
            self.run((inputs[0],), (y,))
        return (y,)


cdef class Recurrent(Operator):
    """A prepared fixed_rnn, fixed_lstm or fixed_gru.

    isa: an instruction set's number. cell: a name in CELLS. geometry: ops.fixed's RecurrentGeometry. from_x, from_h,
    from_kept: cpu/fixed.py's Products of each direction (from_kept: of a gru that is not linear before its reset, or
    none). functions: of each direction f, g and h, each (table or None, reach_bits, size_bits). accumulator, state:
    formats, and fraction, state_fraction their fraction bits. x_dtype, y_dtype: of the arrays.
    """

    cdef FixedRecurrentStep context
    cdef object kept, y_shape, state_shape, y_dtype

    def __init__(self, int isa, str cell, geometry, from_x, from_h, from_kept, functions, int fraction, accumulator,
                 int state_fraction, state, x_dtype, y_dtype):
        cdef FixedRecurrent* a = &self.context.arguments
        self.context.run = fixed_recurrent(isa)
        self.kept = (from_x, from_h, from_kept, functions)
        self.y_dtype = y_dtype
        self.y_shape = (geometry.steps, geometry.directions, geometry.batch, geometry.hidden)
        self.state_shape = self.y_shape[1:]
        a.cell, a.directions = CELLS[cell], geometry.directions
        a.x_bytes, a.y_bytes = x_dtype.itemsize, y_dtype.itemsize
        a.steps, a.batch, a.inputs, a.hidden = geometry.steps, geometry.batch, geometry.inputs, geometry.hidden
        for d in range(a.directions):
            a.reverse[d] = geometry.reverse[d]
            fill_products(isa, &a.from_x[d], &a.tiles_x[d], from_x[d])
            fill_products(isa, &a.from_h[d], &a.tiles_h[d], from_h[d])
            if from_kept:
                fill_products(isa, &a.from_kept[d], &a.tiles_kept[d], from_kept[d])
            for place, (table, reach_bits, size_bits) in enumerate(functions[d]):
                a.functions[d][place].table = <const int32_t*>optional((table,), 0)
                a.functions[d][place].reach_bits = reach_bits
                a.functions[d][place].size_bits = size_bits
        a.fraction, a.state_fraction = fraction, state_fraction
        fill_format(&a.accumulator, accumulator)
        fill_format(&a.state, state)
        self.be(run_fixed_recurrent_step, &self.context, fixed_recurrent_workspace(isa)(a))

    def __call__(self, inputs):
        y = zeros(self.y_shape, self.y_dtype)  # steps behind a sequence's end stay 0
        outputs = (y, new_array(self.state_shape, self.y_dtype))
        if self.context.arguments.cell == FIXED_LSTM:
            outputs += (new_array(self.state_shape, self.y_dtype),)
        if self.context.arguments.batch:
            self.run(tuple(inputs), outputs)
        return outputs
