// The multiply for many tokens: the repository's own formats.

#include "gemm.cuh"

OWN_FORMATS(GEMM)
