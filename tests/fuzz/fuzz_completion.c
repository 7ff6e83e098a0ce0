/* libFuzzer over the completer of tsm.h: however a text is edited, no byte outside of it is touched, and what
 * is found is what a new completer finds. `make fuzz` compiles this with the sanitizers.
 *
 * The input: edits, of two bytes each.
 */
#include "../../runtime/native/tsm.c"

enum { MOST_EDITS = 48 };
static const tsm_spec spec = {256, 16, 2, 16, 16, 2, 8, 1, 4, {TSM_BEAM, TSM_ADDRESSED}};
static uint8_t weights[1 << 15];
static const char *words[] = {"MENENIUS", "gentle ", "the ", "\xc3\xa9\xe2\x82\xac", "\n", ". ", "a_very_long_identifier_", "x"};

/* `all`: complete the text, else read a part of it. */
static size_t found_in(tsm_completer *c, const uint8_t *text, size_t bytes, const uint8_t *choices, int all,
                       const tsm_completion **found) {
    char message[TSM_MESSAGE_BYTES];
    size_t left, count = 0;
    double threshold = 1.0 / (1 + choices[0]);
    if (tsm_follow(c, text, bytes, all ? SIZE_MAX : choices[1], &left, message)) abort();
    if (!all) return 0;
    if (tsm_complete(c, choices[1] & 1, 1 + choices[1] % 16, 1 + choices[0] % 64, threshold, found, &count,
                     message))
        abort();
    return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char message[TSM_MESSAGE_BYTES];
    static uint64_t offsets[64];
    static tsm_model *model;
    if (!model) { /* random weights, so that there is something to find */
        size_t count = tsm_offset_count(&spec);
        uint32_t random = 1;
        for (size_t i = 0; i < sizeof weights; i += 4) {
            random = random * 1664525 + 1013904223;
            put32(weights + i, 0x3e000000u | (random & 0x80ffffffu));
        }
        for (size_t i = 0; i < count; i++) offsets[i] = i * 64;
        model = tsm_new(&spec, weights, sizeof weights, offsets, count, 0, 1);
        if (!model) abort();
    }
    static uint8_t text[3 * CONTEXT];
    size_t bytes = 0;
    tsm_completer *own, *anew;
    if (tsm_completer_new(model, &own, message)) abort();
    for (size_t edits = 0; size >= 2 && edits < MOST_EDITS; data += 2, size -= 2, edits++) {
        const uint8_t *choices = data;
        const char *word = words[choices[1] % 8];
        size_t length = strlen(word);
        if (choices[0] < 128) { /* typed, or pasted so many times */
            for (size_t i = 0; i < (choices[0] < 120 ? 1u : choices[0]) && bytes + length <= sizeof text; i++) {
                memcpy(text + bytes, word, length);
                bytes += length;
            }
        } else if (choices[0] < 192) {
            bytes -= bytes < choices[1] ? bytes : choices[1];
        } else if (bytes) {
            text[choices[1] * (size_t)(choices[0] + 1) % bytes] = choices[1];
        }
        const tsm_completion *found, *same;
        size_t count = found_in(own, text, bytes, choices, edits % 3, &found);
        for (size_t i = 0; i < count; i++)
            if (found[i].bytes > 1 + choices[0] % 64u || found[i].replaced > bytes || !(found[i].probability > 0))
                abort();
        if (edits % 8 != 7 || bytes > CONTEXT / 2) continue; /* the whole context, which a new one has too */
        if (tsm_completer_new(model, &anew, message)) abort();
        if (found_in(anew, text, bytes, choices, edits % 3, &same) != count) abort();
        for (size_t i = 0; i < count; i++)
            if (found[i].bytes != same[i].bytes || memcmp(found[i].text, same[i].text, same[i].bytes) ||
                found[i].probability != same[i].probability)
                abort();
        tsm_completer_free(anew);
    }
    tsm_completer_free(own);
    return 0;
}
