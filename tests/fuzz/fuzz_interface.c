/* libFuzzer over tsm.h: whatever an artifact and a state hold, they are opened, or refused in one line,
 * and no byte outside of them is touched. `make fuzz` compiles this with the sanitizers.
 *
 * The input: choices (3 bytes), the metadata's length (2), the metadata, and the state. Weights are as
 * they come. A state's CRC is made right, for without it nothing would come beyond that check.
 */
#include "../../runtime/native/tsm.c"

enum { MOST_WORK = 1 << 13, METADATA_AT = 1 << 15 /* as in tiny.py */ };

static void check(int status, const char *message) {
    if (status > 0 || !status != !*message || strchr(message, '\n')) abort();
}

/* Reads and generates a little, goes back, and comes back from a file. */
static void use(tsm_model *model, tsm_stream *text, const uint8_t *choices) {
    char message[TSM_MESSAGE_BYTES];
    const char *piece, *stops[] = {"a", "\xc3\xa9\xc3\xa9"};
    const float *logits;
    size_t bytes;
    tsm_sampling sampling;
    tsm_stream *other;
    if (tsm_feed(text, choices, 3, message) || tsm_generate(text, choices[0] % 6, stops, 2, message)) return;
    while (!tsm_next(text, &piece, &bytes, message) && bytes)
        if (bytes > 64) abort();
    tsm_get_sampling(text, &sampling);
    sampling.penalty_window = choices[1] * 16;
    sampling.presence_penalty = choices[2];
    check(tsm_set_sampling(text, &sampling, message), message);
    check(tsm_rewind(text, choices[1] % 8, message), message);
    check(tsm_logits(text, &logits, message), message);
    size_t size = tsm_save(text, NULL, 0);
    uint8_t *state = malloc(size), *again = malloc(size);
    if (tsm_save(text, state, size) != size) abort();
    int status = tsm_restore(model, state, size, 100, &other, message);
    if (!status) {
        if (tsm_save(other, again, size) != size || memcmp(state, again, size)) abort();
        tsm_stream_free(other);
    }
    free(state);
    free(again);
}

static uint8_t weights[METADATA_AT];

int LLVMFuzzerInitialize(int *count, char ***arguments) {
    (void)count, (void)arguments;
    for (size_t i = 0; i < METADATA_AT; i += 4) put32(weights + i, i % 64 ? 0x3f804020u : 0x3c23d70au);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char message[TSM_MESSAGE_BYTES];
    tsm_model *model;
    tsm_stream *text;
    if (size < 5) return 0;
    const uint8_t *choices = data;
    size_t length = data[3] | (size_t)data[4] << 8, rest;
    data += 5;
    size -= 5;
    if (length > size) length = size;
    rest = size - length;
    uint8_t *file = malloc(METADATA_AT + length), *state = malloc(rest ? rest : 1);
    memcpy(file, weights, METADATA_AT);
    memcpy(file + METADATA_AT, data, length);
    memcpy(state, data + length, rest);
    if (rest > 16) put32(state + 12, crc32_of(state + 16, rest - 16));
    int status = tsm_open(file, METADATA_AT + length, choices[0] & 1, choices[1] % 4, 1, &model, message);
    check(status, message);
    if (!status) {
        const tsm_spec *s = tsm_spec_of(model);
        uint64_t work = (uint64_t)s->layers * (s->width + s->channels) * (s->channels + s->mlp_width) +
                        tsm_state_values(s, NULL);
        status = tsm_restore(model, state, rest, choices[2], &text, message);
        if (status && !*message) abort();
        if (!status && work < MOST_WORK) use(model, text, choices);
        if (!status) tsm_stream_free(text);
        check(tsm_stream_new(model, NULL, choices[2], &text, message), message);
        if (work < MOST_WORK) use(model, text, choices);
        tsm_stream_free(text);
        tsm_free(model);
    }
    free(file);
    free(state);
    return 0;
}
