/* What of the C library tsm.wasm has of its own: malloc and free, first fit, neighbours joined, for zig's round
 * 9.9 MB up to 16; and memchr, for zig's is 1 KB. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct block {
    size_t bytes; /* with this head */
    struct block *next;
} block;
enum { UNIT = 16 /* an alignment for any type */, PAGE = 1 << 16 };
static block *unused; /* by address */

static uint8_t *end_of(block *b) { return (uint8_t *)b + b->bytes; }

void free(void *memory) {
    if (!memory) return;
    block *own = (block *)(void *)((uint8_t *)memory - UNIT), *before = NULL, *after = unused;
    while (after && after < own) before = after, after = after->next;
    own->next = after;
    if (before) before->next = own;
    else unused = own;
    if (after && end_of(own) == (uint8_t *)after) own->bytes += after->bytes, own->next = after->next;
    if (before && end_of(before) == (uint8_t *)own)
        before->bytes += own->bytes, before->next = own->next;
}

void *malloc(size_t bytes) {
    if (bytes > SIZE_MAX / 2) return NULL;
    bytes = (bytes + 2 * UNIT - 1) / UNIT * UNIT;
    for (block **at = &unused; *at; at = &(*at)->next) {
        block *own = *at;
        if (own->bytes < bytes) continue;
        if (own->bytes == bytes) {
            *at = own->next;
        } else { /* its end is taken */
            own->bytes -= bytes;
            own = (block *)(void *)end_of(own);
            own->bytes = bytes;
        }
        return (uint8_t *)own + UNIT;
    }
    size_t pages = (bytes + PAGE - 1) / PAGE, first = __builtin_wasm_memory_grow(0, pages);
    if (first == SIZE_MAX) return NULL;
    block *more = (block *)(first * PAGE);
    more->bytes = pages * PAGE;
    free((uint8_t *)more + UNIT);
    return malloc(bytes - UNIT);
}

void *calloc(size_t count, size_t bytes) {
    void *memory = bytes && count > SIZE_MAX / bytes ? NULL : malloc(count * bytes);
    return memory ? memset(memory, 0, count * bytes) : NULL;
}

void *memchr(const void *memory, int wanted, size_t bytes) {
    for (const uint8_t *at = memory; bytes; at++, bytes--)
        if (*at == (uint8_t)wanted) return (void *)(uintptr_t)at;
    return NULL;
}
