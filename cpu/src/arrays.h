// What the Cython doors need of NumPy's C interface: where an array's elements are, a new array, and whether an array
// is just what was planned. Each of these takes nanoseconds, where the buffer protocol and numpy.empty take a tenth of
// a microsecond: as long as a small kernel.
#pragma once

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>

#include <cstdint>

constexpr int MOST_AXES = 8;  // of any operator's arrays

// To be called once by each module that uses this; -1 with an exception where NumPy does not load.
static inline int import_numpy() { return _import_array(); }

// Where the elements of a C-contiguous array are; the caller keeps the array alive. NULL with an exception for others.
static inline void* array_address(PyObject* array) {
  if (PyArray_Check(array) && PyArray_IS_C_CONTIGUOUS((PyArrayObject*)array))
    return PyArray_DATA((PyArrayObject*)array);
  PyErr_Format(PyExc_TypeError, "a CPU kernel takes C-contiguous NumPy arrays, not %R", Py_TYPE(array));
  return nullptr;
}

// A new array of a shape (a tuple) and dtype, C-contiguous, its elements not set.
static inline PyObject* new_array(PyObject* shape, PyObject* dtype) {
  npy_intp extents[MOST_AXES];
  const Py_ssize_t rank = PyTuple_GET_SIZE(shape);
  if (rank > MOST_AXES) return PyErr_Format(PyExc_ValueError, "%zd axes are too many", rank);
  for (Py_ssize_t i = 0; i < rank; i++) {
    extents[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, i));
    if (extents[i] == -1 && PyErr_Occurred()) return nullptr;
  }
  Py_INCREF(dtype);  // the new array takes this reference over
  return PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr*)dtype, (int)rank, extents, nullptr, nullptr, 0, nullptr);
}

// The type of a planned input, and its place among the problem's inputs.
struct PlannedInput {
  int32_t place, dtype, rank;
  npy_intp shape[MOST_AXES];
};

// Whether kernels can take the array as it is: numpy.ndarray itself, of the planned dtype and shape, C-contiguous,
// aligned, in native byte order. It may be read-only.
static inline bool is_as_planned(PyObject* object, const PlannedInput* planned) {
  if (!PyArray_CheckExact(object)) return false;
  PyArrayObject* array = (PyArrayObject*)object;
  if (PyArray_TYPE(array) != planned->dtype || PyArray_NDIM(array) != planned->rank || !PyArray_ISCARRAY_RO(array))
    return false;
  return PyArray_CompareLists(PyArray_DIMS(array), planned->shape, planned->rank);
}
