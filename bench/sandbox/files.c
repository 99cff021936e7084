/* Writes a file from its beginning to its end, makes it durable, and reads it again.
 *
 *     files FILE MIB BYTES_OF_A_CALL
 *
 * Prints a line for each part: its name and its seconds. "first" is a first writing, until its last
 * call returns; then the file is deleted, and the same is done again as "write", when the store has
 * the room at hand that the first one had to get. "durable" ends with the return of fsync, counted
 * from the first call of write. What is read is checked. */

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void write_all(const char *name, uint64_t *buffer, size_t total, size_t call, double *written_s,
                      double *durable_s) {
    int file = open(name, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    if (file < 0) fail("open");
    /* What was deleted before is gone for good now, and its room is free. */
    if (fsync(file) != 0) fail("fsync");
    double start_s = now_s();
    for (size_t at = 0; at < total; at += call) {
        buffer[0] = at;
        if (write(file, buffer, call) != (ssize_t)call) fail("write");
    }
    *written_s = now_s() - start_s;
    if (fsync(file) != 0) fail("fsync");
    *durable_s = now_s() - start_s;
    close(file);
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: files FILE MIB BYTES_OF_A_CALL\n");
        return 2;
    }
    size_t total = strtoul(argv[2], NULL, 10) << 20, call = strtoul(argv[3], NULL, 10);
    if (call < 8 || call % 8 != 0 || total % call != 0) {
        fprintf(stderr, "files: %zu bytes do not divide %zu\n", call, total);
        return 2;
    }
    uint64_t *buffer = malloc(call);
    if (buffer == NULL) fail("malloc");
    for (size_t i = 0; i < call / 8; i++) buffer[i] = (i + 1) * 0x9e3779b97f4a7c15u;

    double written_s, durable_s;
    write_all(argv[1], buffer, total, call, &written_s, &durable_s);
    printf("first %.9f\n", written_s);
    unlink(argv[1]);
    write_all(argv[1], buffer, total, call, &written_s, &durable_s);
    printf("write %.9f\ndurable %.9f\n", written_s, durable_s);

    int file = open(argv[1], O_RDONLY);
    if (file < 0) fail("open");
    double start_s = now_s();
    for (size_t at = 0; at < total; at += call) {
        if (read(file, buffer, call) != (ssize_t)call) fail("read");
        if (buffer[0] != at || buffer[call / 8 - 1] != (call / 8) * 0x9e3779b97f4a7c15u) {
            fprintf(stderr, "files: other bytes at %zu than were written\n", at);
            return 3;
        }
    }
    printf("read %.9f\n", now_s() - start_s);
    close(file);
    unlink(argv[1]);
    return 0;
}
