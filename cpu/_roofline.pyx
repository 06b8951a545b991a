# The thin door to cpu/src/roofline.cpp: what one core can do at most.

cimport cython
from libc.stdint cimport int32_t, int64_t

cdef extern from *:
    """
    #include <cstdint>

    #include "instruction_sets.h"

    QF_DECLARE(double, roofline_flops_f32, (int64_t, float, float, float*))
    QF_DECLARE(double, roofline_bytes_f32, (const float*, int64_t, int64_t, float*))
    QF_DECLARE_VNNI(double, roofline_products_i8, (int64_t, int32_t, int32_t, int32_t*))
    QF_DECLARE_AMX_ALONE(double, roofline_tiles_i8, (int64_t, int32_t*))
    """
    ctypedef double (*FlopsFunction)(int64_t, float, float, float*) noexcept nogil
    ctypedef double (*BytesFunction)(const float*, int64_t, int64_t, float*) noexcept nogil
    ctypedef double (*ProductsFunction)(int64_t, int32_t, int32_t, int32_t*) noexcept nogil
    ctypedef double (*TilesFunction)(int64_t, int32_t*) noexcept nogil
    FlopsFunction roofline_flops_f32(int isa) nogil
    BytesFunction roofline_bytes_f32(int isa) nogil
    ProductsFunction roofline_products_i8(int isa) nogil
    TilesFunction roofline_tiles_i8(int isa) nogil


def flops(int isa, int64_t rounds):
    """Floating-point operations a second, over that many rounds of multiply-adds."""
    cdef float sink
    cdef double rate
    with nogil:
        rate = roofline_flops_f32(isa)(rounds, 0.999, 0.001, &sink)
    return rate


def byte_operations(int isa, int64_t rounds):
    """Multiplications of bytes and additions in int32 a second, over that many rounds, in vectors or, where it is faster, in
    tiles (a round of which does the most work, so that there are a sixteenth as many)."""
    cdef int32_t sink
    cdef double rate, tiles
    with nogil:
        rate = roofline_products_i8(isa)(rounds, 0x01020304, 0x04030201, &sink)
        if roofline_tiles_i8(isa) != NULL:
            tiles = roofline_tiles_i8(isa)(rounds // 16, &sink)
            rate = max(rate, tiles)
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
