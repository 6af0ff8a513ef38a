// The multiply for up to 16 tokens: formats that checkpoints come in.

#include "gemv.cuh"

FOREIGN_FORMATS(GEMV)
