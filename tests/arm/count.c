/* A plugin of QEMU's user emulation: how many instructions a program executed, into a file.
 *
 *     qemu-aarch64 -plugin count.so,out=FILE PROGRAM
 *
 * Debian packages no header: these are the calls, of version 1 of the API, that are used.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t plugin_id;
struct tb; /* a block of instructions, translated once */
enum { ADD_U64 = 0 };
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*call)(plugin_id, struct tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct tb *tb, int op, void *place, uint64_t value);
void qemu_plugin_register_atexit_cb(plugin_id id, void (*call)(plugin_id, void *), void *data);
size_t qemu_plugin_tb_n_insns(const struct tb *tb);

int qemu_plugin_version = 1;
static uint64_t instructions;

static void translated(plugin_id id, struct tb *tb) {
    (void)id;
    uint64_t count = qemu_plugin_tb_n_insns(tb);
    qemu_plugin_register_vcpu_tb_exec_inline(tb, ADD_U64, &instructions, count);
}

static void ended(plugin_id id, void *place) {
    (void)id;
    FILE *file = fopen(place, "w");
    if (!file) return;
    fprintf(file, "%" PRIu64 "\n", instructions);
    fclose(file);
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
    (void)info;
    if (argc != 1 || strncmp(argv[0], "out=", 4)) return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, strdup(argv[0] + 4));
    return 0;
}
