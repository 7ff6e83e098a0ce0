/* Takes every 64 bytes once, in order: of as many threads as call it, what they can read at most.
 * `ahead`: how many of them it asks for before they are wanted. Without, how fast memory comes
 * depends on what was read before. Returns a sum, that nothing may be left out.
 *
 *     cc -O3 -march=native -shared -fPIC -o bandwidth.so bandwidth.c
 */
#include <stddef.h>
#include <stdint.h>

typedef uint64_t wide __attribute__((vector_size(64), aligned(1)));

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
