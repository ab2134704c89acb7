/* The beginning of the one file: unpacks the program that follows, once, and becomes it.
 *
 * The process that was started is the process that runs: no parent stays behind that forwards signals, that systemd takes
 * for the service, or whose death leaves the service alone. What is unpacked stays, in a folder named by its contents'
 * hash; it appears there whole, by one rename. A lock on the folder says that it is in use: it keeps cleaners of temporary
 * files away, and other versions of this file, which remove what nobody uses.
 *
 * Linked statically: nothing is needed of the machine up to here. packaging/onefile.py says how the file is laid out.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define TRAILER 128
#define HASH 32
#define EXIT_SOFTWARE 70
#define EXIT_CONFIG 78
#define PROGRAM "reconsup"

struct entry {
    char kind; /* F: file, L: symbolic link */
    unsigned mode, crc;
    unsigned long size;
    const char *path;
};

static struct {
    char hash[HASH + 1];
    struct entry *entries;
    size_t count;
    unsigned long bytes;
    const uint8_t *stream, *end; /* raw deflate: all contents, in the order of the entries */
} pack;

static char tried[4096]; /* why not there, and there */

static void fail(int code, const char *sentence) {
    fprintf(stderr, PROGRAM ": %s\n", sentence);
    exit(code);
}

static bool refuse(const char *path, const char *reason) {
    size_t used = strlen(tried);
    snprintf(tried + used, sizeof tried - used, "%s%s (%s)", used ? ", " : "", path, reason);
    return false;
}

/* ---- the file itself ---- */

static void read_index(const char *index, unsigned long size) {
    char *text = strndup(index, size), *at = text, *line;
    pack.entries = calloc(size / 8 + 1, sizeof *pack.entries);
    while (pack.entries && (line = strsep(&at, "\n")) && *line) {
        struct entry *each = &pack.entries[pack.count++];
        int begin = 0;
        if (sscanf(line, "%c %o %lu %x %n", &each->kind, &each->mode, &each->size, &each->crc, &begin) != 4)
            fail(EXIT_SOFTWARE, "this file is damaged: copy it again");
        each->path = line + begin;
        pack.bytes += each->size;
    }
}

static void read_self(void) {
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    struct stat about;
    if (fd < 0 || fstat(fd, &about) != 0)
        fail(EXIT_SOFTWARE, "cannot read /proc/self/exe: mount /proc, and let this file be readable, not executable only");
    const uint8_t *file = mmap(NULL, about.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    unsigned long at, index, stream;
    char trailer[TRAILER + 1] = "";
    if (file != MAP_FAILED && about.st_size > TRAILER) memcpy(trailer, file + about.st_size - TRAILER, TRAILER);
    if (sscanf(trailer, "reconsup-onefile %lu %lu %lu %32[0-9a-f]", &at, &index, &stream, pack.hash) != 4
        || at + index + stream + TRAILER != (unsigned long)about.st_size)
        fail(EXIT_SOFTWARE, "this file was cut short: copy it again");
    read_index((const char *)file + at, index);
    pack.stream = file + at + index;
    pack.end = pack.stream + stream;
    close(fd);
}

/* ---- contents into files ---- */

static struct {
    const char *folder;
    size_t next; /* the entry that comes after the one that is open */
    int fd;
    unsigned long left;
    unsigned crc, table[256];
    char link[PATH_MAX];
} out = {.fd = -1};

static bool make_parents(char *path) {
    for (char *slash = path + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        bool is_there = mkdir(path, 0755) == 0 || errno == EEXIST;
        *slash = '/';
        if (!is_there) return false;
    }
    return true;
}

static bool finish_entry(char *path) {
    struct entry *done = &pack.entries[out.next - 1];
    bool is_good = ~out.crc == done->crc;
    if (done->kind == 'F') is_good = fchmod(out.fd, done->mode) == 0 && close(out.fd) == 0 && is_good;
    out.link[done->size < PATH_MAX ? done->size : 0] = 0;
    if (is_good) return done->kind == 'F' || symlink(out.link, path) == 0;
    errno = EBADMSG;
    return false;
}

/* Write what was inflated, to wherever it belongs. False with errno. */
static bool put(const uint8_t *bytes, size_t size) {
    static char path[PATH_MAX];
    for (;;) {
        while (out.next && out.left == 0) { /* entries without contents come and go at once */
            if (!finish_entry(path)) return false;
            if (out.next == pack.count) {
                out.next = 0;
                errno = EBADMSG;
                return size == 0;
            }
            goto open_next;
        }
        if (size == 0) return true;
        if (out.next) {
            struct entry *now = &pack.entries[out.next - 1];
            size_t part = size < out.left ? size : out.left;
            for (size_t i = 0; i < part; i++) out.crc = out.table[(out.crc ^ bytes[i]) & 255] ^ out.crc >> 8;
            if (now->kind == 'L') memcpy(out.link + now->size - out.left, bytes, part);
            else if (write(out.fd, bytes, part) != (ssize_t)part) {
                errno = ENOSPC; /* whatever else it was: no room for it here */
                return false;
            }
            bytes += part, size -= part, out.left -= part;
            continue;
        }
    open_next:;
        struct entry *next = &pack.entries[out.next++];
        out.left = next->size, out.crc = ~0u;
        snprintf(path, sizeof path, "%s/%s", out.folder, next->path);
        errno = EBADMSG;
        if ((next->kind == 'L' && next->size >= PATH_MAX) || !make_parents(path)) return false;
        if (next->kind == 'F' && (out.fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)) < 0) return false;
    }
}

/* ---- inflate (RFC 1951) ---- */

#define FAST 10
#define RING 65536

static struct {
    const uint8_t *at;
    uint64_t hold;
    int have;
    bool is_bad;
    uint8_t ring[RING];
    size_t used;
} in;

struct code {
    uint16_t count[16], symbol[288], fast[1 << FAST]; /* fast: symbol << 4 | length */
};

static void fill(int wanted) {
    while (in.have < wanted && in.at < pack.end) in.hold |= (uint64_t)*in.at++ << in.have, in.have += 8;
}

static unsigned bits(int wanted) {
    fill(wanted);
    if (in.have < wanted) in.is_bad = true;
    unsigned value = in.hold & ((1u << wanted) - 1);
    in.hold >>= wanted, in.have -= wanted;
    return in.is_bad ? 0 : value;
}

static void make_code(struct code *code, const uint8_t *lengths, int symbols) {
    uint16_t offset[16] = {0}, next[16] = {0};
    memset(code, 0, sizeof *code);
    for (int i = 0; i < symbols; i++) code->count[lengths[i]]++;
    code->count[0] = 0;
    for (int length = 1; length < 16; length++) {
        offset[length] = offset[length - 1] + code->count[length - 1];
        next[length] = (next[length - 1] + code->count[length - 1]) << 1;
    }
    for (int i = 0; i < symbols; i++) {
        int length = lengths[i];
        if (!length) continue;
        code->symbol[offset[length]++] = i;
        unsigned word = next[length]++, reversed = 0;
        for (int bit = 0; bit < length; bit++) reversed |= (word >> bit & 1) << (length - 1 - bit);
        if (length <= FAST)
            for (unsigned k = reversed; k < 1 << FAST; k += 1u << length) code->fast[k] = i << 4 | length;
    }
}

static int decode(const struct code *code) {
    fill(15);
    unsigned found = code->fast[in.hold & ((1 << FAST) - 1)];
    if (found && (int)(found & 15) <= in.have) {
        in.hold >>= found & 15, in.have -= found & 15;
        return found >> 4;
    }
    int word = 0, first = 0, index = 0;
    for (int length = 1; length < 16 && !in.is_bad; length++) {
        word |= bits(1);
        int count = code->count[length];
        if (word - count < first) return code->symbol[index + word - first];
        index += count, first = (first + count) << 1, word <<= 1;
    }
    in.is_bad = true;
    return 0;
}

static bool emit(uint8_t byte) {
    in.ring[in.used++ % RING] = byte;
    return in.used % RING || put(in.ring, RING);
}

static bool inflate_codes(const struct code *literals, const struct code *distances) {
    static const uint16_t length_base[] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                           31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const uint8_t length_extra[] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    static const uint16_t distance_base[] = {1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
                                             193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    for (;;) {
        int symbol = decode(literals);
        if (in.is_bad) return false;
        if (symbol == 256) return true;
        if (symbol < 256) {
            if (!emit(symbol)) return false;
            continue;
        }
        if (symbol > 285) return !(in.is_bad = true);
        int length = length_base[symbol - 257] + bits(length_extra[symbol - 257]), far = decode(distances);
        if (far > 29) return !(in.is_bad = true);
        size_t distance = distance_base[far] + bits(far < 4 ? 0 : far / 2 - 1);
        if (in.is_bad || distance > in.used) return !(in.is_bad = true);
        while (length--)
            if (!emit(in.ring[(in.used - distance) % RING])) return false;
    }
}

static bool inflate_dynamic(void) {
    static const uint8_t order[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    static struct code literals, distances;
    uint8_t lengths[320] = {0};
    int nliterals = bits(5) + 257, ndistances = bits(5) + 1, ncodes = bits(4) + 4, at = 0;
    for (int i = 0; i < ncodes; i++) lengths[order[i]] = bits(3);
    make_code(&literals, lengths, 19);
    memset(lengths, 0, sizeof lengths);
    while (at < nliterals + ndistances && !in.is_bad) {
        int symbol = decode(&literals), previous = 0, times = 1;
        if (symbol == 16) {
            if (at == 0) return !(in.is_bad = true);
            previous = lengths[at - 1], times = 3 + bits(2);
        } else if (symbol == 17) times = 3 + bits(3);
        else if (symbol == 18) times = 11 + bits(7);
        else previous = symbol;
        if (at + times > nliterals + ndistances) return !(in.is_bad = true);
        while (times--) lengths[at++] = previous;
    }
    if (in.is_bad || nliterals > 288) return !(in.is_bad = true);
    make_code(&distances, lengths + nliterals, ndistances);
    make_code(&literals, lengths, nliterals);
    return inflate_codes(&literals, &distances);
}

static bool inflate_fixed(void) {
    static struct code literals, distances;
    uint8_t lengths[288];
    for (int i = 0; i < 288; i++) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    make_code(&literals, lengths, 288);
    memset(lengths, 5, 30);
    make_code(&distances, lengths, 30);
    return inflate_codes(&literals, &distances);
}

static bool inflate_stored(void) {
    in.hold >>= in.have % 8, in.have -= in.have % 8;
    unsigned length = bits(16);
    if (bits(16) != (length ^ 0xffff)) return !(in.is_bad = true);
    while (length-- && !in.is_bad)
        if (!emit(bits(8))) return false;
    return !in.is_bad;
}

/* All contents into `folder`. False with errno. */
static bool inflate_into(const char *folder) {
    for (unsigned i = 0; i < 256; i++) {
        out.table[i] = i;
        for (int bit = 0; bit < 8; bit++) out.table[i] = out.table[i] >> 1 ^ (out.table[i] & 1 ? 0xedb88320u : 0);
    }
    out.folder = folder, out.next = 0, out.fd = -1, out.left = 0;
    in.at = pack.stream, in.hold = 0, in.have = 0, in.is_bad = false, in.used = 0;
    for (bool is_last = false; !is_last;) {
        is_last = bits(1);
        unsigned kind = bits(2);
        bool is_good = kind == 0 ? inflate_stored() : kind == 1 ? inflate_fixed() : kind == 2 ? inflate_dynamic() : false;
        if (in.is_bad || kind > 2) errno = EBADMSG;
        if (in.is_bad || !is_good) return false;
    }
    if (!put(in.ring, in.used % RING)) return false;
    errno = EBADMSG;
    return out.next == 0; /* or it ended before the last of them was whole */
}

/* ---- folders ---- */

static int remove_one(const char *path, const struct stat *about, int kind, struct FTW *where) {
    (void)about, (void)kind, (void)where;
    return remove(path), 0;
}

static void remove_all(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

/* Nobody but us and root may have put there what we are about to run. */
static bool is_ours(int fd) {
    struct stat about;
    return fstat(fd, &about) == 0 && (about.st_uid == geteuid() || about.st_uid == 0) && !(about.st_mode & 022);
}

/* The folder's descriptor with a lock on it, which lasts as long as the program runs; -1 if it is not there, or not whole. */
static int lock_whole(const char *folder) {
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (fd < 0) return -1;
    bool is_whole = is_ours(fd) && flock(fd, LOCK_SH) == 0;
    for (size_t i = 0; is_whole && i < pack.count; i++) {
        struct stat about;
        const struct entry *each = &pack.entries[i];
        is_whole = fstatat(fd, each->path, &about, AT_SYMLINK_NOFOLLOW) == 0
                   && (each->kind == 'L' ? S_ISLNK(about.st_mode) : S_ISREG(about.st_mode))
                   && (unsigned long)about.st_size == each->size;
    }
    if (is_whole) return fd;
    close(fd);
    return -1;
}

/* Remove what nobody uses: other versions, and what somebody who was killed had begun to unpack. */
static void tidy(const char *root) {
    DIR *listing = opendir(root);
    for (struct dirent *each; listing && (each = readdir(listing));) {
        const char *name = each->d_name + (each->d_name[0] == '.');
        if (strspn(name, "0123456789abcdef") != HASH || strcmp(each->d_name, pack.hash) == 0) continue;
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s/%s", root, each->d_name);
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0) continue;
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) remove_all(path);
        close(fd);
    }
    if (listing) closedir(listing);
}

static bool is_root_good(char *root) {
    struct statvfs disk;
    if (root[0] != '/') return refuse(root, "not an absolute path");
    char slashed[PATH_MAX];
    snprintf(slashed, sizeof slashed, "%s/", root);
    mode_t before = umask(geteuid() ? 0077 : 0022); /* what root unpacks, others may run */
    bool is_made = make_parents(slashed);
    umask(before);
    int fd = is_made ? open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd < 0) return refuse(root, strerror(errno));
    bool is_good = is_ours(fd) || refuse(root, "others may write there, or it is somebody else's");
    if (is_good && fstatvfs(fd, &disk) == 0 && disk.f_flag & ST_NOEXEC) is_good = refuse(root, "mounted noexec");
    close(fd);
    return is_good;
}

static bool unpack(const char *root, const char *folder) {
    char fresh[PATH_MAX], broken[PATH_MAX];
    snprintf(fresh, sizeof fresh, "%s/.%s.%d", root, pack.hash, getpid());
    snprintf(broken, sizeof broken, "%s/.%s.%d-broken", root, pack.hash, getpid());
    remove_all(fresh);
    if (mkdir(fresh, 0755) != 0) return refuse(root, strerror(errno));
    int fd = open(fresh, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* on the disk before it has its name: sizes alone would not show a loss of power */
    bool is_done = fd >= 0 && flock(fd, LOCK_EX) == 0 && inflate_into(fresh) && syncfs(fd) == 0;
    if (!is_done) refuse(root, errno == EBADMSG ? "this file is damaged: copy it again" : strerror(errno));
    if (is_done && rename(fresh, folder) != 0) { /* somebody was faster, or what is there is not whole */
        int whole = lock_whole(folder);
        if (whole >= 0) close(whole);
        else if (rename(folder, broken) != 0 || rename(fresh, folder) != 0) is_done = refuse(root, strerror(errno));
        remove_all(broken);
    }
    remove_all(fresh);
    if (fd >= 0) close(fd);
    return is_done;
}

/* PyInstaller's own start needs libz, before it can say where its libraries are. */
static void find_libraries_in(const char *folder) {
    const char *before = getenv("LD_LIBRARY_PATH");
    char path[2 * PATH_MAX];
    snprintf(path, sizeof path, "%s/_internal%s%s", folder, before && *before ? ":" : "", before ? before : "");
    setenv("LD_LIBRARY_PATH", path, 1);
}

static void become(char *root, char **argv) {
    char folder[PATH_MAX], program[PATH_MAX];
    if (snprintf(folder, sizeof folder, "%s/%s", root, pack.hash) >= PATH_MAX - 64) return;
    if (!is_root_good(root)) return;
    if (lock_whole(folder) < 0) {
        bool is_unpacked = unpack(root, folder);
        if (lock_whole(folder) < 0) { /* or somebody else unpacked it while we could not */
            if (is_unpacked) refuse(folder, "unpacked, and gone again");
            return;
        }
        tidy(root);
    }
    snprintf(program, sizeof program, "%s/" PROGRAM, folder);
    find_libraries_in(folder);
    execv(program, argv);
    refuse(program, strerror(errno));
}

static void try(const char *variable, const char *below, char **argv) {
    const char *value = getenv(variable);
    char root[PATH_MAX];
    if (!value || !*value) return;
    snprintf(root, sizeof root - 64, "%.*s%s", (int)strcspn(value, ":"), value, below); /* systemd may give a list */
    become(root, argv);
}

/* As reconsup/__main__.py: what comes while this unpacks and the program imports waits for the program. */
static void hold_signals(void) {
    const int held[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof held / sizeof *held; i++) sigaddset(&set, held[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

int main(int argc, char **argv) {
    (void)argc;
    char root[PATH_MAX], sentence[sizeof tried + 256];
    hold_signals();
    read_self();
    try("RECONSUP_HOME", "", argv);
    if (!getenv("RECONSUP_HOME")) {
        try("CACHE_DIRECTORY", "", argv); /* systemd's CacheDirectory= and StateDirectory= */
        try("STATE_DIRECTORY", "", argv);
        try("XDG_CACHE_HOME", "/reconsup", argv);
        try("HOME", "/.cache/reconsup", argv);
        snprintf(root, sizeof root, "/var/tmp/reconsup-%u", geteuid());
        become(root, argv);
        snprintf(root, sizeof root, "/tmp/reconsup-%u", geteuid());
        become(root, argv);
    }
    snprintf(sentence, sizeof sentence,
             "nowhere to unpack its %lu MB: set RECONSUP_HOME to a folder of yours, where programs may run. Tried: %s",
             (pack.bytes >> 20) + 1, tried);
    fail(EXIT_CONFIG, sentence);
}
