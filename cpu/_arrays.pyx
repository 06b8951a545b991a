# Native code for what a plan does at each call before its kernel runs.

from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport int32_t

cdef extern from "arrays.h":
    int MOST_INPUT_AXES

    cdef struct PlannedInput:
        int32_t place, dtype, rank
        Py_ssize_t shape[8]

    int import_numpy() except -1
    bint is_as_planned(object array, const PlannedInput* planned)

cdef extern from "output_memory.h" namespace "output_memory":
    object handler()

import_numpy()

large_outputs = handler()
"""The allocation handler of large outputs, for new_array of arrays.h."""

cdef enum:
    MOST_INPUTS = 16  # of any operator


cdef class PlannedRun:
    """Recognises inputs that a kernel can take as they are, and runs it.

    run: of the kernel. count: of the problem's inputs. planned: for each input of a call its place among them, dtype
    and shape.
    """

    cdef PlannedInput planned[MOST_INPUTS]
    cdef Py_ssize_t count, given
    cdef object run

    def __init__(self, run, Py_ssize_t count, planned):
        self.run = run
        self.count = count
        self.given = len(planned)
        if self.given > MOST_INPUTS or any(len(shape) > MOST_INPUT_AXES for _, _, shape in planned):
            raise ValueError(f"a plan's call takes at most {MOST_INPUTS} inputs of at most {MOST_INPUT_AXES} axes")
        for i, (place, dtype, shape) in enumerate(planned):
            self.planned[i].place = place
            self.planned[i].dtype = dtype.num
            self.planned[i].rank = len(shape)
            for axis, extent in enumerate(shape):
                self.planned[i].shape[axis] = extent

    def call(self, tuple inputs not None):
        """The kernel's outputs; None where it cannot take the inputs as they are: another number of them, no
        numpy.ndarray itself, another dtype or shape, elements apart or in another byte order."""
        cdef Py_ssize_t i
        if PyTuple_GET_SIZE(inputs) != self.given:
            return None
        for i in range(self.given):
            if not is_as_planned(<object>PyTuple_GET_ITEM(inputs, i), &self.planned[i]):
                return None
        cdef tuple placed = PyTuple_New(self.count)
        for i in range(self.count):
            Py_INCREF(None)
            PyTuple_SET_ITEM(placed, i, None)
        for i in range(self.given):
            array = <object>PyTuple_GET_ITEM(inputs, i)
            Py_INCREF(array)
            PyTuple_SET_ITEM(placed, self.planned[i].place, array)
        return self.run(placed)
