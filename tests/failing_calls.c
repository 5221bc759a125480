// SPDX-License-Identifier: Apache-2.0
// Preloaded into a process, it ends the process or lets a call fail at the n-th call to the C library that concerns a
// file in one folder. tests/interrupted_runs.py says what is to happen at which.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { kCount, kSignal, kError };

static char g_folder[4096];
static int g_how = -1, g_number;
static long g_at;

// Shared with the parent process, which reads them after this one has ended.
struct seen {
  long calls, first_write;
  char name[32];
};
static struct seen* g_seen;

__attribute__((constructor)) static void start(void) {
  g_seen = mmap(NULL, sizeof *g_seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

// From now on, do `how` with `number` (a signal or an errno) at call `at` that concerns a file in `folder`.
void failing_calls_arm(const char* folder, int how, int number, long at) {
  snprintf(g_folder, sizeof g_folder, "%s/", folder);
  g_number = number;
  g_at = at;
  memset(g_seen, 0, sizeof *g_seen);
  g_how = how;
}

long failing_calls_seen(void) { return g_seen->calls; }
long failing_calls_first_write(void) { return g_seen->first_write; }
const char* failing_calls_last(void) { return g_seen->name; }

// Whether this call is to fail; it sets errno then.
static int due(const char* name, const char* path) {
  if (g_how < 0 || strncmp(path, g_folder, strlen(g_folder)) != 0) return 0;
  if (++g_seen->calls > g_at && g_how != kCount) return 0;
  snprintf(g_seen->name, sizeof g_seen->name, "%s", name);
  if (g_how == kCount || g_seen->calls < g_at) return 0;
  if (g_how == kSignal) {
    raise(g_number);
    return 0;
  }
  errno = g_number;
  return 1;
}

static int due_fd(const char* name, int fd) {
  if (g_how < 0) return 0;
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t (*real)(const char*, char*, size_t) = dlsym(RTLD_NEXT, "readlink");
  ssize_t length = real(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return due(name, path);
}

#define REAL(result, name, ...) ((result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))
#define OF_PATH(result, failed, name, declared, types, used)            \
  result name declared {                                                \
    return due(#name, path) ? failed : ((result(*) types)dlsym(RTLD_NEXT, #name))used; \
  }
#define OF_FD(result, name, declared, types, used)                      \
  result name declared {                                                \
    return due_fd(#name, fd) ? -1 : ((result(*) types)dlsym(RTLD_NEXT, #name))used; \
  }

#define OPEN(name)                                                      \
  int name(const char* path, int flags, ...) {                          \
    va_list arguments;                                                  \
    va_start(arguments, flags);                                         \
    mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;        \
    va_end(arguments);                                                  \
    int fails = due(#name, path);                                       \
    if (flags & O_CREAT && !g_seen->first_write) g_seen->first_write = g_seen->calls; \
    return fails ? -1 : REAL(int, name, const char*, int, ...)(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

OF_PATH(int, -1, stat, (const char* path, struct stat* s), (const char*, struct stat*), (path, s))
OF_PATH(int, -1, lstat, (const char* path, struct stat* s), (const char*, struct stat*), (path, s))
OF_PATH(int, -1, stat64, (const char* path, struct stat64* s), (const char*, struct stat64*), (path, s))
OF_PATH(int, -1, lstat64, (const char* path, struct stat64* s), (const char*, struct stat64*), (path, s))
OF_PATH(int, -1, access, (const char* path, int mode), (const char*, int), (path, mode))
OF_PATH(ssize_t, -1, readlink, (const char* path, char* to, size_t n), (const char*, char*, size_t), (path, to, n))
OF_PATH(DIR*, NULL, opendir, (const char* path), (const char*), (path))
OF_PATH(int, -1, rename, (const char* path, const char* to), (const char*, const char*), (path, to))
OF_PATH(int, -1, link, (const char* path, const char* to), (const char*, const char*), (path, to))
OF_PATH(int, -1, unlink, (const char* path), (const char*), (path))
OF_PATH(int, -1, chmod, (const char* path, mode_t mode), (const char*, mode_t), (path, mode))

OF_FD(int, fstat, (int fd, struct stat* s), (int, struct stat*), (fd, s))
OF_FD(int, fstat64, (int fd, struct stat64* s), (int, struct stat64*), (fd, s))
OF_FD(ssize_t, read, (int fd, void* to, size_t n), (int, void*, size_t), (fd, to, n))
OF_FD(int, fsync, (int fd), (int), (fd))
OF_FD(int, ftruncate, (int fd, off_t n), (int, off_t), (fd, n))
OF_FD(int, fchmod, (int fd, mode_t mode), (int, mode_t), (fd, mode))
OF_FD(int, fchown, (int fd, uid_t user, gid_t group), (int, uid_t, gid_t), (fd, user, group))

// A process that is killed, and a disk that is full, have written a part.
ssize_t write(int fd, const void* from, size_t n) {
  ssize_t (*real)(int, const void*, size_t) = dlsym(RTLD_NEXT, "write");
  if (g_how == kSignal && g_number == SIGKILL && g_seen->calls + 1 == g_at) real(fd, from, n / 2);
  if (!due_fd("write", fd)) return real(fd, from, n);
  real(fd, from, n / 2);
  errno = g_number;
  return -1;
}

// A file whose close fails is closed all the same.
int close(int fd) {
  int fails = due_fd("close", fd);
  int result = REAL(int, close, int)(fd);
  if (!fails) return result;
  errno = g_number;
  return -1;
}
