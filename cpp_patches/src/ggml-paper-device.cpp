#include "ggml-backend-impl.h"
#include "yarn-gguf.h"

// A GPU on paper, to measure what a GPU would hold without having one. libllama asks the device to decide what goes
// where. This device answers as ggml-cuda does on a GPU with tensor cores, and its buffers have no memory.

static const size_t ALIGNMENT    = 128;
static const int64_t ROW_PADDED  = 512; // MATRIX_ROW_PADDING in ggml-cuda
static const int64_t LARGE_BATCH = 32;  // from this size on, ggml-cuda computes with weights that lie on the host

// ---- buffers ------------------------------------------------------------------------------------------

static void buffer_free(ggml_backend_buffer_t) {
}

static void * buffer_base(ggml_backend_buffer_t) {
    return (void *)ALIGNMENT;
}

static void buffer_memset(ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t) {
}

static void buffer_set(ggml_backend_buffer_t, ggml_tensor *, const void *, size_t, size_t) {
}

static void buffer_get(ggml_backend_buffer_t, const ggml_tensor *, void *, size_t, size_t) {
}

static void buffer_clear(ggml_backend_buffer_t, uint8_t) {
}

static const char * name_of_type(ggml_backend_buffer_type_t) {
    return "paper";
}

static ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_i iface = {};
    iface.free_buffer           = buffer_free;
    iface.get_base              = buffer_base;
    iface.memset_tensor         = buffer_memset;
    iface.set_tensor            = buffer_set;
    iface.get_tensor            = buffer_get;
    iface.clear                 = buffer_clear;
    return ggml_backend_buffer_init(buft, iface, nullptr, size);
}

static size_t alignment(ggml_backend_buffer_type_t) {
    return ALIGNMENT;
}

// Returns the size of the f16 copy on which flash attention works if the cache has another type
// (ggml_cuda_flash_attn_ext_get_alloc_size).
static size_t f16_copy(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F16 ? 0 : GGML_PAD(ggml_nelements(t) * sizeof(ggml_fp16_t), ALIGNMENT);
}

static size_t alloc_size(ggml_backend_buffer_type_t, const ggml_tensor * t) {
    size_t size = ggml_nbytes(t);
    if (t->op == GGML_OP_FLASH_ATTN_EXT) {
        const ggml_tensor * k = t->src[1];
        const ggml_tensor * v = t->src[2];
        const bool is_in_k    = v->view_src && v->view_src == k->view_src && v->view_offs == k->view_offs;
        size                  = GGML_PAD(size, ALIGNMENT) + f16_copy(k) + (is_in_k ? 0 : f16_copy(v));
    }
    const int64_t rest = t->ne[0] % ROW_PADDED;
    return size + (ggml_is_quantized(t->type) && rest ? ggml_row_size(t->type, ROW_PADDED - rest) : 0);
}

static ggml_backend_buffer_type_t buffer_type(ggml_backend_dev_t dev) {
    static ggml_backend_buffer_type type = {};
    type.iface.get_name                  = name_of_type;
    type.iface.alloc_buffer              = allocate;
    type.iface.get_alignment             = alignment;
    type.iface.get_alloc_size            = alloc_size;
    type.device                          = dev;
    return &type;
}

// ---- the device ---------------------------------------------------------------------------------------

static const char * name(ggml_backend_dev_t) {
    return "paper";
}

static void memory(ggml_backend_dev_t, size_t * free, size_t * total) {
    *free = *total = 0; // unknown
}

static enum ggml_backend_dev_type type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

static void props(ggml_backend_dev_t, ggml_backend_dev_props * props) {
    *props                   = {};
    props->name              = "paper";
    props->description       = "a GPU on paper";
    props->type              = GGML_BACKEND_DEVICE_TYPE_GPU;
    props->caps.async        = true;
    props->caps.mmap_support = true;
}

static const char * name_of_backend(ggml_backend_t) {
    return "paper";
}

static void free_backend(ggml_backend_t backend) {
    delete backend;
}

static ggml_status compute(ggml_backend_t, ggml_cgraph *) {
    return GGML_STATUS_FAILED;
}

static ggml_backend_t init_backend(ggml_backend_dev_t dev, const char *) {
    static ggml_guid guid = {0x79, 0x61, 0x72, 0x6e, 0x2d, 0x67, 0x67, 0x75, 0x66, 0x2d, 0x70, 0x61, 0x70, 0x65, 0x72};
    auto * backend        = new ggml_backend{};
    backend->guid         = &guid;
    backend->iface.get_name      = name_of_backend;
    backend->iface.free          = free_backend;
    backend->iface.graph_compute = compute;
    backend->device              = dev;
    return backend;
}

static bool supports_op(ggml_backend_dev_t, const ggml_tensor *) {
    return true;
}

static bool supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) {
    return buft->device == dev;
}

static bool offload_op(ggml_backend_dev_t, const ggml_tensor * op) {
    switch (op->op) {
    case GGML_OP_GET_ROWS:
        return false;
    case GGML_OP_MUL_MAT:
        return op->ne[1] >= LARGE_BATCH;
    case GGML_OP_MUL_MAT_ID:
    case GGML_OP_ROPE:
        return op->ne[2] >= LARGE_BATCH;
    default:
        return ggml_nrows(op) >= LARGE_BATCH;
    }
}

ggml_backend_dev_t yarn_gguf_paper_device(void) {
    static ggml_backend_device device = [] {
        ggml_backend_device device   = {};
        device.iface.get_name        = name;
        device.iface.get_description = name;
        device.iface.get_memory      = memory;
        device.iface.get_type        = type;
        device.iface.get_props       = props;
        device.iface.init_backend    = init_backend;
        device.iface.get_buffer_type = buffer_type;
        device.iface.supports_op     = supports_op;
        device.iface.supports_buft   = supports_buft;
        device.iface.offload_op      = offload_op;
        return device;
    }();
    return &device;
}
