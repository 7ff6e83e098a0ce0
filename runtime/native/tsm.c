/* The whole C library, for one line of any build: cc -O3 -ffp-contract=off -c tsm.c
 *
 * engine.c    the function: weights, products on each kind of instructions, sampling of a byte
 * json.c      JSON and its numbers, as Python reads and writes them
 * artifact.c  opening a .tflite or .onnx
 * stream.c    texts: reading, generating, rewinding, saving
 * complete.c  completion as one types
 */
#include "engine.c"

SMALL

#include "json.c"

#include "artifact.c"

#include "stream.c"

#include "complete.c"

END_SMALL
