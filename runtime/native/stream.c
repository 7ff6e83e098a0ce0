/* Texts: what runtime/stream.py, sampling.py, text.py and state.py do for Python, to the same bytes. */

enum { VOCABULARY = 256, RECENT = 4096 /* bytes of the text that penalties can reach */,
       SAVED = RECENT + 1 /* one drawn byte can be rewound after restoring */, SNAPSHOT = 256, FINE = 32,
       MOST_REWIND = 1 << 24, SCORED = 64 /* bytes at a time */, STATE_HEAD = 20,
       MOST_STATE_HEADER = 1 << 14, MOST_PARTS = 3 + TSM_STATE_PARTS, STATE_VERSION = 1 };
static const char state_magic[] = "TSMSTATE";
static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

/* What the model remembers after `position` bytes: its state, and the logits of the byte after them. */
typedef struct {
    uint64_t position;
    float *memory; /* as tsm_state_values, and VOCABULARY */
} snapshot;

struct tsm_stream {
    tsm_model *model;
    tsm_sampling sampling;
    float *memory, bias[VOCABULARY];
    int biased, penalises;
    uint64_t position, draws; /* bytes read and drawn; drawn */
    int unread;               /* whether the last byte was drawn and nothing came after it */
    uint8_t *text, *drawn;    /* the last bytes, and of each whether it was drawn */
    size_t text_bytes, text_room;
    uint32_t rewind, snapshot_count, snapshot_room;
    snapshot *snapshots;
    /* The generation under way. */
    uint64_t left;
    int finish;
    char *stops, *held; /* stop strings, each with its NUL; text that may begin one */
    size_t stops_bytes, longest_stop, held_bytes, given;
    uint8_t character[4]; /* the beginning of one */
    uint32_t character_bytes;
};

/* Settings */

static const struct {
    const char *name, *wanted;
    size_t offset;
    double least, greatest;
} ranges[] = {
#define RANGE(name, least, greatest, wanted) \
    {#name, wanted, offsetof(tsm_sampling, name), least, greatest},
    RANGE(temperature, 0, DBL_MAX, "a finite number, 0 or more")
    RANGE(typical_p, DBL_MIN, 1, "a number above 0, at most 1")
    RANGE(top_p, DBL_MIN, 1, "a number above 0, at most 1")
    RANGE(min_p, 0, 1, "a number from 0 to 1")
    RANGE(repetition_penalty, 0.01, 100, "a number from 0.01 to 100")
    RANGE(presence_penalty, -100, 100, "a number from -100 to 100")
    RANGE(frequency_penalty, -100, 100, "a number from -100 to 100")
#undef RANGE
};
enum { RANGES = sizeof ranges / sizeof *ranges };

static double *setting(const tsm_sampling *s, int i) {
    return (double *)(void *)((char *)(uintptr_t)s + ranges[i].offset);
}

void tsm_sampling_defaults(tsm_sampling *s) {
    memset(s, 0, sizeof *s);
    s->temperature = 0.8;
    s->typical_p = s->top_p = s->repetition_penalty = 1;
    s->penalty_window = 64;
}

static int check_sampling(const tsm_sampling *s, char *message) {
    line out = {message, 0};
    int left = 0;
    for (int i = 0; i < RANGES; i++)
        if (!(*setting(s, i) >= ranges[i].least && *setting(s, i) <= ranges[i].greatest)) {
            say(&out, ranges[i].name);
            say(&out, ": wanted ");
            say(&out, ranges[i].wanted);
            return TSM_ARGUMENT;
        }
    if (s->penalty_window > RECENT)
        return failed(TSM_ARGUMENT, message, "penalty_window: wanted a whole number, at most 4096");
    for (int i = 0; i < VOCABULARY; i++) {
        double value = s->logit_bias[i];
        if (!((value >= -1000 && value <= 1000) || value == -INFINITY))
            return failed(TSM_ARGUMENT, message, "logit_bias: wanted -1000 to 1000, or -inf");
        left += value != -INFINITY;
    }
    if (!left)
        return failed(TSM_ARGUMENT, message,
                      "logit_bias: every byte excluded, wanted at least one left");
    return 0;
}

static void use_sampling(tsm_stream *s, const tsm_sampling *sampling) {
    s->sampling = *sampling;
    s->biased = 0;
    for (int i = 0; i < VOCABULARY; i++) {
        s->bias[i] = (float)sampling->logit_bias[i];
        s->biased |= sampling->logit_bias[i] != 0;
    }
    s->penalises = sampling->penalty_window && (sampling->repetition_penalty != 1 ||
                                                sampling->presence_penalty != 0 ||
                                                sampling->frequency_penalty != 0);
}

/* A stream */

static size_t memory_of(const tsm_model *m) { return m->state_values + VOCABULARY; }
static float *logits_in(const tsm_stream *s, float *memory) {
    return memory + memory_of(s->model) - VOCABULARY;
}

void tsm_stream_free(tsm_stream *s) {
    if (!s) return;
    for (uint32_t i = 0; s->snapshots && i < s->snapshot_room; i++) free(s->snapshots[i].memory);
    free(s->snapshots);
    free(s->memory);
    free(s->text);
    free(s->drawn);
    free(s->stops);
    free(s->held);
    free(s);
}

int tsm_stream_new(tsm_model *model, const tsm_sampling *sampling, uint32_t rewind_bytes,
                   tsm_stream **stream, char *message) {
    tsm_sampling defaults;
    tsm_sampling_defaults(&defaults);
    if (!sampling) sampling = &defaults;
    *stream = NULL;
    failed(0, message, "");
    if (rewind_bytes > MOST_REWIND)
        return failed(TSM_ARGUMENT, message, "rewind_bytes: wanted at most 16777216");
    if (check_sampling(sampling, message)) return TSM_ARGUMENT;
    tsm_stream *s = calloc(1, sizeof *s);
    if (!s) return failed(TSM_MEMORY, message, "no memory for a text");
    s->model = model;
    use_sampling(s, sampling);
    s->rewind = rewind_bytes;
    s->finish = TSM_LENGTH;
    s->text_room = 2 * (SAVED + 3 * SNAPSHOT + (size_t)rewind_bytes);
    s->memory = calloc(memory_of(model), sizeof *s->memory);
    s->text = malloc(s->text_room);
    s->drawn = malloc(s->text_room);
    s->snapshot_room = rewind_bytes / SNAPSHOT + 2 + (rewind_bytes < SNAPSHOT ? rewind_bytes : SNAPSHOT) / FINE;
    s->snapshots = calloc(s->snapshot_room, sizeof *s->snapshots);
    if (!s->memory || !s->text || !s->drawn || !s->snapshots) {
        tsm_stream_free(s);
        return failed(TSM_MEMORY, message, "no memory for a text");
    }
    *stream = s;
    return 0;
}

int tsm_set_sampling(tsm_stream *s, const tsm_sampling *sampling, char *message) {
    failed(0, message, "");
    if (check_sampling(sampling, message)) return TSM_ARGUMENT;
    use_sampling(s, sampling);
    return 0;
}

void tsm_get_sampling(const tsm_stream *s, tsm_sampling *sampling) { *sampling = s->sampling; }
uint64_t tsm_position(const tsm_stream *s) { return s->position; }
uint64_t tsm_draws(const tsm_stream *s) { return s->draws; }

const uint8_t *tsm_recent(const tsm_stream *s, size_t *bytes) {
    *bytes = s->text_bytes < RECENT ? s->text_bytes : RECENT;
    return s->text + s->text_bytes - *bytes;
}

static void record(tsm_stream *s, const uint8_t *bytes, size_t count, int drawn) {
    if (s->text_bytes + count > s->text_room) { /* its second half is enough */
        size_t kept = s->text_room / 2 - count;
        memmove(s->text, s->text + s->text_bytes - kept, kept);
        memmove(s->drawn, s->drawn + s->text_bytes - kept, kept);
        s->text_bytes = kept;
    }
    memcpy(s->text + s->text_bytes, bytes, count);
    memset(s->drawn + s->text_bytes, drawn, count);
    s->text_bytes += count;
    s->position += count;
}

static int read_failed(int status, char *message) {
    return failed(status, message,
                  status == TSM_BAD_TOKEN ? "a byte beyond the model's vocabulary"
                                          : "a logit that is no finite number: the weights or the "
                                            "state are damaged");
}

/* Forgets one, whose memory serves again. */
static void drop_snapshot(tsm_stream *s, uint32_t i) {
    snapshot own = s->snapshots[i];
    s->snapshot_count--;
    memmove(s->snapshots + i, s->snapshots + i + 1, (s->snapshot_count - i) * sizeof own);
    s->snapshots[s->snapshot_count] = own;
}

/* A snapshot before the byte at `position`, where the last one is FINE bytes back; of those before the last
 * SNAPSHOT bytes, the first in each SNAPSHOT bytes stays. 0: no memory. */
static int keep_snapshot(tsm_stream *s, uint64_t position) {
    size_t memory = memory_of(s->model) * sizeof(float);
    const snapshot *kept = s->snapshots;
    if (!s->rewind) return 1;
    if (s->snapshot_count && position < kept[s->snapshot_count - 1].position + FINE) return 1;
    for (uint32_t i = 1; i < s->snapshot_count && kept[i].position + SNAPSHOT <= position;)
        if (kept[i].position / SNAPSHOT == kept[i - 1].position / SNAPSHOT) drop_snapshot(s, i);
        else i++;
    if (s->snapshot_count == s->snapshot_room) drop_snapshot(s, 0);
    snapshot *newest = &s->snapshots[s->snapshot_count];
    if (!newest->memory && !(newest->memory = malloc(memory))) return 0;
    newest->position = position;
    memcpy(newest->memory, s->memory, memory);
    s->snapshot_count++;
    return 1;
}

/* Moves the model on from `position`. `every`: NULL, or room for the logits after
 * each of them. */
static int move_on(tsm_stream *s, const uint8_t *bytes, size_t count, uint64_t position, float *every,
                   char *message) {
    float *last = logits_in(s, s->memory);
    if (!keep_snapshot(s, position)) return failed(TSM_MEMORY, message, "no memory for a text");
    int status = tsm_read(s->model, s->memory, bytes, count, every ? every : last, every != NULL);
    if (status) return read_failed(status, message);
    if (every) memcpy(last, every + (count - 1) * VOCABULARY, VOCABULARY * sizeof *last);
    return 0;
}

static int read_drawn(tsm_stream *s, char *message) {
    if (!s->unread) return 0;
    int status = move_on(s, s->text + s->text_bytes - 1, 1, s->position - 1, NULL, message);
    if (!status) s->unread = 0;
    return status;
}

/* tsm_feed, with the logits after each byte where `every` is not NULL. */
static int feed(tsm_stream *s, const uint8_t *next, size_t count, float *every, char *message) {
    failed(0, message, "");
    if (!count) return 0;
    int status = read_drawn(s, message);
    while (count && !status) {
        size_t piece = SNAPSHOT;
        if (s->rewind && s->snapshot_count) {
            uint64_t since = s->position - s->snapshots[s->snapshot_count - 1].position;
            piece = since < SNAPSHOT ? SNAPSHOT - (size_t)since : SNAPSHOT;
        }
        if (piece > count) piece = count;
        status = move_on(s, next, piece, s->position, every, message);
        if (!status) record(s, next, piece, 0);
        next += piece;
        count -= piece;
        if (every) every += piece * VOCABULARY;
    }
    return status;
}

int tsm_feed(tsm_stream *s, const void *bytes, size_t count, char *message) {
    return feed(s, bytes, count, NULL, message);
}

int tsm_logits(tsm_stream *s, const float **logits, char *message) {
    failed(0, message, "");
    int status = s->position ? read_drawn(s, message) : tsm_feed(s, "\n", 1, message);
    *logits = status ? NULL : logits_in(s, s->memory);
    return status;
}

int tsm_score(tsm_stream *s, const void *bytes, size_t count, float *nats, char *message) {
    const uint8_t *next = bytes;
    const float *before;
    int status = tsm_logits(s, &before, message);
    if (status) return status;
    float *after = malloc(SCORED * VOCABULARY * sizeof *after); /* each byte of a piece */
    if (!after) return failed(TSM_MEMORY, message, "no memory for a text");
    while (count && !status) {
        size_t piece = count < SCORED ? count : SCORED;
        tsm_nats(before, next, 1, nats, NULL);
        status = feed(s, next, piece, after, message);
        if (!status) tsm_nats(after, next + 1, piece - 1, nats + 1, NULL);
        next += piece;
        nats += piece;
        count -= piece;
    }
    free(after);
    return status;
}

/* splitmix64's number of this index, in [0, 1). */
static double uniform(uint64_t seed, uint64_t index) {
    uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

/* What bias and penalties add to the logits; NULL: nothing. */
static const float *adjust(const tsm_stream *s, const float *logits, float added[VOCABULARY]) {
    const tsm_sampling *p = &s->sampling;
    if (!s->penalises) return s->biased ? s->bias : NULL;
    uint32_t counts[VOCABULARY] = {0};
    size_t window = p->penalty_window < s->text_bytes ? p->penalty_window : s->text_bytes;
    for (size_t i = 0; i < window; i++) counts[s->text[s->text_bytes - 1 - i]]++;
    memcpy(added, s->bias, sizeof s->bias);
    for (int i = 0; i < VOCABULARY; i++) {
        if (!counts[i]) continue;
        double logit = (double)logits[i] + added[i];
        if (logit > 0) logit /= p->repetition_penalty;
        else if (logit < 0) logit *= p->repetition_penalty;
        logit -= p->presence_penalty + p->frequency_penalty * counts[i];
        added[i] = (float)(logit - logits[i]);
    }
    return added;
}

int tsm_next_byte(tsm_stream *s, uint8_t *byte, char *message) {
    const tsm_sampling *p = &s->sampling;
    const float *logits;
    float added[VOCABULARY];
    int status = tsm_logits(s, &logits, message);
    if (status) return status;
    *byte = tsm_draw(logits, adjust(s, logits, added), p->temperature, p->top_k, p->typical_p, p->top_p,
                     p->min_p, uniform(p->seed, s->draws));
    record(s, byte, 1, 1);
    s->draws++;
    s->unread = 1;
    return 0;
}

/* Text */

int tsm_generate(tsm_stream *s, uint64_t bytes, const char *const *stops, size_t stop_count,
                 char *message) {
    size_t all = 0;
    failed(0, message, "");
    free(s->stops);
    free(s->held);
    s->stops = s->held = NULL;
    s->longest_stop = s->held_bytes = s->given = s->character_bytes = 0;
    s->finish = TSM_LENGTH;
    s->left = 0;
    for (size_t i = 0; i < stop_count; i++) {
        size_t length = strlen(stops[i]);
        if (!length) return failed(TSM_ARGUMENT, message, "stops: an empty one, wanted a character");
        if (length > s->longest_stop) s->longest_stop = length;
        all += length + 1;
    }
    s->stops_bytes = 0;
    s->stops = malloc(all + 1);
    s->held = malloc(s->longest_stop + 16);
    if (!s->stops || !s->held) return failed(TSM_MEMORY, message, "no memory for a text");
    for (size_t i = 0; i < stop_count; i++) {
        size_t length = strlen(stops[i]) + 1;
        memcpy(s->stops + s->stops_bytes, stops[i], length);
        s->stops_bytes += length;
    }
    s->finish = TSM_RUNNING;
    s->left = bytes;
    return 0;
}

int tsm_finish_reason(const tsm_stream *s) { return s->finish; }

static void hold(tsm_stream *s, const void *text, size_t bytes) {
    memcpy(s->held + s->held_bytes, text, bytes);
    s->held_bytes += bytes;
}

/* Bytes of the character that begins so; 0: none does. */
static uint32_t character_length(uint8_t first) {
    return first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
}

static int goes_on(const uint8_t *character, uint32_t count, uint8_t next) {
    uint8_t least = 0x80, greatest = 0xbf;
    if (count == 1 && character[0] == 0xe0) least = 0xa0;
    if (count == 1 && character[0] == 0xed) greatest = 0x9f;
    if (count == 1 && character[0] == 0xf0) least = 0x90;
    if (count == 1 && character[0] == 0xf4) greatest = 0x8f;
    return next >= least && next <= greatest;
}

/* Adds a byte to the text: whole characters, U+FFFD for what is none, as Python decodes. */
static void decode(tsm_stream *s, uint8_t byte) {
    if (s->character_bytes && !goes_on(s->character, s->character_bytes, byte)) {
        hold(s, replacement, 3);
        s->character_bytes = 0;
    }
    s->character[s->character_bytes++] = byte;
    uint32_t length = character_length(s->character[0]);
    if (!length) hold(s, replacement, 3);
    else if (s->character_bytes < length) return;
    else hold(s, s->character, length);
    s->character_bytes = 0;
}

static size_t find(const char *text, size_t bytes, const char *wanted) {
    size_t length = strlen(wanted);
    for (size_t i = 0; i + length <= bytes; i++)
        if (!memcmp(text + i, wanted, length)) return i;
    return bytes;
}

/* How many bytes at the end of the held text may turn out to begin a stop string. */
static size_t stop_begun(const tsm_stream *s) {
    size_t most = s->longest_stop ? s->longest_stop - 1 : 0;
    for (size_t n = most < s->held_bytes ? most : s->held_bytes; n; n--)
        for (const char *stop = s->stops; stop < s->stops + s->stops_bytes; stop += strlen(stop) + 1)
            if (!strncmp(stop, s->held + s->held_bytes - n, n) && strlen(stop) >= n) return n;
    return 0;
}

int tsm_next(tsm_stream *s, const char **text, size_t *bytes, char *message) {
    failed(0, message, "");
    *text = s->held;
    *bytes = 0;
    if (s->given) memmove(s->held, s->held + s->given, s->held_bytes - s->given);
    s->held_bytes -= s->given;
    s->given = 0;
    while (s->finish == TSM_RUNNING && !*bytes) {
        uint8_t byte;
        size_t at = s->held_bytes;
        if (!s->left) { /* what is left of a character is none */
            if (s->character_bytes) hold(s, replacement, 3);
            s->character_bytes = 0;
            s->finish = TSM_LENGTH;
            *bytes = s->held_bytes;
            break;
        }
        int status = tsm_next_byte(s, &byte, message);
        if (status) return status;
        if (s->left != UINT64_MAX) s->left--;
        decode(s, byte);
        if (at == s->held_bytes) continue;
        at = s->held_bytes;
        for (const char *stop = s->stops; stop < s->stops + s->stops_bytes; stop += strlen(stop) + 1) {
            size_t found = find(s->held, s->held_bytes, stop);
            at = found < at ? found : at;
        }
        if (at < s->held_bytes) {
            s->finish = TSM_STOP;
            s->held_bytes = *bytes = at;
        } else {
            *bytes = s->held_bytes - stop_begun(s);
        }
    }
    s->given = *bytes;
    return 0;
}

/* Copies and ways back */

int tsm_fork(const tsm_stream *s, tsm_stream **stream, char *message) {
    int status = tsm_stream_new(s->model, &s->sampling, s->rewind, stream, message);
    if (status) return status;
    tsm_stream *other = *stream;
    size_t memory = memory_of(s->model) * sizeof(float);
    memcpy(other->memory, s->memory, memory);
    memcpy(other->text, s->text, s->text_bytes);
    memcpy(other->drawn, s->drawn, s->text_bytes);
    other->text_bytes = s->text_bytes;
    other->position = s->position;
    other->draws = s->draws;
    other->unread = s->unread;
    for (uint32_t i = 0; i < s->snapshot_count; i++) {
        snapshot *copy = &other->snapshots[other->snapshot_count];
        if (!(copy->memory = malloc(memory))) {
            tsm_stream_free(other);
            *stream = NULL;
            return failed(TSM_MEMORY, message, "no memory for a text");
        }
        copy->position = s->snapshots[i].position;
        memcpy(copy->memory, s->snapshots[i].memory, memory);
        other->snapshot_count++;
    }
    return 0;
}

int tsm_rewind(tsm_stream *s, uint64_t count, char *message) {
    failed(0, message, "");
    if (!count) return 0;
    uint32_t i = s->snapshot_count;
    while (i && (count > s->position || s->snapshots[i - 1].position > s->position - count)) i--;
    if (!i)
        return failed(TSM_ARGUMENT, message,
                      "rewind: further back than is kept, wanted a larger rewind_bytes");
    const snapshot *earlier = &s->snapshots[i - 1];
    size_t goal = s->text_bytes - (size_t)count; /* in the text that is kept */
    size_t again = (size_t)(s->position - count - earlier->position);
    for (size_t j = goal; j < s->text_bytes; j++) s->draws -= s->drawn[j];
    memcpy(s->memory, earlier->memory, memory_of(s->model) * sizeof(float));
    s->snapshot_count = i;
    s->text_bytes = goal;
    s->position -= count;
    s->unread = 0;
    s->left = 0; /* of a generation under way nothing is right any more */
    s->finish = TSM_LENGTH;
    s->held_bytes = s->given = s->character_bytes = 0;
    /* In two steps, between which a snapshot is kept: who deletes goes on to delete. */
    size_t near = again < FINE ? again : FINE, far = again - near;
    int status = far ? move_on(s, s->text + goal - again, far, earlier->position, NULL, message) : 0;
    if (near && !status) status = move_on(s, s->text + goal - near, near, s->position - near, NULL, message);
    return status;
}

/* State files */

static void put32(uint8_t *out, uint32_t value) {
    for (int i = 0; i < 4; i++) out[i] = (uint8_t)(value >> 8 * i);
}

static uint32_t get32(const uint8_t *in) {
    return in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
}

typedef struct {
    char text[MOST_STATE_HEADER];
    size_t length;
} header_text;

static void add_text(header_text *h, const char *text) {
    size_t length = strlen(text);
    memcpy(h->text + h->length, text, length);
    h->length += length;
}

static void add_member(header_text *h, const char *name, uint64_t value) {
    add_text(h, name);
    h->length += write_whole(h->text + h->length, value);
}

static void add_double(header_text *h, const char *name, double value) {
    add_text(h, name);
    h->length += write_double(h->text + h->length, value);
}

static const char *sha256_of(const tsm_model *m) { return m->metadata + SHA_AT; }

/* Its parts' lengths: text, grammar's text, logits and, of a state, what the model has. Returns how many. */
static int parts_of(const tsm_stream *s, size_t lengths[MOST_PARTS]) {
    const size_t *values = s->model->state_parts;
    int count = 3;
    lengths[0] = s->text_bytes < SAVED ? s->text_bytes : SAVED;
    lengths[1] = 0;
    lengths[2] = VOCABULARY * sizeof(float);
    for (int i = 0; i < TSM_STATE_PARTS; i++)
        if (values[i]) lengths[count++] = values[i] * sizeof(float);
    return s->position ? count : 2;
}

/* As Python's json.dumps of stream.py's header. */
static void write_header(const tsm_stream *s, header_text *h) {
    const tsm_sampling *p = &s->sampling;
    size_t lengths[MOST_PARTS];
    int parts = parts_of(s, lengths), first = 1;
    h->length = 0;
    add_text(h, "{\"model\": \"");
    memcpy(h->text + h->length, sha256_of(s->model), SHA_DIGITS);
    h->length += SHA_DIGITS;
    add_member(h, "\", \"position\": ", s->position);
    add_member(h, ", \"draws\": ", s->draws);
    add_member(h, ", \"unread\": ", (uint64_t)s->unread);
    add_double(h, ", \"sampling\": {\"temperature\": ", p->temperature);
    add_member(h, ", \"top_k\": ", p->top_k);
    add_double(h, ", \"typical_p\": ", p->typical_p);
    add_double(h, ", \"top_p\": ", p->top_p);
    add_double(h, ", \"min_p\": ", p->min_p);
    add_double(h, ", \"repetition_penalty\": ", p->repetition_penalty);
    add_double(h, ", \"presence_penalty\": ", p->presence_penalty);
    add_double(h, ", \"frequency_penalty\": ", p->frequency_penalty);
    add_member(h, ", \"penalty_window\": ", p->penalty_window);
    add_member(h, ", \"seed\": ", p->seed);
    add_text(h, ", \"logit_bias\": {");
    for (uint32_t i = 0; i < VOCABULARY; i++) {
        if (p->logit_bias[i] == 0) continue;
        add_member(h, first ? "\"" : ", \"", i);
        add_double(h, "\": ", p->logit_bias[i]);
        first = 0;
    }
    add_text(h, "}}, \"grammar\": null, \"parts\": [");
    for (int i = 0; i < parts; i++) add_member(h, i ? ", " : "", lengths[i]);
    add_text(h, "]}");
}

size_t tsm_save(const tsm_stream *s, uint8_t *out, size_t room) {
    header_text header;
    size_t lengths[MOST_PARTS], needed;
    int parts = parts_of(s, lengths);
    write_header(s, &header);
    needed = STATE_HEAD + header.length;
    for (int i = 0; i < parts; i++) needed += lengths[i];
    if (!out || room < needed) return needed;
    memcpy(out, state_magic, 8);
    put32(out + 8, STATE_VERSION);
    put32(out + 16, (uint32_t)header.length);
    uint8_t *next = out + STATE_HEAD;
    memcpy(next, header.text, header.length);
    next += header.length;
    memcpy(next, s->text + s->text_bytes - lengths[0], lengths[0]);
    next += lengths[0];
    if (parts > 2) {
        memcpy(next, logits_in(s, s->memory), lengths[2]);
        memcpy(next + lengths[2], s->memory, s->model->state_values * sizeof(float));
    }
    put32(out + 12, crc32_of(out + 16, needed - 16));
    return needed;
}

static int take_sampling(json values, tsm_sampling *p) {
    json bias, key;
    uint64_t top_k, window;
    tsm_sampling_defaults(p);
    for (int i = 0; i < RANGES; i++)
        if (!member_number(values, ranges[i].name, setting(p, i))) return 0;
    if (!member_whole(values, "top_k", &top_k) || !member_whole(values, "penalty_window", &window) ||
        !member_whole(values, "seed", &p->seed) || !member(values, "logit_bias", &bias) ||
        top_k > UINT32_MAX || window > RECENT || !take_character(&bias, '{'))
        return 0;
    p->top_k = (uint32_t)top_k;
    p->penalty_window = (uint32_t)window;
    if (take_character(&bias, '}')) return 1;
    do {
        uint64_t byte;
        if (!take_string(&bias, &key) || !take_whole(&key, &byte) || key.at != key.end ||
            byte >= VOCABULARY || !take_character(&bias, ':') ||
            !take_number(&bias, &p->logit_bias[byte]))
            return 0;
    } while (take_character(&bias, ','));
    return take_character(&bias, '}');
}

int tsm_restore(tsm_model *model, const void *state, size_t bytes, uint32_t rewind_bytes,
                tsm_stream **stream, char *message) {
    const uint8_t *in = state;
    const int damaged = TSM_STATE;
    *stream = NULL;
    if (bytes < STATE_HEAD || memcmp(in, state_magic, 8))
        return failed(damaged, message, "no TSM state, wanted what tsm_save or --save-state wrote");
    if (get32(in + 8) != STATE_VERSION)
        return failed(damaged, message, "another state format, wanted 1");
    if (crc32_of(in + 16, bytes - 16) != get32(in + 12))
        return failed(damaged, message, "its CRC-32 differs (damaged or cut short)");
    size_t header_bytes = get32(in + 16);
    if (header_bytes > bytes - STATE_HEAD)
        return failed(damaged, message, "a header that does not describe the file");
    const char *text = (const char *)in + STATE_HEAD;
    json header = {text, text + header_bytes}, rest = header, values, list;
    uint64_t position, draws, unread, lengths[MOST_PARTS], sum = 0;
    tsm_sampling sampling;
    if (!skip_value(&rest, 0) || !member(header, "parts", &list) || !member(header, "model", &values) ||
        values.end - values.at != SHA_DIGITS + 2)
        return failed(damaged, message, "a header that does not describe the file");
    if (memcmp(values.at + 1, sha256_of(model), SHA_DIGITS))
        return failed(damaged, message, "a state of another model");
    if (!member_is(header, "grammar", "null"))
        return failed(TSM_UNSUPPORTED, message, "a state with a grammar, which the C library does not hold");
    if (!member_whole(header, "position", &position) || !member_whole(header, "draws", &draws) ||
        !member_whole(header, "unread", &unread) || !member(header, "sampling", &values) ||
        !take_sampling(values, &sampling))
        return failed(damaged, message, "its settings cannot be read");
    int status = tsm_stream_new(model, &sampling, rewind_bytes, stream, message);
    if (status) return status == TSM_ARGUMENT ? damaged : status;
    tsm_stream *s = *stream;
    size_t wanted[MOST_PARTS];
    s->position = position;
    int parts = parts_of(s, wanted), whole = take_character(&list, '[');
    for (int i = 0; i < parts && whole; i++) {
        whole = (!i || take_character(&list, ',')) && take_whole(&list, &lengths[i]) &&
                lengths[i] <= bytes && (i == 0 || lengths[i] == wanted[i]);
        sum += whole ? lengths[i] : 0;
    }
    uint64_t least = position < RECENT ? position : RECENT, most = position < SAVED ? position : SAVED;
    whole = whole && take_character(&list, ']') && sum == bytes - STATE_HEAD - header_bytes &&
            lengths[0] >= least && lengths[0] <= most && draws <= position && unread <= 1 &&
            unread <= draws;
    if (!whole) {
        tsm_stream_free(s);
        *stream = NULL;
        return failed(damaged, message, "its counts do not agree with its parts");
    }
    const uint8_t *part = in + STATE_HEAD + header_bytes;
    s->text_bytes = (size_t)lengths[0];
    s->draws = draws;
    s->unread = (int)unread;
    memcpy(s->text, part, s->text_bytes);
    memset(s->drawn, 0, s->text_bytes);
    if (unread) s->drawn[s->text_bytes - 1] = 1;
    part += s->text_bytes;
    if (parts > 2) {
        memcpy(logits_in(s, s->memory), part, wanted[2]);
        memcpy(s->memory, part + wanted[2], model->state_values * sizeof(float));
        if (!all_finite(logits_in(s, s->memory), VOCABULARY)) {
            tsm_stream_free(s);
            *stream = NULL;
            return failed(damaged, message, "a logit that is no finite number");
        }
    }
    return 0;
}
