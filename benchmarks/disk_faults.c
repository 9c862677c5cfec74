// Faults of a disk below one folder: the process dies in the middle of an operation, or the disk is full from it on.
//
// FAULT_FOLDER  files below it count
// FAULT_AT      number of the operation, from 1; 0: none
// FAULT_KIND    kill: half of the bytes are written and the process ends; full: this and later writes fail
// FAULT_LOG     file that gets a line per operation: its kind and path
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static long count;
static int log_descriptor = -2;

static int below(const char *path) {
  const char *folder = getenv("FAULT_FOLDER");
  return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int path_of(int descriptor, char *path, size_t size) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, size - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

// 0: go on; 1: die in the middle; 2: no space
static int fault(const char *kind, const char *path, int needs_space) {
  long number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
  if (log_descriptor == -2) {
    const char *name = getenv("FAULT_LOG");
    log_descriptor = name ? open(name, O_WRONLY | O_CREAT | O_APPEND, 0644) : -1;
  }
  if (log_descriptor >= 0) dprintf(log_descriptor, "%s %s\n", kind, path);
  const char *at = getenv("FAULT_AT"), *what = getenv("FAULT_KIND");
  long place = at ? atol(at) : 0;
  if (!place || !what) return 0;
  if (!strcmp(what, "kill")) return number == place;
  return number >= place && needs_space ? 2 : 0;
}

#define REAL(name, type, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)

ssize_t write(int descriptor, const void *data, size_t size) {
  REAL("write", ssize_t, int, const void *, size_t);
  char path[4096];
  if (!path_of(descriptor, path, sizeof path)) return real(descriptor, data, size);
  int what = fault("write", path, 1);
  if (what == 1) { real(descriptor, data, size / 2); _exit(137); }
  if (what == 2) { errno = ENOSPC; return -1; }
  return real(descriptor, data, size);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
  REAL("pwrite64", ssize_t, int, const void *, size_t, off64_t);
  char path[4096];
  if (!path_of(descriptor, path, sizeof path)) return real(descriptor, data, size, offset);
  int what = fault("write", path, 1);
  if (what == 1) { real(descriptor, data, size / 2, offset); _exit(137); }
  if (what == 2) { errno = ENOSPC; return -1; }
  return real(descriptor, data, size, offset);
}

int fsync(int descriptor) {
  REAL("fsync", int, int);
  char path[4096];
  if (path_of(descriptor, path, sizeof path) && fault("sync", path, 0) == 1) _exit(137);
  return real(descriptor);
}

static void names(char *both, size_t size, const char *from, const char *to) { snprintf(both, size, "%s\t%s", from, to); }

#define TWO_NAMES(name, kind) \
  int name(const char *from, const char *to) { \
    REAL(#name, int, const char *, const char *); \
    char both[8192]; \
    names(both, sizeof both, from, to); \
    if (below(to) && fault(kind, both, 0) == 1) _exit(137); \
    return real(from, to); \
  }
TWO_NAMES(rename, "rename")
TWO_NAMES(link, "link")

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
  REAL("linkat", int, int, const char *, int, const char *, int);
  char both[8192];
  names(both, sizeof both, from, to);
  if (below(to) && fault("link", both, 0) == 1) _exit(137);
  return real(from_folder, from, to_folder, to, flags);
}

int unlink(const char *path) {
  REAL("unlink", int, const char *);
  if (below(path) && fault("unlink", path, 0) == 1) _exit(137);
  return real(path);
}

int mkdir(const char *path, mode_t mode) {
  REAL("mkdir", int, const char *, mode_t);
  if (below(path)) {
    int what = fault("mkdir", path, 1);
    if (what == 1) _exit(137);
    if (what == 2) { errno = ENOSPC; return -1; }
  }
  return real(path, mode);
}
