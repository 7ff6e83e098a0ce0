/* A program with its model in it, one file to copy. Here it continues a text:
 *
 *     make -C apps/c && apps/c/build/tsm --seed 1 "JULIET:"
 *
 * MODEL is the artifact to link in. Options are those of runtime/generate.py, and so are texts and states.
 */
#include "tsm.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#include <windows.h>
#define isatty _isatty
#define READ_ONLY ".section .rdata,\"dr\"\n"
#elif defined(__APPLE__)
#include <unistd.h>
#define READ_ONLY ".section __TEXT,__const\n"
#else
#include <unistd.h>
#define READ_ONLY ".section .rodata\n"
#endif
#ifndef _WIN32
#include <sys/stat.h>
#endif

/* The bytes of the artifact, at a multiple of 64 as its weights in it. */
#define QUOTED(x) #x
#define QUOTE(x) QUOTED(x)
#define SYMBOL(name) QUOTE(__USER_LABEL_PREFIX__) name
__asm__(READ_ONLY ".p2align 6\n"
                  ".globl " SYMBOL("model_start") "\n" SYMBOL("model_start") ":\n"
                  ".incbin \"" MODEL "\"\n"
                  ".globl " SYMBOL("model_end") "\n" SYMBOL("model_end") ":\n"
                  ".byte 0\n.text\n");
extern const uint8_t model_start[], model_end[];

enum { BAD_INPUT = 2, SIGNALLED = 128, PIECE = 4096, MOST_STOPS = 16, MOST_STATE = 1 << 24 };

static const char usage[] =
    "usage: tsm [option value]... [PROMPT]\n\n"
    "Continues PROMPT, or else standard input.\n\n"
    "  --bytes N         bytes to generate (500)\n"
    "  --stop TEXT       end before this text; repeatable\n"
    "  --seed S          same seed, same text (drawn anew)\n"
    "  --temperature T   0 always takes the likeliest byte (0.8)\n"
    "  --top-k K, --typical-p P, --top-p P, --min-p P\n"
    "                    draw from some of the bytes (all)\n"
    "  --repetition-penalty R, --presence-penalty A, --frequency-penalty A, --penalty-window N\n"
    "                    of bytes that came lately (none)\n"
    "  --save-state FILE keep there all that goes on from the end\n"
    "  --load-state FILE go on from what --save-state kept there\n";

typedef struct {
    tsm_sampling sampling;
    uint64_t bytes;
    const char *prompt, *save, *load, *stops[MOST_STOPS];
    size_t stop_count;
} arguments;

static const struct {
    const char *name;
    enum { NUMBER, WHOLE, WHOLE_32, PATH, STOP } kind;
    size_t offset;
} options[] = {
    {"--bytes", WHOLE, offsetof(arguments, bytes)},
    {"--stop", STOP, 0},
    {"--seed", WHOLE, offsetof(arguments, sampling.seed)},
    {"--temperature", NUMBER, offsetof(arguments, sampling.temperature)},
    {"--top-k", WHOLE_32, offsetof(arguments, sampling.top_k)},
    {"--typical-p", NUMBER, offsetof(arguments, sampling.typical_p)},
    {"--top-p", NUMBER, offsetof(arguments, sampling.top_p)},
    {"--min-p", NUMBER, offsetof(arguments, sampling.min_p)},
    {"--repetition-penalty", NUMBER, offsetof(arguments, sampling.repetition_penalty)},
    {"--presence-penalty", NUMBER, offsetof(arguments, sampling.presence_penalty)},
    {"--frequency-penalty", NUMBER, offsetof(arguments, sampling.frequency_penalty)},
    {"--penalty-window", WHOLE_32, offsetof(arguments, sampling.penalty_window)},
    {"--save-state", PATH, offsetof(arguments, save)},
    {"--load-state", PATH, offsetof(arguments, load)},
};
enum { OPTIONS = sizeof options / sizeof *options };

static volatile sig_atomic_t generating, received;

static void on_signal(int number) {
    if (!generating) _Exit(SIGNALLED + number); /* there is nothing to keep yet */
    received = number;
}

/* Control characters other than `kept` go out as escapes, so that no text steers a terminal. */
static void write_printable(const char *text, size_t bytes, const char *kept, FILE *out) {
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i], next = i + 1 < bytes ? (unsigned char)text[i + 1] : 0;
        int wide = c == 0xc2 && next >= 0x80 && next < 0xa0;
        if (wide) i++;
        if (wide || c == 0x7f || (c < 0x20 && !(c && strchr(kept, c))))
            fprintf(out, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\x%02x", wide ? next : c);
        else putc(c, out);
    }
}

/* Ends the program with one line: what it is about, what was found there, or NULL, and what is wrong. */
static void refuse(const char *name, const char *found, const char *wrong) {
    fputs("tsm: ", stderr);
    if (name) fprintf(stderr, "%s: ", name);
    if (found) {
        fputs("found '", stderr);
        write_printable(found, strlen(found), "", stderr);
        fputs("', ", stderr);
    }
    fprintf(stderr, "%s\n", wrong);
    exit(BAD_INPUT);
}

static void set(arguments *a, int option, const char *value) {
    const char *name = options[option].name;
    void *place = (char *)a + options[option].offset;
    char *end = NULL;
    errno = 0;
    if (options[option].kind == PATH) {
        memcpy(place, &value, sizeof value);
    } else if (options[option].kind == STOP) {
        if (a->stop_count == MOST_STOPS) refuse(name, value, "wanted 16 of them at most");
        a->stops[a->stop_count++] = value;
    } else if (options[option].kind == NUMBER) {
        double number = strtod(value, &end);
        if (end == value || *end) refuse(name, value, "wanted a number");
        memcpy(place, &number, sizeof number);
    } else {
        uint64_t number = strtoull(value, &end, 10);
        uint32_t half = (uint32_t)number;
        int narrow = options[option].kind == WHOLE_32;
        if (*value < '0' || *value > '9' || *end || errno || (narrow && number != half))
            refuse(name, value, "wanted a whole number, 0 or more");
        if (narrow) memcpy(place, &half, sizeof half);
        else memcpy(place, &number, sizeof number);
    }
}

static void parse(arguments *a, char **argv) {
    int only_prompt = 0, option;
    a->prompt = NULL;
    a->stop_count = 0;
    for (argv++; *argv; argv++) {
        if (only_prompt || **argv != '-') {
            if (a->prompt) refuse("prompt", *argv, "wanted one text, in quotes");
            a->prompt = *argv;
        } else if (!strcmp(*argv, "--")) {
            only_prompt = 1;
        } else if (!strcmp(*argv, "--help")) {
            fputs(usage, stdout);
            exit(0);
        } else {
            for (option = 0; option < OPTIONS && strcmp(*argv, options[option].name);) option++;
            if (option == OPTIONS) refuse("option", *argv, "wanted one of tsm --help");
            if (!*++argv) refuse(argv[-1], NULL, "wanted a value after it");
            set(a, option, *argv);
        }
    }
}

static void check(int status, const char *about, const char *message) {
    if (status) refuse(about, NULL, message);
}

/* fopen, of a name in UTF-8. */
static FILE *open_file(const char *name, const char *mode) {
#ifdef _WIN32
    wchar_t wide[1 << 10], how[4];
    errno = ENAMETOOLONG;
    return MultiByteToWideChar(CP_UTF8, 0, name, -1, wide, 1 << 10) &&
                   MultiByteToWideChar(CP_UTF8, 0, mode, -1, how, 4)
               ? _wfopen(wide, how)
               : NULL;
#else
    return fopen(name, mode);
#endif
}

/* What takes the name `path` once it is whole, so that a full disk costs no state; `path` itself where that
 * is a link, a device or a pipe, which must not be replaced. */
static char *unfinished(const char *path) {
    static const char end[] = ".partial";
    char *name = malloc(strlen(path) + sizeof end);
    if (!name) refuse(path, NULL, "no memory for its name");
    strcpy(name, path);
#ifndef _WIN32
    struct stat found;
    if (lstat(path, &found) ? errno == ENOENT : S_ISREG(found.st_mode)) strcat(name, end);
#endif
    return name;
}

static void save(const tsm_stream *text, const char *path) {
    if (!path) return;
    size_t bytes = tsm_save(text, NULL, 0);
    uint8_t *state = malloc(bytes);
    if (!state) refuse(path, NULL, "no memory for the state");
    tsm_save(text, state, bytes);
    char *name = unfinished(path);
    int renamed = strcmp(name, path);
    FILE *file = open_file(name, "wb");
    size_t written = file ? fwrite(state, 1, bytes, file) : 0;
    int failed = !file || fclose(file) || written < bytes;
#ifndef _WIN32
    struct stat old;
    if (!failed && renamed && !stat(path, &old)) failed = chmod(name, old.st_mode & 07777);
#endif
    if (failed || (renamed && rename(name, path))) {
        int cause = errno;
        if (file && renamed) remove(name);
        refuse(path, NULL, strerror(cause));
    }
    free(name);
    free(state);
}

static tsm_stream *restore(tsm_model *model, const char *path) {
    char message[TSM_MESSAGE_BYTES];
    tsm_stream *text;
    FILE *file = open_file(path, "rb");
    uint8_t *state = NULL;
    long bytes = file && !fseek(file, 0, SEEK_END) ? ftell(file) : -1;
    if (bytes < 0) refuse(path, NULL, strerror(errno));
    if (bytes > MOST_STATE || !(state = malloc((size_t)bytes + 1)))
        refuse(path, NULL, "too large for a state, wanted what --save-state wrote");
    rewind(file);
    size_t read = fread(state, 1, (size_t)bytes, file);
    fclose(file);
    check(tsm_restore(model, state, read, 0, &text, message), path, message);
    free(state);
    return text;
}

/* Reads the prompt as it comes, in pieces. */
static void feed(tsm_stream *text, const char *prompt) {
    char message[TSM_MESSAGE_BYTES], piece[PIECE];
    size_t bytes;
    if (prompt) {
        check(tsm_feed(text, prompt, strlen(prompt), message), NULL, message);
        return;
    }
    while ((bytes = fread(piece, 1, PIECE, stdin)))
        check(tsm_feed(text, piece, bytes, message), NULL, message);
    if (ferror(stdin)) refuse("standard input", NULL, strerror(errno));
}

static int run(char **argv) {
    static const int signals[] = {
        SIGINT,
        SIGTERM,
#ifdef SIGHUP
        SIGHUP,
#endif
    };
    char message[TSM_MESSAGE_BYTES];
    const char *piece;
    arguments a = {.bytes = 500};
    tsm_model *model;
    tsm_stream *text;
    size_t bytes;
    struct timespec now;
#ifdef SIGPIPE
    signal(SIGPIPE, SIG_IGN); /* a reader that has had enough is no mistake */
#endif
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        if (signal(signals[i], on_signal) == SIG_IGN) signal(signals[i], SIG_IGN); /* as nohup has it */

    timespec_get(&now, TIME_UTC);
    uint64_t drawn = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    tsm_sampling_defaults(&a.sampling);
    a.sampling.seed = drawn;
    parse(&a, argv);
    check(tsm_open(model_start, (size_t)(model_end - model_start), 0, TSM_SIMD, 1, &model, message),
          "the model in it", message);
    if (a.load) { /* its settings hold where no others are given */
        text = restore(model, a.load);
        tsm_get_sampling(text, &a.sampling);
        parse(&a, argv);
        check(tsm_set_sampling(text, &a.sampling, message), NULL, message);
    } else {
        check(tsm_stream_new(model, &a.sampling, 0, &text, message), NULL, message);
    }
    feed(text, a.prompt);
    check(tsm_generate(text, a.bytes, a.stops, a.stop_count, message), NULL, message);
    save(text, a.save); /* now rather than never: a place that cannot be written costs no text */

    int terminal = isatty(1), status = 0;
    if (terminal && a.sampling.seed == drawn) fprintf(stderr, "seed %llu\n", (unsigned long long)drawn);
    generating = 1;
    while (!received && !ferror(stdout) && !(status = tsm_next(text, &piece, &bytes, message)) && bytes) {
        if (terminal) write_printable(piece, bytes, "\n\t", stdout);
        else fwrite(piece, 1, bytes, stdout);
        fflush(stdout);
    }
    int cause = errno;
    save(text, a.save);
    check(status, NULL, message);
    if (ferror(stdout) && cause != EPIPE) refuse("standard output", NULL, strerror(cause));
    if (terminal) putchar('\n');
    tsm_stream_free(text);
    tsm_free(model);
    return received ? SIGNALLED + received : 0;
}

#ifdef _WIN32
/* Arguments, names of files and text in UTF-8, whatever the system's code page. */
int wmain(int argc, wchar_t **wide) {
    char **argv = calloc((size_t)argc + 1, sizeof *argv);
    for (int i = 0; i < argc; i++) {
        int bytes = WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, NULL, 0, NULL, NULL);
        if (!argv || !(argv[i] = malloc((size_t)bytes))) refuse(NULL, NULL, "no memory");
        WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, argv[i], bytes, NULL, NULL);
    }
    SetConsoleOutputCP(CP_UTF8);
    _setmode(0, _O_BINARY);
    _setmode(1, _O_BINARY);
    return run(argv);
}
#else
int main(int argc, char **argv) {
    (void)argc;
    return run(argv);
}
#endif
