// What the Cython doors need of NumPy's C interface: where an array's elements are, a new array, and whether an array
// is just what was planned. Each of these takes nanoseconds, where the buffer protocol and numpy.empty take a tenth of
// a microsecond: as long as a small kernel.
#pragma once

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION  // allocation handlers
#include <numpy/arrayobject.h>

#include <cstdint>

constexpr int MOST_INPUT_AXES = 8;   // of any operator's inputs
constexpr int MOST_OUTPUT_AXES = 32;  // of any array, with earlier versions of NumPy

constexpr size_t LARGE_OUTPUT = 1 << 20;  // bytes from which memory is kept (output_memory.h)

// The handler of _arrays.pyx, for all modules.
static PyObject* large_outputs = nullptr;

// To be called once by each module that uses this; -1 with an exception where NumPy does not load.
static inline int import_numpy() { return _import_array(); }

// Likewise, before new_array.
static inline int import_output_memory() {
  PyObject* module = PyImport_ImportModule("quatrefoil.cpu._arrays");
  if (!module) return -1;
  large_outputs = PyObject_GetAttrString(module, "large_outputs");
  Py_DECREF(module);
  return large_outputs ? 0 : -1;
}

// Where the elements of a C-contiguous array are; the caller keeps the array alive. NULL with an exception for others.
static inline void* array_address(PyObject* array) {
  if (PyArray_Check(array) && PyArray_IS_C_CONTIGUOUS((PyArrayObject*)array))
    return PyArray_DATA((PyArrayObject*)array);
  PyErr_Format(PyExc_TypeError, "a CPU kernel takes C-contiguous NumPy arrays, not %R", Py_TYPE(array));
  return nullptr;
}

// A new array of a shape (a tuple) and dtype, C-contiguous, its elements not set.
static inline PyObject* new_array(PyObject* shape, PyObject* dtype) {
  npy_intp extents[MOST_OUTPUT_AXES];
  const Py_ssize_t rank = PyTuple_GET_SIZE(shape);
  if (rank > MOST_OUTPUT_AXES) return PyErr_Format(PyExc_ValueError, "%zd axes are too many", rank);
  for (Py_ssize_t i = 0; i < rank; i++) {
    extents[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, i));
    if (extents[i] == -1 && PyErr_Occurred()) return nullptr;
  }
  Py_INCREF(dtype);  // the new array takes this reference over
  PyArray_Descr* type = (PyArray_Descr*)dtype;
  const size_t bytes = size_t(PyArray_MultiplyList(extents, (int)rank)) * size_t(PyDataType_ELSIZE(type));
  PyObject* usual = nullptr;
  if (bytes >= LARGE_OUTPUT && !(usual = PyDataMem_SetHandler(large_outputs))) {
    Py_DECREF(dtype);
    return nullptr;
  }
  PyObject* array = PyArray_NewFromDescr(&PyArray_Type, type, (int)rank, extents, nullptr, nullptr, 0, nullptr);
  if (!usual) return array;
  PyObject* ours = PyDataMem_SetHandler(usual);
  Py_DECREF(usual);
  if (!ours) {
    Py_XDECREF(array);
    return nullptr;
  }
  Py_DECREF(ours);
  return array;
}

constexpr size_t SPARE_BYTES = 64 << 10;  // of the largest array that is kept as a spare

// The last small outputs of a prepared kernel. One that nobody else holds any more is as good as new: to free it and to make
// another takes as long as a small kernel. Two, so that there is one while a caller still holds the last result.
struct SpareArrays {
  PyObject* arrays[2];
  int oldest;
};

static inline void drop_spares(SpareArrays* spares) {
  for (PyObject*& array : spares->arrays) Py_CLEAR(array);
}

// Whether a spare is an array of its own of that shape and dtype still, and nobody's: no reference, no view, no weak reference.
static inline bool is_unused(PyObject* object, PyObject* shape, PyObject* dtype) {
#ifdef Py_GIL_DISABLED
  return false;
#endif
  PyArrayObject* array = (PyArrayObject*)object;
  constexpr int NEEDED = NPY_ARRAY_CARRAY | NPY_ARRAY_OWNDATA;
  const Py_ssize_t rank = PyTuple_GET_SIZE(shape);
  if (Py_REFCNT(object) != 1 || ((PyArrayObject_fields*)object)->weakreflist) return false;
  if ((PyArray_FLAGS(array) & NEEDED) != NEEDED || (PyObject*)PyArray_DESCR(array) != dtype || PyArray_NDIM(array) != rank)
    return false;
  for (Py_ssize_t i = 0; i < rank; i++)
    if (PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, i)) != PyArray_DIM(array, (int)i)) return false;
  return true;
}

// As new_array, or a spare.
static inline PyObject* output_array(SpareArrays* spares, PyObject* shape, PyObject* dtype) {
  for (PyObject* array : spares->arrays)
    if (array && is_unused(array, shape, dtype)) {
      Py_INCREF(array);
      return array;
    }
  PyObject* made = new_array(shape, dtype);
  if (!made || size_t(PyArray_NBYTES((PyArrayObject*)made)) > SPARE_BYTES) return made;
  PyObject*& place = spares->arrays[spares->oldest];
  spares->oldest ^= 1;
  Py_XDECREF(place);
  Py_INCREF(made);
  place = made;
  return made;
}

// The type of a planned input, and its place among the problem's inputs.
struct PlannedInput {
  int32_t place, dtype, rank;
  npy_intp shape[MOST_INPUT_AXES];
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
