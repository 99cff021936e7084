/* Counts the words of all files below a folder and writes the most frequent ones into a file.
 *
 *     wordcount FOLDER REPORT [HOW_MANY]
 *
 * Plain C for any system with POSIX: nothing in here knows of avow, sealed files or WebAssembly. */

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { WORD_MAX = 64, PATH_LENGTH_MAX = 1024, BUCKETS = 1 << 16 };

struct word {
    struct word *next;
    unsigned long count;
    char text[];
};

static struct word *table[BUCKETS];
static size_t distinct;

static void fail(const char *what, const char *path) {
    fprintf(stderr, "wordcount: %s %s: %s\n", what, path, strerror(errno));
    exit(1);
}

static void count(const char *text, size_t length) {
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)text[i]) * 16777619u;
    struct word **place = &table[hash % BUCKETS];
    for (struct word *word = *place; word != NULL; word = word->next) {
        if (strlen(word->text) == length && memcmp(word->text, text, length) == 0) {
            word->count++;
            return;
        }
    }
    struct word *word = malloc(sizeof *word + length + 1);
    if (word == NULL) fail("no memory for", text);
    memcpy(word->text, text, length);
    word->text[length] = 0;
    word->count = 1;
    word->next = *place;
    *place = word;
    distinct++;
}

static unsigned long count_file(const char *path) {
    FILE *file = fopen(path, "r");
    if (file == NULL) fail("cannot open", path);
    char word[WORD_MAX];
    size_t length = 0;
    unsigned long words = 0;
    int c;
    do {
        c = getc(file);
        if (c != EOF && isalnum(c)) {
            if (length < sizeof word) word[length++] = (char)tolower(c);
        } else if (length > 0) {
            count(word, length);
            words++;
            length = 0;
        }
    } while (c != EOF);
    if (ferror(file)) fail("cannot read", path);
    fclose(file);
    return words;
}

static unsigned long count_folder(const char *path) {
    DIR *folder = opendir(path);
    if (folder == NULL) fail("cannot open", path);
    unsigned long words = 0;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        char below[PATH_LENGTH_MAX];
        if (snprintf(below, sizeof below, "%s/%s", path, entry->d_name) >= (int)sizeof below) {
            errno = ENAMETOOLONG;
            fail("cannot open", path);
        }
        struct stat found;
        if (stat(below, &found) != 0) fail("cannot stat", below);
        words += S_ISDIR(found.st_mode) ? count_folder(below) : count_file(below);
    }
    closedir(folder);
    return words;
}

static int by_count(const void *a, const void *b) {
    const struct word *left = *(struct word *const *)a, *right = *(struct word *const *)b;
    if (left->count != right->count) return left->count < right->count ? 1 : -1;
    return strcmp(left->text, right->text);
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: wordcount FOLDER REPORT [HOW_MANY]\n");
        return 2;
    }
    size_t how_many = argc == 4 ? strtoul(argv[3], NULL, 10) : 10;
    unsigned long words = count_folder(argv[1]);
    struct word **all = malloc((distinct + 1) * sizeof *all);
    if (all == NULL) fail("no memory for", "the report");
    size_t filled = 0;
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct word *word = table[i]; word != NULL; word = word->next) all[filled++] = word;
    qsort(all, filled, sizeof *all, by_count);

    char fresh[PATH_LENGTH_MAX];
    if (snprintf(fresh, sizeof fresh, "%s.fresh", argv[2]) >= (int)sizeof fresh) {
        errno = ENAMETOOLONG;
        fail("cannot write", argv[2]);
    }
    FILE *report = fopen(fresh, "w");
    if (report == NULL) fail("cannot write", fresh);
    for (size_t i = 0; i < filled && i < how_many; i++)
        fprintf(report, "%lu %s\n", all[i]->count, all[i]->text);
    if (fclose(report) != 0) fail("cannot write", fresh);
    if (rename(fresh, argv[2]) != 0) fail("cannot write", argv[2]);
    printf("%lu words, %zu different\n", words, distinct);
    return 0;
}
