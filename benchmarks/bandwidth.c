/* What one thread can read at most, and what the engine makes of it: benchmarks/ceiling.py.
 *
 *     cc -O3 -march=native -shared -fPIC -o bandwidth.so bandwidth.c
 */
#include "../runtime/native/tsm.h"

typedef uint64_t wide __attribute__((vector_size(64), aligned(1)));
typedef int reader(tsm_model *, float *, const uint8_t *, size_t, float *, int);

/* Takes every 64 bytes once, in order, and asks for what comes `ahead` of them later: without, how
 * fast it comes depends on what was read before. Returns a sum, that nothing may be left out. */
uint64_t take(const wide *data, size_t count, size_t ahead) {
    wide sums[8] = {{0}}, all = {0};
    uint64_t sum = 0;
    for (size_t i = 0; i + 8 <= count; i += 8)
        for (int j = 0; j < 8; j++) {
            __builtin_prefetch(data + i + j + ahead);
            sums[j] += data[i + j];
        }
    for (int j = 0; j < 8; j++) all += sums[j];
    for (int j = 0; j < 8; j++) sum += all[j];
    return sum;
}

/* A byte a call, as a text is generated. */
void feed(reader *read, tsm_model *model, float *state, size_t count) {
    float logits[256];
    for (size_t i = 0; i < count; i++) {
        uint8_t byte = (uint8_t)(32 + i % 90);
        read(model, state, &byte, 1, logits, 0);
    }
}
