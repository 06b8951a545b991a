/* The stream of pixels through a stage that slides a window over a plane: shared by conv_line_buffer.h and
 * pool_line_buffer.h.
 *
 * The plane arrives row by row, padding made on the way, one pixel of all channels an iteration. A shift register holds
 * the last (EXTENT_H - 1) rows and EXTENT_W pixels, so that a window's taps are always at the same places and every
 * value is read once (Bosi, Bois and Savaria, Reconfigurable pipelined 2-D convolvers, IEEE TVLSI 1999). Pixels that no
 * window reaches are taken and left. Sizes are compile-time constants.
 */
#define EXTENT_H ((KERNEL_H - 1) * DILATION_H + 1)
#define EXTENT_W ((KERNEL_W - 1) * DILATION_W + 1)
#define ROWS ((OUT_H - 1) * STRIDE_H + EXTENT_H)
#define COLUMNS ((OUT_W - 1) * STRIDE_W + EXTENT_W)
#define PIXELS ((EXTENT_H - 1) * COLUMNS + EXTENT_W)
#define ALL_ROWS (ROWS > PAD_H + HEIGHT ? ROWS : PAD_H + HEIGHT)
#define ALL_COLUMNS (COLUMNS > PAD_W + WIDTH ? COLUMNS : PAD_W + WIDTH)

#if defined(UNROLL_LOOPS) && defined(QF_PIPES)
#define UNROLL __attribute__((opencl_unroll_hint))
#elif defined(UNROLL_LOOPS)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL
#endif

/* Where the next pixel lies in the padded plane, and in which plane of the stream. */
typedef struct {
  int row, column, plane;
} cursor_t;

static inline void advance(cursor_t* at) {
  if (++at->column < ALL_COLUMNS) return;
  at->column = 0;
  if (++at->row < ALL_ROWS) return;
  at->row = 0;
  at->plane++;
}

/* Whether the pixel comes from the stream; else it is padding. */
static inline int inside(cursor_t at) {
  return at.row >= PAD_H && at.row < PAD_H + HEIGHT && at.column >= PAD_W && at.column < PAD_W + WIDTH;
}

/* Whether a window reaches the pixel. */
static inline int reached(cursor_t at) { return at.row < ROWS && at.column < COLUMNS; }

/* Whether the pixel is the last one of an output's window. */
static inline int complete(cursor_t at) {
  int from_h = at.row - (EXTENT_H - 1), from_w = at.column - (EXTENT_W - 1);
  return from_h >= 0 && from_w >= 0 && from_h % STRIDE_H == 0 && from_w % STRIDE_W == 0;
}
