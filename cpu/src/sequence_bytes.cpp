// Steps of a sequence around operators on bytes: floats to bytes and back as ONNX's QuantizeLinear and DequantizeLinear do it
// to the last bit, look-ups, the sum or product of what two bytes stand for, and copies of bytes.
//
// Rows (sequence_walk.h) are taken GROUP elements at a time, which are a vector of bytes and four of floats. Signed bytes are
// worked on as unsigned ones 128 higher. Where every product and sum has to be rounded by itself, as NumPy does it, `settle`
// keeps the compiler from contracting them. Limited by memory in large arrays, else by the conversions. Look-ups go through
// registers where the processor can permute bytes across them (AVX-512 VBMI).
#include "sequence_walk.h"

namespace {

constexpr int GROUP = 4 * LANES;
typedef uint8_t vbytes __attribute__((vector_size(GROUP)));
typedef vbytes vbytes_anywhere __attribute__((aligned(1), may_alias));
typedef uint8_t vlane __attribute__((vector_size(LANES)));

// GROUP elements from i on: where they are if they lie one after the other, else copied; behind `count` zeros.
template <class T>
QF_INLINE const T* group(const T* x, int64_t stride, int64_t i, int64_t count, T (&room)[GROUP]) {
  if (stride == 1 && count == GROUP) return x + i;
  memset(room, 0, sizeof room);
  for (int64_t k = 0; k < count; k++) room[k] = x[(i + k) * stride];
  return room;
}

// The k-th LANES of a group of unsigned bytes.
QF_INLINE vfloat floats(const uint8_t* bytes, int k) {
#if defined(QF_AVX512)
  const __m512i words = _mm512_maskz_cvtepu8_epi32(0xFFFF, _mm_loadu_si128((const __m128i*)(bytes + k * LANES)));
  return __builtin_convertvector((vint)words, vfloat);
#elif defined(QF_ISA_V3)
  return (vfloat)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(bytes + k * LANES))));
#else
  vlane lanes;
  memcpy(&lanes, bytes + k * LANES, sizeof lanes);
  return __builtin_convertvector(__builtin_convertvector(lanes, vint), vfloat);
#endif
}

// What bytes stand for.
struct Scale {
  vfloat scale, zero;
  uint8_t flip;
  Scale(const BytesContext& s, int operand)
      : scale(broadcast(s.scales[operand])), zero(broadcast(float(s.zeros[operand] + (s.is_signed[operand] ? 128 : 0)))),
        flip(s.is_signed[operand] ? 128 : 0) {}
  QF_INLINE vbytes unsigned_bytes(const uint8_t* p) const { return *(const vbytes_anywhere*)p ^ flip; }
  QF_INLINE vfloat value(vfloat byte) const {
    vfloat v = (byte - zero) * scale;
    settle(v);
    return v;
  }
};

// Steps of a scale in a value: v / scale as a division rounds it, where that is not beyond MOST steps, and beyond that many
// what is. Two corrections by the remainder give it (Markstein, Computation of elementary functions on the IBM RISC System/6000
// processor, 1990); what underflows is far below half a step. NaN stays.
struct Steps {
  static constexpr float MOST = 65536.0f, EXTREME = 0x1p96f;
  vfloat scale, inverse, most;
  bool divides;
  explicit Steps(float scale)
      : scale(broadcast(scale)), inverse(broadcast(1.0f / scale)), most(broadcast(MOST * scale)),
        divides(scale > EXTREME || scale < 1.0f / EXTREME) {}
  QF_INLINE vfloat count(vfloat v) const {
#if defined(QF_ISA_V4)  // whose divisions take longer
    if (divides) return v / scale;
    v = at_most(at_least(v, -most), most);
    vfloat q = v * inverse;
    settle(q);
    q = q + (v - q * scale) * inverse;
    settle(q);
    return q + (v - q * scale) * inverse;
#else
    return v / scale;
#endif
  }
};

struct Pack {
  int zero;
  uint32_t flip;
  explicit Pack(const BytesContext& s) : zero(s.zeros[2] + (s.is_signed[2] ? 128 : 0)), flip(s.is_signed[2] ? 0x80808080 : 0) {}
  QF_INLINE vbytes bytes(const vfloat (&v)[4]) const {
    return (vbytes)(pack_bytes<ByteOrder::SEQUENCE>(v[0], v[1], v[2], v[3], zero) ^ int32_t(flip));
  }
};

QF_INLINE void put(uint8_t* y, vbytes v, int64_t count) {
  if (count == GROUP) *(vbytes_anywhere*)y = v;
  else memcpy(y, &v, size_t(count));
}

QF_INLINE void put(float* y, const vfloat (&v)[4], int64_t count) {
  QF_UNROLL for (int k = 0; k < 4; k++) {
    const int64_t left = count - k * LANES;
    if (left >= LANES) store(y + k * LANES, v[k]);
    else if (left > 0) store_first(y + k * LANES, v[k], int(left));
  }
}

QF_INLINE vfloat rounded(vfloat v) {
#if defined(QF_AVX512)
  return (vfloat)_mm512_maskz_roundscale_ps(0xFFFF, (__m512)v, 0);
#elif defined(QF_ISA_V3)
  return (vfloat)_mm256_round_ps((__m256)v, 0);
#else
  QF_UNROLL for (int lane = 0; lane < LANES; lane++) v[lane] = __builtin_rintf(v[lane]);
  return v;
#endif
}

struct Sources {
  const void *a, *b;
  int64_t a_stride, b_stride;
};

template <int FUNCTION>
void from_floats(const BytesContext& s, const Sources& in, void* y, int64_t begin, int64_t end) {
  const Pack pack(s);
  const Steps steps(s.scales[2]);
  const vfloat nothing = broadcast(float(-s.zeros[2]));
  float room[GROUP];
  for (int64_t i = begin; i < end; i += GROUP) {
    const int64_t count = smaller(GROUP, end - i);
    const float* x = group((const float*)in.a, in.a_stride, i, count, room);
    vfloat v[4];
    QF_UNROLL for (int k = 0; k < 4; k++) v[k] = steps.count(load(x + k * LANES));
    if constexpr (FUNCTION == BYTES_QUANTIZE) {
      QF_UNROLL for (int k = 0; k < 4; k++) v[k] = v[k] == v[k] ? v[k] : nothing;
      put((uint8_t*)y + i, pack.bytes(v), count);
    } else {
      QF_UNROLL for (int k = 0; k < 4; k++)
        v[k] = at_most(at_least(rounded(v[k]), broadcast(s.low)), broadcast(s.high)) * steps.scale;
      put((float*)y + i, v, count);
    }
  }
}

template <int FUNCTION>
void to_floats(const BytesContext& s, const Sources& in, void* y, int64_t begin, int64_t end) {
  const Scale scale(s, 0);
  for (int64_t i = begin; i < end; i += GROUP) {
    const int64_t count = smaller(GROUP, end - i);
    vfloat v[4];
    if constexpr (FUNCTION == BYTES_SUMS) {
      int32_t room[GROUP];
      const int32_t* x = group((const int32_t*)in.a, in.a_stride, i, count, room);
      QF_UNROLL for (int k = 0; k < 4; k++)
        v[k] = __builtin_convertvector((vint)load((const float*)x + k * LANES), vfloat) * scale.scale;
    } else {
      uint8_t room[GROUP];
      const vbytes bytes = scale.unsigned_bytes(group((const uint8_t*)in.a, in.a_stride, i, count, room));
      QF_UNROLL for (int k = 0; k < 4; k++) v[k] = (floats((const uint8_t*)&bytes, k) - scale.zero) * scale.scale;
    }
    put((float*)y + i, v, count);
  }
}

// One or two bytes in steps of y's.
template <int FUNCTION>
void in_steps(const BytesContext& s, const Sources& in, void* y, int64_t begin, int64_t end) {
  const Scale first(s, 0), second(s, 1);
  const Pack pack(s);
  const Steps steps(s.scales[2]);
  const vfloat offset = broadcast(s.offset);
  // bytes are kept in their range by steps of it, before they are packed
  const vfloat least = broadcast(float(s.least - pack.zero)), most = broadcast(float(s.most - pack.zero));
  const bool bounded = s.least > 0 || s.most < 255;
  uint8_t rooms[2][GROUP];
  for (int64_t i = begin; i < end; i += GROUP) {
    const int64_t count = smaller(GROUP, end - i);
    const vbytes a = first.unsigned_bytes(group((const uint8_t*)in.a, in.a_stride, i, count, rooms[0]));
    vbytes b = {};
    if constexpr (FUNCTION != BYTES_RESCALE)
      b = second.unsigned_bytes(group((const uint8_t*)in.b, in.b_stride, i, count, rooms[1]));
    vfloat v[4];
    QF_UNROLL for (int k = 0; k < 4; k++) {
      const vfloat p = floats((const uint8_t*)&a, k), q = floats((const uint8_t*)&b, k);
      if constexpr (FUNCTION == BYTES_RESCALE) {
        v[k] = p * first.scale + offset;
      } else if constexpr (FUNCTION == BYTES_COMBINE) {
        v[k] = p * first.scale + (q * second.scale + offset);
      } else {
        vfloat result;
        if constexpr (FUNCTION == BYTES_ADD) result = first.value(p) + second.value(q);
        else if constexpr (FUNCTION == BYTES_SUBTRACT) result = first.value(p) - second.value(q);
        else result = first.value(p) * second.value(q);
        settle(result);
        v[k] = steps.count(result);
      }
      if (bounded) v[k] = at_most(at_least(v[k], least), most);
    }
    put((uint8_t*)y + i, pack.bytes(v), count);
  }
}

QF_INLINE void copy(const BytesContext&, const Sources& in, void* y, int64_t begin, int64_t end) {
  const uint8_t* x = (const uint8_t*)in.a;
  uint8_t* to = (uint8_t*)y;
  if (in.a_stride == 1) memcpy(to + begin, x + begin, size_t(end - begin));
  else if (in.a_stride == 0) memset(to + begin, *x, size_t(end - begin));
  else
    for (int64_t i = begin; i < end; i++) to[i] = x[i * in.a_stride];
}

QF_INLINE void look_up(const BytesContext& s, const Sources& in, void* y, int64_t begin, int64_t end) {
  const uint8_t* x = (const uint8_t*)in.a;
  uint8_t* to = (uint8_t*)y;
#if defined(QF_AVX512) && defined(__AVX512VBMI__)
  __m512i table[4];
  QF_UNROLL for (int part = 0; part < 4; part++) table[part] = _mm512_loadu_si512(s.table + 64 * part);
  uint8_t room[GROUP];
  for (int64_t i = begin; i < end; i += GROUP) {
    const int64_t count = smaller(GROUP, end - i);
    const __m512i index = _mm512_loadu_si512(group(x, in.a_stride, i, count, room));
    const __m512i low = _mm512_permutex2var_epi8(table[0], index, table[1]);
    const __m512i high = _mm512_permutex2var_epi8(table[2], index, table[3]);
    put(to + i, (vbytes)_mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high), count);
  }
#else
  for (int64_t i = begin; i < end; i++) to[i] = s.table[x[i * in.a_stride]];
#endif
}

void look_up_two(const BytesContext& s, const Sources& in, void* y, int64_t begin, int64_t end) {
  const uint8_t *a = (const uint8_t*)in.a, *b = (const uint8_t*)in.b;
  for (int64_t i = begin; i < end; i++)
    ((uint8_t*)y)[i] = s.table[256 * a[i * in.a_stride] + b[i * in.b_stride]];
}

using Row = void (*)(const BytesContext&, const Sources&, void*, int64_t, int64_t);
constexpr Row ROWS[] = {copy, look_up, look_up_two, from_floats<BYTES_QUANTIZE>, from_floats<BYTES_ROUND_TRIP>,
                        to_floats<BYTES_DEQUANTIZE>, to_floats<BYTES_SUMS>, in_steps<BYTES_ADD>, in_steps<BYTES_SUBTRACT>,
                        in_steps<BYTES_MULTIPLY>, in_steps<BYTES_COMBINE>, in_steps<BYTES_RESCALE>};

// Copies rows of bytes that lie one after the other, or looks them up: as walk_rows does it, which takes as long for each row
// as a row of some channels takes.
void move_rows(const BytesContext& s, const void* const* inputs, void* const* outputs, int threads) {
  const int64_t rows = s.extents[0], length = s.extents[1], x_step = s.strides[1][0], y_step = s.strides[0][0];
  const int64_t team = rows * length < WORTH_THREADS ? 1 : smaller(threads, rows);
#pragma omp parallel for num_threads(int(team)) if (team > 1)
  for (int64_t part = 0; part < team; part++)
    for (int64_t i = rows * part / team; i < rows * (part + 1) / team; i++) {
      const Sources in = {(const uint8_t*)inputs[0] + i * x_step, nullptr, 1, 0};
      uint8_t* y = (uint8_t*)outputs[0] + i * y_step;
      if (s.function == BYTES_TABLE) look_up(s, in, y, 0, length);
      else copy(s, in, y, 0, length);
    }
}

}  // namespace

extern "C" void QF_EXPORT(sequence_bytes)(const void* context, const void* const* inputs, void* const* outputs, char*,
                                          int threads) {
  const BytesContext& s = *static_cast<const BytesContext*>(context);
  if (s.function <= BYTES_TABLE && s.rank == 2 && s.strides[1][1] == 1 && s.extents[1] < PART)
    return move_rows(s, inputs, outputs, threads);
  const Row row = ROWS[s.function];
  const bool wide = s.function == BYTES_QUANTIZE || s.function == BYTES_ROUND_TRIP || s.function == BYTES_SUMS;
  const int64_t x_size = wide ? 4 : 1;
  const int64_t y_size =
      s.function == BYTES_ROUND_TRIP || s.function == BYTES_DEQUANTIZE || s.function == BYTES_SUMS ? 4 : 1;
  walk_rows<3>(s, threads, [&](const int64_t (&offsets)[3], int64_t begin, int64_t end) {
    const Sources in = {(const char*)inputs[0] + offsets[1] * x_size, (const char*)inputs[1] + offsets[2],
                        s.strides[1][s.rank - 1], s.strides[2][s.rank - 1]};
    row(s, in, (char*)outputs[0] + offsets[0] * y_size, begin, end);
  });
}
