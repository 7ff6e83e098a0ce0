/* The Topological Sequence Model on a CPU, computed from the quantized weights of a .tflite or .onnx
 * artifact where they lie. C99 and libm; nothing is allocated but one model's working memory.
 *
 *     cc -O3 -ffp-contract=off -Wno-psabi -fPIC -shared -o libtsm.so tsm.c -lm -pthread
 */
#ifndef TSM_H
#define TSM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TSM_VERSION 2 /* of the calls below; another library is refused */

/* Widths in numbers of values, as in training/spec.py; vocabulary, width and mlp_width are
 * 16 at least, channels a multiple of 16, width and mlp_width of 8. */
typedef struct {
    uint32_t vocabulary, width, layers, channels, mlp_width, taps;
    uint32_t bits; /* of the projections, 8 or 4; the head has 8 */
} tsm_spec;

typedef struct tsm_model tsm_model;

uint32_t tsm_version(void);

/* How many places tsm_new wants for a spec, in this order: embed; for each layer short (one a
 * tap), radius, and then codes and scales of in, out, mlp.in and mlp.out; codes and scales of
 * head. 0: not a spec that this library runs. An artifact has them in its JSON header, `places` by
 * name (runtime/artifact.py reads it). */
size_t tsm_place_count(const tsm_spec *spec);

/* A model over `file`, which must outlive it. `places` are offsets in the file. NULL: a place that
 * reaches beyond the file, or no memory. `simd`: which instructions, of those that this CPU has:
 * 0 plain C, 1 AVX2 or NEON, 2 AVX-VNNI or NEON's dot product, 3 AVX-512 VNNI; a lower one is taken
 * where it is missing. `threads`: how many compute, the caller's among them, 1 at least; the result is the
 * same to the bit. One model reads one text at a time. */
tsm_model *tsm_new(const tsm_spec *spec, const uint8_t *file, size_t file_bytes,
                   const uint64_t *places, size_t place_count, int simd, uint32_t threads);
void tsm_free(tsm_model *model);

/* What tsm_new chose, as there. */
int tsm_simd(const tsm_model *model);

/* Reads `count` tokens and moves the state on: layers x channels, and of history layers x
 * (taps - 1) x width; zeros before the first token.
 * logits: vocabulary after the last token, or after each of them if `every`. A token beyond the
 * vocabulary is refused: -1, and nothing has changed; else 0. */
int tsm_read(tsm_model *model, float *channels, float *history, const uint8_t *tokens, size_t count,
             float *logits, int every);

/* What an arithmetic coder takes for the probabilities of 256 logits: cumulative, 257 of them, goes
 * from 0 to TSM_FREQUENCIES, by 1 at least. The same bits on every machine. */
#define TSM_FREQUENCIES (1 << 16)
void tsm_frequencies(const float *logits, uint32_t *cumulative);

/* Draws a byte from 256 logits as runtime/sampling.py's `draw` does, which says what the arguments
 * mean. adjust: what to add to the logits, or NULL. */
uint8_t tsm_draw(const float *logits, const float *adjust, double temperature, uint32_t top_k,
                 double typical_p, double top_p, double min_p, double uniform);

#ifdef __cplusplus
}
#endif

#endif
