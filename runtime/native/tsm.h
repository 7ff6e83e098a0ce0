/* TSM on a CPU, from a .tflite or .onnx artifact in int8 or int4, whose weights are used where they lie.
 * C99 and libm, one file to compile (tsm.c):
 *
 *     tsm_model *model;
 *     tsm_stream *text;
 *     char message[TSM_MESSAGE_BYTES];
 *     const char *piece;
 *     size_t bytes;
 *     if (tsm_open_file("shakespeare-int8.tflite", TSM_SIMD, 1, &model, message) ||
 *         tsm_stream_new(model, NULL, 0, &text, message) || tsm_feed(text, "ROMEO:\n", 7, message) ||
 *         tsm_generate(text, 500, NULL, 0, message))
 *         return puts(message);
 *     while (!tsm_next(text, &piece, &bytes, message) && bytes) fwrite(piece, 1, bytes, stdout);
 *     tsm_stream_free(text);
 *     tsm_free(model);
 *
 * Calls that can fail return 0 or one of the codes below and write one line to `message`, of
 * TSM_MESSAGE_BYTES, unless it is NULL. Nothing is printed and nothing is global: a process may have any
 * number of models and texts. One model computes one text at a time, in one thread of the caller's.
 * The same artifact, text and settings give the same bytes as every other engine of this project.
 */
#ifndef TSM_H
#define TSM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TSM_VERSION 7 /* of the calls below */
#define TSM_MESSAGE_BYTES 160

enum {
    TSM_BAD_TOKEN = -1,   /* a byte beyond the vocabulary; nothing has changed */
    TSM_NOT_FINITE = -2,  /* a logit is no finite number: the weights or the state are damaged */
    TSM_ARGUMENT = -3,    /* an argument out of its range; nothing has changed */
    TSM_MEMORY = -4,      /* none is left */
    TSM_IO = -5,          /* a file that cannot be read */
    TSM_ARTIFACT = -6,    /* no artifact, or a damaged one */
    TSM_UNSUPPORTED = -7, /* sound, but nothing for this library */
    TSM_STATE = -8        /* no state of this model, or a damaged one */
};

uint32_t tsm_version(void);

/* Models */

typedef struct tsm_model tsm_model;

/* `simd`: which instructions, of those that the CPU has: 0 plain C, 1 AVX2, NEON or wasm's SIMD128, 2
 * AVX-VNNI, NEON's dot product or wasm's relaxed one, 3 AVX-512 VNNI; a lower one is taken where it is
 * missing. The result is the same to the bit. */
#define TSM_SIMD 3 /* the best */

/* A model over the bytes of an artifact, at a multiple of 4, which must outlive it and not change.
 * `trusted`: not 0 where its CRC-32 has been checked already. `threads`: how many compute, the caller's
 * among them, 16 at most; 1 is right for most. */
int tsm_open(const void *file, size_t file_bytes, int trusted, int simd, uint32_t threads,
             tsm_model **model, char *message);
/* The same from a path, read into memory of its own. Not in WebAssembly. */
int tsm_open_file(const char *path, int simd, uint32_t threads, tsm_model **model, char *message);
void tsm_free(tsm_model *model); /* after its texts */

/* Widths in numbers of values, as in training/spec.py; vocabulary, width and mlp_width are
 * 16 at least, channels a multiple of 16, width and mlp_width of 8. Of addressed splitters channels
 * are a multiple of 16 heads, heads * key_width is 2^14 at most, and the memories of all layers,
 * key_width * channels each, 2^24. */
enum { TSM_BEAM, TSM_ADDRESSED, TSM_MOST_LAYERS = 256 };
typedef struct {
    uint32_t vocabulary, width, layers, channels, mlp_width, taps;
    uint32_t bits; /* of the projections, 8 or 4; the head has 8 */
    uint32_t heads, key_width;       /* of addressed splitters */
    uint8_t mixers[TSM_MOST_LAYERS]; /* by layer: TSM_BEAM or TSM_ADDRESSED */
} tsm_spec;
const tsm_spec *tsm_spec_of(const tsm_model *model);
int tsm_simd(const tsm_model *model); /* what was chosen, as above */
/* All that the artifact says of itself, a JSON object: sha256, license, quantization, spec … */
const char *tsm_metadata(const tsm_model *model, size_t *bytes);

/* Texts: what the model remembers of one, its settings, the number of the next random draw. */

typedef struct tsm_stream tsm_stream;

/* docs/generate.md says what each does. */
typedef struct {
    double temperature, typical_p, top_p, min_p;
    double repetition_penalty, presence_penalty, frequency_penalty;
    double logit_bias[256]; /* by byte; -INFINITY: never */
    uint64_t seed;          /* the same one, the same text: take a random one for another */
    uint32_t top_k, penalty_window;
} tsm_sampling;
void tsm_sampling_defaults(tsm_sampling *sampling); /* temperature 0.8, seed 0, all else off */

/* A fresh text; `sampling` NULL: the defaults. `rewind_bytes`: by how many bytes it can be rewound, at a
 * snapshot of its memory for every 256 of them, and for every 32 of the last. */
int tsm_stream_new(tsm_model *model, const tsm_sampling *sampling, uint32_t rewind_bytes,
                   tsm_stream **stream, char *message);
int tsm_fork(const tsm_stream *stream, tsm_stream **other, char *message); /* goes on from here, too */
void tsm_stream_free(tsm_stream *stream);

int tsm_set_sampling(tsm_stream *stream, const tsm_sampling *sampling, char *message);
void tsm_get_sampling(const tsm_stream *stream, tsm_sampling *sampling);

uint64_t tsm_position(const tsm_stream *stream); /* bytes read and drawn */
uint64_t tsm_draws(const tsm_stream *stream);    /* bytes drawn */
/* The last bytes, up to 4,096; until the next call. */
const uint8_t *tsm_recent(const tsm_stream *stream, size_t *bytes);

int tsm_feed(tsm_stream *stream, const void *bytes, size_t count, char *message); /* reads a prompt */
/* 256 of them, of the next byte, as the model has them; until the next call. */
int tsm_logits(tsm_stream *stream, const float **logits, char *message);
/* Reads, and says of each byte how unlikely it was: -log p, in nats. */
int tsm_score(tsm_stream *stream, const void *bytes, size_t count, float *nats, char *message);

/* Begins to generate, `bytes` at most (UINT64_MAX: without end) or until one of the `stops`, texts in
 * UTF-8, which the stream has drawn then but tsm_next does not give. */
int tsm_generate(tsm_stream *stream, uint64_t bytes, const char *const *stops, size_t stop_count,
                 char *message);
/* The next piece, whole characters in UTF-8, U+FFFD for bytes that are none; until the next call. No
 * `bytes`: it has ended. Who wants no more of it just does not call again. */
int tsm_next(tsm_stream *stream, const char **text, size_t *bytes, char *message);
enum { TSM_RUNNING, TSM_LENGTH, TSM_STOP };
int tsm_finish_reason(const tsm_stream *stream); /* how it has ended */
/* Draws one byte as it is. */
int tsm_next_byte(tsm_stream *stream, uint8_t *byte, char *message);

/* Forgets the last bytes, draws included, to the bit as if they had never been; ends a generation. */
int tsm_rewind(tsm_stream *stream, uint64_t bytes, char *message);

/* All that goes on from here: the file of Python's Stream.save and --save-state, byte for byte. Returns
 * its size, and writes it where `room` is enough. */
size_t tsm_save(const tsm_stream *stream, uint8_t *state, size_t room);
int tsm_restore(tsm_model *model, const void *state, size_t bytes, uint32_t rewind_bytes,
                tsm_stream **stream, char *message);

/* Completion as one types: docs/completion.md says what is found. */

typedef struct tsm_completer tsm_completer; /* of one text; with the shipped model about 3 MB */
typedef struct {
    const char *text; /* to put in at the cursor, with a NUL */
    size_t bytes;
    double probability; /* that the text goes on so, and that its last word ends there */
    uint32_t replaced;  /* bytes before the cursor that it takes the place of: a typing error */
} tsm_completion;

int tsm_completer_new(tsm_model *model, tsm_completer **completer, char *message);
void tsm_completer_free(tsm_completer *completer); /* before its model */
/* Reads the text before the cursor, as far as it is new: `most` bytes of it at most, to 64. `left`: how many
 * are left to be read, by the same call again or by tsm_complete. */
int tsm_follow(tsm_completer *completer, const void *text, size_t bytes, size_t most, size_t *left,
               char *message);
enum { TSM_WORD, TSM_LINE };
/* The completions to the end of a word or a line that save most keys, as is expected, the best first; until the
 * next call. count: 1 to 16 of them; max_bytes: of one; threshold: the least probability of one, above 0. */
int tsm_complete(tsm_completer *completer, int to, uint32_t count, size_t max_bytes, double threshold,
                 const tsm_completion **completions, size_t *completion_count, char *message);

/* Below a text, for a runtime that has files, states and settings of its own, as Python's. */

/* How many offsets tsm_new wants for a spec, in this order: embed; for each layer short (one a
 * tap), radius or, of an addressed splitter, encoder and its delta, radius and decay, and then codes
 * and scales of in, out, mlp.in and mlp.out; codes and scales of head. 0: not a spec that this
 * library runs. */
size_t tsm_offset_count(const tsm_spec *spec);
/* As tsm_open, with offsets in bytes from the start of the file. NULL: one that reaches beyond it, or no
 * memory. */
tsm_model *tsm_new(const tsm_spec *spec, const uint8_t *file, size_t file_bytes,
                   const uint64_t *offsets, size_t offset_count, int simd, uint32_t threads);

/* The parts of a state, one after the other, each with the layers that have it: addressed (heads,
 * key_width, channels / heads), channels, history (taps - 1, width), projected (taps - 1, 2 heads
 * key_width + channels). How many values they have together; and each, unless it is NULL. */
enum { TSM_STATE_PARTS = 4 };
size_t tsm_state_values(const tsm_spec *spec, size_t parts[TSM_STATE_PARTS]);
/* Reads `count` tokens and moves the state on; zeros before the first token.
 * logits: vocabulary after the last token, or after each of them if `every`. */
int tsm_read(tsm_model *model, float *state, const uint8_t *tokens, size_t count, float *logits,
             int every);

/* What an arithmetic coder takes for the probabilities of 256 logits: cumulative, 257 of them, goes
 * from 0 to TSM_FREQUENCIES, by 1 at least. The same bits on every machine. */
#define TSM_FREQUENCIES (1 << 16)
void tsm_frequencies(const float *logits, uint32_t *cumulative);

/* How surprising each of `count` bytes was, -log p in nats, from 256 logits each; and, unless it is
 * NULL, how surprising one is on average there: the entropy. */
void tsm_nats(const float *logits, const uint8_t *bytes, size_t count, float *nats, float *entropy);

/* Draws a byte from 256 logits. adjust: what to add to them, or NULL. */
uint8_t tsm_draw(const float *logits, const float *adjust, double temperature, uint32_t top_k,
                 double typical_p, double top_p, double min_p, double uniform);

#ifdef __cplusplus
}
#endif

#endif
