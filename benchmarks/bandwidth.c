/* How fast one thread reads a file's bytes where they lie, in the page cache: the ceiling of a byte
 * that takes every weight once. Prints bytes per second, the best of many passes.
 *
 *     cc -O3 -march=native -o bandwidth bandwidth.c && ./bandwidth FILE
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

typedef uint64_t wide __attribute__((vector_size(64)));

int main(int count, char **arguments) {
    struct stat about;
    int file = count > 1 ? open(arguments[1], O_RDONLY) : -1;
    if (file < 0 || fstat(file, &about)) return 2;
    size_t lines = (size_t)about.st_size / 64 / 8 * 8;
    const wide *data = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (data == MAP_FAILED) return 2;
    double best = 1e9;
    for (int pass = 0; pass < 300; pass++) {
        struct timespec start, end;
        wide sums[8] = {{0}};
        clock_gettime(CLOCK_MONOTONIC, &start);
        for (size_t i = 0; i < lines; i += 8)
            for (int j = 0; j < 8; j++) sums[j] += data[i + j];
        clock_gettime(CLOCK_MONOTONIC, &end);
        volatile uint64_t used = 0;
        for (int j = 0; j < 8; j++) used += sums[j][0];
        double seconds = (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
        if (seconds < best) best = seconds;
    }
    printf("%.0f\n", (double)lines * 64 / best);
    return 0;
}
