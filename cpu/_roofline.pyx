# The thin door to cpu/src/roofline.cpp: what one core can do at most.

cimport cython
from libc.stdint cimport int64_t

cdef extern from *:
    """
    #include <cstdint>

    #include "instruction_sets.h"

    QF_DECLARE(double, roofline_flops_f32, (int64_t, float, float, float*))
    QF_DECLARE(double, roofline_bytes_f32, (const float*, int64_t, int64_t, float*))
    """
    ctypedef double (*FlopsFunction)(int64_t, float, float, float*) noexcept nogil
    ctypedef double (*BytesFunction)(const float*, int64_t, int64_t, float*) noexcept nogil
    FlopsFunction roofline_flops_f32(int isa) nogil
    BytesFunction roofline_bytes_f32(int isa) nogil


def flops(int isa, int64_t rounds):
    """Floating-point operations a second, over that many rounds of multiply-adds."""
    cdef float sink
    cdef double rate
    with nogil:
        rate = roofline_flops_f32(isa)(rounds, 0.999, 0.001, &sink)
    return rate


@cython.boundscheck(False)
def bytes_read(int isa, const float[::1] block, int64_t passes):
    """Bytes read a second, in that many passes over the block (whole groups of 128 floats are read)."""
    cdef int64_t count = block.shape[0] // 128 * 128
    cdef float sink
    cdef double rate
    if count == 0:
        raise ValueError("the block has to hold 128 floats or more")
    with nogil:
        rate = roofline_bytes_f32(isa)(&block[0], count, passes, &sink)
    return rate
