// Of CUDA's driver interface, what the stand-in has: handles, error codes, attributes. Names and numbers are those of
// CUDA 12.8's `cuda.h`, as `cudarc::driver::sys` has them.
#pragma once

#include <cstddef>
#include <cstdint>

typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
typedef struct CUgraphNode_st *CUgraphNode;
typedef struct CUmemPool_st *CUmemoryPool;
typedef void (*CUhostFn)(void *);
struct CUuuid {
    char bytes[16];
};

// X(code, name without CUDA_ERROR_, text)
#define STANDIN_ERRORS(X)                                                                                              \
    X(1, INVALID_VALUE, "invalid argument")                                                                            \
    X(2, OUT_OF_MEMORY, "out of memory")                                                                               \
    X(3, NOT_INITIALIZED, "initialization error")                                                                      \
    X(100, NO_DEVICE, "no CUDA-capable device is detected")                                                            \
    X(101, INVALID_DEVICE, "invalid device ordinal")                                                                   \
    X(200, INVALID_IMAGE, "device kernel image is invalid")                                                            \
    X(201, INVALID_CONTEXT, "invalid device context")                                                                  \
    X(209, NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device")                              \
    X(304, OPERATING_SYSTEM, "OS call failed or operation not supported on this OS")                                   \
    X(400, INVALID_HANDLE, "invalid resource handle")                                                                  \
    X(401, ILLEGAL_STATE, "the operation cannot be performed in the present state")                                    \
    X(500, NOT_FOUND, "named symbol not found")                                                                        \
    X(600, NOT_READY, "device not ready")                                                                              \
    X(700, ILLEGAL_ADDRESS, "an illegal memory access was encountered")                                                \
    X(701, LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch")                                         \
    X(702, LAUNCH_TIMEOUT, "the launch timed out and was terminated")                                                  \
    X(712, HOST_MEMORY_ALREADY_REGISTERED, "part or all of the requested memory range is already mapped")              \
    X(713, HOST_MEMORY_NOT_REGISTERED, "pointer does not correspond to a registered memory region")                    \
    X(719, LAUNCH_FAILED, "unspecified launch failure")                                                                \
    X(800, NOT_PERMITTED, "operation not permitted")                                                                   \
    X(801, NOT_SUPPORTED, "operation not supported")                                                                   \
    X(900, STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing")                             \
    X(901, STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture")                      \
    X(902, STREAM_CAPTURE_MERGE, "operation would result in a merge of separate capture sequences")                    \
    X(903, STREAM_CAPTURE_UNMATCHED, "capture was not ended in the same stream as it began")                           \
    X(904, STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work")                                              \
    X(905, STREAM_CAPTURE_ISOLATION, "dependency created on uncaptured work in another stream")                        \
    X(906, STREAM_CAPTURE_IMPLICIT, "operation would make the legacy stream depend on a capturing blocking stream")    \
    X(907, CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream")                  \
    X(999, UNKNOWN, "unknown error")

enum CUresult : unsigned {
    CUDA_SUCCESS = 0,
#define STANDIN_ERROR(code, name, text) CUDA_ERROR_##name = code,
    STANDIN_ERRORS(STANDIN_ERROR)
#undef STANDIN_ERROR
};

enum : unsigned {
    CU_STREAM_NON_BLOCKING = 1,
    CU_EVENT_DISABLE_TIMING = 2,
    CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0,
    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1,
    CU_FUNC_ATTRIBUTE_NUM_REGS = 4,
    CU_FUNC_ATTRIBUTE_PTX_VERSION = 5,
    CU_FUNC_ATTRIBUTE_BINARY_VERSION = 6,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
    CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9,
    CU_POINTER_ATTRIBUTE_CONTEXT = 1,
    CU_POINTER_ATTRIBUTE_MEMORY_TYPE = 2,
    CU_POINTER_ATTRIBUTE_DEVICE_POINTER = 3,
    CU_POINTER_ATTRIBUTE_HOST_POINTER = 4,
    CU_POINTER_ATTRIBUTE_IS_MANAGED = 8,
    CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9,
    CU_POINTER_ATTRIBUTE_RANGE_START_ADDR = 11,
    CU_POINTER_ATTRIBUTE_RANGE_SIZE = 12,
    CU_POINTER_ATTRIBUTE_MAPPED = 13,
    CU_MEMPOOL_ATTR_RELEASE_THRESHOLD = 4,
    CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT = 5,
    CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH = 6,
    CU_MEMPOOL_ATTR_USED_MEM_CURRENT = 7,
    CU_MEMPOOL_ATTR_USED_MEM_HIGH = 8,
};
