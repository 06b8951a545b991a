# The thin door to cpu/src/sparse*.cpp: a prepared layer is an object that holds its sizes and its matrix; its run allocates
# the output and a workspace, gives the GIL away and calls the kernel.

from libc.stdint cimport uint16_t, uint8_t

include "door.pxi"
include "workspace.pxi"
include "conv_shape.pxi"

cdef extern from "sparse.h" nogil:
    ctypedef struct SparseArguments:
        int64_t steps, batch, hidden
        const float* x
        const float* values
        const int32_t* columns
        const int32_t* offsets
        const float* initial_h
        float* y
        float* workspace
        float leak, alpha, beta
        int32_t function

ctypedef void (*RunFunction)(const SparseArguments*) noexcept nogil
ctypedef int64_t (*WorkspaceFunction)(const SparseArguments*) noexcept nogil

cdef extern from "sparse.h" nogil:
    RunFunction sparse_recurrent_f32(int isa)
    WorkspaceFunction sparse_workspace_f32(int isa)


cdef class Layer:
    """A prepared sparse_rnn.

    isa: an instruction set's number. geometry: ops.sparse's Geometry. matrix: ops.sparse's Rows, checked, C-contiguous.
    dtype: float32.
    """

    cdef SparseArguments arguments
    cdef RunFunction function
    cdef object y_shape, dtype, matrix
    cdef size_t workspace

    def __init__(self, int isa, geometry, matrix, dtype):
        cdef SparseArguments* a = &self.arguments
        self.matrix, self.dtype = matrix, dtype
        self.y_shape = (geometry.steps, geometry.batch, geometry.hidden)
        a.steps, a.batch, a.hidden = self.y_shape
        a.values = <const float*>address(matrix.values)
        a.columns = <const int32_t*>address(matrix.columns)
        a.offsets = <const int32_t*>address(matrix.offsets)
        a.leak, a.function = geometry.leak, geometry.function.code
        a.alpha, a.beta = geometry.function.alpha, geometry.function.beta
        self.function = sparse_recurrent_f32(isa)
        self.workspace = 4 * <size_t>sparse_workspace_f32(isa)(a)

    def run(self, inputs):
        cdef SparseArguments a = self.arguments
        cdef void* workspace = NULL
        y = new_array(self.y_shape, self.dtype)
        if a.batch and a.steps:
            a.x, a.y = <const float*>address(inputs[0]), <float*>address(y)
            initial = inputs[4] if len(inputs) > 4 else None
            if initial is not None:
                a.initial_h = <const float*>address(initial)
            if posix_memalign(&workspace, 64, self.workspace):
                raise MemoryError(f"{self.workspace} bytes for a sparse recurrent layer's states")
            a.workspace = <float*>workspace
            with nogil:
                self.function(&a)
            free(workspace)
        return (y,)


cdef extern from "sparse.h" nogil:
    ctypedef struct SparseEntry:
        pass

    ctypedef struct SparseTile:
        pass

    ctypedef struct SparseSegment:
        pass

    ctypedef struct SparseConv:
        ConvShape shape
        int64_t rows, channels
        const float* values
        const int32_t* columns
        const int32_t* offsets
        const float* bias
        const SparseEntry* entries
        const int32_t* starts
        const int32_t* order
        int64_t blocks
        int64_t lengths[3]
        int64_t phases
        const int64_t* phase_places
        int64_t channel_pitch, phase_pitch, image_pitch, images
        int64_t panel_channels
        int32_t direct, turned, finite
        const uint16_t* narrow
        const uint8_t* unmet
        const SparseTile* tiles
        const SparseSegment* segments
        int64_t tile_count, row_chunks

    ctypedef struct SparseConvCall:
        const float* x
        const float* residual
        float* y
        char* workspace
        int threads

    ctypedef void (*SparseConvFunction)(const SparseConv*, const SparseConvCall*) noexcept
    ctypedef size_t (*SparseConvBytes)(const SparseConv*) noexcept

    SparseConvBytes sparse_conv_shared_f32(int isa)
    SparseConvBytes sparse_conv_own_f32(int isa)
    SparseConvFunction sparse_conv_places_f32(int isa)
    SparseConvFunction sparse_conv_row_f32(int isa)

    ctypedef struct SparseConvStep:
        SparseConvFunction run
        const SparseConv* conv
        int most_threads

    void run_sparse_conv_step(const void*, const void* const*, void* const*, char*, int) noexcept


cdef class Convolution:
    """A prepared sparse_conv.

    isa: an instruction set's number. geometry, activation: of the problem. matrix: ops.sparse's Rows, checked, C-contiguous.
    bias: float32 (M) or None. laid: cpu.sparse_conv's Laid. one_place: every image is a row of one place. threads: that the
    work is worth. y_shape, dtype: of the output.
    """

    cdef SparseConv conv
    cdef SparseConvFunction function
    cdef SparseConvStep context
    cdef NativeStep step
    cdef object y_shape, dtype, kept
    cdef size_t shared, own
    cdef int threads

    def __init__(self, int isa, geometry, activation, matrix, bias, laid, bint one_place, int threads, y_shape, dtype):
        cdef SparseConv* a = &self.conv
        self.kept = matrix, bias, laid
        self.y_shape, self.dtype, self.threads = y_shape, dtype, threads
        fill_shape(&a.shape, geometry, activation)
        for axis in range(3):
            a.lengths[axis] = laid.lengths[axis]
        a.rows, a.channels = geometry.out_channels, geometry.in_channels
        a.values = <const float*>address(matrix.values)
        a.columns = <const int32_t*>address(matrix.columns)
        a.offsets = <const int32_t*>address(matrix.offsets)
        a.bias = NULL
        if bias is not None:
            a.bias = <const float*>address(bias)
        a.entries, a.starts = <const SparseEntry*>address(laid.entries), <const int32_t*>address(laid.starts)
        a.order, a.blocks = <const int32_t*>address(laid.order), laid.blocks
        a.phases, a.phase_places = len(laid.phases), <const int64_t*>address(laid.phases)
        a.channel_pitch, a.phase_pitch, a.image_pitch = laid.channel_pitch, laid.phase_pitch, laid.image_pitch
        a.panel_channels = laid.panel_channels
        a.images, a.direct, a.turned, a.finite = laid.images, laid.direct, laid.turned, laid.finite
        a.narrow = <const uint16_t*>address(laid.narrow)
        a.unmet = <const uint8_t*>address(laid.unmet)
        a.tiles, a.segments = <const SparseTile*>address(laid.tiles), <const SparseSegment*>address(laid.segments)
        a.tile_count, a.row_chunks = len(laid.tiles), laid.row_chunks
        self.function = sparse_conv_row_f32(isa) if one_place else sparse_conv_places_f32(isa)
        self.shared, self.own = sparse_conv_shared_f32(isa)(a), sparse_conv_own_f32(isa)(a)

    def run(self, inputs):
        cdef SparseConvCall call
        cdef Buffer workspace
        y = new_array(self.y_shape, self.dtype)
        if 0 in self.y_shape:
            return (y,)
        call.x, call.y = <const float*>address(inputs[0]), <float*>address(y)
        call.residual = NULL
        if len(inputs) > 5 and inputs[5] is not None:
            call.residual = <const float*>address(inputs[5])
        call.threads = min(<int>num_threads(), self.threads) if self.threads > 1 else 1
        workspace = take_workspace(self.shared + self.own * call.threads)
        call.workspace = workspace.data
        with nogil:
            self.function(&self.conv, &call)
        idle_workspaces.append(workspace)
        return (y,)

    def native_step(self):
        """A capsule of what native_step.h describes; this object has to outlive it."""
        self.context.run, self.context.conv, self.context.most_threads = self.function, &self.conv, self.threads
        self.step.run, self.step.context = run_sparse_conv_step, &self.context
        self.step.workspace = self.shared + self.own  # for each thread, though they share the first part
        return PyCapsule_New(&self.step, NATIVE_STEP, NULL)
