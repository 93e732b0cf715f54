/* The C interface of uniecs (uniecs.hpp): opaque handles, status codes, and a message for the last error of a
 * thread.
 *
 *   uniecs_encoder *encoder = NULL;
 *   if (uniecs_encoder_load("bundles/mini", "openvino", "fp32", 0, &encoder) != UNIECS_OK)
 *       fprintf(stderr, "%s\n", uniecs_error_message());
 *   uniecs_item item = {.text = "red kurta"};
 *   float *x = malloc(uniecs_encoder_embed_dim(encoder) * sizeof *x);
 *   uniecs_encoder_encode(encoder, &item, 1, 0, x, NULL);
 *
 *   uniecs_engine *engine = NULL;
 *   uniecs_hits *hits = NULL;
 *   uniecs_engine_open("shop.uniecs", encoder, NULL, &engine);
 *   uniecs_engine_search(engine, &item, 10, NULL, "{\"price\": {\"$between\": [null, 50]}}", &hits);
 *   for (size_t i = 0; i < uniecs_hits_count(hits, 0); i++)
 *       printf("%.4f %s\n", uniecs_hits_at(hits, 0, i)->score, uniecs_hits_at(hits, 0, i)->id);
 *   uniecs_hits_free(hits);
 *   uniecs_engine_free(engine);
 *   uniecs_encoder_free(encoder);
 *
 * Every function may be called from any thread, but free waits for nobody: call it last. Strings are UTF-8
 * and end with a zero byte. What a function returns through a pointer is freed by the function that its
 * comment names, and is NULL where the call failed; freeing NULL does nothing. A string that a handle gives
 * lives as long as the handle. NULL in place of a handle, or of what is needed, is UNIECS_INPUT, and of a
 * function without a status 0, "" or NULL.
 */
#ifndef UNIECS_H
#define UNIECS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define UNIECS_API __declspec(dllexport)
#else
#define UNIECS_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum uniecs_status {
    UNIECS_OK = 0,
    UNIECS_INPUT = 1,          /* an argument or an item that cannot be used */
    UNIECS_IMAGE = 2,          /* an image that is missing, damaged, too large or of an unknown kind */
    UNIECS_TEXT = 3,           /* a text that is empty or no UTF-8 */
    UNIECS_FILTER = 4,         /* a where filter with an unknown key or an unusable value */
    UNIECS_BUNDLE = 5,         /* a model bundle that is missing, damaged, foreign or too new */
    UNIECS_INDEX_FILE = 6,     /* an index folder that is missing, damaged, foreign, too new or locked */
    UNIECS_MODEL_MISMATCH = 7, /* vectors of one model met another model */
    UNIECS_BACKEND = 8,        /* an engine, device or precision that is not available, or that failed */
    UNIECS_INTERNAL = 9        /* anything else, such as too little memory */
} uniecs_status;

typedef struct uniecs_encoder uniecs_encoder;
typedef struct uniecs_report uniecs_report; /* of many items or products: those that were left out, and why */

/* A text, an image, or both. An image is the path of a file, or `image_bytes` bytes at `image_data`. */
typedef struct uniecs_item {
    const char* text;       /* NULL: none */
    const char* image_path; /* NULL: none */
    const void* image_data; /* NULL: none */
    size_t image_bytes;
} uniecs_item;

/* What was wrong with this thread's last call that did not return UNIECS_OK; valid until its next such call.
 * The thread is the operating system's: in Go, lock the goroutine to its own for both calls. */
UNIECS_API const char* uniecs_error_message(void);

/* Load a bundle folder; backend "openvino" with precision "fp32", "bf16" or "int8", or "tensorrt" with
 * "fp16"; threads 0 leaves their number to the engine. */
UNIECS_API uniecs_status uniecs_encoder_load(const char* bundle, const char* backend, const char* precision,
                                             unsigned threads, uniecs_encoder** encoder);
UNIECS_API void uniecs_encoder_free(uniecs_encoder* encoder);
UNIECS_API size_t uniecs_encoder_embed_dim(const uniecs_encoder* encoder);
UNIECS_API const char* uniecs_encoder_model_id(const uniecs_encoder* encoder);
UNIECS_API const char* uniecs_encoder_bundle(const uniecs_encoder* encoder); /* as it was given */
UNIECS_API const char* uniecs_encoder_backend(const uniecs_encoder* encoder);
UNIECS_API const char* uniecs_encoder_device(const uniecs_encoder* encoder); /* "cpu" or "cuda" */
UNIECS_API const char* uniecs_encoder_precision(const uniecs_encoder* encoder);

/* Unit embeddings of n items into `out` (n x embed_dim), `batch_size` (0: 32) at a time. Items that cannot be
 * used are in the report, with NaN for their embeddings, and the others go on; where `report` is NULL, the
 * first of them fails the call. uniecs_report_free. */
UNIECS_API uniecs_status uniecs_encoder_encode(const uniecs_encoder* encoder, const uniecs_item* items,
                                               size_t n, size_t batch_size, float* out,
                                               uniecs_report** report);

/* The engine: products in an index folder, docs/index-format.md. NULL for what has a default. */

typedef struct uniecs_engine uniecs_engine;
typedef struct uniecs_hits uniecs_hits;

typedef struct uniecs_open_options {
    const char* durability; /* "full" (default) or "batch" */
    /* In the thread of the call that warns; the message is valid meanwhile. NULL: a line on stderr. */
    void (*warning)(const char* message, void* data);
    void* warning_data;
} uniecs_open_options;

typedef struct uniecs_index_config {
    const char*
        views;  /* of multimodal (default), image, text, with commas; the first is searched by default */
    uint32_t M; /* 0: 16 */
    uint32_t ef_construction; /* 0: 200 */
    const char* storage;      /* "float32" (default), "float16" or "int8" */
} uniecs_index_config;

/* At least one of title and image, the latter as in uniecs_item; blank ones are none. */
typedef struct uniecs_product {
    const char* id;
    const char* title;
    const char* image_path;
    const void* image_data;
    size_t image_bytes;
    const char* attributes; /* a JSON object; NULL: none */
} uniecs_product;

typedef struct uniecs_hit {
    const char* id;
    float score;            /* cosine similarity */
    const char* title;      /* NULL: none */
    const char* image_path; /* NULL: none; the bytes of the path */
    const char* attributes; /* a JSON object */
} uniecs_hit;

typedef struct uniecs_rejection {
    size_t row;
    const char* id; /* of a product; empty: it had none */
    uniecs_status status;
    const char* message;
} uniecs_rejection;

/* The encoder may be freed before the engine. */
UNIECS_API uniecs_status uniecs_engine_create(const char* path, const uniecs_encoder* encoder,
                                              const uniecs_index_config* config,
                                              const uniecs_open_options* options, uniecs_engine** engine);
UNIECS_API uniecs_status uniecs_engine_open(const char* path, const uniecs_encoder* encoder,
                                            const uniecs_open_options* options, uniecs_engine** engine);
UNIECS_API void uniecs_engine_free(uniecs_engine* engine); /* closes */
/* It lets go of the folder; later calls but close, views and free are UNIECS_INPUT. */
UNIECS_API uniecs_status uniecs_engine_close(uniecs_engine* engine);
UNIECS_API uniecs_status uniecs_engine_save(uniecs_engine* engine);
UNIECS_API uniecs_status uniecs_engine_size(const uniecs_engine* engine, size_t* products);
UNIECS_API const char* uniecs_engine_views(const uniecs_engine* engine); /* as in uniecs_index_config */

/* Products that cannot be used are in the report, and the others go on. uniecs_report_free; `report` may be
 * NULL. */
UNIECS_API uniecs_status uniecs_engine_add(uniecs_engine* engine, const uniecs_product* products, size_t n,
                                           uniecs_report** report);
UNIECS_API uniecs_status uniecs_engine_update(uniecs_engine* engine, const uniecs_product* products, size_t n,
                                              uniecs_report** report);
/* All or, where an id is unknown, none; how many there were into `removed`, which may be NULL. */
UNIECS_API uniecs_status uniecs_engine_remove(uniecs_engine* engine, const char* const* ids, size_t n,
                                              size_t* removed);

/* The `k` (1 or more) nearest; all if there are fewer. `where` is a filter as JSON, docs/cpp.md.
 * uniecs_hits_free. */
UNIECS_API uniecs_status uniecs_engine_search(const uniecs_engine* engine, const uniecs_item* query, size_t k,
                                              const char* view, const char* where, uniecs_hits** hits);
/* A query that cannot be read has a status of its own, and no hits. */
UNIECS_API uniecs_status uniecs_engine_search_batch(const uniecs_engine* engine, const uniecs_item* queries,
                                                    size_t n, size_t k, const char* view, const char* where,
                                                    uniecs_hits** hits);
UNIECS_API uniecs_status uniecs_engine_similar(const uniecs_engine* engine, const char* id, size_t k,
                                               const char* view, const char* where, uniecs_hits** hits);

/* What these return is valid until uniecs_hits_free; NULL and 0 for what is not there. */
UNIECS_API size_t uniecs_hits_queries(const uniecs_hits* hits);
UNIECS_API uniecs_status uniecs_hits_status(const uniecs_hits* hits, size_t query);
UNIECS_API const char* uniecs_hits_message(const uniecs_hits* hits, size_t query);
UNIECS_API size_t uniecs_hits_count(const uniecs_hits* hits, size_t query);
UNIECS_API const uniecs_hit* uniecs_hits_at(const uniecs_hits* hits, size_t query, size_t place);
/* [{"id": ..., "score": ..., "title": ..., "image": ..., "attributes": {...}}, ...]; NULL too where memory
 * is short. */
UNIECS_API const char* uniecs_hits_json(const uniecs_hits* hits, size_t query);
UNIECS_API void uniecs_hits_free(uniecs_hits* hits);

UNIECS_API size_t uniecs_report_added(const uniecs_report* report); /* or embedded */
UNIECS_API size_t uniecs_report_rejected(const uniecs_report* report);
UNIECS_API const uniecs_rejection* uniecs_report_at(const uniecs_report* report, size_t place);
UNIECS_API void uniecs_report_free(uniecs_report* report);

#ifdef __cplusplus
}
#endif

#endif
