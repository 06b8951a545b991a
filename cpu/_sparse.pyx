# The thin door to cpu/src/sparse*.cpp: a prepared layer is an object that holds its sizes and its matrix; its run allocates
# the output and a workspace, gives the GIL away and calls the kernel.

include "door.pxi"

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
