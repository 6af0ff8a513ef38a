// The multiply for prompts: formats that checkpoints come in.

#include "mma_tiles.cuh"

FOREIGN_FORMATS(GEMM_MMA_EXACT)
