# The thin door to cpu/src/conv*.cpp: a prepared convolution is an object that holds the shape, the packed weights and
# the function of the instruction set in use; calling it takes the arrays, gives the GIL away and runs the kernel.

include "door.pxi"
include "workspace.pxi"
include "conv_shape.pxi"

from libc.stdint cimport int16_t

from quatrefoil.ops.activations import IDENTITY

cdef extern from "conv_kernels.h" nogil:
    ctypedef struct ConvNeeds:
        size_t packed, workspace

    ctypedef struct ConvCall:
        const void* x
        const void* weights
        const void* plain_weights
        const void* bias
        const void* residual
        void* y
        char* workspace
        int threads

    ctypedef struct ConvQuantization:
        int x_signed, x_zero
        const float* multipliers
        int y_signed, y_zero

    ctypedef void (*ConvNeedsFunction)(const ConvShape*, ConvNeeds*) noexcept
    ctypedef void (*ConvPackFunction)(const ConvShape*, const float*, float*) noexcept
    ctypedef void (*ConvRunFunction)(const ConvShape*, const ConvCall*) noexcept

    ctypedef void (*ConvIntegerFunction)(const ConvShape*, const ConvQuantization*, const ConvCall*) noexcept

    ctypedef struct ConvAlgorithm:
        ConvNeedsFunction needs  # NULL: the weights are used as they are, and there is no workspace
        ConvPackFunction pack
        ConvRunFunction run

    bint find_conv_algorithm(const char* name, int isa, ConvAlgorithm*)

    ctypedef void (*ConvIntegerPackFunction)(const ConvShape*, const int16_t*, int32_t*) noexcept

    ctypedef struct ConvIntegerAlgorithm:
        ConvNeedsFunction needs  # as in ConvAlgorithm
        ConvIntegerPackFunction pack
        ConvIntegerFunction run

    bint find_conv_integer_algorithm(const char* name, int isa, ConvIntegerAlgorithm*)

    void flip_weights(const float*, int64_t groups, int64_t in_channels, int64_t out_channels, int64_t taps, float*)

    ctypedef struct ConvGradientCall:
        const void* x
        const void* dy
        void* dw
        char* workspace
        int threads

    ctypedef size_t (*ConvGradientNeeds)(const ConvShape*) noexcept
    ctypedef void (*ConvGradientFunction)(const ConvShape*, const ConvGradientCall*) noexcept

    ctypedef struct ConvGradientAlgorithm:
        ConvGradientNeeds needs  # NULL: no workspace
        ConvGradientFunction run

    bint find_conv_gradient_algorithm(const char* name, int isa, ConvGradientAlgorithm*)

    ctypedef struct ConvStep:
        ConvRunFunction run
        const ConvShape* shape
        const ConvCall* call
        int most_threads

    void run_conv_step(const void*, const void* const*, void* const*, char*, int) noexcept

    ctypedef struct ConvIntegerStep:
        ConvIntegerFunction run
        const ConvShape* shape
        const ConvQuantization* quantization
        const ConvCall* call
        int most_threads

    void run_conv_integer_step(const void*, const void* const*, void* const*, char*, int) noexcept


# Memory of packed weights whose convolution is gone. In training weights change with each step and are packed again, and
# to have the system clear as many new pages takes longer than packing.
cdef list idle_packed = []
cdef size_t MOST_IDLE = 128 << 20, LEAST_IDLE = 64 << 10


cdef Buffer take_packed(size_t size):
    cdef Buffer buffer
    for place in range(len(idle_packed)):
        buffer = idle_packed[place]
        if size <= buffer.size <= 2 * size:
            del idle_packed[place]
            return buffer
    return Buffer(size)


cdef void give_back(Buffer given):
    """Kept for the next taker, the oldest ones let go where that is too much."""
    cdef size_t kept = given.size
    cdef Buffer buffer
    idle_packed.append(given)
    for place in range(len(idle_packed) - 2, -1, -1):
        buffer = idle_packed[place]
        kept += buffer.size
        if kept > MOST_IDLE:
            del idle_packed[:place + 1]
            return


# Multiply-accumulates from which on another thread is worth waking, and up to which to give the GIL away takes as long.
cdef double WORTH_A_THREAD = 1 << 18, BRIEF = 1 << 13


cdef double macs_of(const ConvShape* s) noexcept:
    cdef double macs = <double>s.batch * s.groups * s.in_channels * s.out_channels
    for axis in range(3):
        macs *= <double>s.output[axis] * s.kernel[axis]
    return macs


cdef int most_threads(const ConvShape* s) noexcept:
    """How many threads the work of a convolution is worth, whatever is allowed."""
    return <int>min(max(macs_of(s) / WORTH_A_THREAD, 1.0), 1024.0)


cdef class Run:
    """A prepared conv or conv_transpose.

    algorithm: a name of conv_kernels.h. isa: an instruction set's number. geometry, activation: of the problem.
    y_shape, dtype: of the output. weights, bias: C-contiguous arrays of that dtype, bias or None.
    """

    cdef ConvAlgorithm algorithm
    cdef ConvShape shape
    cdef size_t workspace
    cdef object weights, bias, y_shape, dtype
    cdef Buffer packed
    cdef ConvCall call
    cdef ConvStep context
    cdef NativeStep step
    cdef SpareArrays spares
    cdef int threads
    cdef bint empty, brief

    def __init__(self, str algorithm, int isa, geometry, activation, y_shape, dtype, weights, bias,
                 bint x_blocked=False, bint y_blocked=False):
        cdef ConvNeeds needs
        if not find_conv_algorithm(algorithm.encode(), isa, &self.algorithm):
            raise KeyError(algorithm)
        fill_shape(&self.shape, geometry, activation)
        self.shape.x_blocked, self.shape.y_blocked = x_blocked, y_blocked
        self.threads = most_threads(&self.shape)
        self.brief = macs_of(&self.shape) <= BRIEF
        self.y_shape = y_shape
        self.dtype = dtype
        self.bias = bias
        self.empty = 0 in y_shape
        self.weights = weights
        self.workspace = 0
        if self.empty:
            return  # kernels plan for at least one output
        if self.algorithm.needs != NULL:
            self.algorithm.needs(&self.shape, &needs)
            self.packed = take_packed(needs.packed)
            self.workspace = needs.workspace
            self.algorithm.pack(&self.shape, <const float*>address(weights), <float*>self.packed.data)
        self.call.weights = self.packed.data if self.packed is not None else address(weights)
        self.call.plain_weights = address(weights)
        self.call.bias = address(bias) if bias is not None else NULL
        self.call.residual = NULL
        self.call.workspace = NULL

    def __del__(self):
        if self.packed is not None and self.packed.size >= LEAST_IDLE:
            give_back(self.packed)
            self.packed = None

    def __dealloc__(self):
        drop_spares(&self.spares)

    def __call__(self, inputs):
        cdef ConvCall call = self.call
        cdef Buffer workspace = None
        y = output_array(&self.spares, self.y_shape, self.dtype)
        if self.empty:
            return (y,)
        call.x = address(inputs[0])
        if len(inputs) > 3 and inputs[3] is not None:
            call.residual = address(inputs[3])
        call.y = <void*>address(y)
        call.threads = min(<int>num_threads(), self.threads) if self.threads > 1 else 1
        if self.workspace:
            workspace = take_workspace(self.workspace * call.threads)
            call.workspace = workspace.data
        if self.brief:
            self.algorithm.run(&self.shape, &call)
        else:
            with nogil:
                self.algorithm.run(&self.shape, &call)
        if workspace is not None:
            idle_workspaces.append(workspace)
        return (y,)

    def native_step(self):
        """A capsule of what native_step.h describes; this object has to outlive it."""
        self.context.run, self.context.shape, self.context.call = self.algorithm.run, &self.shape, &self.call
        self.context.most_threads = self.threads
        self.step.run, self.step.context, self.step.workspace = run_conv_step, &self.context, self.workspace
        return PyCapsule_New(&self.step, NATIVE_STEP, NULL)


cdef class IntegerRun:
    """A prepared conv_integer or qlinear_conv.

    x_zero, y_zero: zero points. weights: int16 (M, C / groups, kernel), zero points taken off. bias: int32 (M) or
    None. multipliers: float32 (M), or None for int32 sums. x_last, y_last: whether channels are last in memory.
    """

    cdef ConvIntegerAlgorithm algorithm
    cdef ConvShape shape
    cdef ConvQuantization quantization
    cdef size_t workspace
    cdef object weights, bias, multipliers, y_shape, dtype
    cdef Buffer packed
    cdef ConvCall call
    cdef ConvIntegerStep context
    cdef NativeStep step
    cdef SpareArrays spares
    cdef int threads
    cdef bint empty

    def __init__(self, str algorithm, int isa, geometry, y_shape, dtype, weights, bias, bint x_signed, int x_zero,
                 multipliers, int y_zero, bint x_last=False, bint y_last=False):
        cdef ConvNeeds needs
        if not find_conv_integer_algorithm(algorithm.encode(), isa, &self.algorithm):
            raise KeyError(algorithm)
        fill_shape(&self.shape, geometry, IDENTITY)
        self.shape.x_blocked, self.shape.y_blocked = x_last, y_last
        self.threads = most_threads(&self.shape)
        self.y_shape = (y_shape[0], *y_shape[2:], y_shape[1]) if y_last else y_shape
        self.dtype = dtype
        self.bias = bias
        self.multipliers = multipliers
        self.empty = 0 in y_shape
        self.quantization.x_signed = x_signed
        self.quantization.x_zero = x_zero
        self.quantization.multipliers = <const float*>address(multipliers) if multipliers is not None else NULL
        self.quantization.y_signed = dtype.kind == "i"
        self.quantization.y_zero = y_zero
        self.workspace = 0
        self.weights = weights
        if self.empty:
            return  # kernels plan for at least one output
        if self.algorithm.needs != NULL:
            self.algorithm.needs(&self.shape, &needs)
            self.packed = Buffer(needs.packed)
            self.workspace = needs.workspace
            self.algorithm.pack(&self.shape, <const int16_t*>address(weights), <int32_t*>self.packed.data)
        self.call.weights = self.packed.data if self.packed is not None else address(weights)
        self.call.bias = address(bias) if bias is not None else NULL
        self.call.residual = NULL
        self.call.workspace = NULL

    def __dealloc__(self):
        drop_spares(&self.spares)

    def __call__(self, inputs):
        cdef ConvCall call = self.call
        cdef Buffer workspace = None
        y = output_array(&self.spares, self.y_shape, self.dtype)
        if self.empty:
            return (y,)
        call.x = address(inputs[0])
        call.y = <void*>address(y)
        call.threads = min(<int>num_threads(), self.threads) if self.threads > 1 else 1
        if self.workspace:
            workspace = take_workspace(self.workspace * call.threads)
            call.workspace = workspace.data
        with nogil:
            self.algorithm.run(&self.shape, &self.quantization, &call)
        if workspace is not None:
            idle_workspaces.append(workspace)
        return (y,)

    def native_step(self):
        """A capsule of what native_step.h describes; this object has to outlive it."""
        self.context.run, self.context.shape, self.context.call = self.algorithm.run, &self.shape, &self.call
        self.context.quantization, self.context.most_threads = &self.quantization, self.threads
        self.step.run, self.step.context, self.step.workspace = run_conv_integer_step, &self.context, self.workspace
        return PyCapsule_New(&self.step, NATIVE_STEP, NULL)


def flipped(weights, int64_t groups):
    """float32 weights of conv_transpose, C-contiguous, as those of the convolution of stride 1 that does the same."""
    cdef int64_t channels = weights.shape[0] // groups, outputs = weights.shape[1], taps = weights[0, 0].size
    made = new_array((groups * outputs, channels, *weights.shape[2:]), weights.dtype)
    flip_weights(<const float*>address(weights), groups, channels, outputs, taps, <float*>address(made))
    return made


cdef class GradientRun:
    """A prepared conv_weight_gradient, or with an algorithm for it the gradient of a bias, whose only input is dy.

    algorithm: a name of conv_kernels.h. isa: an instruction set's number. geometry: of the convolution. shape, dtype: of
    the output.
    """

    cdef ConvGradientAlgorithm algorithm
    cdef ConvShape shape
    cdef size_t workspace
    cdef object made, dtype
    cdef int threads
    cdef bint empty

    def __init__(self, str algorithm, int isa, geometry, shape, dtype):
        if not find_conv_gradient_algorithm(algorithm.encode(), isa, &self.algorithm):
            raise KeyError(algorithm)
        fill_shape(&self.shape, geometry, IDENTITY)
        self.threads = most_threads(&self.shape)
        self.made = shape
        self.dtype = dtype
        self.empty = geometry.batch == 0
        self.workspace = 0
        if self.algorithm.needs != NULL and not self.empty:
            self.workspace = self.algorithm.needs(&self.shape)

    def __call__(self, inputs):
        cdef ConvGradientCall call
        cdef Buffer workspace = None
        made = new_array(self.made, self.dtype)
        if self.empty:
            made[...] = 0
            return (made,)
        call.x = address(inputs[0])
        call.dy = address(inputs[len(inputs) - 1])
        call.dw = <void*>address(made)
        call.threads = min(<int>num_threads(), self.threads) if self.threads > 1 else 1
        call.workspace = NULL
        if self.workspace:
            workspace = take_workspace(self.workspace * call.threads)
            call.workspace = workspace.data
        with nogil:
            self.algorithm.run(&self.shape, &call)
        if workspace is not None:
            idle_workspaces.append(workspace)
        return (made,)
