// The smallest program that a container runtime can keep running: no libc, no
// files, one static binary. It serves as the application and as the pause image.
//
//   hello [pause]   prints its line, then waits; SIGTERM or SIGINT ends it
//   hello WORD      prints its line and ends
//
// Signals are blocked and waited for instead of handled: as process 1 of a pod
// it has no default actions, and a blocked signal is never dropped.

typedef unsigned long word;

#if defined(__x86_64__)
enum { WRITE = 1, WAIT4 = 61, EXIT = 60, SIGPROCMASK = 14, SIGTIMEDWAIT = 128 };
static long call(long n, word a, word b, word c, word d) {
    long result;
    register word r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "0"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}
__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call begin\n");
#elif defined(__aarch64__)
enum { WRITE = 64, WAIT4 = 260, EXIT = 93, SIGPROCMASK = 135, SIGTIMEDWAIT = 137 };
static long call(long n, word a, word b, word c, word d) {
    register long x8 __asm__("x8") = n;
    register word x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c, x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return (long)x0;
}
__asm__(".globl _start\n_start: mov x0, sp\n bl begin\n");
#else
#error "hello.c: x86-64 and aarch64 only"
#endif

enum { SIGINT = 2, SIGTERM = 15, SIGCHLD = 17, SIG_BLOCK = 0, WNOHANG = 1 };
#define BIT(signal) (1ul << ((signal) - 1))

static int is_pause(const char *s) {
    const char *want = "pause";
    while (*want && *s == *want) s++, want++;
    return *s == *want;
}

// The stack at start: argc, argv[0], argv[1], …
__attribute__((used, noreturn)) void begin(word *stack) {
    static const char line[] = "hello from a verified image\n";
    word waited = BIT(SIGINT) | BIT(SIGTERM) | BIT(SIGCHLD);
    call(SIGPROCMASK, SIG_BLOCK, (word)&waited, 0, sizeof waited);
    call(WRITE, 1, (word)line, sizeof line - 1, 0);
    if (stack[0] < 2 || is_pause((const char *)stack[2])) {
        long signal;
        do {
            signal = call(SIGTIMEDWAIT, (word)&waited, 0, 0, sizeof waited);
            // A pod that shares its process namespace leaves orphans to process 1.
            while (signal == SIGCHLD && call(WAIT4, -1ul, 0, WNOHANG, 0) > 0) {}
        } while (signal != SIGTERM && signal != SIGINT);
    }
    for (;;) call(EXIT, 0, 0, 0, 0);
}
