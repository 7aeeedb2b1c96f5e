// Hides AVX-512, AVX-VNNI and AMX from every library of a process, so that a processor that has them can be measured as one
// that has not: CPUID is made to fault (x86-64 Linux, where /proc/cpuinfo names cpuid_fault), and answered without them.
//
//   gcc -O2 -shared -fPIC -o hide_avx512.so benchmarks/cpu/hide_avx512.c
//   LD_PRELOAD=$PWD/hide_avx512.so python benchmarks/cpu/run.py --output cpu-avx2
//
// Whoever reads /proc/cpuinfo still finds them.
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { kArchSetCpuid = 0x1012 };

static long let_cpuid_fault(int faults) { return syscall(SYS_arch_prctl, kArchSetCpuid, !faults); }

#define BIT(n) (1u << (n))
// Leaf 7, sublist 0: AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL; VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ; 4VNNIW, 4FMAPS,
// VP2INTERSECT, AMX-BF16, FP16, AMX-TILE, AMX-INT8. Sublist 1: AVX-VNNI, AVX-512 BF16, AMX-FP16, AVX-IFMA.
static const unsigned kEbx = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const unsigned kEcx = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const unsigned kEdx = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
static const unsigned kEax1 = BIT(4) | BIT(5) | BIT(21) | BIT(23);

static void answer(int signal_number, siginfo_t* info, void* context) {
  (void)info;
  greg_t* r = ((ucontext_t*)context)->uc_mcontext.gregs;
  const uint8_t* at = (const uint8_t*)r[REG_RIP];
  if (at[0] != 0x0f || at[1] != 0xa2) {  // no CPUID: a fault like any other
    signal(signal_number, SIG_DFL);
    return;
  }
  unsigned a, b, c, d;
  const unsigned leaf = (unsigned)r[REG_RAX], sublist = (unsigned)r[REG_RCX];
  let_cpuid_fault(0);
  __cpuid_count(leaf, sublist, a, b, c, d);
  let_cpuid_fault(1);
  if (leaf == 7 && sublist == 0) {
    b &= ~kEbx;
    c &= ~kEcx;
    d &= ~kEdx;
  }
  if (leaf == 7 && sublist == 1) {
    a &= ~kEax1;
    d = 0;
  }
  r[REG_RAX] = a;
  r[REG_RBX] = b;
  r[REG_RCX] = c;
  r[REG_RDX] = d;
  r[REG_RIP] += 2;
}

// Before the constructors of other libraries, which ask what there is.
__attribute__((constructor(101))) static void hide(void) {
  struct sigaction action = {0};
  action.sa_sigaction = answer;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  if (sigaction(SIGSEGV, &action, NULL) || let_cpuid_fault(1)) {
    fputs("hide_avx512: this processor or kernel cannot make CPUID fault\n", stderr);
    exit(1);
  }
}
