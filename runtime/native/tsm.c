/* The whole C library, for one line of any build: cc -O3 -ffp-contract=off -c tsm.c
 *
 * engine.c    the function: weights, products on each kind of instructions, sampling of a byte
 * json.c      JSON and its numbers, as Python reads and writes them
 * artifact.c  opening a .tflite or .onnx
 * stream.c    texts: reading, generating, rewinding, saving
 */
#include "engine.c"

#ifdef __wasm__ /* is sent over a network: small where it need not be fast */
#pragma clang attribute push(__attribute__((minsize)), apply_to = function)
#endif

#include "json.c"

#include "artifact.c"

#include "stream.c"

#ifdef __wasm__
#pragma clang attribute pop
#endif
