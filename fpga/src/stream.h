/* How values get from one stage to the next where every stage is a kernel of its own: channels of Intel's compiler
 * (QF_CHANNELS) or pipes of AMD's (QF_PIPES). A pixel goes as words of 8 values, the last one filled up.
 */
#define QF_WORD 8
#define QF_WORDS(channels) (((channels) + QF_WORD - 1) / QF_WORD)

#ifndef QF_DEPTH
#define QF_DEPTH 32 /* words between two stages; AMD wants a power of two from 16 on */
#endif

#if defined(QF_CHANNELS)
#pragma OPENCL EXTENSION cl_intel_channels : enable
#define QF_STREAM(type, name) channel type name __attribute__((depth(QF_DEPTH)));
#define QF_READ(name, word) word = read_channel_intel(name)
#define QF_WRITE(name, word) write_channel_intel(name, word)
#elif defined(QF_PIPES)
#define QF_STREAM(type, name) pipe type name __attribute__((xcl_reqd_pipe_depth(QF_DEPTH)));
#define QF_READ(name, word) read_pipe_block(name, &word)
#define QF_WRITE(name, word) write_pipe_block(name, &word)
#endif
