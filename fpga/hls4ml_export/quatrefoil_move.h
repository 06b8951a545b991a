// Elements in another order, some more than once, some 0: wires where arrays are registers; a stream is read as a whole
// before the first element is written.
#ifndef QUATREFOIL_MOVE_H_
#define QUATREFOIL_MOVE_H_

#include "hls_stream.h"
#include "nnet_common.h"

namespace nnet {

template <class data_T, class res_T, typename CONFIG_T>
void quatrefoil_move(data_T data[CONFIG_T::n_in], res_T res[CONFIG_T::n_out]) {
    for (unsigned i = 0; i < CONFIG_T::n_out; i++) {
        #pragma HLS UNROLL
        const int place = CONFIG_T::place(i);
        if (place < 0)
            res[i] = 0;
        else
            res[i] = data[place];
    }
}

template <class data_T, class res_T, typename CONFIG_T>
void quatrefoil_move(hls::stream<data_T> &data, hls::stream<res_T> &res) {
    typename data_T::value_type kept[CONFIG_T::n_in];
    for (unsigned i = 0; i < CONFIG_T::n_in / data_T::size; i++) {
        #pragma HLS PIPELINE
        data_T pack = data.read();
        for (unsigned j = 0; j < data_T::size; j++) {
            #pragma HLS UNROLL
            kept[i * data_T::size + j] = pack[j];
        }
    }
    for (unsigned i = 0; i < CONFIG_T::n_out / res_T::size; i++) {
        #pragma HLS PIPELINE
        res_T pack;
        for (unsigned j = 0; j < res_T::size; j++) {
            #pragma HLS UNROLL
            const int place = CONFIG_T::place(i * res_T::size + j);
            if (place < 0)
                pack[j] = 0;
            else
                pack[j] = kept[place];
        }
        res.write(pack);
    }
}

} // namespace nnet
#endif
