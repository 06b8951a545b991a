// Recurrent layers that hls4ml has not: SimpleRNN, GRU that resets before or after its product, LSTM with a function of
// its own for h; forward or backward, from a given state. Numbers as in hls4ml's nnet_recurrent.h: sums in accum_t,
// functions from tables, states in res_T. Gates lie in ONNX's order: LSTM i, o, f, c; GRU z, r, h.
//
// One step at a time from an array of (steps, inputs) or a stream of steps; a backward layer that reads a stream keeps
// the whole sequence first.
#ifndef QUATREFOIL_RECURRENT_H_
#define QUATREFOIL_RECURRENT_H_

#include "hls_stream.h"
#include "nnet_common.h"
#include "nnet_recurrent.h"

namespace nnet {

enum class quatrefoil_cell { rnn, lstm, gru, gru_after };
enum class quatrefoil_output { sequence, h, c };

// sums[o] = bias[o] + data[i] weights[i][o] over i = 0, R, 2R, ..., then 1, R + 1, ...; each product and each sum is cast.
template <class data_T, class weight_T, class bias_T, class accum_T, unsigned N_IN, unsigned N_OUT, unsigned STRIDE,
          unsigned REUSE>
void quatrefoil_sums(const data_T data[N_IN], accum_T sums[N_OUT], const weight_T weights[N_IN * STRIDE],
                     const bias_T biases[N_OUT]) {
    for (unsigned o = 0; o < N_OUT; o++) {
        #pragma HLS UNROLL
        sums[o] = (accum_T)biases[o];
    }
    for (unsigned r = 0; r < REUSE; r++) {
        #pragma HLS PIPELINE II=1 rewind
        for (unsigned k = 0; k < (N_IN + REUSE - 1) / REUSE; k++) {
            #pragma HLS UNROLL
            const unsigned i = r + k * REUSE;
            if (i < N_IN) {
                for (unsigned o = 0; o < N_OUT; o++) {
                    #pragma HLS UNROLL
                    accum_T product = data[i] * weights[i * STRIDE + o];
                    sums[o] += product;
                }
            }
        }
    }
}

template <class data_T, class res_T, typename CONFIG_T>
void quatrefoil_step(const data_T data[CONFIG_T::n_in], res_T h[CONFIG_T::n_state], res_T c[CONFIG_T::n_state],
                     const typename CONFIG_T::weight_t *w, const typename CONFIG_T::recurrent_weight_t *wr,
                     const typename CONFIG_T::bias_t *b, const typename CONFIG_T::recurrent_bias_t *br) {
    typedef typename CONFIG_T::accum_t accum_T;
    typedef typename CONFIG_T::weight_t weight_T;
    typedef typename CONFIG_T::recurrent_weight_t recurrent_T;
    typedef typename CONFIG_T::bias_t bias_T;
    typedef typename CONFIG_T::recurrent_bias_t recurrent_bias_T;
    const unsigned N = CONFIG_T::n_state;
    const unsigned ALL = CONFIG_T::n_gates * CONFIG_T::n_state;
    // sums of h that gates add: all but those of a GRU's candidate, which come later
    const unsigned NOW = CONFIG_T::cell == quatrefoil_cell::gru ? 2 * N : ALL;
    // gates that the first function takes
    const unsigned FIRST = CONFIG_T::cell == quatrefoil_cell::rnn ? N : ALL - N;

    accum_T a[ALL], s[ALL], sum[FIRST], gate[FIRST], candidate_sum[N], candidate[N];
    #pragma HLS ARRAY_PARTITION variable=a complete
    #pragma HLS ARRAY_PARTITION variable=s complete
    #pragma HLS ARRAY_PARTITION variable=sum complete
    #pragma HLS ARRAY_PARTITION variable=gate complete
    #pragma HLS ARRAY_PARTITION variable=candidate_sum complete
    #pragma HLS ARRAY_PARTITION variable=candidate complete

    quatrefoil_sums<data_T, weight_T, bias_T, accum_T, CONFIG_T::n_in, ALL, ALL, CONFIG_T::reuse_factor>(data, a, w, b);
    quatrefoil_sums<res_T, recurrent_T, recurrent_bias_T, accum_T, N, NOW, ALL, CONFIG_T::reuse_factor>(h, s, wr, br);
    for (unsigned i = 0; i < FIRST; i++) {
        #pragma HLS UNROLL
        sum[i] = a[i] + s[i];
    }
    CONFIG_T::template first<accum_T, accum_T, typename CONFIG_T::first_config>::activation(sum, gate);

    if (CONFIG_T::cell == quatrefoil_cell::rnn) {
        for (unsigned i = 0; i < N; i++) {
            #pragma HLS UNROLL
            h[i] = gate[i];
        }
    } else if (CONFIG_T::cell == quatrefoil_cell::lstm) {
        for (unsigned i = 0; i < N; i++) {
            #pragma HLS UNROLL
            candidate_sum[i] = a[ALL - N + i] + s[ALL - N + i];
        }
        CONFIG_T::template second<accum_T, accum_T, typename CONFIG_T::state_config>::activation(candidate_sum, candidate);
        for (unsigned i = 0; i < N; i++) {
            #pragma HLS UNROLL
            c[i] = candidate[i] * gate[i] + c[i] * gate[2 * N + i];
        }
        CONFIG_T::template third<res_T, accum_T, typename CONFIG_T::state_config>::activation(c, candidate);
        for (unsigned i = 0; i < N; i++) {
            #pragma HLS UNROLL
            h[i] = gate[N + i] * candidate[i];
        }
    } else {
        accum_T t[N];
        #pragma HLS ARRAY_PARTITION variable=t complete
        if (CONFIG_T::cell == quatrefoil_cell::gru) {
            res_T kept[N];
            #pragma HLS ARRAY_PARTITION variable=kept complete
            for (unsigned i = 0; i < N; i++) {
                #pragma HLS UNROLL
                kept[i] = gate[N + i] * h[i];
            }
            quatrefoil_sums<res_T, recurrent_T, recurrent_bias_T, accum_T, N, N, ALL, CONFIG_T::reuse_factor>(
                kept, t, wr + 2 * N, br + 2 * N);
        } else {
            for (unsigned i = 0; i < N; i++) {
                #pragma HLS UNROLL
                t[i] = gate[N + i] * s[ALL - N + i];
            }
        }
        for (unsigned i = 0; i < N; i++) {
            #pragma HLS UNROLL
            candidate_sum[i] = a[ALL - N + i] + t[i];
        }
        CONFIG_T::template second<accum_T, accum_T, typename CONFIG_T::state_config>::activation(candidate_sum, candidate);
        for (unsigned i = 0; i < N; i++) {
            #pragma HLS UNROLL
            h[i] = candidate[i] * (1 - gate[i]) + h[i] * gate[i];
        }
    }
}

template <class data_T, class res_T, typename CONFIG_T>
void quatrefoil_recurrent(data_T data[CONFIG_T::n_sequence * CONFIG_T::n_in],
                          res_T res[CONFIG_T::n_sequence_out * CONFIG_T::n_state], typename CONFIG_T::weight_t *w,
                          typename CONFIG_T::recurrent_weight_t *wr, typename CONFIG_T::bias_t *b,
                          typename CONFIG_T::recurrent_bias_t *br, typename CONFIG_T::initial_h_t *h0,
                          typename CONFIG_T::initial_c_t *c0) {
    res_T h[CONFIG_T::n_state], c[CONFIG_T::n_state];
    #pragma HLS ARRAY_PARTITION variable=h complete
    #pragma HLS ARRAY_PARTITION variable=c complete
    for (unsigned i = 0; i < CONFIG_T::n_state; i++) {
        #pragma HLS UNROLL
        h[i] = h0[i];
        c[i] = c0[i];
    }
    for (unsigned step = 0; step < CONFIG_T::n_sequence; step++) {
        const unsigned t = CONFIG_T::backward ? CONFIG_T::n_sequence - 1 - step : step;
        quatrefoil_step<data_T, res_T, CONFIG_T>(data + t * CONFIG_T::n_in, h, c, w, wr, b, br);
        if (CONFIG_T::output == quatrefoil_output::sequence)
            for (unsigned i = 0; i < CONFIG_T::n_state; i++) {
                #pragma HLS UNROLL
                res[t * CONFIG_T::n_state + i] = h[i];
            }
    }
    if (CONFIG_T::output != quatrefoil_output::sequence)
        for (unsigned i = 0; i < CONFIG_T::n_state; i++) {
            #pragma HLS UNROLL
            res[i] = CONFIG_T::output == quatrefoil_output::h ? h[i] : c[i];
        }
}

template <class data_T, class res_T, typename CONFIG_T>
void quatrefoil_recurrent(hls::stream<data_T> &data, hls::stream<res_T> &res, typename CONFIG_T::weight_t *w,
                          typename CONFIG_T::recurrent_weight_t *wr, typename CONFIG_T::bias_t *b,
                          typename CONFIG_T::recurrent_bias_t *br, typename CONFIG_T::initial_h_t *h0,
                          typename CONFIG_T::initial_c_t *c0) {
    typedef typename data_T::value_type value_T;
    typedef typename res_T::value_type state_T;
    const unsigned STEPS = CONFIG_T::n_sequence;
    value_T kept[(CONFIG_T::backward ? STEPS : 1) * CONFIG_T::n_in];
    state_T made[(CONFIG_T::backward ? STEPS : 1) * CONFIG_T::n_state];
    state_T h[CONFIG_T::n_state], c[CONFIG_T::n_state];
    #pragma HLS ARRAY_PARTITION variable=h complete
    #pragma HLS ARRAY_PARTITION variable=c complete
    for (unsigned i = 0; i < CONFIG_T::n_state; i++) {
        #pragma HLS UNROLL
        h[i] = h0[i];
        c[i] = c0[i];
    }
    for (unsigned t = 0; t < STEPS; t++) {
        const unsigned row = CONFIG_T::backward ? t : 0;
        data_T pack = data.read();
        for (unsigned i = 0; i < CONFIG_T::n_in; i++) {
            #pragma HLS UNROLL
            kept[row * CONFIG_T::n_in + i] = pack[i];
        }
        if (!CONFIG_T::backward) {
            quatrefoil_step<value_T, state_T, CONFIG_T>(kept, h, c, w, wr, b, br);
            if (CONFIG_T::output == quatrefoil_output::sequence) {
                res_T out;
                for (unsigned i = 0; i < CONFIG_T::n_state; i++) {
                    #pragma HLS UNROLL
                    out[i] = h[i];
                }
                res.write(out);
            }
        }
    }
    if (CONFIG_T::backward) {
        for (unsigned step = 0; step < STEPS; step++) {
            const unsigned t = STEPS - 1 - step;
            quatrefoil_step<value_T, state_T, CONFIG_T>(kept + t * CONFIG_T::n_in, h, c, w, wr, b, br);
            for (unsigned i = 0; i < CONFIG_T::n_state; i++) {
                #pragma HLS UNROLL
                made[t * CONFIG_T::n_state + i] = h[i];
            }
        }
        if (CONFIG_T::output == quatrefoil_output::sequence)
            for (unsigned t = 0; t < STEPS; t++) {
                res_T out;
                for (unsigned i = 0; i < CONFIG_T::n_state; i++) {
                    #pragma HLS UNROLL
                    out[i] = made[t * CONFIG_T::n_state + i];
                }
                res.write(out);
            }
    }
    if (CONFIG_T::output != quatrefoil_output::sequence) {
        res_T out;
        for (unsigned i = 0; i < CONFIG_T::n_state; i++) {
            #pragma HLS UNROLL
            out[i] = CONFIG_T::output == quatrefoil_output::h ? h[i] : c[i];
        }
        res.write(out);
    }
}

} // namespace nnet
#endif
