/* The script of _script.py by the system calls of _plain.py, which compiles this with the records as string literals.

   plain ROOT RUNS AT_ONCE SYNCED prints the seconds that all took, and then those of each run. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CHECKED(call) checked((call), #call)
#define REPLACE(path, record) replace(path, record, sizeof record - 1)
#define APPEND(path, record, is_new) append(path, record, sizeof record - 1, is_new)
#define CHANGE(path, record) change(path, record, sizeof record - 1)

static const char *root;
static int synced;

static int checked(long result, const char *call) {
    if (result < 0) {
        perror(call);
        exit(1);
    }
    return (int)result;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static const char *in_thread(int number, const char *rest) {
    static char path[4096];
    snprintf(path, sizeof path, "%s/thread_%d%s", root, number, rest);
    return path;
}

static void sync_names(const char *path) {
    char directory[4096];
    if (!synced)
        return;
    snprintf(directory, sizeof directory, "%s", path);
    *strrchr(directory, '/') = 0;
    int file = CHECKED(open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    CHECKED(fsync(file));
    CHECKED(close(file));
}

static void make_directory(const char *path) {
    CHECKED(mkdir(path, 0777));
    sync_names(path);
}

static void replace(const char *path, const char *record, size_t size) {
    char temporary[4100];
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    int file = CHECKED(open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
    CHECKED(write(file, record, size));
    if (synced)
        CHECKED(fsync(file));
    CHECKED(close(file));
    CHECKED(rename(temporary, path));
    sync_names(path);
}

static void append(const char *path, const char *record, size_t size, int is_new) {
    int file = CHECKED(open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
    CHECKED(write(file, record, size));
    if (synced)
        CHECKED(fdatasync(file));
    CHECKED(close(file));
    if (is_new)
        sync_names(path);
}

static void change(const char *path, const char *record, size_t size) {
    static char old[1 << 16];
    int file = CHECKED(open(path, O_RDONLY | O_CLOEXEC));
    CHECKED(read(file, old, sizeof old));
    CHECKED(close(file));
    replace(path, record, size);
}

static void create(int number) {
    make_directory(in_thread(number, ""));
    REPLACE(in_thread(number, "/meta.json"), THREAD);
    make_directory(in_thread(number, "/runs"));
    make_directory(in_thread(number, "/runs/run"));
    REPLACE(in_thread(number, "/runs/run/status.json"), RUN_QUEUED);
    make_directory(in_thread(number, "/runs/run/steps"));
}

static void operate(int operation, int number) {
    switch (operation) {
    case 0: create(number); break;
    case 1: APPEND(in_thread(number, "/messages.jsonl"), ASKED, 1); break;
    case 2: CHANGE(in_thread(number, "/runs/run/status.json"), RUN_IN_PROGRESS); break;
    case 3: REPLACE(in_thread(number, "/runs/run/steps/tools.json"), TOOLS); break;
    case 4: CHANGE(in_thread(number, "/runs/run/status.json"), RUN_REQUIRES_ACTION); break;
    case 5: CHANGE(in_thread(number, "/runs/run/status.json"), RUN_IN_PROGRESS); break;
    case 6: CHANGE(in_thread(number, "/runs/run/steps/tools.json"), TOOLS_COMPLETED); break;
    case 7: REPLACE(in_thread(number, "/runs/run/steps/message.json"), CREATION); break;
    case 8: APPEND(in_thread(number, "/messages.jsonl"), REPLIED, 0); break;
    case 9: CHANGE(in_thread(number, "/runs/run/steps/message.json"), CREATION_COMPLETED); break;
    case 10: CHANGE(in_thread(number, "/runs/run/status.json"), RUN_COMPLETED); break;
    }
}

int main(int count, char **arguments) {
    if (count != 5) {
        fprintf(stderr, "usage: %s ROOT RUNS AT_ONCE SYNCED\n", arguments[0]);
        return 2;
    }
    root = arguments[1];
    int runs = atoi(arguments[2]), at_once = atoi(arguments[3]);
    synced = atoi(arguments[4]);
    double *latencies = calloc((size_t)runs, sizeof *latencies);
    double begun = now();
    for (int first = 0; first < runs; first += at_once) {
        int end = first + at_once < runs ? first + at_once : runs;
        double batch_begun = now();
        for (int operation = 0; operation < 11; operation++)
            for (int number = first; number < end; number++)
                operate(operation, number);
        for (int number = first; number < end; number++)
            latencies[number] = now() - batch_begun;
    }
    printf("%.9f\n", now() - begun);
    for (int number = 0; number < runs; number++)
        printf("%.9f\n", latencies[number]);
    return 0;
}
