# The thin door to cpu/src/rnn*.cpp: a prepared recurrent layer is an object that holds its sizes and packed weights;
# its run allocates the outputs, gives the GIL away and calls the kernel. (A method, because calling an object packs its
# arguments into one tuple more, which a step of a small layer would feel.)

include "door.pxi"

cdef extern from "rnn_memory.h" nogil:
    void* rnn_take(size_t bytes)
    void rnn_give(void* memory, size_t bytes)

cdef extern from "rnn.h" nogil:
    int RNN_PLAIN, RNN_LSTM, RNN_GRU

    ctypedef struct RnnFunction:
        double alpha, beta
        int32_t code

    ctypedef struct RnnSlices:
        const int64_t* starts
        const float* values
        const void* columns
        const int32_t* gaps
        int32_t wide

    ctypedef struct RnnArguments:
        int64_t steps, batch, inputs, hidden
        int32_t directions, kind, threads
        int32_t reverse[2]
        RnnFunction functions[2][3]
        double clip
        int32_t linear_before_reset, input_forget, finite, passing, downwards
        const void* w
        const void* r
        const void* b
        const void* p
        const float* packed
        const float* w_book
        const float* r_book
        RnnSlices w_slices
        RnnSlices r_slices
        const void* x
        const int32_t* lengths
        const void* initial_h
        const void* initial_c
        void* y
        void* y_h
        void* y_c
        void* sums
        void* workspace

    ctypedef struct RnnGradientArguments:
        RnnArguments layer
        const void* y
        const void* sums
        const void* dy
        const void* dy_h
        const void* dy_c
        void* dx
        void* dw
        void* dr
        void* db
        void* dinitial_h
        void* dinitial_c
        void* dp

    int64_t slots_of(const RnnArguments&)

    ctypedef struct RnnNeeds:
        int64_t packed_floats, workspace_floats
        int32_t threads

ctypedef void (*RunFunction)(const RnnArguments*) noexcept nogil
ctypedef void (*NeedsFunction)(const RnnArguments*, RnnNeeds*) noexcept nogil
ctypedef int (*FiniteFunction)(const RnnArguments*) noexcept nogil
ctypedef void (*PackFunction)(const RnnArguments*, float*) noexcept nogil
ctypedef void (*GradientFunction)(const RnnGradientArguments*) noexcept nogil
ctypedef size_t (*GradientWorkspaceFunction)(const RnnGradientArguments*) noexcept nogil

cdef extern from "rnn.h" nogil:
    NeedsFunction rnn_needs_f32(int isa)
    FiniteFunction rnn_finite_f32(int isa)
    PackFunction rnn_pack_f32(int isa)
    RunFunction rnn_packed_f32(int isa)
    NeedsFunction rnn_codes4_needs_f32(int isa)
    PackFunction rnn_codes4_pack_f32(int isa)
    RunFunction rnn_codes4_f32(int isa)
    NeedsFunction rnn_codes8_needs_f32(int isa)
    PackFunction rnn_codes8_pack_f32(int isa)
    RunFunction rnn_codes8_f32(int isa)
    NeedsFunction rnn_rows_needs_f32(int isa)
    PackFunction rnn_rows_pack_f32(int isa)
    RunFunction rnn_rows_f32(int isa)
    RunFunction rnn_general_f64(int isa)
    GradientWorkspaceFunction rnn_gradient_f32_workspace(int isa)
    GradientFunction rnn_gradient_f32(int isa)
    GradientFunction rnn_gradient_general_f64(int isa)

    ctypedef struct RnnStep:
        RunFunction run
        const RnnArguments* arguments
        int most_threads, lengths

    void run_rnn_step(const void*, const void* const*, void* const*, char*, int) noexcept

# Multiply-accumulates of a gate up to which giving the GIL away takes longer than another thread would wait for it.
cdef int64_t BRIEF = 1 << 10

KINDS = {"rnn": RNN_PLAIN, "lstm": RNN_LSTM, "gru": RNN_GRU}


cdef void* optional(tuple arrays, Py_ssize_t position) except? NULL:
    """The address of an input, NULL where it is absent."""
    if position >= len(arrays):
        return NULL
    array = arrays[position]
    return NULL if array is None else address(array)


cdef void describe(RnnArguments* a, str kind, geometry):
    """The sizes and options of a layer."""
    a.steps, a.batch, a.inputs, a.hidden = geometry.steps, geometry.batch, geometry.inputs, geometry.hidden
    a.directions = geometry.directions
    a.kind = KINDS[kind]
    for direction in range(a.directions):
        a.reverse[direction] = geometry.reverse[direction]
        for place, function in enumerate(geometry.activations[direction]):
            a.functions[direction][place].code = function.code
            a.functions[direction][place].alpha = function.alpha
            a.functions[direction][place].beta = function.beta
    a.clip = geometry.clip
    a.linear_before_reset = geometry.linear_before_reset
    a.input_forget = geometry.input_forget
    a.downwards = 0
    a.passing = 0
    a.sums = NULL


cdef RnnSlices slices_of(given) except *:
    """given: starts, values, columns and gaps, as rnn.h has them."""
    cdef RnnSlices made
    starts, values, columns, gaps = given
    made.starts, made.values = <const int64_t*>address(starts), <const float*>address(values)
    made.columns, made.gaps = address(columns), <const int32_t*>address(gaps)
    made.wide = columns.dtype.itemsize == 4
    return made


cdef class Layer:
    """A prepared rnn, lstm or gru of layout 0.

    isa: an instruction set's number. kind: a name in KINDS. geometry: ops.rnn's RecurrentGeometry. dtype: float32, or
    float64 for the general kernel. parameters: the arrays w, r, b or None, p or None, C-contiguous and of that dtype.
    training: whether the sums are an output too.
    form: how w and r are stored. "dense"; "codes4" or "codes8": as uint8, with a codebook of each (16 or 256 float32) in
    `weights`; "rows": None, with the slices of each (rnn.h) in `weights`. finite: whether r is, unless it is dense.
    lengths: where sequence_lens is among the inputs.
    """

    cdef RnnArguments arguments
    cdef RunFunction function
    cdef object y_shape, state_shape, sums_shape, dtype, parameters
    cdef float* packed
    cdef size_t packed_bytes, workspace
    cdef void* idle_workspace  # that no call is using, or NULL
    cdef int threads, lengths
    cdef bint lstm, brief
    cdef SpareArrays y_spares, h_spares, c_spares
    cdef RnnStep context
    cdef NativeStep step

    def __init__(self, int isa, str kind, geometry, dtype, parameters, bint training, str form="dense", weights=None,
                 bint finite=False, int lengths=4):
        cdef RnnNeeds needs
        cdef RnnArguments* a = &self.arguments
        cdef NeedsFunction find_needs = rnn_needs_f32(isa)
        cdef PackFunction pack = rnn_pack_f32(isa)
        self.lstm = kind == "lstm"
        self.brief = geometry.steps * geometry.batch * geometry.hidden * (geometry.inputs + geometry.hidden) <= BRIEF
        self.dtype = dtype
        self.lengths = lengths
        self.parameters = parameters  # the general kernel reads them in each call
        self.y_shape = (geometry.steps, geometry.directions, geometry.batch, geometry.hidden)
        self.state_shape = self.y_shape[1:]
        describe(a, kind, geometry)
        self.sums_shape = (*self.y_shape[:3], slots_of(a[0]) * geometry.hidden) if training else None
        w, r, b, p = parameters
        a.w, a.r = optional((w,), 0), optional((r,), 0)
        a.b = optional((b,), 0)
        a.p = optional((p,), 0)
        if dtype.name == "float64":
            self.function = rnn_general_f64(isa)
            self.workspace = 9 * 8 * <size_t>a.hidden
            self.threads = 1
            return
        self.function = rnn_packed_f32(isa)
        if form == "codes4":
            find_needs, pack, self.function = rnn_codes4_needs_f32(isa), rnn_codes4_pack_f32(isa), rnn_codes4_f32(isa)
        elif form == "codes8":
            find_needs, pack, self.function = rnn_codes8_needs_f32(isa), rnn_codes8_pack_f32(isa), rnn_codes8_f32(isa)
        elif form == "rows":
            find_needs, pack, self.function = rnn_rows_needs_f32(isa), rnn_rows_pack_f32(isa), rnn_rows_f32(isa)
            a.w_slices, a.r_slices = slices_of(weights[0]), slices_of(weights[1])
        if form.startswith("codes"):
            a.w_book, a.r_book = <const float*>address(weights[0]), <const float*>address(weights[1])
        # training packs weights for each call, and a single step reads them once
        a.passing = training and a.steps == 1
        find_needs(a, &needs)
        self.workspace = <size_t>needs.workspace_floats * 4
        self.threads = needs.threads
        self.packed_bytes = <size_t>needs.packed_floats * 4
        self.packed = <float*>rnn_take(self.packed_bytes)
        if self.packed == NULL:
            raise MemoryError(f"{self.packed_bytes} bytes for a recurrent layer's packed weights")
        a.finite = finite
        if form == "dense":
            with nogil:
                a.finite = not a.passing and rnn_finite_f32(isa)(a)
        with nogil:
            pack(a, self.packed)
        a.packed = self.packed
        if form != "dense":
            self.parameters = b, p, weights  # codes have been packed

    def __dealloc__(self):
        drop_spares(&self.y_spares)
        drop_spares(&self.h_spares)
        drop_spares(&self.c_spares)
        if self.packed != NULL:
            rnn_give(self.packed, self.packed_bytes)
        if self.idle_workspace != NULL:
            rnn_give(self.idle_workspace, self.workspace)

    def run(self, inputs):
        cdef RnnArguments a = self.arguments
        cdef void* workspace = self.idle_workspace
        cdef tuple given = tuple(inputs)
        y = output_array(&self.y_spares, self.y_shape, self.dtype)
        y_h = output_array(&self.h_spares, self.state_shape, self.dtype)
        y_c = output_array(&self.c_spares, self.state_shape, self.dtype) if self.lstm else None
        sums = None if self.sums_shape is None else new_array(self.sums_shape, self.dtype)
        if a.batch:
            a.x = address(given[0])
            a.lengths = <const int32_t*>optional(given, self.lengths)
            a.initial_h = optional(given, self.lengths + 1)
            a.y, a.y_h = address(y), address(y_h)
            if self.lstm:
                a.initial_c = optional(given, self.lengths + 2)
                a.y_c = address(y_c)
            a.sums = optional((sums,), 0)
            a.threads = num_threads() if self.threads > 1 else 1
            # the next call begins with the weights that this one's last step leaves in the cache
            self.arguments.downwards ^= a.steps & 1
            self.idle_workspace = NULL
            if workspace == NULL:
                workspace = rnn_take(self.workspace)
            if workspace == NULL:
                raise MemoryError(f"{self.workspace} bytes for a recurrent layer's sums")
            a.workspace = workspace
            if self.brief:
                self.function(&a)
            else:
                with nogil:
                    self.function(&a)
            workspace, self.idle_workspace = self.idle_workspace, workspace
            if workspace != NULL:
                rnn_give(workspace, self.workspace)  # another call's, where two ran at once
        outputs = (y, y_h, y_c) if self.lstm else (y, y_h)
        return outputs if sums is None else (*outputs, sums)

    def native_step(self):
        """A capsule of what native_step.h describes; this object has to outlive it."""
        self.context.run, self.context.arguments = self.function, &self.arguments
        self.context.most_threads, self.context.lengths = self.threads, self.lengths
        self.step.run, self.step.context, self.step.workspace = run_rnn_step, &self.context, self.workspace
        return PyCapsule_New(&self.step, NATIVE_STEP, NULL)


cdef class Gradient:
    """The gradients of an rnn, lstm or gru of layout 0 (ops/rnn_gradient.py).

    isa, kind, geometry, dtype: as of a Layer. wanted: the positions of the inputs whose gradients are asked for, with their
    shapes. All inputs come with each call.
    """

    cdef RnnGradientArguments arguments
    cdef GradientFunction function
    cdef object dtype
    cdef tuple wanted
    cdef size_t workspace

    def __init__(self, int isa, str kind, geometry, dtype, wanted, bint lengths):
        cdef RnnArguments* a = &self.arguments.layer
        describe(a, kind, geometry)
        self.dtype, self.wanted = dtype, tuple(wanted)
        if dtype.name == "float64":
            self.function = rnn_gradient_general_f64(isa)
            self.workspace = (a.steps + 12) * 8 * <size_t>a.hidden
            return
        self.function = rnn_gradient_f32(isa)
        a.lengths = <const int32_t*>a if lengths else NULL  # whether there are some decides what is needed
        self.workspace = rnn_gradient_f32_workspace(isa)(&self.arguments)

    def run(self, inputs):
        cdef RnnGradientArguments g = self.arguments
        cdef RnnArguments* a = &g.layer
        cdef tuple given = tuple(inputs)
        cdef dict made = {position: new_array(shape, self.dtype) for position, shape in self.wanted}
        a.x, a.w, a.r = optional(given, 0), optional(given, 1), optional(given, 2)
        a.lengths = <const int32_t*>optional(given, 4)
        a.initial_h, a.initial_c, a.p = optional(given, 5), optional(given, 6), optional(given, 7)
        g.y, g.sums = optional(given, 8), optional(given, 9)
        g.dy, g.dy_h, g.dy_c = optional(given, 10), optional(given, 11), optional(given, 12)
        g.dx, g.dw, g.dr = optional((made.get(0),), 0), optional((made.get(1),), 0), optional((made.get(2),), 0)
        g.db, g.dp = optional((made.get(3),), 0), optional((made.get(7),), 0)
        g.dinitial_h, g.dinitial_c = optional((made.get(5),), 0), optional((made.get(6),), 0)
        a.threads = num_threads()
        a.workspace = rnn_take(self.workspace)
        if a.workspace == NULL:
            raise MemoryError(f"{self.workspace} bytes for a recurrent layer's gradients")
        with nogil:
            self.function(&g)
        rnn_give(a.workspace, self.workspace)
        return tuple(made.values())
