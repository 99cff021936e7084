/* SQLite's micro-benchmark: rows of 1,000 bytes in one transaction, all of them in order, and as many
 * in random order by key.
 *
 *     rows DATABASE ROWS
 *
 * A new database each time, 8 MiB of cache; else SQLite's defaults. Prints a line for each part: its
 * name and its seconds. What is read is checked. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "sqlite3.h"

enum { ROW_BYTES = 1000, CACHE_KIB = 8 * 1024 };

static sqlite3 *database;

static void fail(const char *what) {
    fprintf(stderr, "rows: %s: %s\n", what, sqlite3_errmsg(database));
    exit(1);
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void execute(const char *sql) {
    if (sqlite3_exec(database, sql, NULL, NULL, NULL) != SQLITE_OK) fail(sql);
}

static sqlite3_stmt *prepare(const char *sql) {
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(database, sql, -1, &statement, NULL) != SQLITE_OK) fail(sql);
    return statement;
}

/* A row is its key, over and over, mixed: what comes back can be checked and does not compress. */
static uint64_t word(uint64_t key, uint64_t index) {
    return (key + 1) * 0x9e3779b97f4a7c15u + index * 0xbf58476d1ce4e5b9u;
}

static void fill(uint64_t *row, uint64_t key) {
    for (uint64_t i = 0; i < ROW_BYTES / 8; i++) row[i] = word(key, i);
}

static void check(sqlite3_stmt *statement, int column, uint64_t key) {
    uint64_t wrong = sqlite3_column_bytes(statement, column) != ROW_BYTES;
    const char *row = wrong ? NULL : sqlite3_column_blob(statement, column);
    for (uint64_t i = 0; row != NULL && i < ROW_BYTES / 8; i++) {
        uint64_t found;
        memcpy(&found, row + 8 * i, sizeof found);
        wrong |= found ^ word(key, i);
    }
    if (wrong) {
        fprintf(stderr, "rows: row %llu holds other bytes than were written\n", (unsigned long long)key);
        exit(3);
    }
}

static void insert(uint64_t rows) {
    uint64_t row[ROW_BYTES / 8];
    execute("BEGIN");
    sqlite3_stmt *statement = prepare("INSERT INTO rows VALUES (?, ?)");
    for (uint64_t key = 1; key <= rows; key++) {
        fill(row, key);
        sqlite3_bind_int64(statement, 1, (sqlite3_int64)key);
        sqlite3_bind_blob(statement, 2, row, ROW_BYTES, SQLITE_STATIC);
        if (sqlite3_step(statement) != SQLITE_DONE) fail("INSERT");
        sqlite3_reset(statement);
    }
    sqlite3_finalize(statement);
    execute("COMMIT");
}

static void sequential(uint64_t rows) {
    sqlite3_stmt *statement = prepare("SELECT key, content FROM rows ORDER BY key");
    uint64_t found = 0;
    while (sqlite3_step(statement) == SQLITE_ROW) {
        found++;
        check(statement, 1, (uint64_t)sqlite3_column_int64(statement, 0));
    }
    if (found != rows) fail("SELECT of all");
    sqlite3_finalize(statement);
}

static void at_random(uint64_t rows) {
    sqlite3_stmt *statement = prepare("SELECT content FROM rows WHERE key = ?");
    uint64_t state = 88172645463325252u;
    for (uint64_t i = 0; i < rows; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        uint64_t key = state % rows + 1;
        sqlite3_bind_int64(statement, 1, (sqlite3_int64)key);
        if (sqlite3_step(statement) != SQLITE_ROW) fail("SELECT by key");
        check(statement, 0, key);
        sqlite3_reset(statement);
    }
    sqlite3_finalize(statement);
}

static void timed(const char *name, void (*part)(uint64_t), uint64_t rows) {
    double start_s = now_s();
    part(rows);
    printf("%s %.9f\n", name, now_s() - start_s);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: rows DATABASE ROWS\n");
        return 2;
    }
    uint64_t rows = strtoull(argv[2], NULL, 10);
    unlink(argv[1]);
    if (sqlite3_open(argv[1], &database) != SQLITE_OK) fail("open");
    char cache[64];
    snprintf(cache, sizeof cache, "PRAGMA cache_size = -%d", CACHE_KIB);
    execute(cache);
    execute("CREATE TABLE rows (key INTEGER PRIMARY KEY, content BLOB NOT NULL)");
    timed("insert", insert, rows);
    timed("sequential", sequential, rows);
    timed("random", at_random, rows);
    sqlite3_close(database);
    return 0;
}
