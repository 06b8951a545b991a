# A convolution's sizes as the kernels read them. After door.pxi.

cdef extern from "conv_arguments.h" nogil:
    ctypedef struct ConvShape:
        int64_t batch, groups, in_channels, out_channels
        int64_t input[3]
        int64_t output[3]
        int64_t kernel[3]
        int64_t strides[3]
        int64_t dilations[3]
        int64_t pads[3]
        int activation
        float alpha, beta
        int32_t x_blocked, y_blocked


cdef int fill_shape(ConvShape* shape, object geometry, object activation) except -1:
    window = geometry.window
    shape.batch = geometry.batch
    shape.groups = geometry.groups
    shape.in_channels = geometry.in_per_group
    shape.out_channels = geometry.out_per_group
    for axis in range(3):
        shape.input[axis] = window.input[axis]
        shape.output[axis] = window.output[axis]
        shape.kernel[axis] = window.kernel[axis]
        shape.strides[axis] = window.strides[axis]
        shape.dilations[axis] = window.dilations[axis]
        shape.pads[axis] = window.pads[axis]
    shape.activation = activation.code
    shape.alpha = activation.alpha
    shape.beta = activation.beta
    shape.x_blocked = shape.y_blocked = 0
    return 0
