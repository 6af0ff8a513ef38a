// The multiply for many tokens: formats that checkpoints come in.

#include "gemm.cuh"

FOREIGN_FORMATS(GEMM)
