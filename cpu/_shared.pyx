# The thin door to cpu/src/shared_conv.cpp: a prepared convolution is an object that holds its sizes and its packed codes; its
# run allocates the output, takes a workspace, gives the GIL away and calls the kernel.

from libc.stdint cimport uint8_t

include "door.pxi"
include "workspace.pxi"
include "conv_shape.pxi"

cdef extern from "shared_conv.h" nogil:
    ctypedef struct SharedConv:
        ConvShape shape
        int32_t bits
        const float* book
        const uint8_t* plain
        const uint8_t* packed
        const float* bias

    ctypedef struct SharedConvCall:
        const float* x
        const float* residual
        float* y
        char* workspace
        int threads

    ctypedef struct SharedConvNeeds:
        size_t packed, workspace

    ctypedef void (*SharedConvNeedsFunction)(const SharedConv*, SharedConvNeeds*) noexcept
    ctypedef void (*SharedConvPack)(const SharedConv*, const uint8_t*, uint8_t*) noexcept
    ctypedef void (*SharedConvFunction)(const SharedConv*, const SharedConvCall*) noexcept

    SharedConvNeedsFunction shared_conv_needs(int isa)
    SharedConvPack shared_conv_pack(int isa)
    SharedConvFunction shared_conv_f32(int isa)

    ctypedef struct SharedConvStep:
        SharedConvFunction run
        const SharedConv* conv
        int most_threads

    void run_shared_conv_step(const void*, const void* const*, void* const*, char*, int) noexcept


cdef class Convolution:
    """A prepared shared_conv with at least one output.

    isa: an instruction set's number. geometry, activation: of the problem. codes: uint8, the weight's shape, C-contiguous.
    book: float32, 16 or 256 entries. finite: whether its entries are. bias: float32 (M) or None. threads: that the work is worth. y_shape, dtype: of
    the output.
    """

    cdef SharedConv conv
    cdef SharedConvFunction function
    cdef SharedConvStep context
    cdef NativeStep step
    cdef Buffer packed
    cdef object y_shape, dtype, kept
    cdef size_t workspace
    cdef int threads

    def __init__(self, int isa, geometry, activation, codes, book, bint finite, bias, int threads, y_shape,
                 dtype):
        cdef SharedConv* c = &self.conv
        cdef SharedConvNeeds needs
        cdef SharedConvPack pack = shared_conv_pack(isa)
        cdef const uint8_t* plain = <const uint8_t*>address(codes)
        self.kept = book, bias, None if finite else codes
        self.y_shape, self.dtype, self.threads = y_shape, dtype, threads
        fill_shape(&c.shape, geometry, activation)
        c.bits = 4 if len(book) == 16 else 8
        c.book = <const float*>address(book)
        c.bias = NULL
        if bias is not None:
            c.bias = <const float*>address(bias)
        self.function = shared_conv_f32(isa)
        c.plain = NULL
        if not finite:
            c.plain = plain
            return
        shared_conv_needs(isa)(c, &needs)
        self.workspace = needs.workspace
        self.packed = Buffer(needs.packed)
        c.packed = <const uint8_t*>self.packed.data
        with nogil:
            pack(c, plain, <uint8_t*>self.packed.data)

    def run(self, inputs):
        cdef SharedConvCall call
        cdef Buffer workspace
        y = new_array(self.y_shape, self.dtype)
        call.x, call.y = <const float*>address(inputs[0]), <float*>address(y)
        call.residual = NULL
        if len(inputs) > 4 and inputs[4] is not None:
            call.residual = <const float*>address(inputs[4])
        call.threads = min(<int>num_threads(), self.threads) if self.threads > 1 else 1
        workspace = take_workspace(self.workspace * call.threads)
        call.workspace = workspace.data
        with nogil:
            self.function(&self.conv, &call)
        idle_workspaces.append(workspace)
        return (y,)

    @property
    def packed_bytes(self) -> int:
        """Of the codes as they lie in memory."""
        return 0 if self.packed is None else self.packed.size

    def native_step(self):
        """A capsule of what native_step.h describes; this object has to outlive it."""
        self.context.run, self.context.conv, self.context.most_threads = self.function, &self.conv, self.threads
        self.step.run, self.step.context, self.step.workspace = run_shared_conv_step, &self.context, self.workspace
        return PyCapsule_New(&self.step, NATIVE_STEP, NULL)
