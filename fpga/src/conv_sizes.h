/* The places of a convolution's sizes in the argument g of the kernels for any shape. */
enum {
  BATCH, GROUPS, IN_CHANNELS, OUT_CHANNELS,
  IN_D, IN_H, IN_W, OUT_D, OUT_H, OUT_W, KERNEL_D, KERNEL_H, KERNEL_W,
  STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W, PAD_D, PAD_H, PAD_W
};
