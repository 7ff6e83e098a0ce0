/* tests/vectors.json by tsm.h: programs.py says what the lines hold.
 *
 *     vectors MODEL SIMD < lines
 */
#include "tsm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char line[1 << 16], message[TSM_MESSAGE_BYTES];

static void check(int status) {
    if (!status) return;
    fprintf(stderr, "%d: %s\n", status, message);
    exit(1);
}

/* From hexadecimal, in place: with a NUL after it. */
static size_t unhex(char *text) {
    size_t count = strlen(text) / 2;
    for (size_t i = 0; i < count; i++) {
        char digits[3] = {text[2 * i], text[2 * i + 1], 0};
        text[i] = (char)strtol(digits, NULL, 16);
    }
    text[count] = 0;
    return count;
}

static void hex(const void *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) printf("%02x", ((const uint8_t *)bytes)[i]);
}

int main(int argc, char **argv) {
    tsm_model *model;
    if (argc < 3) return 2;
    check(tsm_open_file(argv[1], atoi(argv[2]), 1, &model, message));
    while (fgets(line, sizeof line, stdin)) {
        tsm_stream *text;
        tsm_sampling sampling;
        const char *piece, *stops[8];
        const float *logits;
        size_t stop_count = 0, bytes;
        line[strcspn(line, "\r\n")] = 0;
        char *settings = strtok(line, " "), *count = strtok(NULL, " "), *prompt = strtok(NULL, " ");
        for (char *stop; (stop = strtok(NULL, " ")); unhex(stop)) stops[stop_count++] = stop;
        unhex(settings);
        memcpy(&sampling, settings, sizeof sampling);
        check(tsm_stream_new(model, &sampling, 0, &text, message));
        check(tsm_feed(text, prompt, unhex(prompt), message));
        check(tsm_generate(text, strtoull(count, NULL, 10), stops, stop_count, message));
        do {
            check(tsm_next(text, &piece, &bytes, message));
            hex(piece, bytes);
        } while (bytes);
        printf(" %d %llu ", tsm_finish_reason(text), (unsigned long long)tsm_position(text));
        uint8_t *state = malloc(bytes = tsm_save(text, NULL, 0));
        tsm_save(text, state, bytes);
        hex(state, bytes);
        printf(" ");
        check(tsm_logits(text, &logits, message));
        hex(logits, 256 * sizeof *logits);
        printf("\n");
        free(state);
        tsm_stream_free(text);
    }
    tsm_free(model);
    return 0;
}
