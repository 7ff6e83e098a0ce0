/* Completion as one types: what runtime/complete.py does, which says why, to the same texts. */

enum { CONTEXT = 1024, DENSE = 16, SPARSE = 64, PLACES = 32, LOOKAHEAD = 24, CANDIDATES = 3, STEPS = 16,
       CORRECTION_STEPS = 16, CORRECTION_CHARACTERS = 2, CORRECTIONS = 2, WORD_BYTES = 32,
       LONGEST_REPEAT = 32, HISTORY = 16384, MOST_COUNT = 16,
       MOST_TEXT = WORD_BYTES + 4 + MOST_COUNT * STEPS, MOST_QUEUE = MOST_COUNT * (STEPS + 1) + 1 };
static const double edit_probability = 2e-3, usual_probability = 0.15;

/* A place in a text: what the model remembers there, and the places a byte further. */
typedef struct place {
    struct place *before; /* whose text with `byte` is this one's; NULL: it is that of the completer */
    struct place *next, *further; /* another one after `before`; the first after this one */
    size_t at;                    /* bytes of the text before it */
    uint8_t byte;
    float memory[]; /* as of a snapshot, but for logits probabilities */
} place;

/* What a search goes on from, at an unread byte after a place. */
typedef struct {
    double hope, weight; /* what is tried first; the probability, for an `end` that of going on so */
    place *place;
    const uint8_t *rest; /* of what was typed, which is to follow */
    uint32_t left;       /* bytes of it */
    uint8_t unread, byte, end, new; /* new: in a character that was not typed */
    uint8_t worded, solid;          /* whether a word has begun, and anything but spaces */
    uint8_t bytes, character[4];    /* the last one, as far as it goes */
} candidate;

/* A continuation found: that the text goes on so and its last word ends there, that it goes on so. */
typedef struct {
    double probability, reached;
    place *place;
} ending;

/* A word that may be meant. */
typedef struct {
    double weight;
    place *place;
    size_t bytes;
    uint8_t text[WORD_BYTES + 4];
} way;

struct tsm_completer {
    tsm_model *model;
    uint8_t *text; /* before the cursor */
    size_t bytes, room;
    size_t word, characters;   /* where the unfinished one begins; its length */
    place *places[PLACES + CONTEXT / SPARSE + 2 * WORD_BYTES + 2]; /* in the text */
    size_t count;
    uint32_t budget, ahead; /* bytes that may still be read; that were, beside the text */
    uint8_t recent[HISTORY];
    candidate queue[MOST_QUEUE]; /* the best last */
    size_t queued, queue_room;
    tsm_completion found[MOST_COUNT * (CORRECTIONS + 1)];
    char texts[MOST_COUNT * (CORRECTIONS + 1)][MOST_TEXT + 1];
};

/* Characters */

static int is_ascii_word(uint32_t code) {
    return code == '_' || (code >= '0' && code <= '9') || ((code | 32) >= 'a' && (code | 32) <= 'z');
}

/* Whether words are made of it; beyond ASCII of all but PUNCTUATION of complete.py. */
static int is_word(const uint8_t *character, uint32_t bytes) {
    static const uint32_t punctuation[][2] = {{0x80, 0xbf},     {0x2000, 0x2bff}, {0x3000, 0x3004},
                                              {0x3008, 0x3020}, {0xff00, 0xff0f}, {0xff1a, 0xff20},
                                              {0xfff0, 0xffff}, {0x1f000, 0x1faff}};
    uint32_t code = bytes == 1 ? *character : *character & 0xffu >> (bytes + 1);
    for (uint32_t i = 1; i < bytes; i++) code = code << 6 | (character[i] & 63u);
    if (code < 128) return is_ascii_word(code);
    for (size_t i = 0; i < sizeof punctuation / sizeof *punctuation; i++)
        if (code >= punctuation[i][0] && code <= punctuation[i][1]) return 0;
    return 1;
}

/* 1: a whole character; 0: the beginning of one; -1: neither. */
static int is_whole(const uint8_t *character, uint32_t bytes) {
    uint32_t length = character_length(*character);
    for (uint32_t i = 1; i < bytes; i++)
        if (!goes_on(character, i, character[i])) return -1;
    return length < bytes ? -1 : length == bytes;
}

static int is_lead(int byte) { return byte >= 0xc2 && byte < 0xf5; }
static int is_following(int byte) { return byte >= 0x80 && byte < 0xc0; }

/* Places */

static float *probabilities(const tsm_completer *c, place *p) {
    return p->memory + memory_of(c->model) - VOCABULARY;
}

/* Up to HISTORY bytes before a place, which end at the returned address, until the next call. */
static const uint8_t *text_before(tsm_completer *c, const place *p, size_t *bytes) {
    size_t at = p->at, count = at < HISTORY ? at : HISTORY;
    uint8_t *end = c->recent + count, *own = end;
    for (; p->before; p = p->before) *--own = p->byte;
    count -= (size_t)(end - own);
    memcpy(c->recent, c->text + p->at - count, count);
    *bytes = (size_t)(end - c->recent);
    return end;
}

/* Makes probabilities of the logits; part of them is the byte's that came after the last bytes where they
 * stood before. */
static void weigh(tsm_completer *c, place *p) {
    static const struct {
        uint8_t least;
        double part;
    } repeated[] = {{32, 0.65}, {25, 0.6}, {17, 0.55}, {9, 0.4}, {7, 0.3},
                    {6, 0.25},  {5, 0.2},  {4, 0.15},  {3, 0.1}};
    float *values = probabilities(c, p), greatest = values[0];
    double part = 0, sum = 0, weights[VOCABULARY];
    size_t bytes, longest = 0;
    const uint8_t *end = text_before(c, p, &bytes), *same = NULL;
    for (size_t back = 1; back < bytes && longest < LONGEST_REPEAT; back++) {
        const uint8_t *last = end - back, *one = last, *other = end;
        while (one > end - bytes && last - one < LONGEST_REPEAT && one[-1] == other[-1]) one--, other--;
        if ((size_t)(last - one) > longest) longest = (size_t)(last - one), same = last;
    }
    for (size_t i = 0; i < sizeof repeated / sizeof *repeated && part == 0; i++)
        if (longest >= repeated[i].least) part = repeated[i].part;
    for (int i = 1; i < VOCABULARY; i++) greatest = values[i] > greatest ? values[i] : greatest;
    for (int i = 0; i < VOCABULARY; i++) sum += weights[i] = exp((double)values[i] - greatest);
    for (int i = 0; i < VOCABULARY; i++) values[i] = (float)(weights[i] * (1 - part) / sum);
    if (same) values[*same] += (float)part;
}

static void free_places(place *p) {
    for (place *own = p->further, *next; own; own = next) {
        next = own->next;
        free_places(own);
    }
    free(p);
}

/* The place after `count` bytes more; after a byte that has been read, the same one. `from` NULL: where a
 * text begins. */
static int read_on(tsm_completer *c, place *from, const uint8_t *bytes, size_t count, size_t at,
                   place **found, char *message) {
    size_t size = sizeof **found + memory_of(c->model) * sizeof(float);
    for (place *own = from && count == 1 ? from->further : NULL; own; own = own->next)
        if (own->byte == *bytes) return *found = own, 0;
    place *own = calloc(1, size);
    if (!own) return failed(TSM_MEMORY, message, "no memory for a text");
    if (from) memcpy(own->memory, from->memory, size - sizeof *own);
    int status = tsm_read(c->model, own->memory, bytes, count, probabilities(c, own), 0);
    if (status) {
        free(own);
        return read_failed(status, message);
    }
    own->at = at;
    if (from && count == 1) {
        own->byte = *bytes;
        own->before = from;
        own->next = from->further;
        from->further = own;
        c->ahead++;
    }
    weigh(c, own);
    *found = own;
    return 0;
}

/* Forgets all but the first `count` places in the text. What is after one of these is still known. */
static void keep_places(tsm_completer *c, size_t count) {
    while (c->count > count) {
        place *own = c->places[--c->count];
        if (!own->before) free_places(own);
    }
}

/* Drops what was looked at beside the text before the word, and most places far back. */
static void forget(tsm_completer *c) {
    int all = c->ahead > LOOKAHEAD || c->count > PLACES;
    if (all) c->ahead = 0;
    for (size_t i = 0; i < c->count; i++) {
        place *own = c->places[i];
        if (own->at >= c->word && !all) break;
        for (place *one = own->further, *next; one; one = next) {
            next = one->next;
            one->before = one->next = NULL;
            if (i + 1 == c->count || one != c->places[i + 1]) free_places(one);
        }
        own->further = NULL;
    }
    if (c->count <= PLACES) return;
    size_t kept = 0, first = 0, dense = c->bytes > DENSE ? c->bytes - DENSE : 0;
    if (dense > c->word) dense = c->word; /* each place in a word is wanted */
    for (size_t i = 0; i < c->count; i++) {
        place *own = c->places[i];
        if (!kept || own->at >= dense || own->at >= c->places[kept - 1]->at + SPARSE)
            c->places[kept++] = own;
        else free(own);
    }
    for (; kept - first > PLACES * 3 / 4 && c->places[first]->at < dense; first++) free(c->places[first]);
    c->count = kept - first;
    memmove(c->places, c->places + first, c->count * sizeof *c->places);
}

/* Reads on towards the end of the text: by pieces, and within the word by bytes. */
static int reach(tsm_completer *c, size_t most, char *message) {
    int status = 0;
    if (!c->count || c->places[c->count - 1]->at + CONTEXT < c->bytes) { /* anew, where a line begins */
        size_t start = c->bytes > CONTEXT ? c->bytes - CONTEXT : 0;
        const uint8_t *feed_at = start ? memchr(c->text + start, '\n', CONTEXT / 2) : NULL;
        if (feed_at) start = (size_t)(feed_at - c->text) + 1;
        keep_places(c, 0);
        status = read_on(c, NULL, (const uint8_t *)"\n", 1, start, c->places, message);
        if (status) return status;
        c->count = 1;
        c->ahead = 0;
    }
    while (!status && most) {
        place *from = c->places[c->count - 1];
        size_t at = from->at, piece = at < c->word ? SPARSE - at % SPARSE : 1;
        if (at == c->bytes) break;
        if (at < c->word && piece > c->word - at) piece = c->word - at;
        status = read_on(c, from, c->text + at, piece, at + piece, &c->places[c->count], message);
        if (!status) c->count++;
        most -= piece < most ? piece : most;
    }
    forget(c);
    return status;
}

/* Searches */

static void push(tsm_completer *c, const candidate *own) {
    candidate *queue = c->queue;
    size_t i = c->queued;
    if (i < c->queue_room) {
        for (c->queued++; i && queue[i - 1].hope >= own->hope; i--) queue[i] = queue[i - 1];
    } else { /* without the last one, which would not be looked at */
        if (own->hope <= queue[0].hope) return;
        for (i = 0; i + 1 < c->queued && queue[i + 1].hope < own->hope; i++) queue[i] = queue[i + 1];
    }
    queue[i] = *own;
}

/* Takes the best candidate, and reads its byte. 0: none, or the budget is spent, or a failure. */
static int take_best(tsm_completer *c, candidate *own, int *status, char *message) {
    if (!c->queued) return 0;
    *own = c->queue[--c->queued];
    if (!own->unread) return 1;
    if (!c->budget) return 0;
    c->budget--;
    own->unread = 0;
    *status = read_on(c, own->place, &own->byte, 1, own->place->at + 1, &own->place, message);
    return !*status;
}

/* The most probable continuations to the end of a word, or of a line that has no more words. weight: the
 * probability of being at `start`. least: that of what is found. ends: 1: also none, where a word ends; -1: one
 * has ended, and does not go on. */
static int find_words(tsm_completer *c, place *start, double weight, double least, uint32_t count,
                      size_t max_bytes, int ends, ending *found, uint32_t *found_count, char *message) {
    candidate own = {0};
    int status = 0;
    own.hope = own.weight = weight;
    own.place = start;
    *found_count = 0;
    c->queued = 0;
    c->queue_room = c->budget + count + 1;
    if (weight >= least) push(c, &own);
    while (*found_count < count && take_best(c, &own, &status, message)) {
        const float *next = probabilities(c, own.place);
        int whole = own.bytes ? is_whole(own.character, own.bytes) : 1, in_word = ends > 0;
        if (own.end) {
            ending one = {own.hope, own.weight, own.place};
            found[(*found_count)++] = one;
            continue;
        }
        if (whole < 0) continue;
        if (whole) {
            if (own.bytes) {
                in_word = is_word(own.character, own.bytes);
                if (!in_word && own.worded) continue; /* a word, and a sign beyond ASCII after it */
                if (in_word && ends < 0 && own.place->at - start->at == own.bytes) continue;
                own.worded = (uint8_t)in_word;
                own.solid |= own.byte != ' ' && own.byte != '\t';
            }
            candidate end = own;
            double stop = 0;
            for (int i = 0; i < 128; i++)
                if (in_word ? !is_ascii_word((uint32_t)i) : own.solid && (i == '\n' || i == '\r'))
                    stop += next[i];
            end.end = 1;
            end.hope = own.weight * stop;
            if (end.hope >= least) push(c, &end);
            own.bytes = 0;
        }
        if (own.place->at - start->at >= max_bytes) continue;
        for (int i = 0; i < VOCABULARY; i++) {
            candidate more = own;
            more.hope = more.weight = own.weight * next[i];
            if (more.hope < least || !(!whole    ? is_following(i)
                                       : in_word ? is_ascii_word((uint32_t)i) || is_lead(i)
                                                 : i == '\t' || (i >= 32 && i < 127) || is_lead(i)))
                continue;
            more.unread = 1;
            more.byte = more.character[more.bytes++] = (uint8_t)i;
            push(c, &more);
        }
    }
    return status;
}

/* One in which the search for a typing error may go on, unless it will not be shown. */
static void push_edit(tsm_completer *c, candidate own, double typed, double threshold) {
    if (!(own.weight >= threshold * (typed + own.weight))) return;
    own.hope = own.weight;
    for (uint32_t i = 0; i < own.left; i++) own.hope *= usual_probability;
    push(c, &own);
}

/* What may be meant by the word before the cursor: first what is typed, then what is one typing error from
 * it, of which a text is as probable as the model has it, times edit_probability. */
static int find_meant(tsm_completer *c, double threshold, way *ways, uint32_t *count, char *message) {
    const uint8_t *word = c->text + c->word;
    size_t n = c->bytes - c->word;
    place **here = c->places + c->count - 1 - n; /* before each byte of the word */
    double reached[WORD_BYTES + 1], typed;
    uint8_t swapped[WORD_BYTES][WORD_BYTES];
    candidate own;
    int status = 0;
    *count = 1;
    ways->weight = 1;
    ways->place = here[n];
    ways->bytes = n;
    memcpy(ways->text, word, n);
    if (c->characters < CORRECTION_CHARACTERS) return 0;
    reached[0] = 1;
    for (size_t i = 0; i < n; i++) reached[i + 1] = reached[i] * probabilities(c, here[i])[word[i]];
    ways->weight = typed = reached[n];
    c->queued = 0;
    c->queue_room = MOST_QUEUE;
    for (size_t cut = 0, next, size; cut < n; cut = next) {
        next = cut + (size = character_length(word[cut]));
        size_t other = next < n ? character_length(word[next]) : 0;
        memset(&own, 0, sizeof own);
        own.weight = reached[cut] * edit_probability;
        own.place = here[cut];
        own.rest = word + next;
        own.left = (uint32_t)(n - next);
        push_edit(c, own, typed, threshold); /* one character too many */
        own.new = 1;
        push_edit(c, own, typed, threshold); /* a wrong one */
        own.rest = word + cut;
        own.left = (uint32_t)(n - cut);
        push_edit(c, own, typed, threshold); /* one is missing */
        if (!other || (other == size && !memcmp(word + cut, word + next, size))) continue;
        own.new = 0; /* two in the wrong order */
        own.rest = swapped[cut];
        memcpy(swapped[cut], word + next, other);
        memcpy(swapped[cut] + other, word + cut, size);
        memcpy(swapped[cut] + other + size, word + next + other, n - next - other);
        push_edit(c, own, typed, threshold);
    }
    c->budget = CORRECTION_STEPS;
    while (*count <= CORRECTIONS && take_best(c, &own, &status, message)) {
        int whole = own.bytes ? is_whole(own.character, own.bytes) : 0;
        if (whole < 0 || (whole && !is_word(own.character, own.bytes))) continue;
        if (whole) own.new = own.bytes = 0;
        if (!own.new && !own.left) {
            size_t bytes, length = own.place->at - c->word, i = 0;
            const uint8_t *text = text_before(c, own.place, &bytes) - length;
            while (i < *count && (ways[i].bytes != length || memcmp(ways[i].text, text, length))) i++;
            if (i < *count) continue; /* an error may have come about in two ways */
            ways[i].weight = own.weight;
            ways[i].place = own.place;
            ways[i].bytes = length;
            memcpy(ways[i].text, text, length);
            ++*count;
            continue;
        }
        for (int i = 0; i < VOCABULARY; i++) {
            if (!(!own.new    ? i == *own.rest
                  : own.bytes ? is_following(i)
                              : is_ascii_word((uint32_t)i) || is_lead(i)))
                continue;
            candidate more = own;
            more.weight *= probabilities(c, own.place)[i];
            more.unread = 1;
            more.byte = (uint8_t)i;
            if (own.new) more.character[more.bytes++] = (uint8_t)i;
            else more.rest++, more.left--;
            push_edit(c, more, typed, threshold);
        }
    }
    double sum = 0;
    for (uint32_t i = 0; i < *count; i++) sum += ways[i].weight;
    for (uint32_t i = 0; i < *count; i++) ways[i].weight /= sum;
    return status;
}

/* A completer */

int tsm_completer_new(tsm_model *model, tsm_completer **completer, char *message) {
    tsm_completer *c = *completer = calloc(1, sizeof *c);
    failed(0, message, "");
    if (c && (c->text = malloc(c->room = CONTEXT))) {
        c->model = model;
        return 0;
    }
    free(c);
    *completer = NULL;
    return failed(TSM_MEMORY, message, "no memory for a text");
}

void tsm_completer_free(tsm_completer *c) {
    if (!c) return;
    keep_places(c, 0);
    free(c->text);
    free(c);
}

int tsm_follow(tsm_completer *c, const void *text, size_t bytes, size_t most, size_t *left,
               char *message) {
    const uint8_t *own = text;
    size_t word = bytes, characters = 0, common = 0, kept = 0, in_word = 0;
    failed(0, message, "");
    *left = 0;
    if (bytes > c->room) {
        uint8_t *larger = bytes < SIZE_MAX / 2 ? malloc(2 * bytes) : NULL;
        if (!larger) return failed(TSM_MEMORY, message, "no memory for a text");
        memcpy(larger, c->text, c->bytes);
        free(c->text);
        c->text = larger;
        c->room = 2 * bytes;
    }
    while (word && bytes - word <= WORD_BYTES) { /* back to what is of no word */
        size_t before = word - 1;
        while (before && word - before < 4 && is_following(own[before])) before--;
        uint32_t size = (uint32_t)(word - before);
        if (is_whole(own + before, size) < 1 || !is_word(own + before, size)) break;
        word = before;
        characters++;
    }
    if (bytes - word > WORD_BYTES) word = bytes, characters = 0; /* too long */
    c->word = word;
    c->characters = characters;
    while (common < bytes && common < c->bytes && own[common] == c->text[common]) common++;
    for (size_t i = 0; i < c->count; i++) in_word += c->places[i]->at >= word && c->places[i]->at <= common;
    if (common > word && in_word <= common - word) common = word; /* each place in a word is wanted */
    while (kept < c->count && c->places[kept]->at <= common) kept++;
    keep_places(c, kept);
    if (bytes) memcpy(c->text, text, bytes);
    c->bytes = bytes;
    int status = reach(c, most, message);
    if (c->count) *left = bytes - c->places[c->count - 1]->at;
    return status;
}

/* Adds what was found in one way, the text from `start` on; `count` of all. */
static void add_found(tsm_completer *c, const ending *ends, uint32_t end_count, size_t start, size_t *count) {
    for (uint32_t i = 0; i < end_count; i++) {
        uint32_t twice = 0;
        size_t same = 0, bytes, length = ends[i].place->at - start;
        const uint8_t *text = text_before(c, ends[i].place, &bytes) - length;
        tsm_completion one = {c->texts[*count], length, ends[i].probability, (uint32_t)(c->bytes - start)};
        for (uint32_t j = 0; j < i; j++) twice |= ends[j].place == ends[i].place;
        if (twice) continue;
        for (; same < *count; same++) {
            const tsm_completion *other = &c->found[same];
            if (other->replaced != one.replaced || other->bytes != length) continue;
            if (!memcmp(other->text, text, length)) break;
        }
        if (same < *count) {
            c->found[same].probability += one.probability;
            continue;
        }
        memcpy(c->texts[*count], text, length);
        c->texts[*count][length] = 0;
        c->found[(*count)++] = one;
    }
}

/* As many as are expected: one takes it, and one deletes each character that it replaces. */
static double keys_saved(const tsm_completer *c, const tsm_completion *one) {
    double characters = one->replaced ? (double)c->characters : 0;
    for (size_t i = 0; i < one->bytes; i++) characters += !is_following((uint8_t)one->text[i]);
    return one->probability * (characters - 1);
}

int tsm_complete(tsm_completer *c, int to, uint32_t count, size_t max_bytes, double threshold,
                 const tsm_completion **completions, size_t *completion_count, char *message) {
    way ways[CORRECTIONS + 1];
    ending ends[MOST_COUNT];
    uint32_t way_count, end_count, more;
    size_t all = 0, shown = 0;
    failed(0, message, "");
    *completions = c->found;
    *completion_count = 0;
    if (to != TSM_WORD && to != TSM_LINE)
        return failed(TSM_ARGUMENT, message, "to: wanted a word or a line");
    if (!count || count > MOST_COUNT) return failed(TSM_ARGUMENT, message, "count: wanted 1 to 16");
    if (!max_bytes) return failed(TSM_ARGUMENT, message, "max_bytes: wanted 1 or more");
    if (!(threshold > 0 && threshold <= 1))
        return failed(TSM_ARGUMENT, message, "threshold: wanted a number above 0, at most 1");
    int status = reach(c, SIZE_MAX, message);
    if (!status) status = find_meant(c, threshold, ways, &way_count, message);
    if (status) return status;
    double least = threshold / way_count; /* for a word may be meant in several ways */
    uint32_t wanted = count > CANDIDATES ? count : CANDIDATES;
    c->budget = STEPS * wanted;
    for (uint32_t i = 0; i < way_count; i++) {
        size_t start = i ? c->word : c->bytes, end = i ? start + ways[i].bytes : start;
        if (end - start > max_bytes) continue;
        status = find_words(c, ways[i].place, ways[i].weight, least, wanted, max_bytes - (end - start), i > 0,
                            ends, &end_count, message);
        for (uint32_t j = 0; to == TSM_LINE && j < end_count; j++)
            do { /* the words after it, as long as they are probable enough */
                ending *own = &ends[j];
                more = 0;
                if (!status)
                    status = find_words(c, own->place, own->reached, least, 1,
                                        max_bytes - (own->place->at - start), -1, own, &more, message);
            } while (more);
        if (status) return status;
        add_found(c, ends, end_count, start, &all);
    }
    for (size_t i = 0; i < all; i++) { /* the best first */
        tsm_completion one = c->found[i];
        size_t at = shown;
        if (one.probability < threshold) continue;
        for (; at && keys_saved(c, &c->found[at - 1]) < keys_saved(c, &one); at--)
            c->found[at] = c->found[at - 1];
        c->found[at] = one;
        shown++;
    }
    *completion_count = shown < count ? shown : count;
    return 0;
}
