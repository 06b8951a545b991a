# The thin door to cpu/src/sequence*: the steps of a sequence as native functions, and the walk over them with the GIL
# given away once. cpu/sequence.py plans what is where.

include "door.pxi"

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc
from libc.string cimport memset

import numpy as np

cdef extern from "large_pages.h" nogil:
    void prefer_large_pages(void* data, size_t size)

cdef extern from "sequence.h" nogil:
    int MOST_OPERANDS, MOST_AXES

    ctypedef struct Operand:
        int64_t offset
        int32_t base

    ctypedef struct SequenceStep:
        NativeStep native
        const Operand* inputs
        const Operand* outputs
        int32_t input_count, output_count

    void run_sequence(const SequenceStep*, int64_t count, char** bases, char* workspace, int threads, int64_t*)

    ctypedef struct ElementwiseContext:
        int32_t function, activation
        float alpha, beta
        int64_t rank
        int64_t extents[8]
        int64_t strides[4][8]

    ctypedef struct SoftmaxContext:
        int64_t outer, length, inner
        int32_t logarithm

    ctypedef struct LrnContext:
        int64_t batch, channels, plane, before, behind
        float scale, beta, bias

    ctypedef struct ReorderContext:
        int64_t batch, channels, plane
        int32_t into_blocks

    ctypedef struct qf_format:
        long long low, high
        int width, is_signed, rounding, overflow

    ctypedef struct FixedCast:
        int32_t drop
        qf_format format

    ctypedef struct FixedElementsContext:
        int32_t function, y_bytes
        int32_t x_bytes[2]
        int64_t rank
        int64_t extents[8]
        int64_t strides[3][8]
        int32_t shifts[2]
        int64_t factor, offset, low, high
        double scale
        FixedCast cast, below
        const int32_t* table
        int32_t table_bits, table_size

    ctypedef struct FixedSoftmaxContext:
        int64_t rows, length
        int32_t x_bytes, y_bytes
        FixedCast difference, accumulator, sum, y
        const int64_t* powers
        const int64_t* inverses
        int32_t difference_shift, sum_shift

    ctypedef struct BytesContext:
        int32_t function
        int64_t rank
        int64_t extents[8]
        int64_t strides[3][8]
        int32_t is_signed[3]
        int32_t zeros[3]
        float scales[3]
        float offset, low, high
        int32_t least, most
        const uint8_t* table

    int64_t SAME_BLOCK

    StepFunction sequence_reorder(int isa)
    StepFunction sequence_reorder_bytes(int isa)
    StepFunction sequence_bytes(int isa)
    StepFunction sequence_elementwise(int isa)
    StepFunction sequence_softmax(int isa)
    StepFunction sequence_lrn(int isa)
    StepFunction sequence_fixed_elements(int isa)
    StepFunction sequence_fixed_softmax(int isa)

    int ELEMENTWISE_COPY, ELEMENTWISE_ADD, ELEMENTWISE_SUBTRACT, ELEMENTWISE_MULTIPLY, ELEMENTWISE_DIVIDE
    int ELEMENTWISE_MAXIMUM, ELEMENTWISE_MINIMUM, ELEMENTWISE_PRELU, ELEMENTWISE_AFFINE
    int ELEMENTWISE_SQUARE_ROOT, ELEMENTWISE_EXPONENTIAL, ELEMENTWISE_MAGNITUDE
    int FIXED_COPY, FIXED_QUANTIZE, FIXED_DEQUANTIZE, FIXED_SUM, FIXED_PRODUCT, FIXED_AFFINE, FIXED_TABLE
    int FIXED_SLOPE_BELOW, FIXED_TABLE_BELOW, FIXED_CHECK
    int BYTES_COPY, BYTES_TABLE, BYTES_PAIR_TABLE, BYTES_QUANTIZE, BYTES_ROUND_TRIP, BYTES_DEQUANTIZE, BYTES_SUMS
    int BYTES_ADD, BYTES_SUBTRACT, BYTES_MULTIPLY, BYTES_COMBINE, BYTES_RESCALE

FUNCTIONS = {
    "copy": ELEMENTWISE_COPY,
    "add": ELEMENTWISE_ADD,
    "subtract": ELEMENTWISE_SUBTRACT,
    "multiply": ELEMENTWISE_MULTIPLY,
    "divide": ELEMENTWISE_DIVIDE,
    "maximum": ELEMENTWISE_MAXIMUM,
    "minimum": ELEMENTWISE_MINIMUM,
    "prelu": ELEMENTWISE_PRELU,
    "affine": ELEMENTWISE_AFFINE,
    "square_root": ELEMENTWISE_SQUARE_ROOT,
    "exponential": ELEMENTWISE_EXPONENTIAL,
    "magnitude": ELEMENTWISE_MAGNITUDE,
}

FIXED_FUNCTIONS = {
    "copy": FIXED_COPY,
    "quantize": FIXED_QUANTIZE,
    "dequantize": FIXED_DEQUANTIZE,
    "sum": FIXED_SUM,
    "product": FIXED_PRODUCT,
    "affine": FIXED_AFFINE,
    "table": FIXED_TABLE,
    "slope_below": FIXED_SLOPE_BELOW,
    "table_below": FIXED_TABLE_BELOW,
    "check": FIXED_CHECK,
}

BYTES_FUNCTIONS = {
    "copy": BYTES_COPY,
    "table": BYTES_TABLE,
    "pair_table": BYTES_PAIR_TABLE,
    "quantize": BYTES_QUANTIZE,
    "round_trip": BYTES_ROUND_TRIP,
    "dequantize": BYTES_DEQUANTIZE,
    "sums": BYTES_SUMS,
    "add": BYTES_ADD,
    "subtract": BYTES_SUBTRACT,
    "multiply": BYTES_MULTIPLY,
    "combine": BYTES_COMBINE,
    "rescale": BYTES_RESCALE,
}

AXES = MOST_AXES
"""The most axes that an element-wise step walks."""

PERIODIC = SAME_BLOCK
"""A last stride of an element-wise step's operand: one block of channels again and again."""

# From this size on the arena lies in large pages, where the system has them.
cdef size_t LARGE_PAGE = 2 << 20

# Bases of operands: nothing (the offset is an address), the arena, whether a value was refused, then the inputs and the
# outputs.
ABSOLUTE, ARENA, REFUSED, ARRAYS = 0, 1, 2, 3


def address_of(array) -> int:
    """Where a C-contiguous array's elements are; the caller keeps the array alive."""
    return <Py_ssize_t>address(array)


cdef class Step:
    """A native step, with what it points to."""

    cdef NativeStep native
    cdef object run  # the prepared kernel that the context belongs to, or what it points to
    cdef ElementwiseContext elementwise
    cdef SoftmaxContext softmax
    cdef LrnContext lrn
    cdef ReorderContext reorder
    cdef FixedElementsContext fixed_elements
    cdef BytesContext bytes
    cdef FixedSoftmaxContext fixed_softmax

    cdef Step bind(self, StepFunction function, const void* context):
        self.native.run = function
        self.native.context = context
        self.native.workspace = 0
        return self


def kernel_step(run) -> Step:
    """A prepared kernel's, which is an object that offers one or a method of it."""
    cdef Step step = Step()
    step.run = getattr(run, "__self__", run)
    step.native = (<NativeStep*>PyCapsule_GetPointer(step.run.native_step(), NATIVE_STEP))[0]
    return step


def elementwise_step(int isa, str function, activation, extents, strides) -> Step:
    """strides: of y and of each operand, in elements."""
    cdef Step step = Step()
    cdef ElementwiseContext* c = &step.elementwise
    memset(c, 0, sizeof(c[0]))
    c.function = FUNCTIONS[function]
    c.activation, c.alpha, c.beta = activation.code, activation.alpha, activation.beta
    fill_walk(&c.rank, c.extents, c.strides, extents, strides)
    return step.bind(sequence_elementwise(isa), c)


def softmax_step(int isa, outer, length, inner, logarithm) -> Step:
    cdef Step step = Step()
    cdef SoftmaxContext* c = &step.softmax
    c.outer, c.length, c.inner, c.logarithm = outer, length, inner, logarithm
    return step.bind(sequence_softmax(isa), c)


def lrn_step(int isa, batch, channels, plane, before, behind, scale, beta, bias) -> Step:
    cdef Step step = Step()
    cdef LrnContext* c = &step.lrn
    c.batch, c.channels, c.plane, c.before, c.behind = batch, channels, plane, before, behind
    c.scale, c.beta, c.bias = scale, beta, bias
    return step.bind(sequence_lrn(isa), c)


def reorder_step(int isa, batch, channels, plane, bint into_blocks, bint of_bytes=False) -> Step:
    """of_bytes: into an order with the channels last."""
    cdef Step step = Step()
    cdef ReorderContext* c = &step.reorder
    c.batch, c.channels, c.plane, c.into_blocks = batch, channels, plane, into_blocks
    return step.bind(sequence_reorder_bytes(isa) if of_bytes else sequence_reorder(isa), c)


def bytes_step(int isa, str function, extents, strides, *, scales=(), float offset=0, float low=0, float high=0,
               int least=0, int most=255, table=None) -> Step:
    """strides: of y and of each operand, in elements. scales: (scale, zero, whether signed) of a, of b and of y, None for
    absent ones. table: of bytes. The others: see BytesContext."""
    cdef Step step = Step()
    cdef BytesContext* c = &step.bytes
    memset(c, 0, sizeof(c[0]))
    c.function, c.offset, c.low, c.high, c.least, c.most = BYTES_FUNCTIONS[function], offset, low, high, least, most
    fill_walk(&c.rank, c.extents, c.strides, extents, strides)
    for operand, given in enumerate(scales):
        if given is not None:
            c.scales[operand], c.zeros[operand], c.is_signed[operand] = given
    if table is not None:
        step.run = table
        c.table = <const uint8_t*>address(table)
    return step.bind(sequence_bytes(isa), c)


cdef int fill_cast(FixedCast* to, given) except -1:
    """given: how many bits to drop, and the members of numerics.Fixed."""
    cdef qf_format* f = &to.format
    to.drop, (f.low, f.high, f.width, f.is_signed, f.rounding, f.overflow) = given
    return 0


cdef void fill_walk(int64_t* rank, int64_t* lengths, int64_t (*walks)[8], extents, strides):
    """strides: of y and of each operand, in elements."""
    rank[0] = len(extents)
    for axis, extent in enumerate(extents):
        lengths[axis] = extent
    for operand, walk in enumerate(strides):
        for axis, stride in enumerate(walk):
            walks[operand][axis] = stride


def fixed_elements_step(int isa, str function, extents, strides, x_bytes, int y_bytes, *, shifts=(0, 0), factor=1,
                        offset=0, low=0, high=0, double scale=1, cast, below, table=None, int table_bits=0) -> Step:
    """strides: of y and of each operand, in elements. x_bytes: of one or two operands. table: int32."""
    cdef Step step = Step()
    cdef FixedElementsContext* c = &step.fixed_elements
    memset(c, 0, sizeof(c[0]))
    c.function, c.y_bytes, c.scale = FIXED_FUNCTIONS[function], y_bytes, scale
    for operand, size in enumerate(x_bytes):
        c.x_bytes[operand] = size
    fill_walk(&c.rank, c.extents, c.strides, extents, strides)
    c.shifts[0], c.shifts[1] = shifts
    c.factor, c.offset, c.low, c.high = factor, offset, low, high
    fill_cast(&c.cast, cast)
    fill_cast(&c.below, below)
    if table is not None:
        step.run = table
        c.table, c.table_bits, c.table_size = <const int32_t*>address(table), table_bits, len(table)
    return step.bind(sequence_fixed_elements(isa), c)


def fixed_softmax_step(int isa, int64_t rows, int64_t length, int x_bytes, int y_bytes, casts, powers, inverses,
                       shifts) -> Step:
    """casts: of differences, to the accumulator, of the sum, of y. powers, inverses: int64 tables."""
    cdef Step step = Step()
    cdef FixedSoftmaxContext* c = &step.fixed_softmax
    c.rows, c.length, c.x_bytes, c.y_bytes = rows, length, x_bytes, y_bytes
    fill_cast(&c.difference, casts[0])
    fill_cast(&c.accumulator, casts[1])
    fill_cast(&c.sum, casts[2])
    fill_cast(&c.y, casts[3])
    step.run = (powers, inverses)
    c.powers, c.inverses = <const int64_t*>address(powers), <const int64_t*>address(inverses)
    c.difference_shift, c.sum_shift = shifts
    return step.bind(sequence_fixed_softmax(isa), c)


cdef class Arena:
    """Memory of a given size, aligned to a cache line."""

    cdef char* data
    cdef size_t size

    def __cinit__(self, size_t size):
        cdef void* data = NULL
        cdef bint large = size >= LARGE_PAGE
        if posix_memalign(&data, LARGE_PAGE if large else 64, size or 64):
            raise MemoryError(f"{size} bytes for a sequence's intermediate values")
        if large:
            prefer_large_pages(data, size)
        self.data = <char*>data
        self.size = size

    def __dealloc__(self):
        free(self.data)


cdef class Sequence:
    """Steps over planned memory.

    steps: (Step, inputs, outputs), operands as (base, offset). arena: bytes of intermediate values. outputs: shape and
    dtype of each array that is made. inputs: how many arrays are given. keep: what the operands' addresses point to.
    """

    cdef SequenceStep* steps
    cdef Operand* operands
    cdef int64_t count
    cdef size_t arena, workspace
    cdef object owners, outputs, keep
    cdef list idle
    cdef int input_count, output_count

    def __init__(self, steps, size_t arena, int inputs, outputs, keep):
        cdef Step step
        cdef Operand* next
        self.count = len(steps)
        self.steps = <SequenceStep*>calloc(self.count or 1, sizeof(SequenceStep))
        self.operands = <Operand*>calloc(sum([len(i) + len(o) for _, i, o in steps]) or 1, sizeof(Operand))
        if self.steps == NULL or self.operands == NULL:
            raise MemoryError(f"{self.count} steps of a sequence")
        self.owners = [step for step, _, _ in steps]
        self.keep = keep
        self.arena = -(-arena // 64) * 64
        self.outputs = outputs
        self.input_count, self.output_count = inputs, len(outputs)
        self.idle = []
        next = self.operands
        for at, (step, sources, targets) in enumerate(steps):
            self.steps[at].native = step.native
            self.workspace = max(self.workspace, -(-step.native.workspace // 64) * 64)
            self.steps[at].inputs, self.steps[at].input_count = next, len(sources)
            for base, offset in sources:
                next[0].base, next[0].offset = base, offset
                next += 1
            self.steps[at].outputs, self.steps[at].output_count = next, len(targets)
            for base, offset in targets:
                next[0].base, next[0].offset = base, offset
                next += 1

    def __dealloc__(self):
        free(self.steps)
        free(self.operands)

    @property
    def arena_bytes(self) -> int:
        return self.arena

    cdef list run(self, inputs, int64_t* nanoseconds):
        cdef int threads = num_threads()
        cdef size_t size = self.arena + self.workspace * threads
        cdef Arena memory = self.idle.pop() if self.idle else None
        cdef char** bases
        cdef int32_t refused = 0
        if memory is None or memory.size < size:
            memory = Arena(size)
        results = [new_array(shape, dtype) for shape, dtype in self.outputs]
        bases = <char**>calloc(3 + self.input_count + self.output_count, sizeof(char*))
        if bases == NULL:
            raise MemoryError("a sequence's addresses")
        try:
            bases[1], bases[2] = memory.data, <char*>&refused
            for at in range(self.input_count):
                bases[3 + at] = <char*>address(inputs[at])
            for at in range(self.output_count):
                bases[3 + self.input_count + at] = <char*>address(results[at])
            with nogil:
                run_sequence(self.steps, self.count, bases, memory.data + self.arena, threads, nanoseconds)
        finally:
            free(bases)
        self.idle.append(memory)
        return None if refused else results

    def __call__(self, inputs) -> list | None:
        """The outputs, newly allocated; None where a step met a value that it does not take. inputs: C-contiguous arrays
        of the planned types."""
        return self.run(inputs, NULL)

    def timed(self, inputs):
        """The outputs, or None, and what each step took, in nanoseconds."""
        cdef int64_t[::1] nanoseconds = np.zeros(self.count or 1, np.int64)
        results = self.run(inputs, &nanoseconds[0])
        return results, [nanoseconds[at] for at in range(self.count)]
