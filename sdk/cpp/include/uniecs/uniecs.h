/* The C interface of uniecs (uniecs.hpp): opaque handles, status codes, and a message for the last error of a
 * thread.
 *
 *   uniecs_encoder *encoder = NULL;
 *   if (uniecs_encoder_load("bundles/mini", "fp32", 0, &encoder) != UNIECS_OK)
 *       fprintf(stderr, "%s\n", uniecs_error_message());
 *   uniecs_item item = {.text = "red kurta"};
 *   float *x = malloc(uniecs_encoder_embed_dim(encoder) * sizeof *x);
 *   uniecs_encoder_encode(encoder, &item, 1, x);
 *   uniecs_encoder_free(encoder);
 *
 * Every function may be called from any thread. Strings are UTF-8 and end with a zero byte. What a function
 * returns through a pointer is freed by the function that its comment names; freeing NULL does nothing.
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
    UNIECS_INDEX_FILE = 6,     /* an index folder that is missing, damaged, foreign or too new */
    UNIECS_MODEL_MISMATCH = 7, /* vectors of one model met another model */
    UNIECS_BACKEND = 8,        /* an engine, device or precision that is not available, or that failed */
    UNIECS_INTERNAL = 9        /* anything else, such as too little memory */
} uniecs_status;

typedef struct uniecs_encoder uniecs_encoder;

/* A text, an image, or both. An image is the path of a file, or `image_bytes` bytes at `image_data`. */
typedef struct uniecs_item {
    const char* text;       /* NULL: none */
    const char* image_path; /* NULL: none */
    const void* image_data; /* NULL: none */
    size_t image_bytes;
} uniecs_item;

/* What was wrong with this thread's last call that did not return UNIECS_OK; valid until its next call. */
UNIECS_API const char* uniecs_error_message(void);

/* Load a bundle folder; precision "fp32" or "bf16"; threads 0 leaves their number to the engine. */
UNIECS_API uniecs_status uniecs_encoder_load(const char* bundle, const char* precision, unsigned threads,
                                             uniecs_encoder** encoder);
UNIECS_API void uniecs_encoder_free(uniecs_encoder* encoder);
UNIECS_API size_t uniecs_encoder_embed_dim(const uniecs_encoder* encoder);
UNIECS_API const char* uniecs_encoder_model_id(const uniecs_encoder* encoder);

/* Unit embeddings of n items into `out` (n x embed_dim); an item that cannot be used fails the call. */
UNIECS_API uniecs_status uniecs_encoder_encode(const uniecs_encoder* encoder, const uniecs_item* items,
                                               size_t n, float* out);

#ifdef __cplusplus
}
#endif

#endif
