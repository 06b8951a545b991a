/* The end of a quantised convolution; Y_TYPE, Y_LOW and Y_HIGH are macros. Every step rounds to float32 once. */
#pragma once

QF_FUNCTION Y_TYPE requantize(int accumulator, float multiplier, int zero_point) {
  float scaled = rintf(__fmul_rn(__int2float_rn(accumulator), multiplier));
  /* beyond these bounds the result is saturated whatever the zero point; inside them it fits an int */
  scaled = scaled > -1024.0f ? scaled : -1024.0f;
  scaled = scaled < 1024.0f ? scaled : 1024.0f;
  const int value = static_cast<int>(scaled) + zero_point;
  return static_cast<Y_TYPE>(value < Y_LOW ? Y_LOW : value > Y_HIGH ? Y_HIGH : value);
}
