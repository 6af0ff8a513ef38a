// Fibers: stacks of their own on one thread of the system, and the switch between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define FIBER_ASAN 1
#endif

#if defined(__x86_64__) && defined(__ELF__)
#define FIBER_ASSEMBLY 1
// Saves what a call must keep, leaves the stack pointer in `*from`, goes on where `to` was left.
extern "C" void airllm_emu_switch(void **from, void *to);
#else
#include <ucontext.h>
#endif

namespace emu {

class Fiber {
    // Kernels keep little on the stack; sanitizers make frames larger.
#ifdef FIBER_ASAN
    static constexpr size_t BYTES = 128 << 10;
#else
    static constexpr size_t BYTES = 64 << 10;
#endif
    unsigned char *stack = nullptr;
    size_t shift = 0;
#ifdef FIBER_ASSEMBLY
    void *pointer = nullptr;
#else
    ucontext_t context{};
#endif
#ifdef FIBER_ASAN
    void *fake = nullptr;
    const void *bottom = nullptr;
    size_t size = 0;
#endif
    static inline thread_local void (*entry)() = nullptr;
    static inline thread_local Fiber *left = nullptr;

    static void begin() {
        arrived(nullptr);
        entry();
        __builtin_trap();
    }

    // On the stack of a fiber that was switched to.
    static void arrived([[maybe_unused]] Fiber *self) {
#ifdef FIBER_ASAN
        __sanitizer_finish_switch_fiber(self ? self->fake : nullptr, &left->bottom, &left->size);
#endif
    }

  public:
    Fiber() = default;
    Fiber(const Fiber &) = delete;
    Fiber(Fiber &&other) noexcept : stack(other.stack), shift(other.shift) {
        other.stack = nullptr;
    }
    Fiber &operator=(Fiber &&) = delete;
    ~Fiber() {
        if (!stack) return;
        const size_t bytes = BYTES + (size_t)sysconf(_SC_PAGESIZE);
#ifdef FIBER_ASAN
        // Whatever is mapped here next is no stack.
        __asan_unpoison_memory_region(stack, bytes);
#endif
        munmap(stack, bytes);
    }

    // A stack, with a page below it that nobody may touch. Stacks begin at different places of a page: at the same
    // one, all of them would fight for a few lines of the cache.
    bool allocate(size_t number) {
        const size_t page = (size_t)sysconf(_SC_PAGESIZE);
        void *memory = mmap(nullptr, BYTES + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return false;
        stack = static_cast<unsigned char *>(memory);
        shift = number * 448 % 4096 / 64 * 64;
        return mprotect(stack, page, PROT_NONE) == 0;
    }

    // The next switch to this fiber runs `main`, which must not return.
    void start(void (*main)()) {
        entry = main;
        const size_t page = (size_t)sysconf(_SC_PAGESIZE);
#ifdef FIBER_ASAN
        fake = nullptr, bottom = stack + page, size = BYTES;
        // What ran here before was left in the middle of calls.
        __asan_unpoison_memory_region(bottom, size);
#endif
#ifdef FIBER_ASSEMBLY
        // As after a call: the stack pointer is 8 above a multiple of 16. Six registers, where to go, no way back.
        auto *top = reinterpret_cast<uintptr_t *>(stack + page + BYTES - shift - 64);
        top[-1] = 0;
        top[-2] = reinterpret_cast<uintptr_t>(&begin);
        for (int i = 3; i <= 8; i++) top[-i] = 0;
        pointer = top - 8;
#else
        getcontext(&context);
        context.uc_stack.ss_sp = stack + page;
        context.uc_stack.ss_size = BYTES - shift;
        context.uc_link = nullptr;
        makecontext(&context, &begin, 0);
#endif
    }

    // Leaves this fiber, for good if it `ended`, and goes on in `to`.
    void switch_to(Fiber &to, [[maybe_unused]] bool ended) {
        left = this;
#ifdef FIBER_ASAN
        __sanitizer_start_switch_fiber(ended ? nullptr : &fake, to.bottom, to.size);
#endif
#ifdef FIBER_ASSEMBLY
        airllm_emu_switch(&pointer, to.pointer);
#else
        swapcontext(&context, &to.context);
#endif
        arrived(this);
    }
};

} // namespace emu
