/* libFuzzer over the C engine's loader and function: whatever the spec, the offsets and the file say,
 * no byte outside of them is touched. `make fuzz` compiles this with the sanitizers.
 *
 * The input: spec, choices (4 bytes), as many offsets as the spec wants (2 bytes each), and
 * the file.
 */
#include "../../runtime/native/tsm.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_OFFSETS = 1 << 12, MOST_TOKENS = 40, MOST_WORK = 1 << 15 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tsm_spec spec;
    if (size < sizeof spec + 4) return 0;
    memcpy(&spec, data, sizeof spec);
    const uint8_t *choices = data + sizeof spec;
    data += sizeof spec + 4;
    size -= sizeof spec + 4;

    size_t count = tsm_offset_count(&spec);
    uint64_t *offsets = calloc(MOST_OFFSETS, sizeof *offsets);
    for (size_t i = 0; i < count && i < MOST_OFFSETS; i++) {
        uint8_t low = size ? *data : 0;
        if (size) data++, size--;
        uint8_t high = size ? *data : 0;
        if (size) data++, size--;
        offsets[i] = (uint64_t)(low | high << 8) << (choices[0] & 1 ? 2 : choices[0] & 56);
    }
    uint8_t *file = malloc(size ? size : 1); /* of the very size: a byte beyond it is found */
    memcpy(file, data, size);
    size_t given = count < MOST_OFFSETS ? count : MOST_OFFSETS;
    tsm_model *model = tsm_new(&spec, file, size, offsets, given, choices[1] % 4, 1);
    if (model) {
        size_t tokens = choices[2] % MOST_TOKENS, values = tsm_state_values(&spec, NULL);
        uint64_t work = ((uint64_t)spec.layers * (spec.width + spec.channels) *
                             (spec.channels + spec.mlp_width) + values) * (tokens + 1);
        float *state = calloc(values + 1, 4);
        float *logits = calloc((size_t)(tokens + 2) * 256, 4);
        uint8_t *text = malloc(tokens + 1);
        for (size_t i = 0; i < tokens; i++) text[i] = size ? file[i % size] : 0;
        if (work < MOST_WORK) tsm_read(model, state, text, tokens, logits, choices[3] & 1);
        uint32_t cumulative[257];
        tsm_frequencies(logits, cumulative);
        for (int i = 0; i < 256; i++)
            if (cumulative[i] >= cumulative[i + 1]) abort();
        if (cumulative[256] != TSM_FREQUENCIES) abort();
        float nats[2], entropy[2];
        tsm_nats(logits, text, tokens ? 1 : 0, nats, choices[3] & 4 ? entropy : NULL);
        tsm_draw(logits, choices[3] & 2 ? logits + 256 : NULL, choices[3] / 64.0, choices[0],
                 choices[1] / 200.0, choices[2] / 200.0, choices[3] / 200.0, 0.999);
        free(state);
        free(logits);
        free(text);
        tsm_free(model);
    }
    free(file);
    free(offsets);
    return 0;
}
