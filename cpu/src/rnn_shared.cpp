// rnn, lstm and gru in float32 whose weights are shared: codes in memory, decoded on their way into the products (codes.h).
//
// The layer is that of rnn_layer.h. A step of one sequence reads every recurrent weight once: as codes they come from a
// nearer cache than as floats, and the limit is decoding.
#include "codes.h"
#include "rnn_layer.h"

namespace {

template <int BITS>
struct Shared {
  static constexpr bool SPREADS = false;
  static int64_t panel_floats(int64_t depth, int64_t columns) { return bytes_of_codes(BITS, depth, columns) / 4; }
  static int64_t room_floats(const RnnArguments&, int64_t) { return 0; }

  static void pack(const RnnArguments& a, const Layout& l, Part part, int64_t index, float* to) {
    const int64_t depth = depth_of(a, part), columns = columns_of(a, l, part);
    const uint8_t* from = static_cast<const uint8_t*>(part == INPUTS ? a.w : a.r) + index * l.gates * a.hidden * depth;
    for (int64_t block = 0; block < l.blocks; block++, to += panel_floats(depth, columns)) {
      const auto code = [&](int64_t k, int64_t column, int lane) {
        const int64_t gate = l.gates == 1 ? 0 : part == CANDIDATE ? 2 : column;
        const int64_t unit = (block * l.vectors + (l.gates == 1 ? column : 0)) * LANES + lane;
        return unit < a.hidden ? from[(gate * a.hidden + unit) * depth + k] : uint8_t(0);
      };
      pack_codes<BITS>(depth, columns, code, reinterpret_cast<uint8_t*>(to));
    }
  }

  static void product(const RnnArguments& a, const Layout& l, const Direction& d, Part part, int64_t block, int64_t rows,
                      const float* x, int64_t x_row, const float* from, int64_t from_row, float* out, int64_t out_row, int last) {
    const int columns = columns_of(a, l, part);
    const int64_t depth = depth_of(a, part);
    const float* panel = (part == INPUTS ? d.w : part == STATE ? d.r : d.candidate) + block * panel_floats(depth, columns);
    coded_products_of<BITS>(columns, rows, x, x_row, depth, reinterpret_cast<const uint8_t*>(panel),
                            part == INPUTS ? a.w_book : a.r_book, from, from_row, out, out_row, last);
  }
};

}  // namespace

extern "C" {
void QF_EXPORT(rnn_codes4_needs_f32)(const RnnArguments* a, RnnNeeds* needs) { layer_needs<Shared<4>>(*a, *needs); }
void QF_EXPORT(rnn_codes4_pack_f32)(const RnnArguments* a, float* packed) { pack_layer<Shared<4>>(*a, packed); }
void QF_EXPORT(rnn_codes4_f32)(const RnnArguments* a) { any_layer<Shared<4>>(*a); }
void QF_EXPORT(rnn_codes8_needs_f32)(const RnnArguments* a, RnnNeeds* needs) { layer_needs<Shared<8>>(*a, *needs); }
void QF_EXPORT(rnn_codes8_pack_f32)(const RnnArguments* a, float* packed) { pack_layer<Shared<8>>(*a, packed); }
void QF_EXPORT(rnn_codes8_f32)(const RnnArguments* a) { any_layer<Shared<8>>(*a); }
}
