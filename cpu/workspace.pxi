# Memory that prepared layers keep or take for the time of a call. After door.pxi.

cdef extern from "large_pages.h" nogil:
    void prefer_large_pages(void* data, size_t size)


# From this size on, pages are large: streaming weights would otherwise stop at the end of each small page.
cdef size_t LARGE_PAGE = 2 << 20


cdef class Buffer:
    """Memory of a given size, aligned to a cache line, in large pages where the system has them and it pays."""

    cdef char* data
    cdef size_t size

    def __cinit__(self, size_t size):
        cdef void* data = NULL
        cdef bint large = size >= LARGE_PAGE
        if posix_memalign(&data, LARGE_PAGE if large else 64, size or 64):
            raise MemoryError(f"{size} bytes for a layer's weights or workspace")
        if large:
            prefer_large_pages(data, size)
        self.data = <char*>data
        self.size = size

    def __dealloc__(self):
        free(self.data)


# Workspaces that no call is using. Calls share them, so that they stay in the cache from layer to layer.
cdef list idle_workspaces = []


cdef Buffer take_workspace(size_t size):
    cdef Buffer buffer
    if idle_workspaces:
        buffer = idle_workspaces.pop()
        if buffer.size >= size:
            return buffer
    return Buffer(size)
