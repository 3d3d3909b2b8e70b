/* latentrt: Stable Diffusion from a bundle, from prompt to picture, without Python.
 *
 * Every function returns a status. Where `error` is not NULL, a failure puts an error there, which the caller frees with
 * latentrt_error_free; on success it becomes NULL. Handles and what they give out belong to the library until their
 * `_free` or `latentrt_close`; freeing NULL does nothing. Nothing that is passed in is kept after the call, but for the
 * log callback. No function throws, prints or changes the process (locale, signals, environment).
 *
 * Structs are filled by their `_init` function, which gets their size and writes it to `struct_size`. A program that was
 * compiled with an older header passes smaller structs: what they lack has its default. A larger struct is accepted
 * while the bytes that this library does not know are zero.
 *
 * Text is UTF-8 with a length in bytes; LATENTRT_NUL as length means that it ends at its first NUL.
 *
 * See docs/embedding.md for the guide.
 */
#ifndef LATENTRT_H
#define LATENTRT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#if defined(LATENTRT_BUILDING)
#define LATENTRT_API __attribute__((visibility("default")))
#else
#define LATENTRT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes only when an old program cannot use a new library, and so does the SONAME. */
#define LATENTRT_ABI_VERSION 0
#define LATENTRT_NUL ((size_t)-1)
/* A double at its default, which is the bundle's or Python's; see each field. */
#define LATENTRT_DEFAULT ((double)NAN)

typedef struct latentrt_pipeline latentrt_pipeline; /* an open bundle on a device; thread-safe */
typedef struct latentrt_plan latentrt_plan;         /* a scheduler with its steps, as a table; thread-safe */
typedef struct latentrt_call latentrt_call;         /* names a draw, to cancel it from another thread */
typedef struct latentrt_step latentrt_step;         /* valid inside of latentrt_on_step */
typedef struct latentrt_images latentrt_images;     /* finished pictures */
typedef struct latentrt_error latentrt_error;

typedef enum latentrt_status {
    LATENTRT_OK = 0,
    LATENTRT_INPUT = 1,         /* an argument is wrong; the text says what was given, and what is allowed */
    LATENTRT_SCHEDULER = 2,     /* unknown scheduler, or the bundle has no plan for it */
    LATENTRT_BUNDLE = 3,        /* not a complete bundle */
    LATENTRT_BACKEND = 4,       /* ONNX Runtime is missing, too old, or failed */
    LATENTRT_NONFINITE = 5,     /* the model returned NaN or infinity */
    LATENTRT_CANCELLED = 6,     /* by latentrt_cancel, or because latentrt_on_step returned 0 */
    LATENTRT_OUT_OF_MEMORY = 7, /* smaller calls still work */
    LATENTRT_UNEQUAL = 8,       /* latentrt_verify: the outputs are not the golden ones */
    LATENTRT_INTERNAL = 9       /* a fault of the library; please report it */
} latentrt_status;

typedef enum latentrt_log_level {
    LATENTRT_LOG_INFO = 1,
    LATENTRT_LOG_WARNING = 2
} latentrt_log_level;

typedef enum latentrt_rng {
    LATENTRT_RNG_CPU = 0, /* a seed gives the noise of torch.Generator("cpu") */
    LATENTRT_RNG_CUDA = 1 /* that of torch.Generator("cuda") on an H100 */
} latentrt_rng;

typedef enum latentrt_prompt_syntax {
    LATENTRT_SYNTAX_PLAIN = 0, /* brackets are text */
    LATENTRT_SYNTAX_WEB_UI = 1 /* (word:1.2), ((word)), [word], \( and BREAK */
} latentrt_prompt_syntax;

typedef enum latentrt_long_prompt {
    LATENTRT_LONG_TRUNCATE = 0, /* the first 75 tokens are used, with a warning */
    LATENTRT_LONG_CHUNK = 1     /* all are used, 75 at a time */
} latentrt_long_prompt;

typedef enum latentrt_output {
    LATENTRT_OUTPUT_IMAGES = 0, /* pictures and latents */
    LATENTRT_OUTPUT_LATENTS = 1 /* latents alone: nothing is decoded */
} latentrt_output;

typedef enum latentrt_preview {
    LATENTRT_PREVIEW_AUTO = 0, /* RGB where the bundle has `latent_rgb`, else the VAE */
    LATENTRT_PREVIEW_RGB = 1,
    LATENTRT_PREVIEW_VAE = 2
} latentrt_preview;

typedef struct latentrt_text {
    const char *data; /* NULL: not given */
    size_t length;    /* bytes, or LATENTRT_NUL */
} latentrt_text;

/* A picture in memory: rows of `width` pixels of `channels` bytes (1 grey, 3 RGB, 4 RGBA; alpha is dropped). */
typedef struct latentrt_pixels {
    const uint8_t *data;
    int32_t height;
    int32_t width;
    int32_t channels;
    size_t stride; /* bytes from row to row; 0: width * channels */
} latentrt_pixels;

/* Height and width, or top and left; negative: not given. */
typedef struct latentrt_pair {
    int32_t first;
    int32_t second;
} latentrt_pair;

/* Called by the threads that open and draw, several at once. It must not call into the library, and must not throw. */
typedef void (*latentrt_log_callback)(latentrt_log_level level, const char *text, size_t length, void *user);

/* Called after each model call, by the thread that draws. Returns 0 to stop. It may call into the library, but not
 * close the pipeline. It must not throw: the C++ face catches what is thrown, stops, and throws it again. */
typedef int (*latentrt_on_step)(const latentrt_step *step, void *user);

typedef struct latentrt_open_options {
    size_t struct_size;
    latentrt_text onnxruntime;          /* file of the library; else LATENTRT_ONNXRUNTIME, else libonnxruntime.so.1 */
    latentrt_text provider;             /* cpu (the default), cuda, tensorrt, nv_tensorrt_rtx */
    int32_t device;                     /* number of the GPU */
    int32_t threads;                    /* of ONNX Runtime on the CPU; 0: one for each core */
    const latentrt_text *provider_keys; /* options of the provider, as ONNX Runtime names them */
    const latentrt_text *provider_values;
    size_t provider_options_count;
    const latentrt_text *plans; /* files of plan packs, besides the bundle's; they come first */
    size_t plans_count;
    latentrt_log_callback log;
    void *log_user;
} latentrt_open_options;

typedef struct latentrt_request {
    size_t struct_size;

    /* Texts. Each of the lists has one text for all prompts, or one for each; none is the default. */
    const latentrt_text *prompts;
    size_t prompts_count;
    const latentrt_text *negative_prompts; /* default: empty, or zeros for models that were trained so */
    size_t negative_prompts_count;
    const latentrt_text *prompts_2; /* for the second text encoder (SDXL); default: the prompts */
    size_t prompts_2_count;
    const latentrt_text *negative_prompts_2;
    size_t negative_prompts_2_count;
    latentrt_prompt_syntax prompt_syntax;
    latentrt_long_prompt long_prompt;
    int32_t clip_skip; /* final layers of the text encoder to skip, for the prompts alone */

    /* Size and number. */
    int32_t num_images_per_prompt;
    int32_t height; /* pixels; 0: that of the image, else the bundle's */
    int32_t width;

    /* Steps. A plan comes with its steps; then `scheduler`, `num_inference_steps` and `strength` stay at their
     * defaults. */
    latentrt_text scheduler;     /* such as euler_a or dpm++_2m_karras; default: the bundle's */
    int32_t num_inference_steps; /* 0: the bundle's */
    const latentrt_plan *plan;

    /* Guidance. */
    const double *guidance_scales; /* one for all images, or one for each; none: the bundle's */
    size_t guidance_scales_count;
    double guidance_rescale; /* 0 to 1 */
    double guidance_start;   /* share of the calls after which guidance begins */
    double guidance_end;     /* and ends */

    /* Noise. */
    const uint64_t *seeds; /* one for the first image, from which the others count up, or one for each; none: random */
    size_t seeds_count;
    latentrt_rng rng;
    int64_t noise_seed_delta; /* added to the seed for the noise between calls; 0: it continues the seed's */
    const float *latents;     /* (images, C, h, w) unit normal noise to start from instead of the seed's */
    size_t latents_count;     /* floats; 0: none */

    /* Pictures to start from: one for all prompts, one for each, or one for each image. */
    const latentrt_pixels *images;
    size_t images_count;
    const latentrt_pixels *masks; /* one, or one for each picture: light where it is drawn anew */
    size_t masks_count;
    const float *image_latents; /* (n, C, h, w) instead of `images`, as latentrt_images_latents gives them; set
                                 * `height` and `width` */
    size_t image_latents_count; /* floats */
    double strength;            /* above 0 up to 1: how much of the picture is drawn anew; default: the bundle's */

    /* What SDXL is told of sizes. */
    latentrt_pair original_size;
    latentrt_pair crops_coords_top_left;
    latentrt_pair target_size;
    latentrt_pair negative_original_size;
    latentrt_pair negative_crops_coords_top_left;
    latentrt_pair negative_target_size;

    int32_t vae_tiling; /* not 0: decode and encode large pictures in tiles, which needs less memory */
    latentrt_output output;
    latentrt_call *call; /* to cancel it; may be NULL */
} latentrt_request;

/* How near the outputs come to the golden ones. */
typedef struct latentrt_verification {
    size_t struct_size;
    int32_t ids_equal;      /* 1 where the tokenizers return the golden ids */
    double embedding_error; /* relative errors, and their limits */
    double embedding_tolerance;
    double latents_error;
    double latents_tolerance;
    double psnr; /* dB, infinite for equal pictures */
    double psnr_floor;
} latentrt_verification;

LATENTRT_API uint32_t latentrt_abi_version(void);
/* Such as "0.1.0". */
LATENTRT_API const char *latentrt_version(void);

LATENTRT_API latentrt_status latentrt_error_status(const latentrt_error *error);
/* Ends with NUL; lives as long as the error. */
LATENTRT_API const char *latentrt_error_text(const latentrt_error *error);
LATENTRT_API void latentrt_error_free(latentrt_error *error);

/* `struct_size` is sizeof the struct, as the program was compiled. */
LATENTRT_API void latentrt_open_options_init(latentrt_open_options *options, size_t struct_size);
LATENTRT_API void latentrt_request_init(latentrt_request *request, size_t struct_size);
LATENTRT_API void latentrt_verification_init(latentrt_verification *verification, size_t struct_size);

/* Opens a bundle, a folder. `options` may be NULL. */
LATENTRT_API latentrt_status latentrt_open(const char *bundle, const latentrt_open_options *options,
                                           latentrt_pipeline **out, latentrt_error **error);
/* Waits for draws that are under way. No call may begin after this one has. */
LATENTRT_API void latentrt_close(latentrt_pipeline *pipeline);

/* What runs the graphs, such as "onnxruntime-cpu 1.31.1". Lives as long as the pipeline. */
LATENTRT_API const char *latentrt_backend(const latentrt_pipeline *pipeline);
/* Names of schedulers that the bundle has plans for, those of diffusers' classes among them; NULL behind the last one.
 * They live as long as the pipeline. */
LATENTRT_API const char *latentrt_scheduler_name(const latentrt_pipeline *pipeline, size_t index);
/* The bundle's default size in pixels. */
LATENTRT_API int32_t latentrt_default_height(const latentrt_pipeline *pipeline);
LATENTRT_API int32_t latentrt_default_width(const latentrt_pipeline *pipeline);

/* Draws. `on_step` may be NULL. Several threads may draw on one pipeline at once. */
LATENTRT_API latentrt_status latentrt_draw(latentrt_pipeline *pipeline, const latentrt_request *request,
                                           latentrt_on_step on_step, void *user, latentrt_images **out,
                                           latentrt_error **error);
/* Draws the golden picture of the bundle and compares each stage. `out` may be NULL, and is filled on LATENTRT_OK and
 * on LATENTRT_UNEQUAL. */
LATENTRT_API latentrt_status latentrt_verify(latentrt_pipeline *pipeline, latentrt_verification *out,
                                             latentrt_error **error);

LATENTRT_API latentrt_status latentrt_call_new(latentrt_call **out, latentrt_error **error);
/* From any thread, also before the draw begins; it ends after the model call, or the decoding, that is under way. A call
 * that was cancelled stays so. */
LATENTRT_API void latentrt_cancel(latentrt_call *call);
LATENTRT_API void latentrt_call_free(latentrt_call *call);

/* A document of the format latentrt.plan/1, as `latentrt schedule … --json` writes it. */
LATENTRT_API latentrt_status latentrt_plan_from_memory(const char *json, size_t length, latentrt_plan **out,
                                                       latentrt_error **error);
LATENTRT_API void latentrt_plan_free(latentrt_plan *plan);

/* Of the finished model call, from 0; some schedulers need more than one call a step. */
LATENTRT_API size_t latentrt_step_index(const latentrt_step *step);
LATENTRT_API size_t latentrt_step_total(const latentrt_step *step);
LATENTRT_API size_t latentrt_step_images(const latentrt_step *step);
/* The picture as the model predicts it now; computed when asked for. The pixels (height, width, 3) live until the
 * callback returns. */
LATENTRT_API latentrt_status latentrt_step_preview(const latentrt_step *step, size_t image, latentrt_preview method,
                                                   const uint8_t **pixels, int32_t *height, int32_t *width,
                                                   latentrt_error **error);

LATENTRT_API size_t latentrt_images_count(const latentrt_images *images);
LATENTRT_API int32_t latentrt_images_height(const latentrt_images *images);
LATENTRT_API int32_t latentrt_images_width(const latentrt_images *images);
LATENTRT_API uint64_t latentrt_images_seed(const latentrt_images *images, size_t index);
/* (height, width, 3) bytes; NULL for LATENTRT_OUTPUT_LATENTS, or an index that there is not. */
LATENTRT_API const uint8_t *latentrt_images_pixels(const latentrt_images *images, size_t index);
/* `shape` gets three sizes, C, h and w, and may be NULL. */
LATENTRT_API const float *latentrt_images_latents(const latentrt_images *images, size_t index, size_t *shape);
/* Milliseconds of a stage: tokenize, text_encoder, vae_encoder, denoise, vae_decoder, total; 0 where it did not run. */
LATENTRT_API double latentrt_images_milliseconds(const latentrt_images *images, const char *stage);
/* What PNG files of latentrt hold as text, by key: parameters (as web UIs read it) and latentrt (JSON). NULL: no such
 * key. */
LATENTRT_API const char *latentrt_images_text(const latentrt_images *images, size_t index, const char *key);
/* The picture as a PNG file with these texts. The bytes live as long as `images`; safe from several threads. */
LATENTRT_API latentrt_status latentrt_images_png(const latentrt_images *images, size_t index, const uint8_t **data,
                                                 size_t *length, latentrt_error **error);
LATENTRT_API void latentrt_images_free(latentrt_images *images);

#ifdef __cplusplus
}
#endif

#endif
