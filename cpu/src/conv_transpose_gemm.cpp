// Transposed convolution as a matrix product followed by a gather: columns[(m, tap)][place of x] = sum over c of
// w[c][m][tap] * x[c][place] is a 1x1 convolution (conv_blocked.cpp, or conv_gemm.cpp where input channels do not fill a
// vector), and each row of y sums the columns that meet it ("GEMM + col2im"). The output channels go in blocks whose columns stay in the cache.
//
// Places of y that share a remainder by the stride read whole runs of columns, so each remainder is summed as a row of
// its own and the rows are interleaved into y with bias, residual and activation. Threads share first the product,
// then the rows of y. Weights come as (groups, M / groups, kernel, C / groups).
#include <omp.h>

#include "conv_epilogue.h"

extern "C" {
void QF_EXPORT(conv_blocked_f32_needs)(const ConvShape*, ConvNeeds*);
void QF_EXPORT(conv_blocked_f32_pack)(const ConvShape*, const float*, float*);
void QF_EXPORT(conv_blocked_f32)(const ConvShape*, const ConvCall*);
void QF_EXPORT(conv_gemm_f32_needs)(const ConvShape*, ConvNeeds*);
void QF_EXPORT(conv_gemm_f32_pack)(const ConvShape*, const float*, float*);
void QF_EXPORT(conv_gemm_f32)(const ConvShape*, const ConvCall*);
}

namespace {

// What computes the columns.
struct Product {
  void (*needs)(const ConvShape*, ConvNeeds*);
  void (*pack)(const ConvShape*, const float*, float*);
  void (*run)(const ConvShape*, const ConvCall*);

  explicit Product(const ConvShape& s) {
    const bool blocked = s.in_channels >= LANES;
    needs = blocked ? QF_EXPORT(conv_blocked_f32_needs) : QF_EXPORT(conv_gemm_f32_needs);
    pack = blocked ? QF_EXPORT(conv_blocked_f32_pack) : QF_EXPORT(conv_gemm_f32_pack);
    run = blocked ? QF_EXPORT(conv_blocked_f32) : QF_EXPORT(conv_gemm_f32);
  }
};

// In a transposed ConvShape `output` is x's extent and `input` y's.
struct Blocks {
  int64_t places, taps, channels, count;  // of x, of the kernel, of y in one block, blocks in a group

  explicit Blocks(const ConvShape& s) : places(volume(s.output)), taps(volume(s.kernel)) {
    const int64_t fit = (1 << 20) / (taps * places * int64_t(sizeof(float)));
    count = divide_up(s.out_channels, fit < 1 ? 1 : smaller(fit, s.out_channels));
    channels = divide_up(s.out_channels, count);
    count = divide_up(s.out_channels, channels);
  }
  int64_t begin(int64_t block) const { return block * channels; }
  int64_t size(const ConvShape& s, int64_t block) const { return smaller(channels, s.out_channels - begin(block)); }

  // The 1x1 convolution that makes a block's columns.
  ConvShape product(const ConvShape& s, int64_t block) const {
    return {1, 1, s.in_channels, size(s, block) * taps, {1, 1, places}, {1, 1, places},
            {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, QF_IDENTITY, 0, 0, 0, 0};
  }
  int64_t column_bytes() const { return divide_up(channels * taps * places * int64_t(sizeof(float)), 64) * 64; }
};

int64_t row_bytes(const ConvShape& s) {
  return divide_up((s.input[2] + s.strides[2]) * int64_t(sizeof(float)), 64) * 64;
}

struct Gather {
  const ConvShape& s;
  const Epilogue& epilogue;

  // Row (d, h) of y for one channel. columns: that channel's, one run of places for each tap. sums: room for a row.
  void row(const float* columns, int64_t d, int64_t h, float bias, const float* residual, float* y, float* sums) const {
    const int64_t stride = s.strides[2], width = s.input[2], places = volume(s.output);
    const int64_t length = divide_up(width, stride);
    for (int64_t remainder = 0; remainder < smaller(stride, width); remainder++) {
      const int64_t count = divide_up(width - remainder, stride);
      float* out = stride == 1 ? y : sums + (stride == 2 ? remainder * length : 0);
      for (int64_t i = 0; i < count; i++) out[i] = bias;
      for (int64_t kd = 0; kd < s.kernel[0]; kd++)
        for (int64_t kh = 0; kh < s.kernel[1]; kh++) {
          const int64_t td = d + s.pads[0] - kd * s.dilations[0], th = h + s.pads[1] - kh * s.dilations[1];
          if (td < 0 || th < 0 || td % s.strides[0] || th % s.strides[1]) continue;
          const int64_t id = td / s.strides[0], ih = th / s.strides[1];
          if (id >= s.output[0] || ih >= s.output[1]) continue;
          for (int64_t kw = 0; kw < s.kernel[2]; kw++) {
            const int64_t distance = remainder + s.pads[2] - kw * s.dilations[2];
            if (distance % stride) continue;
            const int64_t shift = distance / stride;
            const int64_t begin = shift < 0 ? -shift : 0, end = smaller(count, s.output[2] - shift);
            const int64_t tap = (kd * s.kernel[1] + kh) * s.kernel[2] + kw;
            const float* from = columns + tap * places + (id * s.output[1] + ih) * s.output[2] + shift;
            for (int64_t i = begin; i < end; i++) out[i] += from[i];
          }
        }
      if (stride > 2)
        for (int64_t i = 0; i < count; i++) y[i * stride + remainder] = out[i];
    }
    if (stride == 2) {
      const float *even = sums, *odd = sums + length;
      for (int64_t i = 0; i < width / 2; i++) {
        y[2 * i] = even[i];
        y[2 * i + 1] = odd[i];
      }
      if (width % 2) y[width - 1] = even[length - 1];
    }
    if (residual)
      for (int64_t i = 0; i < width; i++) y[i] += residual[i];
    if (epilogue.clamps || epilogue.later) epilogue.activate_row(y, width);
  }
};

}  // namespace

extern "C" void QF_EXPORT(conv_transpose_gemm_f32_needs)(const ConvShape* s, ConvNeeds* needs) {
  const Blocks blocks(*s);
  const Product compute(*s);
  *needs = {0, 0};
  for (int64_t block = 0; block < blocks.count; block++) {
    const ConvShape product = blocks.product(*s, block);
    ConvNeeds inner;
    compute.needs(&product, &inner);
    inner.packed = divide_up(inner.packed, 64) * 64;  // whole cache lines, since they follow one another
    needs->packed += s->groups * inner.packed;
    if (inner.workspace > needs->workspace) needs->workspace = inner.workspace;
  }
  if (needs->workspace < size_t(row_bytes(*s))) needs->workspace = row_bytes(*s);
  needs->workspace += blocks.column_bytes();
}

extern "C" void QF_EXPORT(conv_transpose_gemm_f32_pack)(const ConvShape* s, const float* weights, float* packed) {
  const Blocks blocks(*s);
  const Product compute(*s);
  for (int64_t group = 0; group < s->groups; group++)
    for (int64_t block = 0; block < blocks.count; block++) {
      const ConvShape product = blocks.product(*s, block);
      ConvNeeds inner;
      compute.needs(&product, &inner);
      compute.pack(&product, weights, packed);
      weights += product.out_channels * s->in_channels;
      packed += divide_up(inner.packed, 64) * 64 / sizeof(float);
    }
}

extern "C" void QF_EXPORT(conv_transpose_gemm_f32)(const ConvShape* shape, const ConvCall* call) {
  const ConvShape& s = *shape;
  const Blocks blocks(s);
  const Product compute(s);
  const Epilogue epilogue(s);
  const Gather gather{s, epilogue};
  const int64_t y_size = volume(s.input), rows = s.input[0] * s.input[1];
  float* columns = (float*)call->workspace;
  char* rest = call->workspace + blocks.column_bytes();
  for (int64_t image = 0; image < s.batch; image++) {
    const float* packed = (const float*)call->weights;
    for (int64_t group = 0; group < s.groups; group++)
      for (int64_t block = 0; block < blocks.count; block++) {
        const int64_t first = group * s.out_channels + blocks.begin(block), channels = blocks.size(s, block);
        const ConvShape product = blocks.product(s, block);
        ConvNeeds inner;
        compute.needs(&product, &inner);
        const float* x = (const float*)call->x + (image * s.groups + group) * s.in_channels * blocks.places;
        const ConvCall multiply{x, packed, nullptr, nullptr, columns, rest, call->threads,
                                (const float*)call->plain_weights + first * blocks.taps * s.in_channels};
        compute.run(&product, &multiply);
        packed += divide_up(inner.packed, 64) * 64 / sizeof(float);
#pragma omp parallel for schedule(static) num_threads(call->threads) if (call->threads > 1)
        for (int64_t part = 0; part < channels * rows; part++) {
          const int64_t channel = part / rows, d = part % rows / s.input[1], h = part % s.input[1];
          const int64_t m = first + channel;
          const int64_t at = (image * s.groups * s.out_channels + m) * y_size + part % rows * s.input[2];
          gather.row(columns + channel * blocks.taps * blocks.places, d, h,
                     call->bias ? ((const float*)call->bias)[m] : 0.0f,
                     call->residual ? (const float*)call->residual + at : nullptr, (float*)call->y + at,
                     (float*)(rest + omp_get_thread_num() * row_bytes(s)));
        }
      }
  }
}
