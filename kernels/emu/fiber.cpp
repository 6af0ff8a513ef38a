// The switch between fibers, in assembly where there is one for the machine.

#include "fiber.h"

#ifdef FIBER_ASSEMBLY
asm(R"(
    .text
    .globl airllm_emu_switch
    .hidden airllm_emu_switch
    .type airllm_emu_switch, @function
airllm_emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size airllm_emu_switch, . - airllm_emu_switch
)");
#endif
