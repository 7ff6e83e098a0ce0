/* Opening an artifact: runtime/artifact.py says what it is. Its one JSON object is found, its length and
 * CRC are checked, and its weights are used where they lie. */

#ifndef __wasm__
#include <stdio.h>
#endif

#define MARKER "{\"tsm_artifact\": "
#define SEALED MARKER "4, \"file_bytes\": \"000000000000\", \"crc32\": \"00000000\", \"sha256\": \""
enum { SIZE_AT = sizeof MARKER + 17, SIZE_DIGITS = 12, CRC_AT = SIZE_AT + SIZE_DIGITS + 13, CRC_DIGITS = 8,
       SHA_AT = sizeof SEALED - 1, SHA_DIGITS = 64, MOST_JSON = 1 << 16 };

/* Messages: pieces of text put together, without a C library's printf and its locale. */
typedef struct {
    char *text;
    size_t length;
} line;

static void say(line *out, const char *text) {
    for (; out->text && *text && out->length + 1 < TSM_MESSAGE_BYTES; text++)
        out->text[out->length++] = *text;
    if (out->text) out->text[out->length] = 0;
}

static void say_whole(line *out, uint64_t value) {
    char digits[21];
    digits[write_whole(digits, value)] = 0;
    say(out, digits);
}

static int failed(int status, char *message, const char *text) {
    line out = {message, 0};
    say(&out, text);
    return status;
}

/* zlib's CRC-32 by eight bytes at a time (Kounavis and Berry 2008). */
typedef struct {
    uint32_t table[8][256], value;
} crc32_state;

static void crc_start(crc32_state *c) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0);
        c->table[0][i] = value;
    }
    for (int t = 1; t < 8; t++)
        for (uint32_t i = 0; i < 256; i++)
            c->table[t][i] = (c->table[t - 1][i] >> 8) ^ c->table[0][c->table[t - 1][i] & 255];
    c->value = ~0u;
}

static void crc_add(crc32_state *c, const uint8_t *bytes, size_t count) {
    uint32_t value = c->value;
    for (; count >= 8; bytes += 8, count -= 8) {
        uint32_t low = value ^ (bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
                                (uint32_t)bytes[3] << 24);
        value = c->table[7][low & 255] ^ c->table[6][low >> 8 & 255] ^ c->table[5][low >> 16 & 255] ^
                c->table[4][low >> 24] ^ c->table[3][bytes[4]] ^ c->table[2][bytes[5]] ^
                c->table[1][bytes[6]] ^ c->table[0][bytes[7]];
    }
    for (; count; bytes++, count--) value = (value >> 8) ^ c->table[0][(value ^ *bytes) & 255];
    c->value = value;
}

static uint32_t crc32_of(const uint8_t *bytes, size_t count) {
    crc32_state crc;
    crc_start(&crc);
    crc_add(&crc, bytes, count);
    return ~crc.value;
}

/* The next MARKER from `at` on, or NULL. */
static const uint8_t *marker(const uint8_t *at, const uint8_t *end) {
    const size_t length = sizeof MARKER - 1;
    while ((size_t)(end - at) >= length && (at = memchr(at, MARKER[0], (size_t)(end - at) - length + 1))) {
        if (!memcmp(at, MARKER, length)) return at;
        at++;
    }
    return NULL;
}

/* `count` characters as a number, of base 10 or 16 in lower case. */
static int digits_at(const char *text, int count, int base, uint64_t *value) {
    for (*value = 0; count; text++, count--) {
        int letter = *text >= 'a' && *text <= 'f';
        int digit = *text >= '0' && *text <= '9' ? *text - '0' : letter ? *text - 'a' + 10 : 16;
        if (digit >= base) return 0;
        *value = *value * (uint64_t)base + (uint64_t)digit;
    }
    return 1;
}

/* The JSON of a whole file that is what it says. Returns 0 or TSM_ARTIFACT. */
static int check_sealed(const uint8_t *file, size_t bytes, int trusted, json *metadata,
                        char *message) {
    const uint8_t *end = file + bytes, *start = marker(file, end);
    const int damaged = TSM_ARTIFACT;
    uint64_t size, crc, ignored;
    if (!start || marker(start + 1, end))
        return failed(damaged, message,
                      start ? "several TSM headers found, wanted exactly one"
                            : "no TSM header found, wanted a .tflite or .onnx of TSM, whole");
    const char *text = (const char *)start;
    if ((size_t)(end - start) < SHA_AT + SHA_DIGITS || text[sizeof MARKER - 1] != '4' ||
        text[sizeof MARKER] != ',')
        return failed(damaged, message, "another artifact format, wanted 4");
    char head[sizeof SEALED];
    memcpy(head, text, SHA_AT);
    memset(head + SIZE_AT, '0', SIZE_DIGITS);
    memset(head + CRC_AT, '0', CRC_DIGITS);
    int whole = !memcmp(head, SEALED, SHA_AT) && digits_at(text + SIZE_AT, SIZE_DIGITS, 10, &size) &&
                digits_at(text + CRC_AT, CRC_DIGITS, 16, &crc);
    for (int i = 0; whole && i < SHA_DIGITS; i += 16)
        whole = digits_at(text + SHA_AT + i, 16, 16, &ignored);
    if (!whole) return failed(damaged, message, "damaged header, wanted its length and digests");
    if (size != bytes) {
        line out = {message, 0};
        say_whole(&out, bytes);
        say(&out, " bytes, its header wants ");
        say_whole(&out, size);
        say(&out, " (incomplete or extended)");
        return damaged;
    }
    if (!trusted) {
        crc32_state found;
        crc_start(&found);
        crc_add(&found, file, (size_t)(start - file) + CRC_AT);
        crc_add(&found, (const uint8_t *)"00000000", CRC_DIGITS);
        crc_add(&found, start + CRC_AT + CRC_DIGITS, (size_t)(end - start) - CRC_AT - CRC_DIGITS);
        if (~found.value != crc) return failed(damaged, message, "CRC-32 differs (damaged)");
    }
    metadata->at = text;
    metadata->end = (size_t)(end - start) < MOST_JSON ? (const char *)end : text + MOST_JSON;
    json rest = *metadata;
    if (!skip_value(&rest, 0)) return failed(damaged, message, "header is not JSON");
    metadata->end = rest.at;
    return 0;
}

/* The mixer of each layer from one name, or as many as layers with commas. */
static int read_mixers(json values, tsm_spec *spec) {
    static const char *const names[] = {"beam", "addressed"}; /* TSM_BEAM, TSM_ADDRESSED */
    json value, text;
    uint32_t count = 0;
    if (!member(values, "mixer", &value) || !take_string(&value, &text)) return 0;
    for (int more = 1; more; count++) {
        const char *comma = memchr(text.at, ',', (size_t)(text.end - text.at));
        const char *end = comma ? comma : text.end;
        uint8_t mixer = 0;
        while (mixer < 2 && (strlen(names[mixer]) != (size_t)(end - text.at) ||
                             memcmp(names[mixer], text.at, (size_t)(end - text.at))))
            mixer++;
        if (mixer == 2 || count == spec->layers) return 0;
        spec->mixers[count] = mixer;
        more = comma != NULL;
        text.at = end + more;
    }
    for (uint32_t l = 1; count == 1 && l < spec->layers; l++) spec->mixers[l] = spec->mixers[0];
    return count == 1 || count == spec->layers;
}

/* Sizes as training/spec.py has them; another mixer, or weights of 32 bits, is not for this library. */
static int read_spec(json metadata, tsm_spec *spec) {
    json values;
    uint64_t width, layers, heads, key_width, value_width, taps, vocabulary;
    double ratio;
    if (!(member(metadata, "spec", &values) && member_is(values, "rotation", "false") &&
          member_whole(values, "width", &width) && member_whole(values, "layers", &layers) &&
          member_whole(values, "heads", &heads) &&
          member_whole(values, "value_width", &value_width) &&
          member_whole(values, "compression", &taps) &&
          member_whole(values, "vocabulary", &vocabulary) &&
          member_number(values, "mlp_ratio", &ratio)))
        return 0;
    const uint64_t most = 1 << 16;
    if (width > most || layers > TSM_MOST_LAYERS || heads > most || value_width > most ||
        taps > most || vocabulary != 256 || !(ratio > 0 && ratio * (double)width < 1 << 20))
        return 0;
    int eight = member_is(metadata, "quantization", "\"int8\"");
    if (!eight && !member_is(metadata, "quantization", "\"int4\"")) return 0;
    spec->vocabulary = (uint32_t)vocabulary;
    spec->width = (uint32_t)width;
    spec->layers = (uint32_t)layers;
    spec->channels = heads * value_width > most ? 0 : (uint32_t)(heads * value_width);
    spec->mlp_width = (uint32_t)rint(ratio * (double)width); /* ties to even, as Python's round */
    spec->taps = (uint32_t)taps;
    spec->bits = eight ? 8 : 4;
    spec->heads = (uint32_t)heads;
    if (member_whole(values, "key_width", &key_width) && key_width <= most)
        spec->key_width = (uint32_t)key_width;
    if (!read_mixers(values, spec)) return 0;
    const int beams = addressed_layers(spec) < spec->layers;
    return tsm_offset_count(spec) > 0 && (!beams || (member_is(values, "coupling", "true") &&
                                                     member_is(values, "short", "true")));
}

/* Appends the offsets of one weight. */
static int take_offsets(json all, const char *name, size_t wanted, uint64_t **next) {
    json list, text;
    if (!member(all, name, &list) || !take_character(&list, '[')) return 0;
    for (size_t i = 0; i < wanted; i++) {
        if (i && !take_character(&list, ',')) return 0;
        if (!take_string(&list, &text) || text.end - text.at != SIZE_DIGITS) return 0;
        if (!digits_at(text.at, SIZE_DIGITS, 10, (*next)++)) return 0;
    }
    return take_character(&list, ']');
}

static int read_offsets(json metadata, const tsm_spec *spec, uint64_t *next) {
    static const struct {
        const char *name;
        int beam, addressed; /* how many offsets; -1: one a tap */
    } parts[] = {{"mixer.short", -1, -1},         {"mixer.encoder", 0, 1},       {"mixer.encoder.delta", 0, 1},
                 {"mixer.encoder.radius", 0, 1}, {"mixer.encoder.decay", 0, 1}, {"mixer.radius", 1, 0},
                 {"mixer.in", 2, 2},             {"mixer.out", 2, 2},           {"mlp.in", 2, 2},
                 {"mlp.out", 2, 2}};
    json all;
    if (!member(metadata, "offsets", &all) || !take_offsets(all, "embed", 1, &next)) return 0;
    for (uint32_t l = 0; l < spec->layers; l++)
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            const int count = spec->mixers[l] == TSM_ADDRESSED ? parts[i].addressed : parts[i].beam;
            char name[48] = "blocks.";
            size_t length = 7 + write_whole(name + 7, l);
            name[length++] = '.';
            strcpy(name + length, parts[i].name);
            if (count && !take_offsets(all, name, count < 0 ? spec->taps : (size_t)count, &next)) return 0;
        }
    return take_offsets(all, "head", 2, &next);
}

int tsm_open(const void *file, size_t file_bytes, int trusted, int simd, uint32_t threads,
             tsm_model **model, char *message) {
    json metadata;
    tsm_spec spec = {0};
    *model = NULL;
    failed(0, message, "");
    if ((uintptr_t)file % 4)
        return failed(TSM_ARGUMENT, message, "file: not at a multiple of 4 bytes, wanted one");
    if (check_sealed(file, file_bytes, trusted, &metadata, message)) return TSM_ARTIFACT;
    if (!read_spec(metadata, &spec))
        return failed(TSM_UNSUPPORTED, message,
                      "a model that the C engine does not compute, wanted the mixers beam or addressed without rotation, in int8 or int4");
    size_t count = tsm_offset_count(&spec);
    uint64_t *offsets = calloc(count, sizeof *offsets);
    if (!offsets) return failed(TSM_MEMORY, message, "no memory for the model");
    int read = read_offsets(metadata, &spec, offsets);
    if (read) *model = tsm_new(&spec, file, file_bytes, offsets, count, simd, threads);
    free(offsets);
    if (!*model)
        return failed(TSM_ARTIFACT, message,
                      read ? "its offsets reach beyond the file, or there is no memory for it"
                           : "its offsets are not those of its spec");
    (*model)->metadata = metadata.at;
    (*model)->metadata_bytes = (size_t)(metadata.end - metadata.at);
    return 0;
}

const char *tsm_metadata(const tsm_model *model, size_t *bytes) {
    *bytes = model->metadata_bytes;
    return model->metadata;
}

const tsm_spec *tsm_spec_of(const tsm_model *model) { return &model->spec; }

#ifndef __wasm__
int tsm_open_file(const char *path, int simd, uint32_t threads, tsm_model **model, char *message) {
    *model = NULL;
    FILE *file = fopen(path, "rb");
    if (!file) return failed(TSM_IO, message, "the file cannot be opened, wanted a .tflite or .onnx");
    long size = fseek(file, 0, SEEK_END) ? -1 : ftell(file);
    uint8_t *bytes = size > 0 && size < LONG_MAX ? malloc((size_t)size) : NULL;
    int whole = bytes && !fseek(file, 0, SEEK_SET) && fread(bytes, 1, (size_t)size, file) == (size_t)size;
    fclose(file);
    int status = whole ? tsm_open(bytes, (size_t)size, 0, simd, threads, model, message)
                       : failed(TSM_IO, message, "the file cannot be read whole");
    if (status) free(bytes);
    else (*model)->file = bytes;
    return status;
}
#endif
